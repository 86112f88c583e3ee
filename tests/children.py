"""Processes that tests start: what they inherit from this one, and how long is waited for them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 600.0
"""Ends a test that hangs. No test may need it: a busy machine is slower by any factor."""
POLL_S = 0.02


def give_children_defaults() -> None:
    """Let every child of this process begin with default signal dispositions and no blocked signal.

    Under nohup, or as a script's job in the background, a process ignores signals, and so would all that it starts. A
    handler of ours is reset when a program is executed, and keeps this process as deaf as it was.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # Python's own, which subprocess resets
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(condition: Callable[[], T], at_end: Callable[[], str] = lambda: "") -> T:
    """The first true value of `condition()`; fails the test with what `at_end` says after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(POLL_S)
    raise AssertionError(f"waited {PATIENCE_S:g} s in vain for {condition} {at_end()}")


def under(shell: str, command: list[str]) -> list[str]:
    """The command, after `shell` has changed what it inherits: "trap '' HUP" is what nohup does."""
    return ["/bin/sh", "-c", f'{shell}; exec "$@"', "sh", *command]
