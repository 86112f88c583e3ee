"""The process that starts a sweep: has a launcher run its cells, stops all of them together, and sees to the lost."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import psutil
from filelock import FileLock, Timeout

from pipeline.engine.errors import ConfigError, Interrupted
from pipeline.engine.locks import describe
from pipeline.engine.process.signals import alive, find_process
from pipeline.engine.sweep.cell import lost
from pipeline.engine.sweep.record import ENDED, FAILED, RUNNING, WAITING, Cell, Sweep, load_sweep, runs
from pipeline.engine.sweep.table import REFRESH_S, Live

POLL_S = 0.5
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_cells(
    sweep: Sweep, cells: Sequence[Cell], launch: Callable[[], None], refusals: Iterable[tuple[str, str]] = ()
) -> list[Cell]:
    """Have `launch` run all cells, and return them as they ended.

    Launchers may answer the death of one cell's process by killing the others. Those that were running are started
    once more, one at a time: then only the one to blame dies again, and what was killed for want of memory has all.

    Args:
        cells: known beforehand; a sweeper that finds its cells as it goes has more. One that was refused has failed.
        launch: runs each cell through `cell.run_cell`, wherever that is; cells that ended before return at once.
        refusals: (key of a cell, why it cannot run), as they become known while others run.

    Raises:
        ConfigError: the same sweep is running already.
        Interrupted: by Ctrl-C, SIGTERM or SIGHUP. No cell is left running.
        Exception: the launcher could not start a cell at all.
    """
    with _only_driver(sweep), _interrupts(sweep):
        sweep.begin(cells)
        if cells and all(cell.state in ENDED for cell in cells):
            return sweep.cells()
        threading.Thread(target=_refuse, args=(sweep, refusals), daemon=True, name="refuse-cells").start()
        while _launch_once(sweep, launch):
            replace(sweep, at_once=1).save()
            for cell in sweep.cells():
                if cell.state == RUNNING:  # it died
                    sweep.write(replace(cell, state=WAITING))
        return [cell if cell.state in ENDED else sweep.write(lost(cell)) for cell in sweep.cells()]


def _refuse(sweep: Sweep, refusals: Iterable[tuple[str, str]]) -> None:
    """Have cells that cannot run fail before they start; one that runs by then finds out itself."""
    for key, error in refusals:
        with contextlib.suppress(Timeout), FileLock(sweep.lock(key), timeout=0):
            cell = sweep.read(key)
            if cell is not None and cell.state == WAITING:
                sweep.write(replace(cell, state=FAILED, error=error, ended=time.time()))
                print(f"refused before it runs: {cell.name}: {error}", file=sys.stderr, flush=True)


def _launch_once(sweep: Sweep, launch: Callable[[], None]) -> bool:
    """Launch all cells that have not ended; returns whether some are left that another launch may end."""
    before = _starts(sweep)
    try:
        launch()
    except Exception:
        if _starts(sweep) == before and not sweep.is_stopping:
            raise
    _wait(sweep)
    if sweep.is_stopping:
        raise Interrupted("all cells were stopped; what was built stays, and the same command resumes")
    return _starts(sweep) > before and not all(cell.state in ENDED for cell in sweep.cells())


@contextlib.contextmanager
def _only_driver(sweep: Sweep) -> Iterator[None]:
    lock = FileLock(sweep.lock("driver"))
    sweep.lock("driver").parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        other = load_sweep(sweep.directory)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(other.driver["started"]))
        who = {**other.driver, "started": since, "argv": [other.command]}
        raise ConfigError(
            f"this sweep is running already, in {describe(who)}; python -m pipeline.sweep {sweep.directory} shows it"
        ) from error
    try:
        yield
    finally:
        sweep.end()
        lock.release()


def _starts(sweep: Sweep) -> int:
    return sum(cell.starts for cell in sweep.cells())


def _wait(sweep: Sweep) -> None:
    """Until no cell runs any more: a launcher that gave up may have left some."""
    while any(c.state == RUNNING and c.process != sweep.driver and runs(c.process) for c in sweep.cells()):
        time.sleep(POLL_S)


@contextlib.contextmanager
def _interrupts(sweep: Sweep) -> Iterator[None]:
    """Have signals that end the driver stop the cells in processes of their own, and show their states.

    The signals are blocked, and so in all processes that the launcher starts, which Ctrl-C in a terminal reaches too:
    launchers would answer it by killing cells that are saving. A thread takes them, or a handler where a launcher
    unblocks them, as joblib's does.
    """
    if not sweep.is_parallel:
        yield
        return
    heard = {one for one in SIGNALS if signal.getsignal(one) != signal.SIG_IGN}
    handlers = {one: signal.signal(one, lambda number, _: _stop(sweep, signal.Signals(number).name)) for one in heard}
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    done = threading.Event()
    thread = threading.Thread(target=_listen, args=(sweep, heard, done), daemon=True, name="listen-sweep")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
        for one, handler in handlers.items():
            signal.signal(one, handler)


def _listen(sweep: Sweep, heard: set[signal.Signals], done: threading.Event) -> None:
    with contextlib.closing(Live(sweep)) as live:
        while not done.is_set():
            if got := signal.sigtimedwait(heard, REFRESH_S):
                _stop(sweep, signal.Signals(got.si_signo).name)
            live.update()
        live.update()


def _stop(sweep: Sweep, name: str) -> None:
    """Ask the cells to stop; the second time, kill them."""
    if not sweep.is_stopping:
        print(f"received {name}: the cells save and stop; interrupt again to kill them", file=sys.stderr, flush=True)
        sweep.ask_to_stop()
        return
    print(f"received {name}: killing the cells", file=sys.stderr, flush=True)
    for cell in sweep.cells():
        root = find_process(cell.process["pid"], cell.process["started"]) if cell.state == RUNNING else None
        if root is not None and alive(root):
            for process in [*root.children(recursive=True), root]:
                with contextlib.suppress(psutil.Error):
                    process.kill()
