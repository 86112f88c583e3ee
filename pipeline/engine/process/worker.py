"""The process that runs a stage: reads the resolved config, runs, writes the manifest last, commits by a rename."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.engine import artifact
from pipeline.engine.errors import ArtifactError, Interrupted
from pipeline.engine.fingerprint import plain
from pipeline.engine.locks import writing
from pipeline.engine.process import provenance
from pipeline.engine.process.context import Context, Send, channel
from pipeline.engine.process.signals import DRIVER_PID, Stop, grace_s, restore_signals, watch_driver

__all__ = ["Context", "Interrupted", "main"]

Run = Callable[[Context], dict[str, Any] | None]
EXIT_STOPPED = 143
ELAPSED = ".elapsed"
"""Seconds that earlier attempts at a directory took; hidden, so it goes with the commit."""
_DISK_FULL = re.compile(r"No space left on device|os error 28\b|\[Errno 28\]")


def main(run: Run, argv: Sequence[str] | None = None) -> None:
    """Run one stage for each directory in `argv`, in order, and exit.

    Each stage file ends with `if __name__ == "__main__": worker.main(run)`. Rank 0 commits each directory as soon as
    it is done. Exit status: 0, 143 when asked to stop, 1 when the stage failed; its traceback is then in the log and
    the last line of it is `ErrorType: message`.
    """
    directories = [Path(one).absolute() for one in (sys.argv[1:] if argv is None else argv)]
    driven = DRIVER_PID in os.environ
    restore_signals()
    send, rank = channel(os.dup(1)), _rank()
    if driven:
        _output_to(directories[0])
    send({"event": "started", "pid": os.getpid(), "rank": rank})
    with Stop().handling() as stop:
        status = _guarded(run, directories, send, stop, rank == 0, driven)
    sys.stdout.flush()
    sys.exit(status)


def execute(run: Run, directories: Sequence[Path], send: Send, stop: Stop, is_main: bool, driven: bool) -> None:
    """Run the stage for each directory and commit it. Directories that are committed already are passed over.

    Raises:
        Interrupted: when asked to stop; the unfinished directory stays as `.partial`.
        Exception: what the stage raises.
    """
    for directory in directories:
        if not directory.exists():
            if artifact.is_committed(artifact.final(directory)):
                continue
            raise ArtifactError(f"{directory} does not exist; the driver makes it, with the config to run")
        if driven:
            _output_to(directory)
        with writing(directory) if is_main else contextlib.nullcontext():
            if directory.exists():
                _one(run, directory, send, stop, is_main)


def read_config(directory: Path) -> dict[str, Any]:
    """The resolved config of a directory.

    Raises:
        ArtifactError: if it is missing, or was edited so that it no longer means its fingerprint.
    """
    path = directory / artifact.CONFIG
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        found = artifact.identity_of(config)
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be used: {error!r}; let the driver write it") from error
    if found != config["fingerprint"]:
        raise ArtifactError(f"{path} means {found}, not {config['fingerprint']}; change conf/, not this file")
    return config


def _guarded(run: Run, directories: Sequence[Path], send: Send, stop: Stop, is_main: bool, driven: bool) -> int:
    try:
        watch_driver(os.environ, _grace_s(directories))
        execute(run, directories, send, stop, is_main, driven)
    except Interrupted as error:
        send({"event": "stopped", "reason": str(error)})
        _log(f"stopped: {error}")
        return EXIT_STOPPED
    except BaseException as error:
        send(failure(error))
        _log(traceback.format_exc())
        return 1
    return 0


def failure(error: BaseException) -> dict[str, Any]:
    """The event that tells the driver what went wrong."""
    text = f"{type(error).__name__}: {error}"
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    return {"event": "failed", "error": text[:3000], "disk_full": full or bool(_DISK_FULL.search(text))}


def _one(run: Run, directory: Path, send: Send, stop: Stop, is_main: bool) -> None:
    config, began, started = read_config(directory), time.monotonic(), _now()
    context = Context(directory, config, send, stop, is_main)
    try:
        metrics = plain(run(context) or {}, "metrics")
    except BaseException:
        if is_main:
            _remember_time(directory, began)
        raise
    if not is_main:
        return
    facts = provenance.collect(config.get("argv") or sys.argv)
    times = {"started": started, "finished": _now(), "wall_time_s": _spent(directory, began)}
    identity = {key: config[key] for key in artifact.OF_NODE}
    inputs = {
        role: {"fingerprint": entry["fingerprint"], "directory": "/".join(Path(entry["directory"]).parts[-2:])}
        for role, entry in config["inputs"].items()
    }
    manifest = {**context.recorded, **identity, "inputs": inputs, "metrics": metrics, "provenance": {**facts, **times}}
    artifact.commit(directory, manifest)
    send({"event": "committed", "node": config["fingerprint"]})


def _rank() -> int:
    """Rank among all processes; 0 if there is one only."""
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)


def _grace_s(directories: Sequence[Path]) -> float:
    for directory in directories:
        if (directory / artifact.CONFIG).is_file():
            return grace_s(read_config(directory).get("launch") or {})
    return grace_s({})


def _output_to(directory: Path) -> None:
    """Let this process write its output into the directory's log itself: it must outlive a driver that dies."""
    if not directory.is_dir():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(directory / artifact.LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _log(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk must not hide the error that it caused
        print(text.rstrip(), file=sys.stderr, flush=True)


def _remember_time(directory: Path, began: float) -> None:
    with contextlib.suppress(OSError):
        (directory / ELAPSED).write_text(str(_spent(directory, began)), encoding="utf-8")


def _spent(directory: Path, began: float) -> float:
    """Wall time of all attempts that ended in an orderly way, in seconds."""
    earlier = 0.0
    with contextlib.suppress(OSError, ValueError):
        earlier = float((directory / ELAPSED).read_text(encoding="utf-8"))
    return round(earlier + time.monotonic() - began, 3)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
