"""Looking at other processes."""

from __future__ import annotations

import psutil


def family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def gone(pid: int) -> bool:
    """Whether no process of this pid runs; a zombie runs no more."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
