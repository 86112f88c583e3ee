"""A sweep's cells planned before they run: what each takes of the machine, or why it is refused.

Cells are planned in forked processes, a share each: planning takes seconds a cell, and the driver stays without torch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pipeline.command_line.answers import told
from pipeline.engine.errors import PipelineError
from pipeline.engine.process.launch import usable_cores
from pipeline.engine.sweep.capacity import Need

POLL_S = 0.3
Compose = Callable[[Sequence[str]], DictConfig]
NeedOf = Callable[[DictConfig], Need]


@dataclass(frozen=True)
class CellPlan:
    """What planning found of a cell.

    Attributes:
        need: of the machine; None: not known.
        refusal: why the cell cannot run, for a person; empty: nothing speaks against it.
        is_composed: its words make a config. Hydra starts no cell of a sweep of which one makes none.
    """

    need: Need | None = None
    refusal: str = ""
    is_composed: bool = True


class CellPlans:
    """The plans of the cells that these overrides make, which arrive while other things are done."""

    def __init__(self, cells: Sequence[Sequence[str]], compose: Compose, need_of: NeedOf) -> None:
        import pipeline.engine.run.runner
        import pipeline.lineage.build  # noqa: F401  (once here, not once in each process)

        self.found: dict[int, CellPlan] = {}
        self.num_cells = len(cells)
        self._ends: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._stopped = threading.Event()
        context = multiprocessing.get_context("fork")
        num_processes = min(len(cells), usable_cores())
        for first in range(num_processes):
            ours, theirs = context.Pipe(duplex=False)
            self._ends.append(ours)
            share = [(index, cells[index]) for index in range(first, len(cells), num_processes)]
            work = (share, theirs, list(self._ends), compose, need_of)
            process = context.Process(target=_plan_share, args=work, daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)

    def wait(self, seconds: float) -> None:
        """Take what arrives, until all are planned or the time is over."""
        until = time.monotonic() + seconds
        while self._ends and (left := until - time.monotonic()) > 0:
            self._take(left)

    def later(self) -> Iterator[tuple[int, CellPlan]]:
        """(index of the cell, its plan) of those that arrive from now on, until all have or `stop` is called."""
        while self._ends and not self._stopped.is_set():
            yield from self._take(POLL_S)

    def stop(self) -> None:
        """Plan no further."""
        self._stopped.set()
        for process in self._processes:
            process.terminate()

    def _take(self, seconds: float) -> list[tuple[int, CellPlan]]:
        arrived: list[tuple[int, CellPlan]] = []
        for end in wait(self._ends, seconds):
            assert isinstance(end, Connection)
            try:
                arrived.append(end.recv())
            except (EOFError, OSError):  # all of its share is planned, or it was killed: cells say themselves then
                self._ends.remove(end)
                end.close()
        self.found.update(arrived)
        return arrived


def _plan_share(
    share: Sequence[tuple[int, Sequence[str]]],
    end: Connection,
    inherited: Sequence[Connection],
    compose: Compose,
    need_of: NeedOf,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the driver, which ends these
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in inherited:  # else nothing would tell this process that the driver is gone
        other.close()
    with contextlib.suppress(BrokenPipeError):
        for index, words in share:
            end.send((index, _plan(words, compose, need_of)))


def _plan(words: Sequence[str], compose: Compose, need_of: NeedOf) -> CellPlan:
    try:
        config = compose(words)
    except (PipelineError, HydraException, OmegaConfBaseException) as error:
        return CellPlan(refusal=told(error), is_composed=False)
    try:
        return CellPlan(need_of(config))
    except (PipelineError, HydraException, OmegaConfBaseException) as error:
        return CellPlan(refusal=told(error))
    except Exception as error:  # not meant for a person: the cell shows it with its traceback
        print(f"a cell could not be planned before it runs: {error!r}", file=sys.stderr)
        return CellPlan()
