"""The losses of right answers beside scores: in tables, in the power of a task, in what figure and gate judge by."""

from __future__ import annotations

import json
from dataclasses import replace

import matplotlib.pyplot
import numpy as np
import pytest

from pipeline.records.items import read_items
from pipeline.reporting.axes import axes
from pipeline.reporting.collect import collect
from pipeline.reporting.compare import compare
from pipeline.reporting.figures.tradeoff import tradeoff_figure
from pipeline.reporting.gate import Gate, message
from pipeline.reporting.pages.items_page import items_html
from pipeline.reporting.pages.page import html, report_markdown, summary
from pipeline.reporting.pages.parts import part_sections
from pipeline.reporting.pages.power import power_sections
from pipeline.reporting.pages.values import data, headline
from pipeline.reporting.pages.verdict import verdicts
from pipeline.reporting.statistics.power import detectable, deviation
from pipeline.reporting.tables.power import power_table, powers
from pipeline.reporting.tables.table import differences_table, gains_table, values_table
from tests.reporting.synthetic import (
    BENCHMARKS,
    Artifacts,
    chain,
    choice_items,
    none,
    text_items,
    with_gold,
    write_items,
)

TASKS = ("arc_easy", "sciq", "hellaswag")
MEASURES = ("domain_text", "general_text", *TASKS)


@pytest.fixture
def make(tmp_path):
    """A base, its expansion and a trained model; the trained one's right answers gain `gold` bits per byte."""

    def variant(gold=-0.02, n=40, lost=0.0, domain=0.05, without=(), lacks=()):
        artifacts = Artifacts(tmp_path)
        gains = {"domain_text": domain, "general_text": 0.01, **dict.fromkeys(TASKS, -lost)}
        rows = [artifacts.row("base", "smol", "base", none(*MEASURES), n=n)]
        rows.append(artifacts.row("expanded", "expanded", "expand", none(*MEASURES), num_new=250, n=n))
        rows.append(artifacts.row("tuned", "tuned", "pretrain", gains, num_new=250, n=n, seed=1))
        for place, row in enumerate(rows):
            for task in TASKS:
                content = choice_items(task, gains[task] if place == 2 else 0.0, n, 1)
                if (row["name"], task) in lacks:
                    content["lacks_gold"] = True
                elif task not in without:
                    content = with_gold(content, gold, seed=1 if place == 2 else 0)
                write_items(artifacts.inputs[row["evaluations"][task]], content)
        return artifacts, chain("default", rows)

    return variant


def compared(artifacts, variant):
    benchmarks = {name: BENCHMARKS[name] for name in MEASURES}
    collection = collect("a run", [variant], benchmarks, artifacts.inputs)
    return compare(collection, confidence=0.95, num_bootstrap=400, seed=0, power=0.8)


def test_right_answers_are_a_column_beside_their_task_in_every_table(make):
    comparison = compared(*make())
    titles = [column.title for column in values_table(comparison).columns]
    assert titles[2:4] == ["ARC-Easy", "ARC-Easy, gold answer"] and len(titles) == 8
    assert values_table(comparison).columns[3].subtitle == "bits/byte ↓, n=40"
    rows = dict(differences_table(comparison).rows)
    assert {entry.mark for entry in rows["expanded"]} == {"identical"}
    assert (rows["tuned"][3].mark, rows["tuned"][3].text[:4]) == ("worse", "+0.0")
    line = comparison.lines[-1]
    model, base = (one.row.evaluations["arc_easy.gold"] for one in (line, comparison.lines[0]))
    expected = (model.numerators.sum() - base.numerators.sum()) / base.denominators.sum()
    assert line.differences["arc_easy.gold"].value == pytest.approx(expected)
    assert line.scores["arc_easy.gold"].value == pytest.approx(model.numerators.sum() / model.denominators.sum())
    assert 0 < line.p_values["arc_easy.gold"] < 0.05


def test_their_mean_over_tasks_is_what_was_kept(make):
    comparison = compared(*make())
    line = comparison.lines[-1]
    mean = -np.mean([line.differences[f"{task}.gold"].value for task in TASKS])
    assert line.gains.gold.value == pytest.approx(mean) and line.gains.num_gold == 3
    assert line.gains.retention_unit == "percentage points" and line.gains.num_retention == 3
    kept = comparison.kept_change(line)
    assert kept.change is line.gains.gold and (kept.unit, kept.what) == ("bits/byte", "the gold answers of 3 tasks")
    table = gains_table(comparison)
    place = [column.title for column in table.columns].index("Kept, gold answers")
    assert table.columns[place].unit == "bits/byte, mean of 3"
    assert [entries[place].mark for _, entries in table.rows] == ["identical", "worse"]
    figure = tradeoff_figure(comparison, axes(comparison)[-1])
    assert all(
        text in figure.axes[0].get_xlabel().replace("\n", " ") for text in ("gold answers of 3 tasks", "bits/byte")
    )
    matplotlib.pyplot.close(figure)
    assert headline(comparison)["kept_gold_answers"] == line.gains.gold.value


def test_text_gains_stay_those_of_texts(make):
    with_answers, without = compared(*make()), compared(*make(without=TASKS))
    for name in ("domain", "general", "beyond", "retention"):
        assert getattr(with_answers.lines[-1].gains, name) == getattr(without.lines[-1].gains, name)


def test_the_verdict_tells_a_loss_that_accuracy_does_not_show(make):
    def kept(comparison):
        (finding,) = [one for one in verdicts(comparison)[0].findings if "keep" in one.question]
        return finding

    comparison = compared(*make(gold=-0.02))
    assert kept(comparison).answer == "no" and "Gold answers, mean over 3 tasks: −0.0" in kept(comparison).text
    assert "Mean change over 3 measures" in kept(comparison).text
    assert kept(compared(*make(without=TASKS))).answer == "no_loss"
    first = verdicts(comparison)[0].findings[0]
    assert first.answer == "yes" and "All 200 items of 8 measures" in first.text  # 5 measures of 40 items each


