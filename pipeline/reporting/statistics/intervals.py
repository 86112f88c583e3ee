"""Scores of benchmark items, paired differences between two models, and sums of such differences.

A score is a ratio estimator, sum(numerator) / sum(denominator) over items: accuracy has denominator 1, bits per byte
has bits over bytes. Two models answer the same items, so their difference is taken item by item: the paired bootstrap
draws items with replacement and recomputes both ratios on every draw (Efron and Tibshirani 1993, "An Introduction to
the Bootstrap", chapter 13; for paired test sets Koehn 2004, ACL Anthology W04-3250). Intervals are percentile
intervals. They cover the choice of items only: not the training seed, and not the number of comparisons in a table.

Answers that are right or wrong and agree on every item are no proof that two models are the same: the share of items
on which they differ may be as large as makes none in n just not surprising. That bound is the exact one of a binomial
share (Clopper and Pearson 1934, Biometrika 26; for 95 % about 3.7 / n).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_CATEGORIES = 256  # so many distinct items or fewer are drawn as category counts, which is far cheaper
CHUNK = 2_000_000  # drawn indices held in memory at once
ACCURACIES = ("acc", "acc_norm", "exact_match")
"""Metrics that are shares whatever their items weigh: of a mean over subjects an item weighs less in a large one."""


@dataclass(frozen=True)
class Items:
    """One model's answers to one benchmark.

    Attributes:
        metric: its name, such as `acc_norm` or `bits_per_byte`.
        higher_is_better: the direction of the metric.
        ids, hashes: (N,) names of the items and hashes of their content.
        numerators, denominators: (N,) float64.
        categories: (N,) the part of the benchmark that each item belongs to, or none at all.
        parts: further ratios by name, (N,) numerators and denominators each.
        also: further numbers over all items, by name, that are no ratios.
    """

    metric: str
    higher_is_better: bool
    ids: tuple[str, ...]
    hashes: tuple[str, ...]
    numerators: Floats = field(repr=False)
    denominators: Floats = field(repr=False)
    categories: tuple[str, ...] = field(default=(), repr=False)
    parts: Mapping[str, tuple[Floats, Floats]] = field(default_factory=dict, repr=False)
    also: Mapping[str, float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.ids:
            raise ValueError(f"{self.metric}: found no items; a score needs at least one")
        lengths = {len(self.ids), len(self.hashes), self.numerators.size, self.denominators.size}
        if len(lengths) != 1:
            raise ValueError(f"{self.metric}: ids, hashes, numerators and denominators have lengths {sorted(lengths)}")
        if len(set(self.ids)) != len(self.ids):
            twice = next(name for name in self.ids if self.ids.count(name) > 1)
            raise ValueError(f"{self.metric}: the item id {twice!r} occurs more than once; ids must be unique")
        if not (np.isfinite(self.numerators).all() and np.isfinite(self.denominators).all()):
            raise ValueError(f"{self.metric}: an item's numerator or denominator is not a finite number")
        if (self.denominators < 0).any() or self.denominators.sum() <= 0:
            raise ValueError(f"{self.metric}: denominators must not be negative and must have a positive sum")

    def of(self, category: str) -> Items:
        """The items of one category, without parts and further numbers."""
        kept = [i for i, name in enumerate(self.categories) if name == category]
        ids, hashes = ([names[i] for i in kept] for names in (self.ids, self.hashes))
        columns = self.numerators[kept], self.denominators[kept]
        return Items(self.metric, self.higher_is_better, tuple(ids), tuple(hashes), *columns)

    @property
    def is_share(self) -> bool:
        """Whether the score is a mean of values in [0, 1], such as an accuracy: shown in percent."""
        alike = self.metric in ACCURACIES or bool((self.denominators == 1).all())
        within = (self.numerators >= 0).all() and (self.numerators <= self.denominators).all()
        return self.higher_is_better and alike and bool(within)

    @property
    def is_hit_or_miss(self) -> bool:
        """Whether the score is a share of items that are each wholly right or wholly wrong."""
        return self.is_share and bool(((self.numerators == 0) | (self.numerators == self.denominators)).all())


@dataclass(frozen=True)
class Score:
    """value = sum(numerator) / sum(denominator); stderr by linearisation, NaN when n is 1."""

    value: float
    stderr: float
    n: int


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
    draws: Floats = field(repr=False, compare=False)
    unchanged: bool = False

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


def score(items: Items) -> Score:
    """The ratio estimate and its standard error.

    stderr = sqrt(n / (n - 1) * sum(e_i^2)) / sum(d_i) with e_i = num_i - value * d_i (Cochran 1977, "Sampling
    Techniques", chapter 6). With unit denominators it is the usual standard error of a mean.
    """
    return ratio(items.numerators, items.denominators)


def ratio(numerators: Floats, denominators: Floats) -> Score:
    """As `score`, of (N,) columns. The sum of the denominators must be positive."""
    value = numerators.sum() / denominators.sum()
    residuals = numerators - value * denominators
    return Score(float(value), _stderr(residuals, denominators.sum()), numerators.size)


def paired_difference(
    model: Items,
    reference: Items,
    *,
    confidence: float,
    num_bootstrap: int,
    seed: int,
    stream: str = "",
    same_model: bool = False,
) -> Difference:
    """score(model) - score(reference) with a paired bootstrap interval.

    `same_model`: the two are known to compute the same, so that equal items are no matter of chance.

    Items are matched by id, in any order. `stream` names the random stream: the same seed and stream draw the same
    items, so give each benchmark its own name where independent draws matter (see `combine`).

    Raises:
        ValueError: if the two do not hold the same items (ids and hashes) of the same metric.
    """
    columns = paired_columns(model, reference)
    num_m, den_m, num_r, den_r = columns
    n = num_m.size
    rng = np.random.default_rng([seed, zlib.crc32(stream.encode())])
    if np.array_equal(num_m, num_r) and np.array_equal(den_m, den_r):
        if model.is_hit_or_miss and not same_model:
            return _unchanged(den_m, confidence, rng.random((2, num_bootstrap)))
        zeros = np.zeros(num_bootstrap)
        return Difference(0.0, 0.0, 0.0, 0.0, n, True, model.higher_is_better, confidence, zeros)
    ratio_m, ratio_r = num_m.sum() / den_m.sum(), num_r.sum() / den_r.sum()
    residuals = (num_m - ratio_m * den_m) / den_m.sum() - (num_r - ratio_r * den_r) / den_r.sum()
    sums = _resampled_sums(np.stack(columns, axis=1), num_bootstrap, rng)  # (B, 4)
    draws = sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]
    low, high = _percentiles(draws, confidence) if n > 1 else (-math.inf, math.inf)
    value = float(ratio_m - ratio_r)
    return Difference(value, _stderr(residuals, 1.0), low, high, n, False, model.higher_is_better, confidence, draws)


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
    low, high = (-math.inf, math.inf) if unknown else _percentiles(draws, confidence)
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


def paired_columns(model: Items, reference: Items) -> tuple[Floats, Floats, Floats, Floats]:
    """Numerators and denominators of the model, then of the reference, (N,) each, item beside item.

    Raises:
        ValueError: if the two do not hold the same items (ids and hashes) of the same metric.
    """
    if (model.metric, model.higher_is_better) != (reference.metric, reference.higher_is_better):
        raise ValueError(f"cannot compare the metric {model.metric!r} with {reference.metric!r}; they must be the same")
    where = {name: i for i, name in enumerate(reference.ids)}
    lacking = [name for name in model.ids if name not in where]
    surplus = set(where) - set(model.ids)
    if lacking or surplus:
        example = repr(lacking[0] if lacking else min(surplus))
        raise ValueError(
            f"{model.metric}: the two models answered different items ({len(lacking)} only in the first, "
            f"{len(surplus)} only in the second, for example {example}); evaluate both on the same items"
        )
    order = np.array([where[name] for name in model.ids])
    changed = [name for i, name in enumerate(model.ids) if model.hashes[i] != reference.hashes[where[name]]]
    if changed:
        raise ValueError(
            f"{model.metric}: {len(changed)} items have the same id but different content, for example "
            f"{changed[0]!r}; evaluate both models on the same version of the benchmark"
        )
    return model.numerators, model.denominators, reference.numerators[order], reference.denominators[order]


def unseen_share(n: int, tail: float) -> float:
    """The largest share of which none in n would still be seen with probability `tail`."""
    return 1 - tail ** (1 / n)


def _unchanged(weights: Floats, confidence: float, uniforms: Floats) -> Difference:
    """No item of n differs: losses may be as large a share as `unseen_share` has it, and so may wins.

    Items may weigh differently, and what was not seen may be the heaviest. The draws are of a distribution that has
    the bounds as its percentiles, so that they can be combined with others.
    """
    n, heaviest = weights.size, float(weights.max() / weights.mean())
    bound = min(1.0, heaviest * unseen_share(n, (1 - confidence) / 2))
    sizes = np.minimum(1.0, heaviest * (1 - (uniforms[0] / 2) ** (1 / n)))
    draws = np.where(uniforms[1] < 0.5, -sizes, sizes)
    stderr = bound / NormalDist().inv_cdf((1 + confidence) / 2) if n > 1 else math.nan
    low, high = (-bound, bound) if n > 1 else (-math.inf, math.inf)
    return Difference(0.0, stderr, low, high, n, False, True, confidence, draws, unchanged=True)


def _resampled_sums(columns: Floats, num_bootstrap: int, rng: np.random.Generator) -> Floats:
    """(N, C) -> (B, C): column sums over N items drawn with replacement, B times."""
    n = len(columns)
    distinct, counts = np.unique(columns, axis=0, return_counts=True)
    if len(distinct) <= MAX_CATEGORIES:
        # Drawing items is drawing their values: only how often each distinct value comes up matters.
        return rng.multinomial(n, counts / n, size=num_bootstrap) @ distinct
    sums = np.empty((num_bootstrap, columns.shape[1]))
    step = max(1, CHUNK // n)
    for start in range(0, num_bootstrap, step):
        stop = min(start + step, num_bootstrap)
        index = rng.integers(0, n, size=(stop - start, n), dtype=np.int32)
        for c in range(columns.shape[1]):
            sums[start:stop, c] = columns[:, c][index].sum(axis=1)
    return sums


def _stderr(residuals: Floats, total: float) -> float:
    n = residuals.size
    return float(math.sqrt(n / (n - 1) * np.square(residuals).sum()) / total) if n > 1 else math.nan


def _percentiles(draws: Floats, confidence: float) -> tuple[float, float]:
    if not np.isfinite(draws).all():
        return -math.inf, math.inf  # a draw of items whose denominators are all zero has no score
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
