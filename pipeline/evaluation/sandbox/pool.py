"""Runs programs that nobody has read, several at once, at a level of isolation that is known."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.cores import allowed_cores
from pipeline.evaluation.sandbox import levels, seccomp
from pipeline.evaluation.sandbox.interpreter import this_interpreter
from pipeline.evaluation.sandbox.limits import Limits, Ran

_ROOT = Path(__file__).parents[3]
START = f"import sys; sys.path.append({str(_ROOT)!r}); from pipeline.evaluation.sandbox.launcher import main; main()"
_BLOCK = 1 << 16
_RUNNER = Path(__file__).with_name("program.py")
_POLL_S = 0.02
_PATIENCE_S = 60.0  # beyond a program's own time: for starting, and for a machine that is busy with others
_TOKEN_BYTES = 16  # as 32 hexadecimal digits


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


def check_isolation(limits: Limits, required: str) -> None:
    """Raise ValueError where this level offers no sandbox with these limits; it says what to change."""
    try:
        Sandbox(limits, required, 1)
    except SandboxError as error:
        raise ValueError(str(error)) from error


class Sandbox:
    """A place for programs that nobody has read.

    Every program gets namespaces, a room and an interpreter of its own, so none meets what another left behind.

    Args:
        limits: what one program may use.
        required: the weakest level of `LEVELS` that is good enough; a stronger one is used where the machine has it.
        workers: programs that run in parallel; null: one per core.

    Attributes:
        level: the level that is in force.

    Raises:
        SandboxError: the required level cannot be reached; the text says why, and what to change.
        ValueError: the level is not known, or a package of the limits is not installed.
    """

    def __init__(self, limits: Limits, required: str, workers: int | None) -> None:
        self.limits, self.workers = limits, workers or allowed_cores()
        self._interpreter = asdict(this_interpreter(tuple(limits.packages)))
        # pop and append of a list are atomic
        self._launchers: list[Launcher] = []
        self._idle: list[Launcher] = []
        weakref.finalize(self, _close_all, self._launchers)
        self._runner = _RUNNER.read_text(encoding="utf-8")
        self.level = self._reach(required)

    def run(self, program: str, stdin: str = "") -> Ran:
        """Run one program to its end or its limit. Raises SandboxError if the sandbox fails."""
        answer = self._answer(self._way, program, stdin)
        if "failure" in answer:
            raise SandboxError(f"a sandbox that worked before (isolation={self.level}) failed: {answer['failure']}")
        return Ran(**answer)

    def run_all(self, programs: Iterable[str]) -> Iterator[Ran]:
        """What came of each program, in order, `workers` of them at once. Raises SandboxError if the sandbox fails.

        Whoever stops asking, or is interrupted, ends the programs that still run.
        """
        pool = ThreadPoolExecutor(self.workers)
        asked = [pool.submit(self.run, program) for program in programs]
        waiting = deque(asked)
        try:
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(one.done() for one in asked):  # a thread may only now be starting its launcher
                for launcher in list(self._launchers):
                    launcher.kill()
                time.sleep(_POLL_S)
            raise
        finally:
            pool.shutdown(wait=True)

    def close(self) -> None:
        """End the processes that wait for further programs. Done by itself when the sandbox is no longer used."""
        self._idle.clear()
        _close_all(self._launchers)

    def _reach(self, required: str) -> str:
        failures: dict[str, str] = {}
        for level in levels.allowed(required):
            if (failure := self._try(level)) is None:
                return level
            failures[level] = failure
        lower = [level for level in levels.LEVELS if level not in failures]
        reached = next((level for level in lower if self._try(level) is None), None)
        raise SandboxError(levels.refusal(required, failures, reached))

    def _try(self, level: str) -> str | None:
        """Why a level does not work here, or None if a program ran in it; `_way` is then how."""
        failures = []
        if not sys.platform.startswith("linux"):
            return f"this is {sys.platform}"
        for way in levels.ways(level):
            if way["filter"] and not seccomp.supported():
                return f"no system call filter is known for {os.uname().machine}"
            answer = self._answer(way, "", "")
            if answer.get("outcome") == "finished":
                self._way = way
                return None
            failures.append(str(answer.get("failure") or f"an empty program {answer['outcome']}: {answer['error']}"))
        return "; by bubblewrap: ".join(failures)

    def _answer(self, way: Mapping[str, Any], program: str, stdin: str) -> dict[str, Any]:
        job = {
            **way,
            "program": program,
            "stdin": stdin,
            "limits": asdict(self.limits),
            "interpreter": self._interpreter,
            "runner": self._runner,
            "token": secrets.token_hex(_TOKEN_BYTES),
        }
        launcher = self._free()
        try:
            found = launcher.ask(job, self.limits.wall_s + _PATIENCE_S)
        except BaseException:
            self._launchers.remove(launcher)
            launcher.close()
            raise
        self._idle.append(launcher)
        return found

    def _free(self) -> Launcher:
        """A launcher that waits for a job, or a new one."""
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread was faster
                launcher = self._idle.pop()
                if launcher.alive:
                    return launcher
                self._launchers.remove(launcher)
                launcher.close()
        self._launchers.append(launcher := Launcher())
        return launcher


def _close_all(launchers: list[Launcher]) -> None:
    while launchers:
        launchers.pop().close()
