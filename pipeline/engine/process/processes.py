"""A worker's process tree: asked to stop gently, and in the end gone for certain."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection

import psutil

from pipeline.engine.process.signals import alive

POLL_S = 0.1
SWEEPS = 20


class Tree:
    """A process and every descendant that was ever seen.

    The root must lead a session of its own: a launcher that dies early leaves its children to init, where no search
    from the root finds them, but they stay in its session. Descendants that left it are remembered from each `look`.
    """

    def __init__(self, pid: int) -> None:
        self._root = pid
        self._seen: set[psutil.Process] = set()
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen.add(psutil.Process(pid))

    def look(self) -> None:
        """Remember the descendants that exist now."""
        for pid in psutil.pids():
            with contextlib.suppress(psutil.Error, OSError):
                if os.getsid(pid) == self._root:
                    self._seen.add(psutil.Process(pid))
        for process in list(self._seen):
            with contextlib.suppress(psutil.Error):
                self._seen.update(process.children(recursive=True))

    def living(self) -> list[psutil.Process]:
        return [process for process in self._seen if alive(process)]

    def terminate(self, ranks: Collection[int]) -> None:
        """SIGTERM to the ranks, or to everything as long as no rank has announced itself.

        Launchers and helpers of a rank are spared: they would tear down a rank that is saving its state.
        """
        self.look()
        living = self.living()
        for process in [one for one in living if one.pid in ranks] or living:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGTERM)

    def wait(self, ranks: Collection[int], timeout_s: float) -> bool:
        """Whether the root and the ranks ended within `timeout_s` seconds; helpers that stayed do not count."""
        awaited, deadline = {self._root, *ranks}, time.monotonic() + timeout_s
        while waiting := any(one.pid in awaited for one in self.living()):
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
            self.look()
        return not waiting

    def kill(self) -> None:
        """SIGKILL to everything, again until nothing new has appeared."""
        for _ in range(SWEEPS):
            self.look()
            if not (living := self.living()):
                return
            for process in living:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(POLL_S / 2)
