"""Processes and memory of a family of processes, as /proc shows them."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)
_THREADS = re.compile(r"^Threads:\s+(\d+)", re.MULTILINE)
_UID = re.compile(r"^Uid:\s+(\d+)", re.MULTILINE)
_PER_NAMESPACE = (5, 14)
"""The kernel from which RLIMIT_NPROC counts a user's processes in each user namespace by itself."""


def family(root: int) -> Iterator[int]:
    """A process and all its descendants; those that end meanwhile may be missing."""
    waiting = [root]
    while waiting:
        process = waiting.pop()
        yield process
        for file in _tasks(process):
            waiting += [int(child) for child in _text(file / "children").split()]


def held_bytes(root: int) -> int:
    """Memory of a family, pages that processes share divided among them."""
    return sum(map(_held_bytes, family(root)))


def _held_bytes(process: int) -> int:
    if found := _PSS.search(_text(Path(f"/proc/{process}/smaps_rollup"))):
        return int(found[1]) << 10
    # a process that hides from its like: what everybody sees, shared pages counted for each
    resident = _text(Path(f"/proc/{process}/statm")).split()[1:2]
    return int(resident[0]) * resource.getpagesize() if resident else 0


def counts_per_namespace() -> bool:
    """Whether the limit of processes holds for each sandbox alone, not for all processes of the user."""
    numbers = re.findall(r"\d+", os.uname().release)[:2]
    return tuple(map(int, numbers)) >= _PER_NAMESPACE


def tasks_of(user: int) -> int:
    """Processes and threads that a user has now."""
    texts = (_text(file / "status") for file in Path("/proc").iterdir() if file.name.isdigit())
    found = ((_UID.search(text), _THREADS.search(text)) for text in texts)
    return sum(int(threads[1]) for uid, threads in found if uid and threads and int(uid[1]) == user)


def _tasks(process: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{process}/task").iterdir())
    except OSError:
        return []


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # it ended meanwhile
        return ""
