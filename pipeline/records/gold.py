"""How likely a model finds the right answer of an item: what says more, item by item, than whether it picked it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GOLD_COLUMNS = ("gold_bits", "gold_bytes", "gold_margin_bits")
BITS_PER_BYTE = "bits_per_byte"
MARGIN = "margin"
"""The part of gold items that holds the margin to the best wrong option."""


@dataclass(frozen=True)
class GoldLoss:
    """The loss of an item's right answer.

    Attributes:
        bits: -log2 of the probability of the right answer's text after the prompt; of several right answers the mean.
        num_bytes: of that text in UTF-8, without white space in front of it; of several right answers the mean.
        margin_bits: how much likelier the right answer is than the best wrong option, in bits, both taken as the metric
            ranks options (see `pipeline.evaluation.tasks.gold`): negative where a wrong one is preferred. None where
            there are no wrong options.
    """

    bits: float
    num_bytes: float
    margin_bits: float | None = None

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.num_bytes

    @property
    def margin_bits_per_byte(self) -> float | None:
        return None if self.margin_bits is None else self.margin_bits / self.num_bytes


def gold_columns(losses: Iterable[GoldLoss | None]) -> dict[str, list[float | None]]:
    """As columns of a table, null where an item has no such loss."""
    rows = [(one.bits, one.num_bytes, one.margin_bits) if one else (None,) * len(GOLD_COLUMNS) for one in losses]
    return {name: [row[place] for row in rows] for place, name in enumerate(GOLD_COLUMNS)}


def gold_numbers(columns: Mapping[str, list[Any]], size: int) -> tuple[Floats, Floats]:
    """(N,) losses and margins in bits per byte, nan where there is none, as in a table without these columns."""
    nothing = [None] * size
    bits, sizes, margins = (np.array(columns.get(name, nothing), dtype=np.float64) for name in GOLD_COLUMNS)
    return bits / sizes, margins / sizes
