"""Intervals are checked against data whose truth is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.records.items import KL_NATS
from pipeline.reporting.statistics.differences import beyond_general_shift, combine, mean_gain
from pipeline.reporting.statistics.draws import strata_of
from pipeline.reporting.statistics.intervals import Items, paired_difference, score

SETTINGS = {"confidence": 0.95, "num_bootstrap": 1000, "seed": 0}


def make_items(numerators, denominators=None, higher_is_better=True, metric="acc") -> Items:
    numerators = np.asarray(numerators, dtype=float)
    denominators = np.ones_like(numerators) if denominators is None else np.asarray(denominators, dtype=float)
    names = tuple(f"item {i}" for i in range(numerators.size))
    hashes = tuple(f"{i:016x}" for i in range(numerators.size))
    return Items(metric, higher_is_better, names, hashes, numerators, denominators)


def text(bits, sizes) -> Items:
    return make_items(bits, sizes, higher_is_better=False, metric="bits_per_byte")


def test_score_of_a_mean_is_the_mean_with_its_standard_error():
    values = np.random.default_rng(0).random(50)
    found = score(make_items(values))
    assert found.value == pytest.approx(values.mean()) and found.n == 50
    assert found.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(50))


def test_score_of_a_ratio_weighs_long_items_more():
    assert score(text([10, 90], [10, 30])).value == 100 / 40


def test_stderr_of_a_ratio_agrees_with_repeated_sampling():
    rng = np.random.default_rng(1)

    def sample() -> Items:
        sizes = rng.integers(100, 2000, 80)
        return text(sizes * rng.normal(1.0, 0.2, 80), sizes)

    scores = [score(sample()) for _ in range(600)]
    assert np.mean([s.stderr for s in scores]) == pytest.approx(np.std([s.value for s in scores]), rel=0.08)


def test_one_item_has_a_value_but_no_error_and_no_verdict():
    assert math.isnan(score(make_items([1.0])).stderr)
    difference = paired_difference(make_items([1.0]), make_items([0.0]), **SETTINGS)
    assert difference.value == 1.0 and difference.mark == "within"
    assert (difference.low, difference.high) == (-math.inf, math.inf)
    assert combine([(1.0, difference)], confidence=0.95).low == -math.inf


def test_identical_items_differ_by_exactly_zero():
    bits, sizes = [1.1, 2.7, 3.3], [1, 2, 3]
    difference = paired_difference(text(bits, sizes), text(bits, sizes), **SETTINGS)
    assert (difference.value, difference.stderr, difference.low, difference.high) == (0.0, 0.0, 0.0, 0.0)
    assert difference.identical and difference.mark == "identical"
    assert mean_gain([difference], confidence=0.95).mark == "identical"


@pytest.mark.parametrize(("n", "bound"), [(1, math.inf), (2, 0.8419), (12, 0.2646), (300, 0.0122), (14042, 0.000263)])
def test_answers_that_all_agree_bound_the_share_that_may_differ(n, bound):
    """Clopper and Pearson's bounds for none of n; a model that is the same by construction differs by exactly zero."""
    items = make_items(np.arange(n) % 3 > 0)
    found = paired_difference(items, items, **SETTINGS)
    assert (found.value, found.mark, found.identical, found.is_equal) == (0.0, "within", False, True)
    assert (-found.low, found.high) == (pytest.approx(bound, rel=2e-3), pytest.approx(bound, rel=2e-3))
    if n > 1:
        assert (1 - found.high) ** n == pytest.approx(0.025)  # such a share would go unseen as rarely as that
    assert paired_difference(items, items, **SETTINGS, same_model=True).mark == "identical"
    mean = mean_gain([found], confidence=0.95)
    assert mean.mark == "within" and mean.low == pytest.approx(found.low, rel=0.25)


def test_graded_values_that_all_agree_are_identical_and_heavy_items_widen_the_bound():
    graded = make_items([0.31, 0.72, 0.05], metric="mc2")
    assert paired_difference(graded, graded, **SETTINGS).mark == "identical"
    weights = np.array([2.0] * 30 + [0.5] * 60)
    light, heavy = make_items(np.ones(90)), make_items(weights, weights)
    assert heavy.is_share and heavy.is_hit_or_miss
    bounds = [paired_difference(items, items, **SETTINGS).high for items in (light, heavy)]
    assert bounds[1] == pytest.approx(2 * bounds[0])


def test_an_accuracy_is_a_share_whatever_its_items_weigh():
    weights = [0.5, 0.5, 2.0]
    assert make_items([0.5, 0.0, 2.0], weights).is_share
    assert not make_items([0.5, 0.0, 2.5], weights).is_share
    assert not make_items([3.0, 7.0], [3.0, 9.0], metric="unshifted").is_share  # tokens, with parts in other units
    assert not make_items([8.0, 14.0], [2.0, 2.0], metric="rating").is_share


