"""A sweep on the disk: what it is, and the state of each cell, written by whoever runs it and read from anywhere.

<outputs>/runs/<name>/sweeps/<id>/   sweep.json, <cell>.json, <cell>.log (of cells in processes of their own), locks
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from pipeline.engine.errors import ArtifactError
from pipeline.engine.process.signals import SAME_START_S, alive, find_process
from pipeline.engine.sources.hashes import read_object, write_atomic

SWEEP, CELLS, LOCKS, STOP, END = "sweep.json", "cells", "locks", "stop", "end"
WAITING, RUNNING, DONE, FAILED, STOPPED = "waiting", "running", "done", "failed", "stopped"
ENDED = (DONE, FAILED, STOPPED)


def this_process() -> dict[str, Any]:
    """What tells this process from every other."""
    return {"pid": os.getpid(), "started": psutil.Process().create_time(), "host": socket.gethostname()}


def runs(process: Mapping[str, Any]) -> bool:
    """Whether a process that `this_process` described runs; of another host that is not known, and taken to be so."""
    if not process:
        return False
    if process.get("host") != socket.gethostname():
        return True
    found = find_process(int(process["pid"]), float(process["started"]))
    return found is not None and alive(found)


def is_this(process: Mapping[str, Any]) -> bool:
    """Whether `this_process` described this one."""
    me = this_process()
    near = abs(me["started"] - float(process.get("started", 0))) < SAME_START_S
    return near and all(process.get(key) == me[key] for key in ("pid", "host"))


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep.

    Attributes:
        key: names its files.
        name: what tells it from the other cells, for a person.
        command: runs this cell alone.
        variant: as which a run records what it makes; empty: not known.
        state: waiting, running, done, failed or stopped.
        run: of the sweep, in which it came to that state.
        process: that runs it or ran it last.
        starts: how often it was started in that run.
        doing: the node that is being built, and how far it is.
        error: why it failed, in a line.
        began, ended: seconds since the epoch.
        report: the settings of the report that it is part of; None: of none.
    """

    key: str
    name: str
    command: str
    variant: str = ""
    state: str = WAITING
    run: str = ""
    process: Mapping[str, Any] = field(default_factory=dict)
    starts: int = 0
    doing: str = ""
    error: str = ""
    began: float | None = None
    ended: float | None = None
    report: Mapping[str, Any] | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the process that ran it is gone without a word."""
        return self.state == RUNNING and not runs(self.process)

    @property
    def seconds(self) -> float | None:
        """How long it has run or did run."""
        return None if self.began is None else (self.ended or time.time()) - self.began


@dataclass(frozen=True)
class Sweep:
    """A sweep as its driver wrote it.

    Attributes:
        directory: where it is kept.
        run: differs each time that the sweep is started.
        driver: the process that runs it.
        command: by which it is resumed.
        at_once: how many cells run at once; None: whatever the launcher does.
        capacity: why so many, for a person.
        threads: CPU threads for each rank of a cell; None: all.
        devices: for each slot, the GPUs of the cell that holds it; empty: as the driver's.
        is_parallel: cells run in processes of their own.
    """

    directory: Path
    run: str
    driver: Mapping[str, Any]
    command: str
    at_once: int | None = None
    capacity: str = ""
    threads: int | None = None
    devices: Sequence[Sequence[str]] = ()
    is_parallel: bool = False

    @cached_property
    def is_here(self) -> bool:
        """Whether this process is the driver."""
        return is_this(self.driver)

    @property
    def is_running(self) -> bool:
        """Whether its driver runs it now."""
        return runs(self.driver) and not self._has(END)

    def begin(self, cells: Iterable[Cell]) -> None:
        """Record it, with its cells waiting; what an earlier start left of others is removed."""
        shutil.rmtree(self.directory / CELLS, ignore_errors=True)
        for name in (STOP, END):
            (self.directory / name).unlink(missing_ok=True)
        (self.directory / LOCKS).mkdir(parents=True, exist_ok=True)
        for cell in cells:
            self.write(cell)
        self.save()

    def save(self) -> None:
        """Write what cells read when they start."""
        record = {key: value for key, value in asdict(self).items() if key != "directory"}
        write_atomic(self.directory / SWEEP, json.dumps(record, indent=1) + "\n")

    def write(self, cell: Cell) -> Cell:
        """Record the state of a cell, as of this run."""
        cell = replace(cell, run=self.run)
        write_atomic(self.directory / CELLS / f"{cell.key}.json", json.dumps(asdict(cell), indent=1) + "\n")
        return cell

    def read(self, key: str) -> Cell | None:
        """The state of a cell in this run; None if it has none yet."""
        found = _cell(read_object(self.directory / CELLS / f"{key}.json"))
        return found if found is not None and found.run == self.run else None

    def cells(self) -> list[Cell]:
        """All cells of this run, in the order of the sweep."""
        files = sorted((self.directory / CELLS).glob("*.json"))
        return [cell for file in files if (cell := self.read(file.stem)) is not None]

    def log(self, key: str) -> Path:
        """Where a cell in a process of its own writes what it would show."""
        return self.directory / CELLS / f"{key}.log"

    def lock(self, name: str) -> Path:
        """File of a lock of this sweep."""
        return self.directory / LOCKS / f"{name}.lock"

    def ask_to_stop(self) -> None:
        """Have every cell stop, wherever it runs."""
        write_atomic(self.directory / STOP, self.run)

    @property
    def is_stopping(self) -> bool:
        """Whether its cells were asked to stop."""
        return self._has(STOP)

    def end(self) -> None:
        """Record that no cell runs any more."""
        write_atomic(self.directory / END, self.run)

    def _has(self, mark: str) -> bool:
        file = self.directory / mark
        return file.is_file() and file.read_text(encoding="utf-8") == self.run


def new_run() -> str:
    """A name for one start of a sweep."""
    return secrets.token_hex(6)


def load_sweep(directory: Path) -> Sweep:
    """The sweep that is kept in a directory.

    Raises:
        ArtifactError: there is none, or its file is damaged.
    """
    record = read_object(directory / SWEEP)
    names = {one.name for one in fields(Sweep)} - {"directory"}
    if set(record) != names:
        raise ArtifactError(f"{directory} holds no sweep that this version wrote: {SWEEP} is missing or damaged")
    return Sweep(directory=directory, **record)


def latest(folder: Path) -> Path:
    """The directory of the sweep below a folder that was started last.

    Raises:
        ArtifactError: there is none.
    """
    places = (SWEEP, f"sweeps/*/{SWEEP}", f"runs/**/sweeps/*/{SWEEP}")
    found = [file for place in places for file in folder.glob(place)]
    if not found:
        raise ArtifactError(f"{folder} holds no sweep; one is started by `python -m pipeline -m KEY=A,B`")
    return max(found, key=lambda file: file.stat().st_mtime).parent


def sweeps(runs_folder: Path) -> list[Sweep]:
    """All sweeps below a folder of runs, the one that was started last first; damaged ones are passed over."""
    found = sorted(runs_folder.glob(f"**/sweeps/*/{SWEEP}"), key=lambda file: file.stat().st_mtime, reverse=True)
    return [sweep for file in found if (sweep := _readable(file.parent)) is not None]


def _readable(directory: Path) -> Sweep | None:
    try:
        return load_sweep(directory)
    except ArtifactError:
        return None


def _cell(record: Mapping[str, Any]) -> Cell | None:
    known = {one.name for one in fields(Cell)}
    # Sweeps of earlier versions name no variants.
    return Cell(**record) if known - {"variant"} <= set(record) <= known else None
