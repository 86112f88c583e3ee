"""One cell of a sweep where its launcher runs it: alone, within what runs at once, stopped with the sweep.

A cell never raises in a process of its own: launchers answer an error in one cell by killing the others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.engine.errors import Interrupted, StageError
from pipeline.engine.process.signals import restore_signals, termination_as_interrupt
from pipeline.engine.run.display import Display, describe, open_display
from pipeline.engine.sweep.record import DONE, ENDED, FAILED, RUNNING, STOPPED, Cell, Sweep, runs, this_process

POLL_S = 0.3
NOTED_EVERY_S = 1.0
ANSWER_S = 10.0
"""Within this a launcher that kills all cells for the death of one has done so."""
MAX_STARTS = 2
"""A cell whose process was killed is started again; one that is killed again is given up."""
Tell = Callable[[Exception], str]
Work = Callable[["Recording"], None]


def run_cell(sweep: Sweep, cell: Cell, work: Work, tell: Tell, grace_s: float) -> Cell:
    """Do the work of a cell unless it ended before in this run of the sweep; its state says how it ended.

    Args:
        work: is given the display to use, in which it may note more.
        tell: shows an error that it is meant for a person, and puts it in a text; raises others again.
        grace_s: time that the work gets for saving when the driver is gone.

    Raises:
        KeyboardInterrupt: the cell was stopped, and runs in the driver's own process.
    """
    if sweep.is_here:
        with FileLock(sweep.lock(cell.key), poll_interval=POLL_S):  # of an orphan of an earlier start, which will end
            return _run(sweep, cell, work, tell)
    with contextlib.suppress(KeyboardInterrupt), _output_to(sweep.log(cell.key)), _stopping_with(sweep, grace_s):
        try:
            with FileLock(sweep.lock(cell.key), poll_interval=POLL_S), _slot(sweep) as slot, _share(sweep, slot):
                _hear_of_deaths(sweep)
                return _run(sweep, cell, work, tell)
        except KeyboardInterrupt as interrupt:
            return sweep.write(replace(cell, state=STOPPED, error=str(interrupt)))
    return cell


def _run(sweep: Sweep, cell: Cell, work: Work, tell: Tell) -> Cell:
    before = sweep.read(cell.key) or cell
    if before.state in ENDED:
        return before
    if before.starts >= MAX_STARTS:
        return sweep.write(lost(before))
    now = replace(cell, state=RUNNING, process=this_process(), starts=before.starts + 1, began=time.time())
    shown = Recording(open_display(), sweep, now)
    try:
        with contextlib.closing(shown):
            work(shown)
    except KeyboardInterrupt as interrupt:
        stopped = shown.note(state=STOPPED, error=str(interrupt), ended=time.time())
        if sweep.is_here:
            raise
        return stopped
    except Exception as error:
        return shown.note(state=FAILED, error=_in_a_line(error, tell), ended=time.time())
    return shown.note(state=DONE, ended=time.time())


def lost(cell: Cell) -> Cell:
    """The cell as failed, because its process went without a word."""
    times = f"{cell.starts} times, perhaps for want of memory" if cell.starts else "before it began"
    error = f"its process was killed {times}; what the workers wrote is in their log.txt"
    return replace(cell, state=FAILED, error=error, ended=time.time())


def _in_a_line(error: Exception, tell: Tell) -> str:
    try:
        text = tell(error)
    except Exception:
        text = "".join(traceback.format_exception(error)).rstrip()
        print(text, file=sys.stderr, flush=True)
        return text.splitlines()[-1]
    if isinstance(error, StageError):
        text = f"stage {error.stage} failed: {error.message}"
    return text.strip().splitlines()[0]


class Recording(Display):
    """Shows what another display shows, and notes in the cell's state what is being built."""

    def __init__(self, inner: Display, sweep: Sweep, cell: Cell) -> None:
        self._inner, self._sweep, self._noted = inner, sweep, 0.0
        self._cell = sweep.write(cell)

    def note(self, **changes: Any) -> Cell:
        """Record these fields of the cell's state, which it returns."""
        self._cell = self._sweep.write(replace(self._cell, **changes))
        return self._cell

    def message(self, text: str) -> None:
        self._inner.message(text)

    def started(self, label: str) -> None:
        self.note(doing=label)
        self._inner.started(label)

    def progress(self, label: str, fields: dict[str, Any]) -> None:
        if (now := time.monotonic()) - self._noted >= NOTED_EVERY_S:
            self._noted = now
            self.note(doing=f"{label} {describe(fields)}")
        self._inner.progress(label, fields)

    def finished(self, label: str, name: str, seconds: float) -> None:
        self._inner.finished(label, name, seconds)

    def abandoned(self, label: str) -> None:
        self._inner.abandoned(label)

    def reused(self, count: int) -> None:
        self._inner.reused(count)

    def close(self) -> None:
        self._inner.close()


