"""The retention gate on items whose truth is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.reporting.gate import Gate, message, record
from tests.reporting.statistics.test_intervals import make_items, text

GATE = Gate({"acc": 0.05}, None, None, "shown", 0.95, 1000, 0)


def shares(n: int, right: float, lost: float) -> tuple:
    """A base that has `right` of n items right, and a model that lost `lost` of n."""
    values = np.arange(n) < right * n
    return {"acc": make_items(values)}, {"acc": make_items(values & (np.arange(n) >= lost * n))}


def judge(gate, n, lost, right=0.6):
    base, model = shares(n, right, lost)
    return gate.judge(base, model, {"acc": "Accuracy"})


def test_the_rules_differ_in_what_chance_may_excuse():
    """A loss of 5 points of 60, 8.3 % of the base's score, against a budget of 5 %, on few and on many items."""
    failed = {
        (rule, n): judge(replace(GATE, fail_if=rule), n, 0.05)[0].is_violated
        for rule in ("shown", "estimated", "possible")
        for n in (100, 4000)
    }
    assert failed == {
        ("shown", 100): False, ("shown", 4000): True,
        ("estimated", 100): True, ("estimated", 4000): True,
        ("possible", 100): True, ("possible", 4000): True,
    }  # fmt: skip
    kept = {rule: judge(replace(GATE, fail_if=rule), 4000, 0.01)[0] for rule in ("shown", "possible")}
    assert not kept["shown"].is_violated and not kept["possible"].is_violated


def test_equal_answers_prove_as_much_as_there_are_of_them():
    """None of 20 lost may hide one of six; none of 4000 less than the budget, and a model that is the same nothing."""
    gate = replace(GATE, fail_if="possible")
    few, many = judge(gate, 20, 0.0)[0], judge(gate, 4000, 0.0)[0]
    assert few.is_violated and (few.change, few.low) == (0.0, pytest.approx(-(1 - 0.025 ** (1 / 20)) / 0.6))
    assert not many.is_violated and many.low < 0
    assert not judge(GATE, 20, 0.0)[0].is_violated  # not shown to be lost either
    base, model = shares(20, 0.6, 0.0)
    (same,) = gate.judge(base, model, {"acc": "Accuracy"}, same_model=True)
    assert not same.is_violated and same.low == 0


def test_a_change_is_relative_and_negative_is_a_loss_in_either_direction():
    found = judge(GATE, 1000, 0.06)[0]
    assert found.change == pytest.approx(-0.1) and found.low < -0.1 < found.high < 0
    assert (found.base, found.model, found.n) == (pytest.approx(0.6), pytest.approx(0.54), 1000)
    base, worse = text([10.0] * 50, [10.0] * 50), text([11.0] * 50, [10.0] * 50)
    bits = replace(GATE, budgets={"bits": 0.05}).judge({"bits": base}, {"bits": worse}, {"bits": "Text"})[0]
    assert bits.change == pytest.approx(-0.1) and bits.is_violated
    better = replace(GATE, budgets={"bits": 0.0}).judge({"bits": worse}, {"bits": base}, {"bits": "Text"})[0]
    assert better.change == pytest.approx(1 / 11) and not better.is_violated


def test_the_mean_counts_every_measure_the_same():
    base, model = shares(2000, 0.5, 0.05)
    same = {"other": make_items(np.arange(20_000) % 2)}
    gate = replace(GATE, budgets={"acc": None, "other": None}, overall=0.02)
    (mean,) = gate.judge({**base, **same}, {**model, **same}, {"acc": "A", "other": "B"})
    assert mean.change == pytest.approx(-0.05) and mean.is_violated and math.isnan(mean.base)
    (mean,) = replace(gate, overall=0.08).judge({**base, **same}, {**model, **same}, {"acc": "A", "other": "B"})
    assert not mean.is_violated


def test_a_base_at_zero_has_nothing_to_lose_and_one_item_proves_nothing():
    zero = {"acc": make_items([0.0] * 9)}
    assert not replace(GATE, fail_if="possible").judge(zero, zero, {"acc": "A"})[0].is_violated
    one, none = {"acc": make_items([1.0])}, {"acc": make_items([0.0])}
    assert not GATE.judge(one, none, {"acc": "A"})[0].is_violated
    assert replace(GATE, fail_if="possible").judge(one, none, {"acc": "A"})[0].is_violated


def test_the_message_says_what_was_lost_and_the_record_is_plain():
    found = judge(GATE, 1000, 0.12)
    words = message(found, GATE, "tuned")
    assert words.startswith("the tuned model does not keep what the gate asks for: of 1 drop from the base 1 is beyond")
    assert "FAILED  Accuracy: 0.6000 -> 0.4800, −20.00 % (" in words and "budget −5.00 %; 1,000 items" in words
    assert "keeps what the gate asks for: none of 1 drop" in message(judge(GATE, 1000, 0.0), GATE, "tuned")
    assert record(found)[0]["change"] == pytest.approx(-0.2)
    overall = replace(GATE, overall=0.01).judge(*shares(1000, 0.6, 0.1), {"acc": "A"})
    assert record(overall)[-1]["base"] is None


def test_other_items_are_refused():
    base, _ = shares(100, 0.6, 0.1)
    with pytest.raises(ValueError, match=r"the gate on acc: .*answered different items"):
        GATE.judge(base, {"acc": make_items([1.0] * 99)}, {"acc": "A"})
