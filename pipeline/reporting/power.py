"""How large a change must be for a benchmark to show it: the minimum detectable difference of a paired comparison."""

from __future__ import annotations

import math
from statistics import NormalDist

from pipeline.reporting.statistics import Difference


def detectable(difference: Difference, power: float) -> float:
    """The true change that this comparison would call better or worse with probability `power`, in the metric's unit.

    (z_(1 - alpha/2) + z_power) * stderr of the paired difference, alpha = 1 - confidence (Cohen 1988, "Statistical
    Power Analysis for the Behavioral Sciences", chapter 2, for paired observations). The error is that of the two
    models at hand: models that disagree on more items need a larger change. NaN where it is not known (one item), or
    where the two answered everything alike.
    """
    if difference.identical or not difference.stderr > 0 or math.isinf(difference.low):
        return math.nan
    normal = NormalDist()
    return (normal.inv_cdf((1 + difference.confidence) / 2) + normal.inv_cdf(power)) * difference.stderr


def is_too_small(difference: Difference) -> bool:
    """Whether a benchmark shows no change and would not show a small one either: its interval contains zero."""
    return difference.mark == "within"
