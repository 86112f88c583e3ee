"""One builder for one artifact: advisory locks that the kernel frees when their holder dies, and who holds them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from pipeline.engine.errors import ArtifactError
from pipeline.engine.sources.hashes import read_object, write_atomic

POLL_S = 0.5
WRITING = (".worker.lock", ".worker.pid")
ORPHAN_S = 60.0
"""How long a new worker waits for one that outlived its driver; such a worker stops by itself."""


@contextlib.contextmanager
def building(directory: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold `<directory>.lock`; while another driver holds it, say who, once, and wait.

    The lock lies beside the directory and is keyed by its fingerprint, not its label. Who holds it is written as JSON
    into `<lock>.owner`; the file of a dead owner means nothing, because the kernel has freed its lock.
    """
    path = lock_path(directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"waiting for {directory.name}: {describe(owner(path))} is building it")
        lock.acquire(poll_interval=POLL_S)
    try:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(psutil.Process().create_time()))
        me = {"pid": os.getpid(), "host": socket.gethostname(), "started": started, "argv": sys.argv}
        write_atomic(_owner_path(path), json.dumps(me))
        yield
    finally:
        _owner_path(path).unlink(missing_ok=True)
        lock.release()


def lock_path(directory: Path) -> Path:
    """`.<fingerprint>.lock` beside the directory: two labels of one artifact share it."""
    return directory.with_name(f".{directory.name.rpartition('-')[2]}.lock")


def owner(path: Path) -> dict[str, Any]:
    """What the holder of the lock wrote about itself: pid, host, started, argv; empty if it has not yet."""
    return read_object(_owner_path(path))


def describe(who: dict[str, Any]) -> str:
    if not who:
        return "another process"
    command = " ".join(map(str, who.get("argv") or []))
    return f"process {who.get('pid')} on {who.get('host')} (since {who.get('started')}: {command})"


@contextlib.contextmanager
def writing(directory: Path, timeout_s: float = ORPHAN_S) -> Iterator[None]:
    """Hold `<directory>/.worker.lock`, so that a worker whose driver died and a new one never write together.

    Raises:
        ArtifactError: with the other worker's pid, if it holds on for longer than `timeout_s` seconds.
    """
    lock, pid = FileLock(directory / WRITING[0]), directory / WRITING[1]
    try:
        lock.acquire(timeout=timeout_s, poll_interval=0.2)
    except Timeout as error:
        holder = pid.read_text(encoding="utf-8") if pid.is_file() else "unknown"
        raise ArtifactError(
            f"{directory} is still being written by process {holder} after {timeout_s:.0f} s; "
            f"stop it (kill {holder}) and run again"
        ) from error
    try:
        pid.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        pid.unlink(missing_ok=True)
        lock.release()


def _owner_path(lock: Path) -> Path:
    return lock.with_name(lock.name + ".owner")
