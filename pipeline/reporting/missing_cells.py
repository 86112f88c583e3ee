"""What a report says, first of all, of the cells of its sweep that it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MAX_TOLD = 20
"""Cells that are named; of more, it is said how many."""


def missing_lines(sweep: Mapping[str, Any] | None) -> list[str]:
    """How many cells are missing, each with the reason, and how what is left is run; empty where none is missing.

    Args:
        sweep: as the stage `report` has it.
    """
    if sweep is None:
        return []
    missing, present = sweep["missing"], sweep["present"]
    are = "is" if len(missing) == 1 else "are"
    head = f"{len(missing)} of {sweep['num_cells']} cells of this sweep {are} missing:"
    left = f"{_others(present)} Run what is left: {sweep['command']}"
    if len(missing) == 1:
        return [f"{head} {missing[0]['cell']} ({missing[0]['why']}).", left]
    cells = [f"{one['cell']}: {one['why']}" for one in missing[:MAX_TOLD]]
    more = [f"and {len(missing) - MAX_TOLD} more"] if len(missing) > MAX_TOLD else []
    return [head, *cells, *more, left]


def _others(present: Sequence[str]) -> str:
    """Which cells of the sweep the report has."""
    if len(present) < 2:
        return f"This report has its other cell, {present[0]}." if present else "This report has none of its cells."
    more = f" and {len(present) - MAX_TOLD} more" if len(present) > MAX_TOLD else ""
    return f"This report has its other {len(present)} cells: {'; '.join(present[:MAX_TOLD])}{more}."
