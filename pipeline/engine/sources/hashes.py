"""File hashes, remembered by what `stat` says, so that an unchanged 13 GB file is read once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

from pipeline.file_io import sync

SETTLED_S = 2.0
"""A file younger than this is not remembered: a second write within the clock's grain would go unseen."""


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a reader, or a crash, sees the old file or the new one. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        sync(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that may be missing or unreadable, or hold something else: then an empty one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class HashCache:
    """sha256 by (absolute path, size, mtime, inode), kept in `<cache>/hashes.json`.

    A missing or unreadable cache file counts as empty: it only costs time. Call `save` when done; entries that
    another driver added meanwhile are kept.
    """

    def __init__(self, cache: Path) -> None:
        self._file = cache / "hashes.json"
        self._known: dict[str, list] = read_object(self._file)
        self._new: dict[str, list] = {}

    def sha256(self, path: Path) -> str:
        """Hash of the file's content. Raises OSError if it cannot be read."""
        stamp = self._stamp(path)
        if known := self._remembered(path, stamp):
            return known
        found = sha256_file(path)
        settled = time.time() - stamp[1] / 1e9 > SETTLED_S
        if settled and self._stamp(path) == stamp:
            self._new[os.path.abspath(path)] = [*stamp, found]
        return found

    def remembers(self, path: Path) -> bool:
        """Whether `sha256` would not have to read the file. Raises OSError if it is not there."""
        return bool(self._remembered(path, self._stamp(path)))

    def save(self) -> None:
        """Write what was learnt. A cache that cannot be written is no error."""
        if not self._new:
            return
        self._known = {**read_object(self._file), **self._new}
        with contextlib.suppress(OSError):
            write_atomic(self._file, json.dumps(self._known, separators=(",", ":"), sort_keys=True))
            self._new = {}

    def _remembered(self, path: Path, stamp: list[int]) -> str | None:
        name = os.path.abspath(path)
        known = self._new.get(name) or self._known.get(name)
        fits = isinstance(known, list) and len(known) == 4 and known[:3] == stamp
        return str(known[3]) if known and fits else None

    @staticmethod
    def _stamp(path: Path) -> list[int]:
        stat = path.stat()
        return [stat.st_size, stat.st_mtime_ns, stat.st_ino]
