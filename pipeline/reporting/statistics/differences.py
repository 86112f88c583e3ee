"""A difference between two models with its confidence interval, and weighted sums of independent ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Difference:
    """An estimate that is zero when nothing changed, with its confidence interval.

    Attributes:
        value: the estimate. For two models: model minus reference, in the metric's own unit.
        stderr: NaN when n is 1.
        low, high: the interval; infinite on both sides when n is 1, where nothing is known.
        n: items compared.
        identical: every compared item is exactly equal, and that is all there is to know: the models are the same by
            construction, or the values are graded so finely that chance does not repeat them. Then value, stderr, low
            and high are exactly 0.
        unchanged: every item of a right-or-wrong measure is equal, which does not prove as much: value is 0, low and
            high are the exact bounds, and stderr is that of a normal with such an interval.
        heaviest: of a right-or-wrong measure the weight of its heaviest item over the mean weight; 0 of any other.
        higher_is_better: the direction in which `value` is an improvement.
        draws: (B,) bootstrap values, kept so that differences can be combined.
    """

    value: float
    stderr: float
    low: float
    high: float
    n: int
    identical: bool
    higher_is_better: bool
    confidence: float
    draws: NDArray[np.float64] = field(repr=False, compare=False)
    unchanged: bool = False
    heaviest: float = 0.0

    @property
    def is_equal(self) -> bool:
        """Whether every compared item has the same value, whatever that proves."""
        return self.identical or self.unchanged

    @property
    def mark(self) -> str:
        """`identical`, `better` or `worse` (the interval excludes zero), or `within` (it does not)."""
        if self.identical:
            return "identical"
        low, high = (self.low, self.high) if self.higher_is_better else (-self.high, -self.low)
        if low > 0:
            return "better"
        return "worse" if high < 0 else "within"

    @property
    def sign(self) -> float:
        """+1 if a larger value is better, else -1."""
        return 1.0 if self.higher_is_better else -1.0


def combine(terms: Iterable[tuple[float, Difference]], *, confidence: float) -> Difference:
    """The weighted sum of independent differences, larger is better.

    Every difference is turned so that positive is an improvement, then multiplied by its weight. Each must come from a
    `stream` of its own, as their draws are added one by one.

    Raises:
        ValueError: if there are no terms, or the terms have different numbers of draws.
    """
    pairs = list(terms)
    if not pairs:
        raise ValueError("found no differences to combine; at least one is required")
    sizes = {difference.draws.size for _, difference in pairs}
    if len(sizes) != 1:
        raise ValueError(f"the differences have {sorted(sizes)} bootstrap draws; use one num_bootstrap for all")
    factors = [weight * difference.sign for weight, difference in pairs]
    draws = np.sum([factor * d.draws for factor, (_, d) in zip(factors, pairs, strict=True)], axis=0)
    value = sum(factor * d.value for factor, (_, d) in zip(factors, pairs, strict=True))
    stderr = math.sqrt(sum((factor * d.stderr) ** 2 for factor, (_, d) in zip(factors, pairs, strict=True)))
    n = sum(d.n for _, d in pairs)
    if all(d.identical for _, d in pairs):
        return Difference(0.0, 0.0, 0.0, 0.0, n, True, True, confidence, draws)
    unknown = any(not d.identical and d.n == 1 for _, d in pairs)
    low, high = (-math.inf, math.inf) if unknown else percentiles(draws, confidence)
    return Difference(value, stderr, low, high, n, False, True, confidence, draws)


def mean_gain(differences: Sequence[Difference], *, confidence: float) -> Difference:
    """The unweighted mean of differences in one unit, turned so that positive is an improvement."""
    return combine(((1 / len(differences), d) for d in differences), confidence=confidence)


def beyond_general_shift(
    domain: Sequence[Difference], general: Sequence[Difference], *, confidence: float
) -> Difference:
    """How much more the domain text gained than general text did, both in bits per byte against the same base.

    A model that trains on any clean text may get better (or worse) at all text; only what the domain gains beyond that
    is knowledge of the domain. The interval comes from independent bootstraps of the two sets of documents.

    Raises:
        ValueError: if one of the two is empty.
    """
    if not domain or not general:
        raise ValueError(f"found {len(domain)} domain and {len(general)} general differences; one of each is required")
    terms = [(1 / len(domain), d) for d in domain] + [(-1 / len(general), d) for d in general]
    return combine(terms, confidence=confidence)


def percentiles(draws: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """The bootstrap interval: the two percentiles of (B,) draws that leave out equal tails."""
    if not np.isfinite(draws).all():
        return -math.inf, math.inf  # a draw of items whose denominators are all zero has no score
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
