"""Scores of benchmark items, and paired differences between two models.

A score is a ratio estimator, sum(numerator) / sum(denominator) over items: accuracy has denominator 1, bits per byte
has bits over bytes. Two models answer the same items, so their difference is taken item by item: the paired bootstrap
draws items with replacement and recomputes both ratios on every draw (Efron and Tibshirani 1993, "An Introduction to
the Bootstrap", chapter 13; for paired test sets Koehn 2004, ACL Anthology W04-3250). Intervals are percentile
intervals. They cover the choice of items only: not the training seed, and not the number of comparisons in a table.

Answers that are right or wrong and agree on every item are no proof that two models are the same: the share of items
on which they differ may be as large as makes none in n just not surprising. That bound is the exact one of a binomial
share (Clopper and Pearson 1934, Biometrika 26; for 95 % about 3.7 / n).

Where a benchmark fixes how many items there are of each kind (`strata_of`), they are drawn within their kind: what
the kinds differ in is then no error. See `draws.py`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from pipeline.records.items import Floats, Items
from pipeline.reporting.statistics.differences import Difference, percentiles
from pipeline.reporting.statistics.draws import IntArray, resampled_sums, stderr_of, strata_of


@dataclass(frozen=True)
class Score:
    """value = sum(numerator) / sum(denominator); stderr by linearisation, NaN when n is 1."""

    value: float
    stderr: float
    n: int


def score(items: Items) -> Score:
    """The ratio estimate and its standard error.

    stderr = sqrt(n / (n - 1) * sum(e_i^2)) / sum(d_i) with e_i = num_i - value * d_i (Cochran 1977, "Sampling
    Techniques", chapter 6). With unit denominators it is the usual standard error of a mean.
    """
    return ratio(items.numerators, items.denominators, strata_of(items))


def ratio(numerators: Floats, denominators: Floats, strata: Sequence[IntArray] = ()) -> Score:
    """As `score`, of (N,) columns. The sum of the denominators must be positive."""
    value = numerators.sum() / denominators.sum()
    residuals = (numerators - value * denominators) / denominators.sum()
    return Score(float(value), stderr_of(residuals, strata), numerators.size)


def inverse_stderrs(measured: Mapping[str, Items]) -> dict[str, float]:
    """Name -> 1 / standard error of the score, of those whose items differ."""
    stderrs = {name: score(items).stderr for name, items in measured.items()}
    return {name: 1 / stderr for name, stderr in stderrs.items() if stderr > 0 and math.isfinite(stderr)}


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
    strata = strata_of(model)
    sums = resampled_sums(np.stack(columns, axis=1), num_bootstrap, rng, strata)  # (B, 4)
    draws = sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]
    low, high = percentiles(draws, confidence) if n > 1 else (-math.inf, math.inf)
    heaviest = float(den_m.max() / den_m.mean()) if model.is_hit_or_miss and reference.is_hit_or_miss else 0.0
    estimate = float(ratio_m - ratio_r), stderr_of(residuals, strata), low, high
    return Difference(*estimate, n, False, model.higher_is_better, confidence, draws, heaviest=heaviest)


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


def unseen_draws(weights: Floats, uniforms: Floats) -> Floats:
    """(B,) changes, of either sign, that none of the items shows: their percentiles are the bounds of `unseen_share`.

    Items may weigh differently, and what was not seen may be the heaviest.

    Args:
        weights: (N,) denominators of the items.
        uniforms: (2, B) draws in [0, 1): of the sizes and of the signs.
    """
    heaviest = float(weights.max() / weights.mean())
    sizes = np.minimum(1.0, heaviest * (1 - (uniforms[0] / 2) ** (1 / weights.size)))
    return np.where(uniforms[1] < 0.5, -sizes, sizes)


def _unchanged(weights: Floats, confidence: float, uniforms: Floats) -> Difference:
    """No item of n differs: losses may be as large a share as `unseen_share` has it, and so may wins.

    The draws (`unseen_draws`) can be combined with others.
    """
    n, heaviest = weights.size, float(weights.max() / weights.mean())
    bound = min(1.0, heaviest * unseen_share(n, (1 - confidence) / 2))
    draws = unseen_draws(weights, uniforms)
    stderr = bound / NormalDist().inv_cdf((1 + confidence) / 2) if n > 1 else math.nan
    low, high = (-bound, bound) if n > 1 else (-math.inf, math.inf)
    return Difference(0.0, stderr, low, high, n, False, True, confidence, draws, unchanged=True, heaviest=heaviest)
