"""What leaving blocks out of a model showed, as an evaluation of the blocks kept it beside its items."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.reporting.stack import origins
from pipeline.reporting.statistics.intervals import Floats, Items


@dataclass(frozen=True)
class Removal:
    """The loss without blocks at `positions`, less the whole model's; positive means that they help.

    `value`, `stderr`, `low` and `high` are in bits per byte; nan where a single document gives no interval.
    `numerators` are the bits of each item, (N,).
    """

    positions: tuple[int, ...]
    value: float
    stderr: float
    low: float
    high: float
    numerators: Floats

    @property
    def mark(self) -> str:
        """As of a difference: `worse` or `better` (the interval excludes zero), `within`, or `identical`."""
        if self.value == self.low == self.high == 0:
            return "identical"
        return "worse" if self.low > 0 else "better" if self.high < 0 else "within"


@dataclass(frozen=True)
class DiagnosedBlock:
    """A new block: where it stands, the position of its origin in the same stack, and the loss without it."""

    position: int
    origin: int
    round: int
    is_identity: bool
    is_candidate: bool
    without: Removal


@dataclass(frozen=True)
class Diagnosis:
    """Of one model.

    Attributes:
        items: of the whole model.
        updates: relative size of every block's update to the stream, in the order of the stack.
        blocks: the new ones; empty for a model that was not expanded.
        without_all: all new blocks left out; None where there are none.
        without_candidates: all candidates for dropping left out together; None where there are none.
    """

    items: Items
    confidence: float
    updates: tuple[float, ...]
    blocks: tuple[DiagnosedBlock, ...]
    without_all: Removal | None
    without_candidates: Removal | None

    @property
    def is_untouched(self) -> bool:
        """Every new block still is an exact identity."""
        return all(block.is_identity for block in self.blocks)


def read_diagnosis(directory: Path, items: Items, facts: Mapping[str, Any]) -> Diagnosis | None:
    """The diagnosis in an evaluation artifact whose items and facts are known, or None if it holds none.

    Raises:
        ValueError: naming the directory, if the diagnosis is not what it should be.
    """
    content = facts.get("diagnosis")
    if content is None:
        return None
    try:
        sources = origins(content["blocks"], len(content["updates"]))
        return Diagnosis(
            items=items,
            confidence=float(content["confidence"]),
            updates=tuple(map(float, content["updates"])),
            blocks=tuple(_block(entry, sources[entry["position"]]) for entry in content["blocks"]),
            without_all=_removal(content["without_all"]),
            without_candidates=_removal(content["without_candidates"]),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{directory} holds no whole diagnosis ({error!r}); rerun this evaluation") from error


def _block(entry: Mapping[str, Any], origin: int) -> DiagnosedBlock:
    removal = _removal(entry["without"])
    assert removal is not None
    return DiagnosedBlock(
        int(entry["position"]),
        origin,
        int(entry["round"]),
        bool(entry["is_identity"]),
        bool(entry["is_candidate"]),
        removal,
    )


def _removal(content: Mapping[str, Any] | None) -> Removal | None:
    if content is None:
        return None
    value, stderr, low, high = (
        math.nan if content[key] is None else float(content[key]) for key in ("value", "stderr", "low", "high")
    )
    numerators = np.array(content["numerators"], dtype=np.float64)
    return Removal(tuple(content["positions"]), value, stderr, low, high, numerators)
