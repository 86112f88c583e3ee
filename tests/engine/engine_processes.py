"""Looking at other processes, and waiting for what they do."""

from __future__ import annotations

import time

import psutil


def family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_for(condition, timeout_s: float = 20.0):
    """The first true value of `condition()`; fails the test after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s} s in vain for {condition}")


def gone(pid: int) -> bool:
    """Whether no process of this pid runs; a zombie runs no more."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
