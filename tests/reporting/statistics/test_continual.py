"""Measures of a score matrix against sums done by hand."""

import numpy as np
import pytest

from pipeline.records.items import Items
from pipeline.reporting.statistics.continual import MEASURES, measured, with_unseen
from pipeline.reporting.statistics.intervals import paired_difference

NAN = float("nan")
SCORES = np.array(
    [
        [0.10, 0.20, 0.30],  # before any task
        [0.80, 0.25, 0.20],
        [0.60, 0.90, 0.45],
        [0.50, 0.70, 0.75],
    ]
)


def values(scores):
    return {name: float(value) for name, value in measured(np.asarray(scores)).items()}


def test_every_measure_is_the_sum_done_by_hand():
    assert values(SCORES) == pytest.approx(
        {
            "op": (0.50 + 0.70 + 0.75) / 3,
            "bwt": ((0.50 - 0.80) + (0.70 - 0.90)) / 2,
            "fwt": ((0.25 - 0.20) + (0.45 - 0.30)) / 2,
            "forgetting": ((0.80 - 0.50) + (0.90 - 0.70)) / 2,
            "la": (0.80 + 0.90 + 0.75) / 3,
        }
    )


def test_forgetting_counts_from_the_best_whenever_that_was():
    later_best = SCORES.copy()
    later_best[2, 0] = 0.95  # the second task made the first better
    found = values(later_best)
    assert found["forgetting"] == pytest.approx(((0.95 - 0.50) + (0.90 - 0.70)) / 2)
    assert found["bwt"] == values(SCORES)["bwt"]


def test_what_was_not_measured_before_is_no_transfer_and_no_maximum():
    scores = np.full((9, 8), NAN)
    scores[np.arange(8) + 1, np.arange(8)] = 0.6
    scores[-1] = 0.5
    scores[-1, -1] = 0.6
    found = values(scores)
    assert np.isnan(found["fwt"]) and found["forgetting"] == pytest.approx(-found["bwt"]) == pytest.approx(0.1)


def test_op_and_bwt_of_llama_pro_s_table_are_those_of_matrices_that_have_them():
    """LLaMA Pro's Table 6 (v1): LoRA, SeqFT, block expansion; the matrices are ours, as the paper prints none."""
    for op, bwt in ((0.371, -0.173), (0.455, -0.147), (0.465, -0.143)):
        scores = np.full((9, 8), NAN)
        scores[-1] = op
        scores[np.arange(7) + 1, np.arange(7)] = op - bwt
        found = values(scores)
        assert (round(found["op"], 3), round(found["bwt"], 3)) == (op, bwt)


def test_draws_are_measured_one_by_one():
    draws = np.stack([SCORES, SCORES + 0.1, SCORES * 0.5])
    found = measured(draws)
    assert all(values.shape == (3,) for values in found.values())
    assert found["op"] == pytest.approx([0.65, 0.75, 0.325])
    assert found["bwt"] == pytest.approx([-0.25, -0.25, -0.125])


def test_one_task_has_no_transfer():
    assert set(measured(np.array([[0.1], [0.7]]))) == {"op", "la"}
    assert {name for name, one in MEASURES.items() if one.is_loss} == {"forgetting"}


def test_answers_that_another_model_gave_too_may_differ_as_much_as_in_a_single_difference():
    right = np.array([1.0] * 9 + [0.0] * 3)
    names = tuple(f"i{i}" for i in range(12))
    items = Items("acc", True, names, names, right, np.ones(12))
    settings = {"confidence": 0.95, "num_bootstrap": 40000, "seed": 0}
    single = paired_difference(items, items, **settings)
    draws = with_unseen([items, items], np.full((40000, 2), 0.5), np.random.default_rng(0))
    low, high = np.quantile(draws[:, 1] - draws[:, 0], [0.025, 0.975])
    assert (low, high) == pytest.approx((single.low, single.high), abs=0.01) and single.high > 0.26
