"""One launched worker, watched from start to end: its events shown, its end explained, its processes gone."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pipeline.engine import artifact
from pipeline.engine.process import launch
from pipeline.engine.process.context import PROGRESS
from pipeline.engine.process.processes import Tree
from pipeline.engine.process.signals import grace_s

Event = dict[str, Any]
OnEvent = Callable[[Event], None]
Tell = Callable[[str], None]
TICK_S = 0.2
LOOK_EVERY_S = 1.0
DRAIN_S = 2.0
LOG_LINES = 20


@dataclass
class Outcome:
    """How a worker ended: the launcher's exit status, the ranks that started, the failure it told of, and why it
    stopped if it did so in good order."""

    status: int = 0
    ranks: set[int] = field(default_factory=set)
    failure: Event | None = None
    stopped: str | None = None


def supervise(
    command: Sequence[str], environment: Mapping[str, str], log: Path, grace_s: float, on_event: OnEvent, tell: Tell
) -> Outcome:
    """Run `command` in a session of its own, its output into `log`, until its whole process tree is gone.

    Lines of its standard output that begin with `@progress ` are events: they go to `on_event` and not into the log.

    Raises:
        KeyboardInterrupt: if this process is interrupted. The worker was then asked to stop and given `grace_s`
            seconds to save; a second interrupt ends that at once. Either way no process is left.
        OSError: if the command cannot be started or the log not be written.
    """
    with log.open("ab", buffering=0) as stream:
        process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stream,
            start_new_session=True,
        )
        tree, outcome = Tree(process.pid), Outcome()
        try:
            _follow(process, tree, outcome, stream, on_event)
        except KeyboardInterrupt:
            _stop(tree, outcome, grace_s, tell)
            raise
        finally:
            tree.kill()
            outcome.status = process.wait()
    return outcome


def supervise_stage(
    module: str, directories: Sequence[Path], settings: Mapping[str, Any], on_event: OnEvent, tell: Tell
) -> Outcome:
    """`supervise` over the launch of a stage's nodes as `launch` settings ask for it; raises what `supervise` does."""
    command, environment = launch.command(module, directories, settings), launch.environment(settings)
    return supervise(command, environment, directories[0] / artifact.LOG, grace_s(settings), on_event, tell)


def explain(outcome: Outcome, directory: Path) -> tuple[str, list[str]]:
    """Why a worker failed, in a sentence, and the last lines of its log without what its launcher said about it."""
    log, failure = _tail(directory / artifact.LOG), outcome.failure
    if failure is None:
        ended = f"and left no message (exit status {outcome.status})"
        killed = (
            f"the worker was killed, perhaps for want of memory, {ended}; launch.micro_batch=1 and "
            "launch.checkpointing=full need less for a step, frozen_dtype and launch=fsdp2 for the weights"
        )
        return killed if outcome.ranks else f"the worker could not start its stage {ended}", log[-LOG_LINES:]
    error = str(failure["error"])
    lines = [line for line in error.splitlines() if line.strip()]
    ends = [index for index, line in enumerate(log) if line.startswith(lines[0])]
    log = (log[: ends[-1] + len(lines)] if ends else log)[-LOG_LINES:]
    if failure.get("disk_full"):
        return f"the disk of {directory.parent} is full ({error}); free some space and run the same command again", log
    return error, log


def _follow(process: subprocess.Popen, tree: Tree, outcome: Outcome, log: IO[bytes], on_event: OnEvent) -> None:
    lines: queue.Queue[bytes | None] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    looked, ended = 0.0, None
    while True:
        now = time.monotonic()
        if now - looked > LOOK_EVERY_S:
            tree.look()
            looked = now
        if ended is None and process.poll() is not None:
            ended = now
        if ended is not None and now - ended > DRAIN_S:
            return
        try:
            line = lines.get(timeout=TICK_S)
        except queue.Empty:
            continue
        if line is None:
            process.wait()
            return
        take(line, outcome, log, on_event)


def _read(pipe: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    with contextlib.suppress(OSError, ValueError):
        for line in pipe:
            lines.put(line)
    lines.put(None)


def take(line: bytes, outcome: Outcome, log: IO[bytes], on_event: OnEvent) -> None:
    """What a line of a worker's standard output is: an event for the outcome or the display, or text for the log."""
    event = _event(line)
    if event is None:
        log.write(line)
    elif event["event"] == "started":
        outcome.ranks.add(event["pid"])
    elif event["event"] == "failed":
        outcome.failure = outcome.failure or event
    elif event["event"] == "stopped":
        outcome.stopped = outcome.stopped or event["reason"]
    else:
        on_event(event)


def _event(line: bytes) -> Event | None:
    text = line.decode("utf-8", "replace")
    if not text.startswith(PROGRESS):
        return None
    try:
        event = json.loads(text.removeprefix(PROGRESS))
    except ValueError:
        return None
    return {"event": "progress", **event} if isinstance(event, dict) else None


def _stop(tree: Tree, outcome: Outcome, grace_s: float, tell: Tell) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        tell(f"stopping: the worker has up to {grace_s:.0f} s to save; interrupt again to kill it")
        tree.terminate(outcome.ranks)
        if tree.wait(outcome.ranks, grace_s):
            return
    with contextlib.suppress(KeyboardInterrupt):
        tell("killing the worker")


def _tail(path: Path, limit: int = 1 << 16) -> list[str]:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - limit))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip().rpartition("\r")[2] for line in text.split("\n") if line.strip()]
