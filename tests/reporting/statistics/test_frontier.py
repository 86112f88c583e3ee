"""Drift at equal gain: curves by hand, pairing, and how often chance is called a difference."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.records.items import Items
from pipeline.reporting.statistics.frontier import Point, at_gain, envelope, levels, round_gains, shared_draws
from pipeline.reporting.statistics.intervals import paired_difference, score

DRAWS = 400


def point(gain, drift, noise=(0.0, 0.0)):
    """A point whose draws are moved by `noise`: (B,) each, or nothing."""
    return Point(gain, drift, np.full(DRAWS, gain) + noise[0], np.full(DRAWS, drift) + noise[1])


def items(values, sizes=None, ids=None):
    names = tuple(ids or map(str, range(len(values))))
    return Items("m", False, names, names, np.array(values), np.ones(len(values)) if sizes is None else sizes)


def test_a_curve_leaves_out_what_another_rate_beats():
    low, beaten, high, fallen = point(0.1, 1.0), point(0.15, 4.0), point(0.2, 3.0), point(0.05, 9.0)
    assert envelope([fallen, high, beaten, low]) == [low, high]
    assert len(envelope([low, point(0.1, 1.0)])) == 1


def test_drift_between_two_rates_by_hand():
    curve = [point(0.1, 1.0), point(0.2, 3.0), point(0.4, 4.0)]
    assert at_gain(curve, 0.15)[0] == pytest.approx(2.0) and at_gain(curve, 0.3)[0] == pytest.approx(3.5)
    assert at_gain(curve, 0.1)[0] == 1.0 and at_gain(curve, 0.4)[0] == 4.0
    assert at_gain(curve, 0.09) is None and at_gain(curve, 0.41) is None and at_gain(curve[:1], 0.1)[0] == 1.0


def test_a_draw_in_which_all_gain_less_needs_more_drift_for_the_same_gain():
    """At 0.15 between (0.1, 1) and (0.2, 3), both gains 0.05 smaller: the curve is followed up to its drift of 3."""
    noise = (np.full(DRAWS, -0.05), 0.0)
    value, draws = at_gain([point(0.1, 1.0, noise), point(0.2, 3.0, noise)], 0.15)
    assert value == pytest.approx(2.0) and draws == pytest.approx(np.full(DRAWS, 3.0))


@pytest.mark.parametrize(
    ("ranges", "found"),
    [
        ([(0.021, 0.079), (0.04, 0.2)], [0.04, 0.05, 0.06, 0.07]),
        ([(0.0, 4.0), (1.2, 9.0), (5.0, 8.0)], [2.0, 4.0, 6.0, 8.0]),
        ([(0.1, 0.3), (0.1, 0.3)], [0.1, 0.15, 0.2, 0.25, 0.3]),
        ([(0.1, 0.2), (0.3, 0.4)], []),
        ([(-0.5, -0.1), (-0.4, -0.2)], []),
    ],
)
def test_gains_that_two_methods_share_are_round(ranges, found):
    assert round_gains([[point(low, 1.0), point(high, 2.0)] for low, high in ranges]) == found


def test_all_models_share_their_draws():
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 50, 40).astype(float)
    base = rng.normal(3, 1, 40) * sizes
    models = [items(base, sizes), items(base - 0.1 * sizes, sizes)]
    models.append(items(base[::-1], sizes[::-1], models[0].ids[::-1]))  # in another order
    values, draws = shared_draws(models, num_bootstrap=2000, seed=1, stream="s")
    assert values == pytest.approx([score(one).value for one in models])
    assert draws[:, 1] - draws[:, 0] == pytest.approx(np.full(2000, -0.1)) and np.ptp(draws[:, 0]) > 0.1
    assert draws[:, 2] == pytest.approx(draws[:, 0])
    alone = paired_difference(models[0], items(np.zeros(40), sizes), confidence=0.95, num_bootstrap=4000, seed=1)
    low, high = np.quantile(draws[:, 0], [0.025, 0.975])
    assert low == pytest.approx(alone.low, rel=0.02) and high == pytest.approx(alone.high, rel=0.02)
    with pytest.raises(ValueError, match="different items"):
        shared_draws([models[0], items(base[:-1])], num_bootstrap=10, seed=1, stream="s")


def test_a_difference_shows_where_intervals_overlap():
    """Both drifts move together by far more than they differ; what is paired tells them apart, and says which."""
    together = np.random.default_rng(2).normal(0, 0.5, DRAWS)
    a = [point(0.1, 1.0, (0.0, together)), point(0.3, 3.0, (0.0, together))]
    b = [point(0.1, 1.2, (0.0, together)), point(0.3, 3.2, (0.0, together))]
    c = [point(0.35, 2.0), point(0.5, 4.0)]
    found = levels({"a": a, "b": b, "c": c}, confidence=0.95, num_items=40)
    assert [one.gain for one in found] == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3])
    assert all(one.least == "a" and one.next == "b" and one.drifts["c"] is None for one in found)
    at = found[2]
    assert at.drifts["a"].value == pytest.approx(2.0) and at.drifts["a"].high > at.drifts["b"].value
    assert at.behind["b"].value == pytest.approx(0.2) and at.behind["b"].low == pytest.approx(0.2)
    assert at.adjusted["b"] == pytest.approx(5 * 2 / (DRAWS + 1))  # Holm over five


def test_one_item_tells_nothing():
    found = levels(
        {"a": [point(0.1, 1.0), point(0.2, 2.0)], "b": [point(0.1, 1.5), point(0.2, 2.5)]}, confidence=0.95, num_items=1
    )
    assert found and all(at.behind["b"].mark == "within" and at.adjusted["b"] == 1 for at in found)


def test_chance_is_called_a_difference_about_as_rarely_as_said():
    """Two methods that are alike but for noise of items, 300 times over: at most 5 % of the comparisons, and a bit."""
    rng, called = np.random.default_rng(3), 0
    for trial in range(300):
        gains = [items(rng.normal(mean, 0.02, 40)) for mean in (0.1, 0.2, 0.1, 0.2)]
        drifts = [items(np.abs(rng.normal(mean, 0.3, 40))) for mean in (1.0, 2.0, 1.0, 2.0)]
        gain, gain_draws = shared_draws(gains, num_bootstrap=DRAWS, seed=trial, stream="g")
        drift, drift_draws = shared_draws(drifts, num_bootstrap=DRAWS, seed=trial, stream="d")
        points = [Point(gain[i], drift[i], gain_draws[:, i], drift_draws[:, i]) for i in range(4)]
        found = at_gain(points[:2], 0.15), at_gain(points[2:], 0.15)
        low, high = np.quantile(found[0][1] - found[1][1], [0.025, 0.975])
        called += not low <= 0 <= high
    assert called <= 300 * 0.05 + 3 * np.sqrt(300 * 0.05 * 0.95)
