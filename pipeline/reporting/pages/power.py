"""How small a change the tasks would show, by their scores and by the losses of their right answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from pipeline.reporting.compare import Comparison
from pipeline.reporting.pages.page import Section
from pipeline.reporting.plain import finite
from pipeline.reporting.tables.power import Power, Shown, power_table, powers
from pipeline.reporting.tables.wording import number, percent

MANY_ROWS = 24
TITLE = "How small a change would show"


def power_sections(comparison: Comparison) -> list[Section]:
    """One section, or none if no task has losses of right answers on which a model differs from its base."""
    found = powers(comparison)
    if not found:
        return []
    table, is_short = power_table(comparison, found), len(found) <= MANY_ROWS
    values = {"power": comparison.power, "detectable": [_values(one) for one in found]}
    return [Section(TITLE, _sentences(comparison, found), None, table, is_short, is_short, values)]


def _sentences(comparison: Comparison, found: Sequence[Power]) -> tuple[str, ...]:
    what = (
        "The true change that a comparison with the base would call better or worse with a probability of "
        f"{percent(comparison.power)}: of the score, and of the loss of the right answers (gold answer). In standard "
        "deviations of the base over items (SD) the two can be compared."
    )
    ratios = sorted(one.ratio for one in found if math.isfinite(one.ratio))
    if not ratios:
        return (what,)
    low, middle, high = (number(one, 1) for one in (ratios[0], median(ratios), ratios[-1]))
    return (what, f"By the gold answer it is {middle} times smaller (median; {low} to {high}).")


def _values(power: Power) -> dict[str, Any]:
    return {
        "task": power.title,
        "model": power.model,
        "score": _shown(power.score),
        "gold": _shown(power.gold),
        "times_smaller": finite(power.ratio),
    }


def _shown(shown: Shown) -> dict[str, float | None]:
    return {
        "change": finite(shown.change),
        "base_deviation": finite(shown.deviation),
        "relative": finite(shown.relative),
    }
