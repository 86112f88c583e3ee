"""A small process outside the sandbox that starts programs one after another, watches them and ends them.

Reads a job a line, as JSON, from its standard input and answers each with a line on its standard output: {"failure":
text} if isolation or a limit could not be set up, else the fields of `Ran`. It runs with nothing but the standard
library: the process that holds the model is never forked, and there is nothing worth stealing here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from pipeline.evaluation.sandbox import bubblewrap, kernel, processes, room, usage

_TICK_S = 0.02  # how often memory is looked at
_CHANNEL_BYTES = 4096
_HIGH = 32  # descriptors that no child takes for one of its own
_PIPES = ("stdout", "stderr", "channel", "status")


class _SpentError(Exception):
    """A limit is used up: which outcome that is, and in which words."""


class _Watch:
    """Collects what the program writes and raises _SpentError when it used up a limit."""

    def __init__(self, job: Mapping[str, Any], readers: dict[str, int], root: int) -> None:
        limits = job["limits"]
        self._limits, self._readers, self._root = limits, readers, root
        self._deadline = time.monotonic() + limits["wall_s"]
        self._room = {"stdout": limits["output_kb"] << 10, "stderr": limits["output_kb"] << 10}
        self.found = {name: bytearray() for name in readers}

    def until_end(self) -> None:
        """Read until the end of the program, or of the process that reports it, is known."""
        while b"ended " not in self.found["status"] and "status" in self._readers:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise _SpentError("timeout", f"{self._limits['wall_s']:g} s of wall time are over")
            self._check_memory()
            self.read(min(left, _TICK_S))

    def read(self, patience_s: float) -> bool:
        """Take in what is there. Returns False if nothing came."""
        names = {descriptor: name for name, descriptor in self._readers.items()}
        ready = select.select(list(names), [], [], patience_s)[0]
        for descriptor in ready:
            data = os.read(descriptor, 1 << 16)
            if not data:
                os.close(self._readers.pop(names[descriptor]))
            self._keep(names[descriptor], data)
        return bool(ready)

    def _keep(self, name: str, data: bytes) -> None:
        kept, most = self.found[name], self._room.get(name, _CHANNEL_BYTES)
        kept += data[: most - len(kept)]
        if name in self._room and len(data) and len(kept) >= most:
            raise _SpentError("output", f"more than {most >> 10} KiB of {name}")

    def _check_memory(self) -> None:
        held, most = usage.held_bytes(self._root), self._limits["memory_mb"] << 20
        if held > most:
            raise _SpentError("memory", f"its processes hold {held >> 20} MiB, {most >> 20} MiB are allowed")


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run the job's program to its end. Raises OSError or RuntimeError if it could not be isolated."""
    started = time.monotonic()
    own = job["walls"] == "own"
    if own:
        processes.enter_namespaces()
    if not (own and usage.counts_per_namespace()):
        user = processes.NOBODY if os.geteuid() == 0 else os.getuid()
        job["limits"]["processes"] += usage.tasks_of(user)
    kernel.die_with_parent()
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    readers, files = _pipes(job)
    root = processes.start_init(job, files)
    for descriptor in files.values():
        os.close(descriptor)
    watch = _Watch(job, readers, root)
    stopped = _supervised(watch)
    with contextlib.suppress(_SpentError):
        while readers and watch.read(0):
            continue
    return {**_judged(job, watch.found, stopped), "wall_s": time.monotonic() - started}


def _supervised(watch: _Watch) -> tuple[str, str] | None:
    """Let the program run. Returns why it was ended from here, or None; in any case nothing of it lives on."""
    try:
        watch.until_end()
    except _SpentError as stop:
        return stop.args[0], stop.args[1]
    finally:
        processes.end_all()
    return None


