"""Numbers as readers see them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pipeline.reporting.statistics.differences import Difference
    from pipeline.reporting.statistics.intervals import Score

MISSING = "–"


class Interval(Protocol):
    """What has the ends of an interval, infinite where it is not known."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True)
class Unit:
    """How values of a measure are shown: multiplied by `scale`, with `digits` decimals, named `name`."""

    name: str
    scale: float
    digits: int
    higher_is_better: bool

    @property
    def of_changes(self) -> str:
        """What a difference is in: points of per cent."""
        return "points" if self.name == "%" else self.name


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """A fixed number of decimals with a true minus sign; a value that rounds to zero carries no sign."""
    if not math.isfinite(value):
        return MISSING
    text = f"{abs(value):.{digits}f}"
    if not float(text):
        return text
    return ("−" if value < 0 else "+" if signed else "") + text


def score_text(score: Score | None, unit: Unit) -> str:
    """Value and standard error in the unit: `52.3 ± 1.5`."""
    if score is None:
        return MISSING
    return f"{number(score.value * unit.scale, unit.digits)} ± {number(score.stderr * unit.scale, unit.digits)}"


def interval(found: Interval, digits: int, scale: float = 1.0, *, signed: bool = True) -> str:
    """`[low, high]`, or a note that there is none, as of a single item."""
    if not math.isfinite(found.low):
        return "[no interval]"
    low, high = (number(bound * scale, digits, signed=signed) for bound in (found.low, found.high))
    return f"[{low}, {high}]"


def difference_parts(difference: Difference | None, digits: int, scale: float = 1.0) -> tuple[str, str]:
    """The value and its interval; an exact zero is 0 without an interval, so that it differs from a rounded one."""
    if difference is None:
        return MISSING, ""
    if difference.identical:
        return "0", ""
    return number(difference.value * scale, digits, signed=True), interval(difference, digits, scale)


def estimate(difference: Difference, digits: int, unit: str, *, signed: bool = True) -> str:
    """For sentences: `+0.0312 bits per byte (95 % CI +0.0280 to +0.0340)`."""
    if difference.identical:
        return f"exactly 0 {unit}"
    value = number(difference.value, digits, signed=signed)
    if not math.isfinite(difference.low):
        return f"{value} {unit} (one item, so no interval)"
    return f"{value} {unit} ({span(difference, digits, difference.confidence, signed=signed)})"


def span(found: Interval, digits: int, confidence: float, scale: float = 1.0, *, signed: bool = True) -> str:
    """An interval in a sentence: `95 % CI +0.0280 to +0.0340`."""
    low, high = (number(bound * scale, digits, signed=signed) for bound in (found.low, found.high))
    return f"{percent(confidence)} CI {low} to {high}"


def percent(share: float) -> str:
    """0.95 as 95 %, with four digits."""
    return f"{share * 100:.4g} %"


def count(value: int | None) -> str:
    """134,515,008 as 134.5 M."""
    if value is None:
        return MISSING
    for size, suffix in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e4, " k")):
        if value >= size:
            shown = value / (1e3 if suffix == " k" else size)
            return f"{shown:.1f}{suffix}"
    return f"{value:,}"


def duration(seconds: float | None) -> str:
    """Seconds as `12 s`, `7 min` or `2 h 05 min`."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def memory(num_bytes: int | None) -> str:
    """Bytes in GiB, with one decimal."""
    return MISSING if num_bytes is None else f"{num_bytes / 2**30:.1f} GiB"


def listing(parts: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
