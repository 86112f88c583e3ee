"""The near end of a launcher: a process of its own that runs jobs one after another."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[3]
START = f"import sys; sys.path.append({str(_ROOT)!r}); from pipeline.evaluation.sandbox.launcher import main; main()"
_BLOCK = 1 << 16


class SandboxError(RuntimeError):
    """The sandbox itself failed: never the fault of the program that was to run."""


class Launcher:
    """A process that runs `pipeline.evaluation.sandbox.launcher` with a bare interpreter and an empty environment."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", "-c", START]
        inner, self._jobs = os.pipe()
        self._answers, outer = os.pipe()
        self._process = subprocess.Popen(command, stdin=inner, stdout=outer, env={}, cwd="/")
        os.close(inner)
        os.close(outer)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def ask(self, job: Mapping[str, Any], patience_s: float) -> dict[str, Any]:
        """The answer to a job. Raises SandboxError if there is none in time; the launcher is then of no more use."""
        try:
            self._send(json.dumps(job).encode() + b"\n")
            found: dict[str, Any] = json.loads(self._line(time.monotonic() + patience_s))
        except (OSError, ValueError) as error:
            raise SandboxError(f"the launcher of a sandbox gave no answer: {error}") from error
        return found

    def kill(self) -> None:
        """End it, with what it runs, while another thread waits for an answer; that one gets a SandboxError."""
        self._process.kill()

    def close(self) -> None:
        """End it, and with it what it runs."""
        os.close(self._jobs)
        os.close(self._answers)
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._jobs, view) :]

    def _line(self, deadline: float) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n"):
            if not select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("it is busy for longer than any program may run")
            block = os.read(self._answers, _BLOCK)
            if not block:
                raise ValueError("it ended")
            line += block
        return bytes(line)
