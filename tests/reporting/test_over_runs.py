"""What a benchmark can show, and what is left over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.reporting.collect import collect
from pipeline.reporting.compare import compare
from pipeline.reporting.pages.page import report_markdown
from pipeline.reporting.pages.parts import breakdown
from pipeline.reporting.pages.values import data
from pipeline.reporting.seeds import seed_groups, seed_lines, spread
from pipeline.reporting.statistics.intervals import paired_difference
from pipeline.reporting.statistics.power import detectable
from pipeline.reporting.tables.table import detectable_table, seed_tables
from tests.reporting.statistics.test_intervals import SETTINGS, make_items
from tests.reporting.synthetic import BENCHMARKS, Artifacts, chain, none, one_variant


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(tmp_path)


def compared(artifacts, variants):
    collection = collect("a run", variants, BENCHMARKS, artifacts.inputs)
    return compare(collection, confidence=0.95, num_bootstrap=400, seed=0, power=0.8)


def trained(artifacts, variant, gain, seed):
    gains = {"sciq": gain, "domain_text": 0.04}
    rows = [artifacts.row("base", "smol", "base", none("sciq", "domain_text"))]
    rows.append(artifacts.row("post-pretrained", f"{variant}/p", "pretrain", gains, seed=seed))
    return chain(variant, rows)


def test_the_detectable_difference_is_detected_as_often_as_promised():
    """Pairs of 400 items whose true difference is just detectable: about 80 % of the comparisons show it."""
    rng, n, shown = np.random.default_rng(0), 400, []
    noise = rng.normal(0, 1, 100_000)
    truth = (1.959964 + 0.841621) * noise.std() / math.sqrt(n)
    for _ in range(200):
        changes = rng.normal(truth, 1, n)
        base = rng.normal(0, 3, n)
        difference = paired_difference(
            make_items(base + changes), make_items(base), **{**SETTINGS, "num_bootstrap": 300}
        )
        shown.append(difference.mark == "better")
        assert detectable(difference, 0.8) == pytest.approx(truth, rel=0.15)
    assert np.mean(shown) == pytest.approx(0.8, abs=0.08)


def test_what_is_identical_or_single_has_no_detectable_difference():
    same = paired_difference(make_items([1.0, 0.0]), make_items([1.0, 0.0]), **SETTINGS, same_model=True)
    single = paired_difference(make_items([1.0]), make_items([0.0]), **SETTINGS)
    assert math.isnan(detectable(same, 0.8)) and math.isnan(detectable(single, 0.8))


def test_what_no_item_showed_has_the_detectable_difference_of_its_size():
    """Pairs of n items of which none differs: a loss of the detectable share shows in about 80 % of such benchmarks."""
    rng = np.random.default_rng(5)
    for n in (12, 100, 400):
        base = np.arange(n) < 0.7 * n
        equal = paired_difference(make_items(base), make_items(base), **SETTINGS)
        share, shown = detectable(equal, 0.8), []
        for seed in range(200):
            lost = rng.random(n) < share
            changed = make_items(np.where(lost, 0.0, 1.0))
            found = paired_difference(changed, make_items(np.ones(n)), **{**SETTINGS, "seed": seed})
            shown.append(found.mark == "worse")
        assert np.mean(shown) == pytest.approx(0.8, abs=0.09), n
    assert math.isnan(detectable(paired_difference(make_items([1.0]), make_items([1.0]), **SETTINGS), 0.8))


def test_few_changed_items_do_not_make_a_benchmark_tell_less_than_its_items_can():
    """With one of 32 answers changed the error is small, and yet four must change before an interval excludes zero."""
    n, base = 32, np.arange(32) < 20
    one = np.where(np.arange(n) == 25, 1.0, base)
    unchanged, changed = (paired_difference(make_items(of), make_items(base), **SETTINGS) for of in (base, one))
    assert 2.8 * changed.stderr < detectable(changed, 0.8) == detectable(unchanged, 0.8)
    many = np.where(np.arange(n) % 2, 1.0 - base, base)
    difference = paired_difference(make_items(many), make_items(base), **SETTINGS)
    assert detectable(difference, 0.8) == pytest.approx(2.8016 * difference.stderr, rel=1e-4)
    graded = paired_difference(make_items(base + one / 1000), make_items(base * 1.0), **SETTINGS)
    assert detectable(graded, 0.8) < 0.001


def test_only_comparisons_without_an_answer_are_called_too_small(artifacts):
    comparison = compared(artifacts, [trained(artifacts, "default", 0.0001, 1)])
    table = detectable_table(comparison)
    assert [column.title for column in table.columns] == ["SciQ"]
    ((label, (entry,)),) = table.rows
    difference = comparison.lines[1].differences["sciq"]
    assert label == "post-pretrained" and float(entry.text) == pytest.approx(
        detectable(difference, 0.8) * 100, abs=0.06
    )
    words = report_markdown(comparison)
    assert "Too small to tell" in words
    assert (
        "Corrected for all 2 comparisons with a base (paired permutation test, Holm), these changes hold at 5 %: "
        in words
    )
    assert "post-pretrained on Terms of service (better)." in words
    found = data(comparison)["models"][1]["differences"]
    assert found["sciq"]["detectable"] == pytest.approx(detectable(difference, 0.8))


def test_a_spread_is_students():
    found = spread([1.0, 2.0, 4.0], 0.95)
    assert (found.mean, found.n) == (pytest.approx(7 / 3), 3)
    assert found.deviation == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert found.high - found.mean == pytest.approx(4.302653 * found.deviation / math.sqrt(3), rel=1e-6)
    assert spread([3.0], 0.95).high == math.inf
    items = spread([2.0, 2.0], 0.95, [0.3, 0.4])  # no spread over seeds is left: what remains is the error over items
    assert items.high - 2.0 == pytest.approx(1.959964 * math.sqrt((0.09 + 0.16) / 2), rel=1e-6)


def test_an_interval_over_seeds_covers_the_truth():
    """Runs share their items, so the error over items is common to them, and each has a seed of its own."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(2000):
        common = rng.normal(0, 0.5)
        found = spread((common + rng.normal(0, 0.8, 4)).tolist(), 0.95, [0.5] * 4)
        covered.append(found.low <= 0 <= found.high)
    assert np.mean(covered) == pytest.approx(0.96, abs=0.02)


