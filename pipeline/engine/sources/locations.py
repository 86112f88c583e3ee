"""Local data is what its files hold, not where they lie: paths leave the identity and content hashes enter it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.engine.errors import ConfigError
from pipeline.engine.fingerprint import digest
from pipeline.engine.sources.hashes import HashCache
from pipeline.engine.sources.kinds import replaced
from pipeline.globs import matches


def localize(params: Any, cache: Path, keys: Mapping[str, str] | None = None) -> tuple[Any, dict[str, dict[str, Any]]]:
    """Replace `{kind: local, path, include?, exclude?}` by `{kind: local, content}` everywhere in `params`.

    `content` is the sha256 over the sorted relative names and file hashes of what is meant; other keys of the mapping
    stay. File hashes are remembered in `<cache>/hashes.json`. Errors name a source by its key in `params`, of which the
    first part is what `keys` calls it.

    Returns:
        The new params, and content -> {"path": absolute, "include": [...] | None, "exclude": [...]}.

    Raises:
        ConfigError: if a path is missing or unreadable, or if nothing is there or matches.
    """
    hashes, locations = HashCache(cache), {}

    def by_content(source: dict[str, Any], where: str) -> dict[str, Any]:
        first, dot, below = (where or "source").partition(".")
        where = f"{(keys or {}).get(first, first)}{dot}{below}"
        if "path" not in source:
            if "content" in source:
                return source
            raise ConfigError(f"{where}: a local source needs a path; found only the keys {sorted(source)}")
        location = _location(source, where)
        content = _content(location, hashes, where)
        locations[content] = location
        rest = {key: value for key, value in source.items() if key not in ("path", "include", "exclude")}
        return {**rest, "content": content}

    try:
        return replaced(params, by_content, "local"), locations
    finally:
        hashes.save()


def listing(path: Path, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None) -> list[str]:
    """Sorted relative POSIX names of the files below `path` that match some `include` and no `exclude`.

    `*` and `?` stay within one folder, `**/` is any number of folders, a trailing `**` is everything below; without
    `include` everything matches. Hidden names and `__pycache__` never count; links are followed. If `path` is a
    file, its name is the only one and the globs are not asked.
    """
    if path.is_file():
        return [path.name]
    wanted, unwanted = list(include or ["**"]), list(exclude or [])
    # what lies below a folder excluded as a whole is not even looked at: it may be 30 000 files
    closed = [pattern.removesuffix("/**") for pattern in unwanted if pattern.endswith("/**")]
    names = _walk(str(path), "", closed, frozenset())
    return sorted(name for name in names if matches(name, wanted, unwanted))


def local_path(path: Any, where: str) -> Path:
    """A path as the config gives it, absolute, `~` expanded. `where` is the key that holds it.

    Raises:
        ConfigError: it is not text, such as a directory's name of digits that was read as a number.
    """
    if not isinstance(path, str) or not path:
        digits = "; a name of digits needs quotes within quotes" if type(path) in (int, float) else ""
        raise ConfigError(f"{where}={path!r} must be the path of a file or directory, as text{digits}")
    return Path(path).expanduser().absolute()


def _location(source: dict[str, Any], where: str) -> dict[str, Any]:
    path = local_path(source["path"], f"{where}.path")
    if not path.exists():
        raise ConfigError(f"{where}.path: {path} does not exist; correct the path or put the data there")
    for key in ("include", "exclude"):
        if isinstance(source.get(key), str):
            raise ConfigError(f"{where}.{key}={source[key]!r} is one string; give a list of globs")
    include, exclude = source.get("include"), source.get("exclude")
    return {"path": str(path), "include": list(include) if include else None, "exclude": list(exclude or [])}


def _content(location: dict[str, Any], hashes: HashCache, where: str) -> str:
    path = Path(location["path"])
    try:
        names = listing(path, location["include"], location["exclude"])
        if not names:
            raise ConfigError(f"{where}.path: {_emptiness(path, location)}")
        files = [path] if path.is_file() else [path / name for name in names]
        return digest([[name, hashes.sha256(file)] for name, file in zip(names, files, strict=True)])
    except OSError as error:
        raise ConfigError(f"{where}.path: {error.filename or path} cannot be read: {error.strerror}") from error


def _emptiness(path: Path, location: dict[str, Any]) -> str:
    if location["include"] not in (None, ["**"]) or location["exclude"]:
        globs = f"include={location['include']} exclude={location['exclude']}"
        return f"no file below {path} matches {globs}; globs match whole relative names, e.g. '**/*.py'"
    return f"{path} holds no files (hidden ones do not count); point it to the data"


def _walk(folder: str, prefix: str, closed: Sequence[str], above: frozenset[tuple[int, int]]) -> Iterator[str]:
    stat = os.stat(folder)
    if (stat.st_dev, stat.st_ino) in above:  # a link back to a folder that holds it
        return
    here = above | {(stat.st_dev, stat.st_ino)}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            name = prefix + entry.name
            if entry.name.startswith(".") or entry.name == "__pycache__":
                continue
            if entry.is_file():
                yield name
            elif entry.is_dir() and not matches(name, closed):
                yield from _walk(entry.path, f"{name}/", closed, here)
