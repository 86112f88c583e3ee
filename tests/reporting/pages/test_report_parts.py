"""Tables, sentences and figures of synthetic runs whose truth is known."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pipeline.reporting.collect import collect
from pipeline.reporting.compare import compare
from pipeline.reporting.figures.plot import running_mean
from pipeline.reporting.pages.page import Section, html
from pipeline.reporting.pages.parts import part_sections
from pipeline.reporting.pages.values import data, headline
from pipeline.reporting.pages.verdict import verdicts
from pipeline.reporting.statistics.intervals import Score
from pipeline.reporting.tables.drift import drift_table
from pipeline.reporting.tables.markdown import markdown
from pipeline.reporting.tables.table import differences_table, facts_table, gains_table, split, values_table
from pipeline.reporting.tables.wording import MISSING, Unit, count, duration, number, score_text
from tests.reporting.synthetic import (
    BENCHMARKS,
    MOVED,
    Artifacts,
    chain,
    choice_items,
    none,
    one_variant,
    sweep,
    with_drift,
    write_items,
)


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(tmp_path)


def compared(artifacts, variants, benchmarks=BENCHMARKS):
    collection = collect("a run", variants, benchmarks, artifacts.inputs)
    return compare(collection, confidence=0.95, num_bootstrap=400, seed=0, power=0.8)


def findings(comparison, variant=0) -> list[tuple[str, str]]:
    return [(finding.answer, finding.text) for finding in verdicts(comparison)[variant].findings]


def trained(artifacts, gains, variant="default", n=200):
    rows = [artifacts.row("base", "smol", "base", none(*gains), n=n)]
    rows.append(artifacts.row("post-pretrained", f"{variant}/p", "pretrain", gains, n=n, seed=1))
    return chain(variant, rows)


def test_the_base_is_one_row_and_a_cell_names_its_own(artifacts):
    comparison = compared(artifacts, [one_variant(artifacts), one_variant(artifacts, "expand=none", seed=3, full=True)])
    assert [line.label for line in comparison.lines] == [
        "base",
        "expanded · default",
        "post-pretrained · default",
        "tuned · default",
        "post-pretrained · expand=none",
        "tuned · expand=none",
    ]


def test_a_model_that_cells_share_is_one_row(artifacts):
    variants = [one_variant(artifacts, "sft.lr=1"), one_variant(artifacts, "sft.lr=2", seed=4)]
    variants[1]["models"][:3] = variants[0]["models"][:3]
    labels = [line.label for line in compared(artifacts, variants).lines]
    assert labels == ["base", "expanded", "post-pretrained", "tuned · lr=1", "tuned · lr=2"]


def test_values_and_differences_are_in_the_units_of_the_measure(artifacts):
    comparison = compared(artifacts, [one_variant(artifacts)])
    base, _, trained_line, _ = comparison.lines
    values, differences = values_table(comparison), differences_table(comparison)
    assert [column.unit for column in values.columns] == ["bits/byte ↓"] * 2 + ["% ↑"] * 3 + ["bits/byte ↓"]
    expected = 100 * base.scores["arc_easy"].value
    assert values.rows[0][1][2].text.startswith(f"{expected:.1f} ± ")
    assert [label for label, _ in differences.rows] == ["expanded", "post-pretrained", "tuned"]
    assert {(entry.text, entry.mark) for entry in differences.rows[0][1]} == {("0", "identical")}
    domain = differences.rows[1][1][0]
    assert domain.mark == "better" and domain.text.startswith("−0.0") and re.fullmatch(r"\[−.*, −.*\]", domain.interval)
    assert trained_line.gains.domain.value == pytest.approx(-trained_line.differences["domain_text"].value)


def test_terminal_tables_are_aligned_and_narrow(artifacts):
    comparison = compared(artifacts, [one_variant(artifacts)])
    for table in (values_table(comparison), differences_table(comparison), gains_table(comparison)):
        for chunk in markdown(table).split("\n\n"):
            lines = [line for line in chunk.splitlines() if line.startswith("|")]
            assert len({len(line) for line in lines}) <= 1 and all(len(line) <= 120 for line in lines)


def test_a_wide_table_is_split_without_losing_columns(artifacts):
    table = values_table(compared(artifacts, [one_variant(artifacts)]))
    parts = split(table, num_columns=4)
    assert [len(part.columns) for part in parts] == [3, 3]
    assert sum((part.columns for part in parts), ()) == table.columns
    assert sum((part.rows[0][1] for part in parts), ()) == table.rows[0][1]


def test_a_measure_that_one_cell_lacks_is_shown_as_missing(artifacts):
    variants = [one_variant(artifacts), one_variant(artifacts, "expand=none", seed=3, full=True)]
    for row in variants[1]["models"][1:]:
        del row["evaluations"]["sciq"]
    comparison = compared(artifacts, variants)
    sciq = [column.title for column in values_table(comparison).columns].index("SciQ")
    assert [entries[sciq].text for _, entries in values_table(comparison).rows][-2:] == ["–", "–"]
    assert differences_table(comparison).rows[-1][1][sciq] == differences_table(comparison).rows[-2][1][sciq]
    assert comparison.lines[-1].gains.num_retention == 2


def test_a_weighted_accuracy_is_in_percent_and_counts_in_the_mean_of_what_was_kept(artifacts):
    """MMLU by subjects: items of a small subject weigh more, and it stands beside the other accuracies."""
    variant = trained(artifacts, {"arc_easy": -0.1, "sciq": -0.2})
    weights = [0.5] * 100 + [1.5] * 100
    for row, gain in zip(variant["models"], (0.0, -0.2), strict=True):
        content = choice_items("sciq", gain, 200, 1 if gain else 0)
        for item, weight in zip(content["items"], weights, strict=True):
            item["numerator"], item["denominator"] = item["numerator"] * weight, weight
        write_items(artifacts.inputs[row["evaluations"]["sciq"]], content)
    comparison = compared(artifacts, [variant])
    assert comparison.units["sciq"] == comparison.units["arc_easy"] and comparison.units["sciq"].name == "%"
    gains, differences = comparison.lines[1].gains, comparison.lines[1].differences
    assert gains.num_retention == 2 and gains.retention_unit == "percentage points"
    assert gains.retention.value == pytest.approx(50 * sum(one.value for one in differences.values()))


def test_models_evaluated_on_different_items_are_refused(artifacts):
    variant = one_variant(artifacts)
    variant["models"][2]["evaluations"]["sciq"] = artifacts.evaluation("other", "sciq", n=150)
    with pytest.raises(ValueError, match=r"post-pretrained against its reference on sciq: .*different items"):
        compared(artifacts, [variant])


def test_a_good_run_is_called_good(artifacts):
    answers = findings(
        compared(artifacts, [trained(artifacts, {"domain_text": 0.05, "general_text": 0.004, "sciq": 0.0})])
    )
    assert [answer for answer, _ in answers] == ["absent", "yes", "no_loss"]
    assert "still allow a loss of up to 1.8 points (SciQ)" in answers[2][1]  # none of 200 answers changed
    unmoved = trained(artifacts, {"domain_text": 0.05, "general_text": 0.004, "chat": 0.0}, "unmoved")
    assert [answer for answer, _ in findings(compared(artifacts, [unmoved]))] == ["absent", "yes", "yes"]
    assert "beyond the general shift that is +0.0" in answers[1][1]
    assert "None of 2 measures is worse outside its interval." in answers[2][1]


@pytest.mark.parametrize(
    ("gains", "answer", "says"),
    [
        ({"domain_text": 0.02, "general_text": 0.05}, "no", "general text gained more than the domain"),
        ({"domain_text": -0.02, "general_text": -0.05}, "no", "only because general text got worse"),
        ({"domain_text": 0.05, "general_text": -0.02}, "yes", "Part of that is general text getting worse"),
        ({"domain_text": 0.05}, "unknown", "General text was not measured"),
        ({"domain_text": 0.0, "general_text": 0.0}, "no", "nothing changed"),
        ({"sciq": 0.0}, "unknown", "No domain measure was evaluated"),
    ],
)
def test_the_domain_finding_says_what_is_true(artifacts, gains, answer, says):
    found = findings(compared(artifacts, [trained(artifacts, gains)]))[1]
    assert found[0] == answer and says in found[1]


@pytest.mark.parametrize(
    ("gains", "answer", "says"),
    [
        ({"sciq": -0.2, "arc_easy": -0.2}, "no", "2 of 2 measures are worse outside the interval"),
        (
            {"sciq": 0.0, "arc_easy": 0.0, "chat": -0.02},
            "partly",
            "1 of 3 measures is worse outside the interval: Chat",
        ),
        ({"sciq": 0.001}, "no_loss", "still allow a loss of up to"),
        ({"sciq": 0.2}, "yes", "Better outside the interval: SciQ"),
        ({"domain_text": 0.1}, "unknown", "No general or retention measure"),
    ],
)
def test_the_retention_finding_says_what_is_true(artifacts, gains, answer, says):
    found = findings(compared(artifacts, [trained(artifacts, gains)]))[2]
    assert found[0] == answer and says in found[1]


def test_an_expansion_that_changed_the_model_is_reported(artifacts):
    variant = one_variant(artifacts)
    variant["models"][1]["evaluations"]["sciq"] = artifacts.evaluation("changed", "sciq", -0.1)
    answer, text = findings(compared(artifacts, [variant]))[0]
    assert answer == "no" and "changed the model on 1 of 6 measures: SciQ −" in text


def test_cells_are_set_against_the_method_as_it_is_configured(artifacts):
    comparison = compared(artifacts, [one_variant(artifacts), one_variant(artifacts, "expand=none", seed=3, full=True)])
    answer, text = findings(comparison, variant=1)[-1]
    assert answer in ("worse", "mixed") and "kept measures: worse, −" in text


def test_drift_has_a_table_of_its_own_and_is_no_gain(artifacts):
    plain = compared(artifacts, [one_variant(artifacts)])
    comparison = compared(artifacts, [with_drift(artifacts, one_variant(artifacts), 0.06, 1)], MOVED)
    table = drift_table(comparison)
    assert [(c.group, c.title, c.unit, c.n) for c in table.columns] == [
        ("Moved", "chat", "nats/token ↓", 20), ("Moved", "free", "nats/token ↓", 20),
        ("Moved", "all: a change that would show", "nats/token", None),
    ]  # fmt: skip
    assert [label for label, _ in table.rows] == ["expanded", "post-pretrained", "tuned"]
    assert [(entry.text, entry.interval) for entry in table.rows[0][1]] == [("0", ""), ("0", ""), (MISSING, "")]
    shown = [float(entries[-1].text) for _, entries in table.rows[1:]]
    assert shown == pytest.approx([2.8 * line.drift["moved"]["all"].stderr for line in comparison.lines[2:]], rel=0.02)
    for line in comparison.lines[2:]:
        found = line.drift["moved"]
        assert list(found) == ["all", "chat", "free"] and found["all"].low < 0.06 < found["all"].high
        assert found["all"].low > 0.05 and line.scores["moved"].value == pytest.approx(found["all"].value)
        entry = next(entries for label, entries in table.rows if label == line.label)[0]
        assert entry.text == f"{found['chat'].value:.4f}" and re.fullmatch(r"\[0\.0\d+, 0\.0\d+\]", entry.interval)
    assert [line.gains for line in comparison.lines] == [line.gains for line in plain.lines]
    assert findings(comparison) == findings(plain) and "Moved" not in str(differences_table(comparison))
    assert part_sections(comparison) == [] and drift_table(plain).rows == ()
    chat, free = (data(comparison)["models"][3]["drift"]["moved"][kind] for kind in ("chat", "free"))
    assert chat["n"] == free["n"] == 20 and headline(comparison)["moved"] == pytest.approx(0.06, rel=0.1)


def test_drift_of_two_variants_is_paired_by_sample(artifacts):
    first, other = one_variant(artifacts), one_variant(artifacts, "expand=none", seed=3, full=True)
    moved = [with_drift(artifacts, first, 0.06, 1), with_drift(artifacts, other, 0.07, 2)]
    comparison = compared(artifacts, moved, MOVED)
    alone = [comparison.last_line(v).drift["moved"]["all"] for v in comparison.collection.variants]
    assert alone[0].high > alone[1].low  # their own intervals overlap: the texts differ more than the models
    found = comparison.baselines[0].drift
    assert found.mark == "worse" and -0.014 < found.low < -0.01 < found.high < -0.006
    assert "drift from the base: worse, −0.00" in findings(comparison, variant=1)[-1][1]


def test_one_item_gives_a_value_without_interval(artifacts):
    comparison = compared(
        artifacts, [trained(artifacts, {"domain_text": 0.05, "general_text": 0.01, "sciq": 0.3}, n=1)]
    )
    entry = differences_table(comparison).rows[0][1][0]
    assert entry.mark == "within" and entry.interval == "[no interval]"
    assert values_table(comparison).rows[0][1][0].text.endswith("± –")
    assert findings(comparison)[2][0] == "unknown"


def test_a_sweep_has_one_base_and_five_models(artifacts):
    comparison = compared(artifacts, sweep(artifacts, [1, 2, 5, 10, 30]))
    assert [line.label for line in comparison.lines][:3] == [
        "base",
        "post-pretrained · num_groups=1",
        "post-pretrained · num_groups=2",
    ]
    assert len(comparison.lines) == 6


def test_the_reference_is_the_method_or_the_base_and_never_what_comes_first(artifacts):
    variants = sweep(artifacts, [1, 2, 6])
    assert compared(artifacts, variants).baselines == ()
    variants[2]["is_reference"] = True
    baselines = compared(artifacts, variants).baselines
    assert [(one.label, one.reference_label) for one in baselines] == [
        ("num_groups=1", "num_groups=6"), ("num_groups=2", "num_groups=6"),
    ]  # fmt: skip
    assert all(one.gains.domain.mark == "worse" for one in baselines)


def test_every_heading_of_a_page_has_an_id_of_its_own(artifacts):
    """Several comparisons at equal gain, and several beside them."""
    comparison = compared(artifacts, [one_variant(artifacts)])
    made = [Section(f"s{i}", ("Said.",), None, facts_table(comparison), True, True, leads=i < 2) for i in range(5)]
    ids = re.findall(r' id="([^"]+)"', html(comparison, [], frontier=made))
    assert len(ids) == len(set(ids)) and {"lead-1", "lead-2", "compared-3"} <= set(ids)


def test_facts_of_models(artifacts):
    rows = dict(facts_table(compared(artifacts, [one_variant(artifacts)])).rows)
    assert [e.text for e in rows["tuned"]] == ["1,250", "250", "20 %", "1.6 M", "13 min", "3.0 GiB", "25 % (40 %)"]
    assert [e.text for e in rows["base"]] == ["1,000", "0", "–", "–", "–", "–", "–"]


def test_wording():
    assert number(-0.00004, 4, signed=True) == "0.0000" and number(-1.25, 1, signed=True) in ("−1.2", "−1.3")
    assert count(134_515_008) == "134.5 M" and count(16_384) == "16.4 k" and count(950) == "950"
    assert duration(59.6) == "60 s" and duration(3700) == "1 h 02 min"
    assert score_text(Score(0.5, float("nan"), 1), Unit("%", 100, 1, True)) == "50.0 ± –"


def test_running_mean_uses_what_there_is():
    assert running_mean(np.array([1.0, 2.0, 3.0, 6.0]), 2).tolist() == [1.0, 1.5, 2.5, 4.5]
