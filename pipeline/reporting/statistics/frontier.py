"""Drift at equal gain: each method's points joined to a curve, and curves compared where several methods have one.

A curve is the monotone envelope of a method's points: those that no other of its points beats in gain and drift at
once, joined by straight lines in the gain. Nothing is said outside its range. All models answer the same items, so a
bootstrap draw is one choice of items for all of them: differences between methods are paired.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.records.items import Floats, Items
from pipeline.reporting.statistics.differences import Difference, percentiles
from pipeline.reporting.statistics.draws import resampled_sums, strata_of
from pipeline.reporting.statistics.intervals import paired_columns
from pipeline.reporting.statistics.permutation import draws_p_value, holm

MIN_LEVELS, STEPS = 4, (5, 2, 1)


@dataclass(frozen=True, eq=False)
class Point:
    """One model: gain and drift over all items, and (B,) over each draw of items."""

    gain: float
    drift: float
    gains: Floats = field(repr=False)
    drifts: Floats = field(repr=False)

    def beats(self, other: Point) -> bool:
        """At least as much gain for at most as much drift, and not the same."""
        own, others = (self.gain, self.drift), (other.gain, other.drift)
        return self.gain >= other.gain and self.drift <= other.drift and own != others


@dataclass(frozen=True)
class Level:
    """The methods at one gain.

    Attributes:
        drifts: of each method; None where its curve has no such gain.
        least: the method that drifted least.
        behind: how much more each other one drifted.
        adjusted: p-values of these, two-sided, for the number of all comparisons of all levels (Holm).
    """

    gain: float
    drifts: Mapping[str, Difference | None]
    least: str
    behind: Mapping[str, Difference]
    adjusted: Mapping[str, float]

    @property
    def next(self) -> str:
        """The method that drifted least but one."""
        return min(self.behind, key=lambda name: self.behind[name].value)


def shared_draws(models: Sequence[Items], *, num_bootstrap: int, seed: int, stream: str) -> tuple[Floats, Floats]:
    """(M,) scores of models on the same items, and (B, M) on draws of these items that are the same for all.

    Raises:
        ValueError: two of them hold different items.
    """
    pairs = [paired_columns(models[0], one)[2:] for one in models]
    numerators, denominators = (np.stack(columns, axis=1) for columns in zip(*pairs, strict=True))
    rng = np.random.default_rng([seed, zlib.crc32(f"shared {stream}".encode())])
    columns = np.concatenate([numerators, denominators], axis=1)
    sums = resampled_sums(columns, num_bootstrap, rng, strata_of(models[0]))
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = sums[:, : len(models)] / sums[:, len(models) :]
    return numerators.sum(axis=0) / denominators.sum(axis=0), draws


def envelope(points: Sequence[Point]) -> list[Point]:
    """The points that none of the others beats, by gain; drift then grows with it."""
    kept = [one for one in points if not any(other.beats(one) for other in points)]
    return sorted({(one.gain, one.drift): one for one in kept}.values(), key=lambda one: one.gain)


def at_gain(curve: Sequence[Point], gain: float) -> tuple[float, Floats] | None:
    """Drift of a curve (see `envelope`) at a gain, over all items and on each draw; None outside its range."""
    if not curve[0].gain <= gain <= curve[-1].gain:
        return None
    if len(curve) == 1:
        return curve[0].drift, curve[0].drifts
    low, high = next(pair for pair in itertools.pairwise(curve) if pair[0].gain <= gain <= pair[1].gain)
    share = (gain - low.gain) / (high.gain - low.gain)
    with np.errstate(invalid="ignore", divide="ignore"):  # the two may come to the same gain in a draw
        shares = (gain - low.gains) / (high.gains - low.gains)
        draws = low.drifts + shares * (high.drifts - low.drifts)
    return low.drift + share * (high.drift - low.drift), draws


def known_at(curve: Sequence[Point], gain: float) -> tuple[float, Floats]:
    """As `at_gain`, within the range of a curve. Raises ValueError outside of it."""
    if (found := at_gain(curve, gain)) is None:
        raise ValueError(f"a gain of {gain} is not between {curve[0].gain} and {curve[-1].gain}")
    return found


def round_gains(curves: Sequence[Sequence[Point]]) -> list[float]:
    """Round numbers, at least four where there is room for them, that at least two curves have in their range."""
    ranges = [(curve[0].gain, curve[-1].gain) for curve in curves]
    top = max(high for _, high in ranges)
    found: list[float] = []
    for exponent, digit in itertools.product(range(math.ceil(math.log10(top)) if top > 0 else 0, -8, -1), STEPS):
        step = digit * 10.0**exponent
        every = [round(step * i, 10) for i in range(1, int(top / step + 1e-9) + 1)] if top > 0 else []
        found = [gain for gain in every if sum(low <= gain <= high for low, high in ranges) > 1]
        if len(found) >= MIN_LEVELS or len(every) > 1000:
            break
    return found


def levels(curves: Mapping[str, Sequence[Point]], *, confidence: float, num_items: int) -> list[Level]:
    """The methods at each of some gains that at least two of them have; none where no two share one."""
    found = []
    for gain in round_gains(list(curves.values())):
        known = {name: at for name, curve in curves.items() if (at := at_gain(curve, gain)) is not None}
        least = min(known, key=lambda name: known[name][0])
        value, draws = known[least]
        behind = {
            name: drift_difference(at[0] - value, at[1] - draws, confidence, num_items)
            for name, at in known.items()
            if name != least
        }
        drifts = {
            name: drift_difference(*known[name], confidence, num_items) if name in known else None for name in curves
        }
        found.append(Level(gain, drifts, least, behind, {}))
    adjusted = holm({(i, name): _p_value(one) for i, at in enumerate(found) for name, one in at.behind.items()})
    return [
        Level(at.gain, at.drifts, at.least, at.behind, {name: adjusted[i, name] for name in at.behind})
        for i, at in enumerate(found)
    ]


def drift_difference(value: float, draws: Floats, confidence: float, num_items: int) -> Difference:
    """A drift, or how much larger one is than another, in nats per token, with the interval of its (B,) draws."""
    low, high = percentiles(draws, confidence) if num_items > 1 else (-math.inf, math.inf)
    stderr = float(draws.std()) if np.isfinite(draws).all() else math.nan
    return Difference(float(value), stderr, low, high, num_items, False, False, confidence, draws)


def _p_value(difference: Difference) -> float:
    return draws_p_value(difference.draws) if difference.n > 1 else 1.0
