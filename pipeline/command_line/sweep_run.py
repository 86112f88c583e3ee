"""A prepared sweep from its first cell to its report."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pipeline.command_line.cell_plans import CellPlan
from pipeline.command_line.reports import run_reports
from pipeline.command_line.sweep import Prepared
from pipeline.engine.errors import ConfigError
from pipeline.engine.sweep.driver import run_cells
from pipeline.engine.sweep.record import FAILED, Cell, Sweep
from pipeline.engine.sweep.table import counts, failures, plain_table


def run_sweep(prepared: Prepared, sweep: Sweep, launch: Callable[[], None]) -> int:
    """Refuse the cells that cannot run, run the others and the reports; returns the exit status, 1 if a cell failed.

    Args:
        launch: has Hydra run the cells.

    Raises:
        ConfigError: the words of a cell make no config; nothing was started.
    """
    print(sweep.capacity or "one cell after another", file=sys.stderr)
    plans = prepared.plans
    try:
        cells = _refused(prepared.cells, plans.found if plans else {})
        if plans and plans.num_cells > len(plans.found):
            num_left = plans.num_cells - len(plans.found)
            print(f"{num_left} of {plans.num_cells} cells are planned while the first run", file=sys.stderr)
        is_over = bool(cells) and all(cell.state == FAILED for cell in cells)
        if is_over:
            print("all cells are refused; nothing was started", file=sys.stderr)
        cells = run_cells(sweep, cells, launch, _refusals(prepared))
    finally:
        if plans:
            plans.stop()
    failed = failures(cells)
    try:
        if not is_over:
            run_reports(cell.report for cell in cells if cell.report)
    finally:
        print(f"\n{plain_table(cells)}\n{counts(cells)}", file=sys.stderr)
        if failed:
            print(f"\n{failed}\nrerun all that is left: {sweep.command}", file=sys.stderr)
    return 1 if failed else 0


def _refused(cells: Sequence[Cell], plans: dict[int, CellPlan]) -> list[Cell]:
    """The cells, those as failed that cannot run, which is said at once."""
    for index, plan in sorted(plans.items()):
        if not plan.is_composed:
            raise ConfigError(f"no cell was started: {cells[index].name}: {plan.refusal.removeprefix('ConfigError: ')}")
    found = list(cells)
    for index, plan in sorted(plans.items()):
        if plan.refusal:
            print(f"refused before it runs: {cells[index].name}: {plan.refusal}", file=sys.stderr, flush=True)
            found[index] = replace(cells[index], state=FAILED, error=_line(plan), ended=time.time())
    return found


def _refusals(prepared: Prepared) -> Iterator[tuple[str, str]]:
    """(key of a cell, why it is refused) of those that are planned while others run."""
    for index, plan in prepared.plans.later() if prepared.plans else ():
        if plan.refusal:
            yield prepared.cells[index].key, _line(plan)


def _line(plan: CellPlan) -> str:
    return plan.refusal.strip().splitlines()[0]
