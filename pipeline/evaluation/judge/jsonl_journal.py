"""Records that are kept one by one as they come, so that an interrupted evaluation loses none of what it paid for."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class JsonlJournal:
    """A file of JSON lines: read once, then appended to, each line flushed to the disk. Safe between threads.

    A last line that was torn by a crash is dropped. Raises ValueError if another line is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._records = list(self._read())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(list(self._records))

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record of plain JSON values."""
        line = json.dumps(record) + "\n"
        with self._lock, self._path.open("a", encoding="utf-8") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
            self._records.append(record)

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self._path.is_file():
            return
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            self._path.write_bytes(whole)
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{self._path}: line {number} is damaged ({error}); delete the file") from error
