"""Items drawn with replacement, all together or within strata, and the standard error that goes with it.

Of a stratum of n items n - 1 are drawn and weigh n / (n - 1): the variance over draws is then the unbiased one of a
stratified sample, which matters for a dozen items (Rao and Wu 1988, "Resampling Inference With Complex Survey Data").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.records.items import KL_NATS, Floats, Items

IntArray = np.ndarray[Any, np.dtype[np.int64]]

MAX_CATEGORIES = 256  # up to this many distinct items are drawn as category counts, which is far cheaper
CHUNK = 2_000_000  # drawn indices held in memory at once


def strata_of(items: Items) -> tuple[IntArray, ...]:
    """Positions of the items, apart where the benchmark fixes how many there are of each category.

    Of a drift, its settings say how many samples of each kind and how many documents there are. A stratum of one item
    would tell nothing of its spread: then all are one.
    """
    everything = (np.arange(len(items.ids)),)
    if items.metric != KL_NATS or not items.categories:
        return everything
    names = np.array(items.categories)
    found = tuple(np.flatnonzero(names == name) for name in sorted(set(items.categories)))
    return found if min(map(len, found)) > 1 else everything


def resampled_sums(columns: Floats, num_bootstrap: int, rng: np.random.Generator, strata: Sequence[IntArray]) -> Floats:
    """(N, C) -> (B, C): column sums over N items drawn with replacement, B times."""
    if len(strata) <= 1:
        return _sums(columns, len(columns), num_bootstrap, rng)
    sums = np.zeros((num_bootstrap, columns.shape[1]))
    for stratum in strata:
        n = len(stratum)
        sums += _sums(columns[stratum], n - 1, num_bootstrap, rng) * (n / (n - 1))
    return sums


def _sums(columns: Floats, num_drawn: int, num_bootstrap: int, rng: np.random.Generator) -> Floats:
    n = len(columns)
    distinct, counts = np.unique(columns, axis=0, return_counts=True)
    if len(distinct) <= MAX_CATEGORIES:
        # Drawing items is drawing their values: only how often each distinct value comes up matters.
        return rng.multinomial(num_drawn, counts / n, size=num_bootstrap) @ distinct
    sums = np.empty((num_bootstrap, columns.shape[1]))
    step = max(1, CHUNK // n)
    for start in range(0, num_bootstrap, step):
        stop = min(start + step, num_bootstrap)
        index = rng.integers(0, n, size=(stop - start, num_drawn), dtype=np.int32)
        for c in range(columns.shape[1]):
            sums[start:stop, c] = columns[:, c][index].sum(axis=1)
    return sums


def stderr_of(residuals: Floats, strata: Sequence[IntArray] = ()) -> float:
    """Standard error of a sum whose (N,) terms have these residuals; NaN of a single one.

    sqrt(sum over strata of n / (n - 1) * sum (e - mean of e)^2) (Cochran 1977, "Sampling Techniques", chapters 5, 6).
    """
    if residuals.size < 2:
        return math.nan
    parts = [residuals[stratum] - residuals[stratum].mean() for stratum in strata] if len(strata) > 1 else [residuals]
    return math.sqrt(sum(len(e) / (len(e) - 1) * float(np.square(e).sum()) for e in parts))