def test_without_them_on_a_model_what_was_kept_is_the_mean_score(make):
    comparison = compared(*make(without=TASKS))
    assert all(line.gains is None or line.gains.gold is None for line in comparison.lines)
    kept = comparison.kept_change(comparison.lines[-1])
    assert kept.change is comparison.lines[-1].gains.retention and kept.what == "3 measures"
    assert power_sections(comparison) == [] and "gold" not in report_markdown(comparison)


def test_power_is_the_detectable_change_in_deviations_of_the_base(make):
    comparison = compared(*make(lost=0.02))
    base, line = comparison.lines[0], comparison.lines[-1]
    found = {one.title: one for one in powers(comparison)}
    assert list(found) == ["ARC-Easy", "SciQ", "HellaSwag", "Mean of 3"]
    one = found["ARC-Easy"]
    right = base.row.evaluations["arc_easy"].numerators
    assert one.score.deviation == pytest.approx(np.std(right, ddof=1))
    assert one.score.change == detectable(line.differences["arc_easy"], 0.8)
    gold = base.row.evaluations["arc_easy.gold"]
    assert one.gold.deviation == pytest.approx(np.std(gold.numerators, ddof=1))
    assert one.ratio == pytest.approx((one.score.change / one.score.deviation) / (one.gold.change / one.gold.deviation))
    assert one.ratio > 5
    assert found["Mean of 3"].gold.change == detectable(line.gains.gold, 0.8)
    assert found["Mean of 3"].score.change == detectable(line.gains.retention, 0.8) / 100
    assert deviation(base.scores["arc_easy"]) == one.score.deviation


def test_power_is_shown_for_both_measures(make):
    comparison = compared(*make(lost=0.02))
    (section,) = power_sections(comparison)
    label, entries = section.table.rows[0]
    assert label == "ARC-Easy · tuned" and entries[0].text.endswith(" points") and entries[4].text.endswith(" times")
    assert len(power_table(comparison, powers(comparison)).rows) == 4
    assert "times smaller (median;" in section.sentences[1]
    row = section.values["detectable"][0]
    assert row["times_smaller"] == pytest.approx(row["score"]["relative"] / row["gold"]["relative"])
    page, text = html(comparison, [], parts=[section]), report_markdown(comparison, [section])
    assert "How small a change would show" in page and "ARC-Easy, gold answer" in page
    assert "ARC-Easy, gold answer" in text and "Gold answer" in page
    json.dumps(data(comparison, [], [section]), allow_nan=False)


def test_what_a_server_does_not_tell_is_missing_in_the_table_and_null_in_the_data(make):
    artifacts, variant = make(lacks=[("tuned", "sciq")])
    comparison = compared(artifacts, variant)
    place = [column.title for column in values_table(comparison).columns].index("SciQ, gold answer")
    assert [entries[place].text for _, entries in values_table(comparison).rows][-1] == "–"
    assert data(comparison)["models"][-1]["scores"]["sciq.gold"] is None
    assert data(comparison)["models"][0]["scores"]["sciq.gold"]["n"] == 40
    assert comparison.lines[-1].gains.num_gold == 2
    every = [(name, task) for name in ("base", "expanded", "tuned") for task in TASKS]
    comparison = compared(*make(lacks=every))
    table = values_table(comparison)
    assert {entries[place].text for _, entries in table.rows} == {"–"} and table.columns[place].n is None
    assert comparison.kept_change(comparison.lines[-1]).what == "3 measures"
    assert "–" in html(comparison, []) and report_markdown(comparison)


def test_margins_are_parts_and_single_items_show_each_task_once(make):
    comparison = compared(*make())
    sections = {section.title: section for section in part_sections(comparison)}
    columns = [column.title for column in sections["Inside ARC-Easy, gold answer"].table.columns]
    assert columns == ["score", "margin", "Items"]
    assert "gold answer" not in items_html(comparison, per_benchmark=20, characters=100)
    assert summary(comparison).startswith("3 models, 5 benchmarks")


def test_a_gate_may_judge_by_right_answers(make):
    artifacts, variant = make(gold=-0.05)
    base, tuned = (
        {task: read_items(artifacts.inputs[row["evaluations"][task]]) for task in TASKS}
        for row in (variant["models"][0], variant["models"][-1])
    )
    gate = Gate(dict.fromkeys(TASKS), None, 0.02, "shown", 0.95, 500, 0)
    (judged,) = gate.judge(base, tuned, {task: task for task in TASKS})
    relative = [
        (base[task].gold.numerators.sum() - tuned[task].gold.numerators.sum()) / base[task].gold.numerators.sum()
        for task in TASKS
    ]
    assert judged.name == "overall_gold" and judged.change == pytest.approx(np.mean(relative))
    assert judged.is_violated and "Mean over the gold answers" in message((judged,), gate, "tuned")
    assert not replace(gate, overall_gold=0.2).judge(base, tuned, {})[0].is_violated
    (same,) = gate.judge(base, base, {})
    assert (same.change, same.low, same.is_violated) == (0.0, 0.0, False)


def test_a_gate_on_right_answers_needs_some(tmp_path):
    write_items(tmp_path, text_items("general_text", 0.0, 20, 0))
    found = {"general_text": read_items(tmp_path)}
    with pytest.raises(ValueError, match="none has the loss of its right answers"):
        Gate({"general_text": None}, None, 0.02, "shown", 0.95, 500, 0).judge(found, found, {})