def _pipes(job: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Ends to read from here and ends for the children, all above the numbers that the program gets them as."""
    readers, files = {}, {}
    for name in _PIPES:
        readers[name], files[name] = map(_raised, os.pipe())
    files["stdin"] = _holding(job["stdin"].encode("utf-8", "surrogatepass"))
    files["job"] = _holding(job["token"].encode() + job["program"].encode("utf-8", "surrogatepass"))
    return readers, files


def _raised(descriptor: int) -> int:
    raised = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    os.close(descriptor)
    return raised


def _holding(data: bytes) -> int:
    """A descriptor that reads `data`, from memory that has no name."""
    descriptor = os.memfd_create("job")
    with os.fdopen(os.dup(descriptor), "wb") as stream:
        stream.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return _raised(descriptor)


def _judged(job: Mapping[str, Any], found: Mapping[str, bytearray], stopped: Any) -> dict[str, Any]:
    status = found["status"].decode("utf-8", "replace")
    for line in status.splitlines():
        if line.startswith("error: "):
            raise RuntimeError(line.removeprefix("error: "))
    texts = {name: found[name].decode("utf-8", "replace") for name in ("stdout", "stderr")}
    words = bytes(found["channel"]).split(job["token"].encode())[1:]
    if not words and not stopped:
        raise RuntimeError(f"the interpreter did not start; {texts['stderr'].strip()[-300:] or status.strip()}")
    outcome, error = stopped or _ending(job, status, words)
    return {"outcome": outcome, "error": error, **texts}


def _ending(job: Mapping[str, Any], status: str, words: list[bytes]) -> tuple[str, str]:
    """What a program that ended by itself did: by the second of the words that carry the token, if it is there."""
    if len(words) > 1:
        outcome, _, error = words[1].decode("utf-8", "replace").partition(" ")
        if outcome in ("finished", "raised", "memory"):
            return outcome, error
    if "ended " not in status:
        return "killed", "the sandbox's first process was killed with it"
    wait_status, cpu_s = status.rpartition("ended ")[2].split()
    code = os.waitstatus_to_exitcode(int(wait_status))
    number = bubblewrap.signal_of(code) if job["walls"] == "bubblewrap" else max(-code, 0)
    if not number:
        return "exited", f"left with status {code} before its end"
    if number == signal.SIGXCPU or (number == signal.SIGKILL and float(cpu_s) > job["limits"]["cpu_s"]):
        return "timeout", f"{job['limits']['cpu_s']} s of CPU time are over"
    return "killed", f"signal {number}"


def _run_in_directory(job: dict[str, Any]) -> dict[str, Any]:
    """Run in a temporary directory of this machine's, for want of a room."""
    import tempfile

    home = tempfile.mkdtemp(prefix="judged-")
    try:
        os.mkdir(f"{home}/.packages")
        for place in job["interpreter"]["packages"]:
            os.symlink(place, f"{home}/.packages/{os.path.basename(place)}")
        if os.geteuid() == 0:
            os.chown(home, processes.NOBODY, processes.NOBODY)
        return run({**job, "home": home})
    finally:
        _remove(home)


def _remove(home: str) -> None:
    """Remove a directory that a program may have closed to its own user. Nothing of the program runs any more."""
    import shutil

    os.chmod(home, 0o700)
    for folder, names, _ in os.walk(home):
        for path in (os.path.join(folder, name) for name in names):
            if not os.path.islink(path):  # a link may lead anywhere
                os.chmod(path, 0o700)
    shutil.rmtree(home, ignore_errors=True)


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """What came of a job, or why it could not be done."""
    try:
        return _run_in_directory(job) if job["walls"] == "none" else run({**job, "home": room.SCRATCH})
    except (OSError, RuntimeError) as error:
        return {"failure": str(error)}


def main() -> None:
    """Answer jobs until there are no more, each in a process of its own: what isolates one must not bind the next."""
    while line := sys.stdin.buffer.readline():
        supervisor = os.fork()
        if not supervisor:
            _reply(answer(json.loads(line)))
            os._exit(0)
        _, status = os.waitpid(supervisor, 0)
        if status:
            _reply({"failure": f"its supervisor ended with {os.waitstatus_to_exitcode(status)}"})


def _reply(found: Mapping[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(found).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
