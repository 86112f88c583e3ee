"""How a worker is asked to stop: by a signal, or because its driver is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import psutil

from pipeline.engine.errors import Interrupted

DRIVER_PID, DRIVER_STARTED = "LLAMA_PRO_DRIVER_PID", "LLAMA_PRO_DRIVER_STARTED"
SAME_START_S = 5.0
"""The start times of one process, read twice, differ by less: the clock may be adjusted in between."""
POLL_S = 0.5
GRACE_S = 30.0
"""How long a worker may take to save after it was asked to stop, unless `launch.grace_s` says otherwise."""


class Stop:
    """The request to stop. The first signal raises `Interrupted` in the main thread, or only sets a flag if a stage
    said that it looks at it; further signals change nothing, so that saving is not disturbed."""

    def __init__(self) -> None:
        self.requested = False
        self.deferred = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            return
        self.requested = True
        if not self.deferred:
            raise Interrupted(f"received {signal.Signals(number).name}")

    @contextlib.contextmanager
    def handling(self) -> Iterator[Stop]:
        """Handle SIGTERM and SIGINT in here; in a thread other than the main one, do nothing."""
        with _handled((signal.SIGTERM, signal.SIGINT), self):
            yield self


def restore_signals() -> None:
    """Undo what the program that started this one may have left, in a driver or a worker.

    Signals that stop a run are unblocked, or they would never arrive; with SIGCHLD ignored the kernel keeps no exit
    status of a child. Whoever ignores SIGHUP (nohup) or SIGINT (a script, of its job in the background) means it.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def termination_as_interrupt() -> contextlib.AbstractContextManager[None]:
    """In a driver, let SIGTERM, and SIGHUP unless it is ignored (nohup), raise `Interrupted` as Ctrl-C does.

    SIGTERM does so even where it was ignored: it is how a run without a terminal is stopped.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(f"received {signal.Signals(number).name}")

    hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL else []
    return _handled([signal.SIGTERM, *hangup], interrupt)


@contextlib.contextmanager
def _handled(numbers: Sequence[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have these signals handled in here; in a thread other than the main one, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def grace_s(launch: Mapping[str, Any]) -> float:
    """Seconds between the request to stop and the end by force."""
    given = launch.get("grace_s")
    return GRACE_S if given is None else float(given)


def driver_identity() -> dict[str, str]:
    """The environment by which a worker knows the process that started it."""
    return {DRIVER_PID: str(os.getpid()), DRIVER_STARTED: str(psutil.Process().create_time())}


def watch_driver(environment: Mapping[str, str], grace_s: float) -> threading.Thread | None:
    """Stop this process when its driver is gone: SIGTERM to itself, SIGKILL `grace_s` seconds later.

    Returns the daemon thread that watches, or None if no driver is named (a worker started by hand).
    """
    if not environment.get(DRIVER_PID):
        return None
    driver = find_process(int(environment[DRIVER_PID]), float(environment.get(DRIVER_STARTED) or 0))
    thread = threading.Thread(target=_watch, args=(driver, grace_s), daemon=True, name="watch-driver")
    thread.start()
    return thread


def _watch(driver: psutil.Process | None, grace_s: float) -> None:
    while driver is not None and alive(driver):
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os.kill(os.getpid(), signal.SIGKILL)


def find_process(pid: int, started: float) -> psutil.Process | None:
    """The process of this pid, if it is the one that started then (seconds; 0: whenever); None if it is gone."""
    try:
        process = psutil.Process(pid)
        return process if not started or abs(process.create_time() - started) < SAME_START_S else None
    except psutil.NoSuchProcess:
        return None


def alive(process: psutil.Process) -> bool:
    """Whether the process runs: not gone, not replaced by another of the same pid, not a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