def test_equal_scores_of_different_answers_are_not_identical():
    difference = paired_difference(make_items([1, 0, 1, 0]), make_items([0, 1, 0, 1]), **SETTINGS)
    assert difference.value == 0.0 and not difference.identical and difference.mark == "within"


@pytest.mark.parametrize(("higher", "mark"), [(True, "better"), (False, "worse")])
def test_the_mark_follows_the_direction_of_the_metric(higher, mark):
    rng = np.random.default_rng(2)
    reference = rng.random(200)
    model = make_items(reference + rng.normal(0.1, 0.05, 200), higher_is_better=higher)
    difference = paired_difference(model, make_items(reference, higher_is_better=higher), **SETTINGS)
    assert difference.value > 0 and difference.mark == mark
    assert mean_gain([difference], confidence=0.95).value == pytest.approx(0.1 if higher else -0.1, abs=0.01)


@pytest.mark.parametrize("kind", ["accuracy", "bits per byte"])
def test_the_interval_covers_the_truth_as_often_as_it_says(kind):
    """400 data sets with a known difference: 95 % intervals should cover it in about 380; 3 sigma is 13."""
    rng = np.random.default_rng(3)
    covered = 0
    for i in range(400):
        model, reference, truth = simulate_accuracy(rng) if kind == "accuracy" else simulate_text(rng)
        found = paired_difference(model, reference, confidence=0.95, num_bootstrap=400, seed=i)
        covered += found.low <= truth <= found.high
    assert 0.91 <= covered / 400 <= 0.98


def simulate_accuracy(rng) -> tuple[Items, Items, float]:
    before = rng.random(150) < 0.6
    after = np.where(before, rng.random(150) >= 0.15, rng.random(150) < 0.25)  # loses 15 %, wins 25 %
    return make_items(after), make_items(before), -0.6 * 0.15 + 0.4 * 0.25


def simulate_text(rng) -> tuple[Items, Items, float]:
    sizes = rng.lognormal(6, 0.7, 120).round() + 1
    rates = rng.normal(1.0, 0.2, 120)
    return text(sizes * (rates + rng.normal(-0.02, 0.08, 120)), sizes), text(sizes * rates, sizes), -0.02


def test_pairing_removes_the_difficulty_of_items():
    rng = np.random.default_rng(4)
    hard = rng.normal(5, 2, 100)
    model, reference = make_items(hard + rng.normal(0.1, 0.05, 100)), make_items(hard)
    found = paired_difference(model, reference, **SETTINGS)
    assert found.mark == "better" and found.stderr < 0.05 * score(reference).stderr


def test_drawing_counts_of_distinct_values_agrees_with_drawing_items():
    """Both are the same distribution: few distinct values take the first way, many the second."""
    rng = np.random.default_rng(5)
    before, after = (rng.random(400) < 0.5).astype(float), (rng.random(400) < 0.55).astype(float)
    jitter = rng.normal(0, 1e-9, 400)
    few = paired_difference(make_items(after), make_items(before), confidence=0.95, num_bootstrap=20000, seed=0)
    many = paired_difference(
        make_items(after + jitter), make_items(before), confidence=0.95, num_bootstrap=20000, seed=0
    )
    assert np.std(few.draws) == pytest.approx(np.std(many.draws), rel=0.03)
    assert few.stderr == pytest.approx(np.std(few.draws), rel=0.03)
    assert few.low == pytest.approx(many.low, abs=0.004) and few.high == pytest.approx(many.high, abs=0.004)


def test_the_order_of_items_does_not_matter_and_a_seed_repeats():
    rng = np.random.default_rng(6)
    model, reference = make_items(rng.random(300)), make_items(rng.random(300))
    order = rng.permutation(300)
    shuffled = replace(
        reference,
        ids=tuple(reference.ids[i] for i in order),
        hashes=tuple(reference.hashes[i] for i in order),
        numerators=reference.numerators[order],
    )
    first, again = paired_difference(model, reference, **SETTINGS), paired_difference(model, shuffled, **SETTINGS)
    assert first == again and np.array_equal(first.draws, again.draws)
    other = paired_difference(model, reference, **SETTINGS, stream="another benchmark")
    assert not np.array_equal(first.draws, other.draws)


def test_different_items_are_refused():
    reference = make_items([1, 0, 1])
    with pytest.raises(ValueError, match="1 only in the second, for example 'item 2'"):
        paired_difference(make_items([1, 0]), reference, **SETTINGS)
    with pytest.raises(ValueError, match="same id but different content, for example 'item 1'"):
        changed = replace(reference, hashes=(reference.hashes[0], "other", reference.hashes[2]))
        paired_difference(reference, changed, **SETTINGS)
    with pytest.raises(ValueError, match="'acc_norm' with 'acc'"):
        paired_difference(replace(reference, metric="acc_norm"), reference, **SETTINGS)


