"""A second opinion on every difference: a paired permutation test, and a correction for their number."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np

from pipeline.records.items import Floats, Items
from pipeline.reporting.statistics.draws import CHUNK
from pipeline.reporting.statistics.intervals import paired_columns

Key = TypeVar("Key", bound=Hashable)


def permutation_test(model: Items, reference: Items, *, num_draws: int, seed: int, stream: str = "") -> float:
    """Two-sided p-value of the difference between two models on the same items.

    If the models were alike, their answers to an item could change places: the difference of the two ratios is computed
    again for `num_draws` random exchanges, and p is the share of those at least as large as the one found, which itself
    counts as one (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 15). 1 if every item is equal.

    Raises:
        ValueError: as `paired_difference` does.
    """
    num_m, den_m, num_r, den_r = paired_columns(model, reference)
    differs = (num_m != num_r) | (den_m != den_r)
    if not differs.any():
        return 1.0
    exchanged = np.stack([num_r - num_m, den_r - den_m], axis=1)[differs]  # (D, 2): what an exchange adds to the model
    sums_m, sums_r = (np.array([a.sum(), b.sum()]) for a, b in ((num_m, den_m), (num_r, den_r)))
    found = abs(sums_m[0] / sums_m[1] - sums_r[0] / sums_r[1])
    rng, as_large = np.random.default_rng([seed, zlib.crc32(f"permutation {stream}".encode())]), 0
    step = max(1, CHUNK // len(exchanged))
    for start in range(0, num_draws, step):
        swaps = rng.integers(0, 2, size=(min(step, num_draws - start), len(exchanged)), dtype=np.int8)
        moved = swaps.astype(np.float64) @ exchanged  # (B, 2)
        with np.errstate(invalid="ignore", divide="ignore"):
            own, other = ((sums[:, 0] / sums[:, 1]) for sums in (sums_m + moved, sums_r - moved))
        as_large += int((np.abs(own - other) >= found * (1 - 1e-9)).sum())
    return (1 + as_large) / (1 + num_draws)


def draws_p_value(draws: Floats) -> float:
    """Two-sided, by the share of (B,) bootstrap draws of a difference on the other side of zero."""
    if not np.isfinite(draws).all():
        return 1.0
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (1 + tail) / (1 + draws.size))


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """P-values adjusted for their number: those below alpha hold together with probability 1 - alpha (Holm 1979)."""
    adjusted: dict[Key, float] = {}
    largest, count = 0.0, len(p_values)
    for rank, (key, p) in enumerate(sorted(p_values.items(), key=lambda pair: pair[1])):
        largest = max(largest, min(1.0, (count - rank) * p))
        adjusted[key] = largest
    return {key: adjusted[key] for key in p_values}
