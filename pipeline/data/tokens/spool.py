"""Records kept on disk while they are looked at, so that a source may be larger than memory."""

from __future__ import annotations

from array import array
from pathlib import Path


class Spool:
    """An append-only file of records, each made of byte strings; removed when the context ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w+b")
        self._offsets = array("q", [0])
        self._parts = array("q", [0])

    def append(self, *parts: bytes) -> None:
        """Add a record."""
        self._file.seek(0, 2)
        for part in parts:
            self._file.write(part)
            self._offsets.append(self._offsets[-1] + len(part))
        self._parts.append(len(self._offsets) - 1)

    def size(self, record: int, number: int) -> int:
        """Bytes of a part of a record. Raises IndexError if there is none."""
        index = self._index(record, number)
        return self._offsets[index + 1] - self._offsets[index]

    def part(self, record: int, number: int) -> bytes:
        """A part of a record. Raises IndexError if there is none."""
        index = self._index(record, number)
        self._file.seek(self._offsets[index])
        return self._file.read(self._offsets[index + 1] - self._offsets[index])

    def _index(self, record: int, number: int) -> int:
        index = self._parts[record] + number
        if not index < self._parts[record + 1]:
            raise IndexError(f"record {record} has no part {number}")
        return index

    def __len__(self) -> int:
        return len(self._parts) - 1

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink()
