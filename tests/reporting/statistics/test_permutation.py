"""The permutation test against an exact count, and Holm's correction."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipeline.reporting.statistics.permutation import holm, permutation_test
from tests.reporting.statistics.test_intervals import make_items, text


def exact(num_m, den_m, num_r, den_r) -> float:
    """The share of all 2^n exchanges with a difference at least as large."""
    columns = np.array([num_m, den_m, num_r, den_r], dtype=float)

    def difference(swaps) -> float:
        a, b, c, d = np.where(np.array(swaps)[None], columns[[2, 3, 0, 1]], columns).sum(axis=1)
        return abs(a / b - c / d)

    found = difference([False] * columns.shape[1])
    every = [difference(swaps) for swaps in itertools.product([False, True], repeat=columns.shape[1])]
    return float(np.mean([one >= found - 1e-12 for one in every]))


def test_p_is_that_of_all_exchanges():
    rng = np.random.default_rng(0)
    for _ in range(4):
        den = rng.integers(1, 9, 10).astype(float)
        num_m, num_r = den * rng.normal(1.0, 0.3, 10), den * rng.normal(1.2, 0.3, 10)
        p = permutation_test(text(num_m, den), text(num_r, den), num_draws=20_000, seed=0)
        assert p == pytest.approx(exact(num_m, den, num_r, den), abs=0.015)


def test_items_that_did_not_change_say_nothing():
    base = np.r_[np.zeros(500), np.ones(500)]
    model = base.copy()
    assert permutation_test(make_items(model), make_items(base), num_draws=100, seed=0) == 1.0
    model[:6] = 1.0  # six items won, none lost: 2 of the 64 exchanges are as one-sided
    p = permutation_test(make_items(model), make_items(base), num_draws=50_000, seed=0)
    assert p == pytest.approx(2 / 64, abs=0.004)


def test_unchanged_models_look_changed_as_often_as_they_should():
    rng, ps = np.random.default_rng(1), []
    for i in range(400):
        items = [make_items(rng.normal(0, 1, 40)) for _ in range(2)]
        ps.append(permutation_test(*items, num_draws=200, seed=i))
    assert np.mean(np.array(ps) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_holm():
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.9})
    assert adjusted == pytest.approx({"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.9})
    assert list(adjusted) == ["a", "b", "c", "d"] and holm({}) == {}


def test_other_items_are_refused():
    with pytest.raises(ValueError, match="answered different items"):
        permutation_test(make_items([1.0]), make_items([1.0, 2.0]), num_draws=10, seed=0)