@pytest.mark.parametrize(
    ("numerators", "denominators", "message"),
    [([], [], "no items"), ([1, math.nan], [1, 1], "not a finite"), ([1, 2], [0, 0], "positive sum")],
)
def test_items_that_have_no_score_are_refused(numerators, denominators, message):
    with pytest.raises(ValueError, match=message):
        make_items(numerators, denominators)


def test_an_id_that_occurs_twice_is_refused():
    with pytest.raises(ValueError, match="'item 0' occurs more than once"):
        replace(make_items([1, 0]), ids=("item 0", "item 0"))


def gained(gain: float, seed: int, spread: float = 0.02):
    rng = np.random.default_rng(seed)
    sizes, rates = rng.integers(500, 4000, 150), rng.normal(1, 0.1, 150)
    model = text(sizes * (rates - rng.normal(gain, spread, 150)), sizes)
    return paired_difference(model, text(sizes * rates, sizes), **SETTINGS, stream=str(seed))


@pytest.mark.parametrize(
    ("domain", "general", "mark"), [(0.05, 0.01, "better"), (0.02, 0.05, "worse"), (0.05, -0.02, "better")]
)
def test_beyond_the_general_shift_is_the_difference_of_gains(domain, general, mark):
    found = beyond_general_shift([gained(domain, 1)], [gained(general, 2)], confidence=0.95)
    assert found.value == pytest.approx(domain - general, abs=0.01)
    assert found.low < found.value < found.high and found.mark == mark


def test_independent_errors_add_in_squares():
    a, b = gained(0.05, 1), gained(0.01, 2)
    found = beyond_general_shift([a], [b], confidence=0.95)
    assert found.stderr == pytest.approx(math.hypot(a.stderr, b.stderr))
    assert np.std(found.draws) == pytest.approx(found.stderr, rel=0.15)


def test_a_shift_of_everything_is_not_learning():
    covered = 0
    for i in range(60):
        found = beyond_general_shift([gained(0.03, 2 * i)], [gained(0.03, 2 * i + 1)], confidence=0.95)
        covered += found.mark == "within"
    assert covered >= 52


def test_both_groups_are_required():
    with pytest.raises(ValueError, match="1 domain and 0 general"):
        beyond_general_shift([gained(0.1, 1)], [], confidence=0.95)
    with pytest.raises(ValueError, match="no differences"):
        combine([], confidence=0.95)


def drift(rng, sizes=(6, 4, 8), means=(0.1, 0.5, 2.0)):
    """A drift on as many texts of each kind, whose kinds differ far more than their texts do."""
    kinds = [kind for kind, n in zip("abc", sizes, strict=True) for _ in range(n)]
    tokens = np.full(len(kinds), 64.0)
    level = np.array([means["abc".index(kind)] for kind in kinds])
    values = 64.0 * level * rng.lognormal(0.0, 0.3, len(kinds))
    ids = tuple(f"{kind}{i}" for i, kind in enumerate(kinds))
    return Items(KL_NATS, False, ids, ids, values, tokens, tuple(kinds))


def test_what_the_kinds_of_a_drift_differ_in_is_no_error():
    """Their numbers are fixed: by hand, the error is that of a stratified mean; the draws agree with it."""
    found = drift(np.random.default_rng(3))
    zeros = replace(found, numerators=np.zeros_like(found.numerators))
    per_token = found.numerators / 64
    parts = [per_token[np.array(found.categories) == kind] for kind in "abc"]
    by_hand = math.sqrt(sum((len(p) / 18) ** 2 * p.var(ddof=1) / len(p) for p in parts))
    got = paired_difference(found, zeros, confidence=0.95, num_bootstrap=20000, seed=0)
    assert got.value == pytest.approx(per_token.mean()) and got.stderr == pytest.approx(by_hand)
    assert score(found).stderr == pytest.approx(by_hand)
    assert np.std(got.draws) == pytest.approx(by_hand, rel=0.02)
    assert by_hand < 0.5 * per_token.std(ddof=1) / math.sqrt(18)


def test_intervals_of_a_drift_hold_what_they_promise():
    rng, truth = np.random.default_rng(4), np.average([0.1, 0.5, 2.0], weights=[6, 4, 8]) * math.exp(0.3**2 / 2)
    held = 0
    for seed in range(400):
        found = drift(rng)
        zeros = replace(found, numerators=np.zeros_like(found.numerators))
        got = paired_difference(found, zeros, confidence=0.95, num_bootstrap=800, seed=seed)
        held += got.low <= truth <= got.high
    assert 0.87 <= held / 400 <= 0.99


def test_a_kind_of_one_text_and_other_metrics_are_drawn_together():
    found = drift(np.random.default_rng(3), sizes=(6, 1, 8))
    assert [len(stratum) for stratum in strata_of(found)] == [15]
    assert [len(s) for s in strata_of(replace(drift(np.random.default_rng(3)), metric="acc"))] == [18]
