"""Which cells of a run's sweep its report lacks, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.engine.sweep.record import DONE, FAILED, STOPPED, WAITING, Cell, Sweep, sweeps
from pipeline.engine.sweep.table import shown_state

SAID = {WAITING: "not run yet", DONE: "its results were deleted since", STOPPED: "stopped before it was done"}
EARLIER = "what stands here of it is of an earlier start"


def missing_cells(outputs: Path, name: str, recorded: Mapping[str, float]) -> dict[str, Any] | None:
    """What the report over a run lacks of the sweep that was started last in it, as plain values.

    Args:
        recorded: variants of the run that are whole -> when they were recorded, in seconds since the epoch.

    Returns:
        {num_cells, present: [cell], missing: [{cell, variant, why, command}], command: that resumes the sweep}; None
        where no sweep of this run makes a report, or no cell is missing.
    """
    found = _last(outputs, name)
    if found is None:
        return None
    sweep, cells = found
    why = {cell.key: _why(cell, recorded.get(cell.variant)) for cell in cells}
    missing = [
        {"cell": cell.name, "variant": cell.variant, "why": why[cell.key], "command": cell.command}
        for cell in cells
        if why[cell.key]
    ]
    present = [cell.name for cell in cells if not why[cell.key]]
    whole = {"num_cells": len(cells), "present": present, "missing": missing, "command": sweep.command}
    return whole if missing else None


def reported_runs(outputs: Path) -> list[str]:
    """The names of the runs on which a sweep reports, or would if a cell of it were whole."""
    runs = outputs.absolute() / "runs"
    return list(dict.fromkeys(cell.report["name"] for sweep in sweeps(runs) for cell in sweep.cells() if cell.report))


def _last(outputs: Path, name: str) -> tuple[Sweep, Sequence[Cell]] | None:
    """The sweep that was started last of those that report on this run, with its cells that belong to it."""
    runs = outputs.absolute() / "runs"
    for sweep in sweeps(runs):
        here = sweep.directory.parents[1].relative_to(runs).as_posix()
        cells = sweep.cells()
        of_run = [cell for cell in cells if (cell.report["name"] if cell.report else here) == name]
        if any(cell.report for cell in of_run) and all(cell.variant for cell in of_run):
            return sweep, of_run
    return None


def _why(cell: Cell, recorded: float | None) -> str:
    """Why the report lacks a cell; empty if it does not. What was recorded before the cell failed is not its own."""
    if recorded is not None:
        is_older = cell.state == FAILED and recorded < (cell.began or cell.ended or 0)
        return f"{cell.error}; {EARLIER}" if is_older else ""
    state = shown_state(cell)
    return cell.error if state == FAILED else SAID.get(state, state)