def test_a_spread_of_no_runs_is_refused():
    with pytest.raises(ValueError, match="no runs"):
        spread([], 0.95)


def test_runs_that_differ_by_seeds_only_are_put_together(artifacts):
    names = ["default", "pretrain.seed=1", "pretrain.seed=2", "pretrain.lr=1e-3", "pretrain.lr=1e-3,pretrain.seed=1"]
    variants = [trained(artifacts, name, 0.01 * i, i + 1) for i, name in enumerate(names)]
    comparison = compared(artifacts, variants)
    groups = seed_groups(comparison.collection.variants)
    assert {name: [variant.name for variant in group] for name, group in groups.items()} == {
        "default": names[:3],
        "pretrain.lr=1e-3": names[3:],
    }
    lines = seed_lines(comparison)
    assert [(line.label, line.num_runs) for line in lines] == [
        ("post-pretrained · default", 3),
        ("post-pretrained · lr=1e-3", 2),
    ]
    values = [comparison.line(name, "post-pretrained").scores["sciq"].value for name in names[:3]]
    assert lines[0].scores["sciq"].mean == pytest.approx(np.mean(values))
    assert lines[0].gains["domain_text"].n == 3
    scores, gains = seed_tables(comparison, lines)
    assert scores.rows[0][1][0].interval == "3 runs" and gains.rows[0][1][0].mark in ("better", "worse", "within")
    text = report_markdown(comparison)
    assert "Over seeds: mean ± standard deviation" in text and "Student's t" in text
    assert [line["num_runs"] for line in data(comparison)["over_seeds"]] == [3, 2]


def test_a_single_run_has_nothing_over_seeds(artifacts):
    comparison = compared(artifacts, [one_variant(artifacts)])
    assert not seed_lines(comparison) and "Over seeds" not in report_markdown(comparison)


def test_a_score_is_broken_into_categories_and_parts():
    items = make_items([11.0, 6.0, 0.0], [2.0, 1.0, 0.0])
    object.__setattr__(items, "categories", ("math", "writing", "writing"))
    ones, none_last = np.array([1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])
    parts = {"turn 1": (np.array([7.0, 6.0, 0.0]), ones), "turn 2": (np.array([4.0, 0.0, 0.0]), none_last)}
    object.__setattr__(items, "parts", parts)
    found = breakdown(items)
    assert {category: {part: s.value for part, s in scores.items()} for category, scores in found.items()} == {
        "all": {"score": 17 / 3, "turn 1": 6.5, "turn 2": 4.0},
        "math": {"score": 5.5, "turn 1": 7.0, "turn 2": 4.0},
        "writing": {"score": 6.0, "turn 1": 6.0},
    }
    assert found["all"]["score"].stderr > 0 and math.isnan(found["math"]["score"].stderr)


def test_a_further_number_has_an_error_where_it_can_and_takes_none_away():
    """pass@10 is a ratio over the items, told twice; macro-F1 is none, and its error is told beside it."""
    items = make_items([1.0, 0.0, 1.0])
    object.__setattr__(items, "parts", {"pass@10": (np.array([1.0, 0.5, 1.0]), np.ones(3))})
    also = {"pass@10": 2.5 / 3, "macro_f1": 0.4, "macro_f1_stderr": 0.03, "commonest_label_share": 0.9}
    object.__setattr__(items, "also", also)
    found = breakdown(items)["all"]
    assert list(found) == ["score", "pass@10", "macro_f1", "commonest_label_share"]
    assert found["pass@10"].value == pytest.approx(2.5 / 3) and found["pass@10"].stderr == pytest.approx(1 / 6)
    assert (found["macro_f1"].stderr, found["macro_f1"].n) == (0.03, 3)
    assert math.isnan(found["commonest_label_share"].stderr)