@contextlib.contextmanager
def _slot(sweep: Sweep) -> Iterator[int]:
    """Hold one of the sweep's slots, of which there are as many as cells run at once; the kernel frees a dead one's.

    Raises:
        Interrupted: the sweep is stopped while all are taken.
    """
    locks = [FileLock(sweep.lock(f"slot-{index}")) for index in range(sweep.at_once or 0)]
    while locks and not any(lock.is_locked for lock in locks):
        for lock in locks:
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0)
                break
        else:
            _raise_if_stopping(sweep)
            time.sleep(POLL_S)
    try:
        yield next((index for index, lock in enumerate(locks) if lock.is_locked), 0)
    finally:
        for lock in locks:
            lock.release()


def _hear_of_deaths(sweep: Sweep) -> None:
    """Where one runs at a time, let the launcher answer the death of the one before, which may be to kill this one too.

    Begun before that, it would have died twice through no fault of its own.
    """
    ends = time.monotonic() + ANSWER_S
    while sweep.at_once == 1 and time.monotonic() < ends:
        if not any(cell.state == RUNNING and not runs(cell.process) for cell in sweep.cells()):
            break
        _raise_if_stopping(sweep)
        time.sleep(POLL_S)


@contextlib.contextmanager
def _share(sweep: Sweep, slot: int) -> Iterator[None]:
    """Give the workers of this cell its share of the machine: threads unless the user set them, and GPUs."""
    _raise_if_stopping(sweep)
    chosen = {"OMP_NUM_THREADS": str(sweep.threads)} if sweep.threads else {}
    if sweep.devices:
        chosen["CUDA_VISIBLE_DEVICES"] = ",".join(sweep.devices[slot])
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _raise_if_stopping(sweep: Sweep) -> None:
    if sweep.is_stopping or not sweep.is_running:
        raise Interrupted("the sweep was stopped")


@contextlib.contextmanager
def _stopping_with(sweep: Sweep, grace_s: float) -> Iterator[None]:
    """Interrupt this process when its sweep is stopped or the driver is gone, and end it for good in the latter case.

    Ctrl-C in a terminal reaches all processes of the sweep: the driver takes it, and tells the cells.
    """
    done = threading.Event()
    signal.signal(signal.SIGINT, _leave_to_the_driver)
    with termination_as_interrupt():
        restore_signals()
        thread = threading.Thread(target=_watch, args=(sweep, done, grace_s), daemon=True, name="watch-sweep")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _leave_to_the_driver(*_: Any) -> None:
    return


def _watch(sweep: Sweep, done: threading.Event, grace_s: float) -> None:
    while not done.wait(POLL_S):
        orphaned = not runs(sweep.driver)
        if orphaned or sweep.is_stopping:
            os.kill(os.getpid(), signal.SIGTERM)
            if orphaned:
                done.wait(grace_s)
                os.kill(os.getpid(), signal.SIGKILL)  # its launcher's loop would wait for work from nobody
            break


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Let this process and what it starts write to `log` instead of where several cells would mix."""
    log.parent.mkdir(parents=True, exist_ok=True)
    kept = [os.dup(1), os.dup(2)]
    try:
        _redirect([os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)] * 2)
        yield
    finally:
        _redirect(kept)


def _redirect(targets: list[int]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    for target, descriptor in zip(targets, (1, 2), strict=True):
        os.dup2(target, descriptor)
    for target in set(targets):
        os.close(target)
