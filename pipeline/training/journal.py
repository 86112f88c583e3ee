"""What a run writes down as it goes: one line for each step, cut back on a resume to the steps that stand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.file_io import sync


class Journal:
    """Files of JSON lines that tell of every step once, also after a crash: no line repeated, none missing.

    A process writes only if it is the main one.

    Args:
        directory: holds the files `<name>.jsonl`.
        names: of the files.
        is_main: whether this process is the one that writes.
    """

    def __init__(self, directory: Path, names: tuple[str, ...], is_main: bool) -> None:
        self._files = {name: directory / f"{name}.jsonl" for name in names}
        self._is_main = is_main

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        """Append a line."""
        if self._is_main:
            with self._files[name].open("a") as out:
                out.write(json.dumps(record) + "\n")

    def lengths(self) -> dict[str, int]:
        """Bytes of every file, which are on the disk when this returns: what a checkpoint keeps of them."""
        for file in self._files.values():
            sync(file)
        return {name: file.stat().st_size for name, file in self._files.items()}

    def cut(self, lengths: Mapping[str, int]) -> None:
        """Take back what was written after a checkpoint: those steps will be taken again. Files not named are emptied.

        Raises:
            ValueError: a file is shorter than it was.
        """
        if not self._is_main:
            return
        for name, file in self._files.items():
            file.touch()
            length = lengths.get(name, 0)
            if file.stat().st_size < length:
                raise ValueError(
                    f"{file} has {file.stat().st_size} bytes, {length} when the checkpoint was written; it was "
                    "changed or lost: restore it, or delete the checkpoints beside it to start afresh"
                )
            with file.open("r+b") as out:
                out.truncate(length)
