"""How large a change must be for a benchmark to show it: the minimum detectable difference of a paired comparison."""

from __future__ import annotations

import math
from statistics import NormalDist

from pipeline.reporting.statistics.differences import Difference
from pipeline.reporting.statistics.intervals import Score


def detectable(difference: Difference, power: float) -> float:
    """The true change that this comparison would call better or worse with probability `power`, in the metric's unit.

    (z_(1 - alpha/2) + z_power) * stderr of the paired difference, alpha = 1 - confidence (Cohen 1988, "Statistical
    Power Analysis for the Behavioral Sciences", chapter 2, for paired observations). The error is that of the two
    models at hand: models that disagree on more items need a larger change. Of items that are right or wrong it is at
    least the share that, all lost or all won, would show with this probability (see `_shown_share`): where the models
    agree on all or nearly all, that error is far too small for the few items which must change before anything shows.
    NaN where it is not known (one item), or where the two are identical.
    """
    if difference.identical or not difference.stderr > 0 or math.isinf(difference.low):
        return math.nan
    least = 0.0
    if difference.heaviest:
        least = min(1.0, difference.heaviest * _shown_share(difference.n, difference.confidence, power))
    normal = NormalDist()
    needed = (normal.inv_cdf((1 + difference.confidence) / 2) + normal.inv_cdf(power)) * difference.stderr
    return least if difference.unchanged else max(least, needed)


def deviation(score: Score) -> float:
    """The standard deviation over items, in which changes of measures in different units can be compared.

    It is stderr * sqrt(n): of a mean over items the usual one, of bits over bytes that of the linearised ratio (Cochran
    1977, "Sampling Techniques", chapter 6).
    """
    return score.stderr * math.sqrt(score.n)


def _shown_share(n: int, confidence: float, power: float) -> float:
    """The share of changed items, all in one direction, whose bootstrap interval excludes zero so often.

    With k of n items changed a draw holds none of them with probability (1 - k/n)^n, and the interval excludes zero
    where that is below its tail; that k items or more change is a binomial probability.
    """
    tail = (1 - confidence) / 2
    needed = next(k for k in range(1, n + 1) if (1 - k / n) ** n < tail)

    def shown(share: float) -> float:
        return 1 - math.fsum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(needed))

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if shown(middle) >= power else (middle, high)
    return high


def is_too_small(difference: Difference) -> bool:
    """Whether a benchmark shows no change and would not show a small one either: its interval contains zero."""
    return difference.mark == "within"
