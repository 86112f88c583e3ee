"""A number as a report writes it, read back: which values may have been written so. Imports no numpy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.reporting.tables.wording import duration

_NUMBER = r"[+\-]?\d[\d,]*(?:\.\d+)?(?:e[+\-]?\d+)?"
_ONE = re.compile(rf"(?:\w+ ?[=<>≈] ?|± ?)?(?P<number>{_NUMBER}) ?(?P<unit>[A-Za-z%/][A-Za-z%/ ]*)?")
_INTERVAL = re.compile(rf"\[({_NUMBER}), ({_NUMBER})\]")
_LONG = re.compile(r"\d+ h \d\d min")
_SIZES = {"k": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}
UNITS: dict[str, tuple[float, ...]] = {
    "": (1.0, 100.0),
    **dict.fromkeys(("%", "points", "percentage points"), (1.0, 100.0)),
    **{prefix: (1 / size,) for prefix, size in _SIZES.items()},
    **{f"{prefix}FLOP": (1 / size,) for prefix, size in _SIZES.items()},
    **{f"{prefix}iB": (1 / 1024**i,) for i, prefix in enumerate("KMGT", 1)},
    "s": (1.0,), "min": (1 / 60,), "h": (1 / 3600,),
}  # fmt: skip
"""Unit -> what a value is multiplied by to be shown in it; a value without one is shown as it is, or in percent."""
ROUNDED = {unit for unit in UNITS if unit not in ("", "%", "points", "percentage points")}
"""Units in which a number without decimals may stand for one with them."""


@dataclass(frozen=True)
class Written:
    """A number with its unit ("" for none), or an interval.

    Attributes:
        number: as typed, with a plain minus sign.
        high: the upper end of an interval whose lower one is `number`; "" for a single number.
    """

    number: str
    unit: str = ""
    high: str = ""

    def may_be(self, value: float) -> bool:
        """Whether a report would write a value so; a number without a sign may stand for either."""
        if _LONG.fullmatch(self.number):
            return duration(value) == self.number
        return self._is(value, self.number)

    def may_end(self, value: float) -> bool:
        """Whether a report would write the upper end of the interval so."""
        return self._is(value, self.high)

    def _is(self, value: float, text: str) -> bool:
        return any(shown(value * scale, text, self.unit in ROUNDED) for scale in UNITS.get(self.unit, (1.0,)))


def read(text: str) -> Written | None:
    """What a person copied out of a report; None for what is no number."""
    plain = text.strip().replace("−", "-").replace("\u202f", " ")
    if _LONG.fullmatch(plain):
        return Written(plain)
    if ends := _INTERVAL.fullmatch(plain):
        return Written(ends[1], "", ends[2])
    found = _ONE.fullmatch(plain)
    return Written(found["number"], (found["unit"] or "").strip()) if found else None


def shown(value: float, text: str, rounded: bool = False) -> bool:
    """Whether a value is written so; `rounded`: without decimals it may stand for one that has them."""
    plain = text.replace(",", "")
    mantissa, written = plain.partition("e")[0], "e" if "e" in plain else "f"
    digits = len(mantissa.partition(".")[2])
    if float(f"{abs(value):.{digits}{written}}") != abs(float(plain)):
        return False
    if plain.lstrip("+-").isdigit() and value != int(value) and not rounded:
        return False
    return plain[0] not in "+-" or (value < 0) == (plain[0] == "-")


def numbers_in(text: str) -> Iterator[str]:
    """The numbers of a text, as they stand there but for their minus signs."""
    plain = text.replace("−", "-")
    return (found[0] for found in re.finditer(rf"(?<![\w.,])[+\-]?(?:{_NUMBER})(?![\w])", plain))
