"""The numbers that a setting may hold: a class has a table of ranges, by key, and one check of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """From `least` to `most`, both allowed unless they are `open`; no number that is not finite.

    hint: what else may be written, such as "or null for none".
    """

    least: float
    most: float = math.inf
    least_open: bool = False
    most_open: bool = False
    hint: str = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.least if self.least_open else value >= self.least
        below = value < self.most if self.most_open else value <= self.most
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        words = f"{'more than' if self.least_open else 'at least'} {self.least:g}"
        if self.most < math.inf:
            words += f" and {'less than' if self.most_open else 'at most'} {self.most:g}"
        else:
            words += " and finite"
        return f"{words}, {self.hint}" if self.hint else words


POSITIVE, NOT_NEGATIVE = Range(0, least_open=True), Range(0)
COUNT = Range(1)
SHARE, BELOW_ONE = Range(0, 1), Range(0, 1, most_open=True)


def check_ranges(values: Mapping[str, Any], ranges: Mapping[str, Range], where: str = "") -> None:
    """Refuse a number, or one of a list, that is out of its range; null and keys that are not there are left alone.

    `where` is what stands before a key in an error. Raises ValueError naming key, value and range.
    """
    for key, allowed in ranges.items():
        value = values.get(key)
        found: list[Any] = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if any(one is not None and one not in allowed for one in found):
            raise ValueError(f"{where}{key}={value if found == [value] else found} must be {allowed}")
