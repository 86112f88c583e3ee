"""Chains of tasks, from artifacts to the report's sections."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.reporting.collect import collect
from pipeline.reporting.compare import compare
from pipeline.reporting.continual import chains, over_orders
from pipeline.reporting.pages.continual import continual_sections
from pipeline.reporting.pages.verdict import verdicts
from tests.reporting.synthetic import Artifacts, items, write_items

TASKS = ("red", "green", "blue")
N = 200
# After a task: the scores of red, green and blue
FULL = ((0.10, 0.20, 0.30), (0.80, 0.25, 0.20), (0.60, 0.90, 0.45), (0.50, 0.70, 0.75))


class Run:
    """Models of one report, with items that have exactly the scores that are given."""

    def __init__(self, path) -> None:
        self.artifacts, self.path, self.rows = Artifacts(path / "artifacts"), path, []
        self.benchmarks = {name: {"title": name.title(), "group": "domain", "note": ""} for name in TASKS}
        self.metric, self.size = {name: "exact_match" for name in TASKS}, {name: N for name in TASKS}

    def model(self, name, parent, scores, task=None, stage="sft", **params):
        role = self.artifacts.model(stage, name, training=task is not None)
        file = self.artifacts.inputs[role] / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"params": params}))
        found = {
            b: self._evaluation(name, b, score) for b, score in zip(TASKS, scores, strict=True) if score is not None
        }
        place = {"parents": {"model": parent} if parent else {}, "reference": "base" if parent else None}
        row = {"name": name, "stage": stage, "model": role, "evaluations": found, **place}
        self.rows.append(row | ({"task": task} if task else {}))

    def chain(self, name, order, matrix, first="base", **params):
        above = first
        for task, scores in zip(order, matrix[1:], strict=True):
            self.model(f"{name}-{task}", above, scores, task, **{"lr": 1.0, "epochs": TASKS.index(task), **params})
            above = f"{name}-{task}"

    def _evaluation(self, name, benchmark, score):
        role = self.artifacts.add("evaluate", f"{name}/{benchmark}")
        n = self.size[benchmark]
        right = [1.0] * round(score * n) + [0.0] * (n - round(score * n))
        if self.metric[benchmark] == "bits_per_byte":
            right = (np.linspace(0.5, 1.5, n) * score).tolist()
        content = items(self.metric[benchmark], self.metric[benchmark] != "bits_per_byte", benchmark, right, [1.0] * n)
        write_items(self.artifacts.inputs[role], content)
        return role

    def comparison(self):
        variants = [{"variant": "default", "models": self.rows}]
        collection = collect("r", variants, self.benchmarks, self.artifacts.inputs)
        return compare(collection, confidence=0.95, num_bootstrap=10000, seed=0, power=0.8)


@pytest.fixture
def run(tmp_path) -> Run:
    one = Run(tmp_path)
    one.model("base", None, FULL[0], stage="base")
    return one


def test_a_chain_gives_its_matrix_and_its_measures(run):
    run.chain("full", TASKS, FULL)
    (chain,) = chains(run.comparison(), 0)
    assert (chain.label, chain.tasks, chain.titles) == ("full", TASKS, ("Red", "Green", "Blue"))
    assert chain.scores == pytest.approx(np.array(FULL)) and chain.unit.name == "%"
    found = {name: one.value for name, one in chain.measures.items()}
    assert found == pytest.approx({"op": 0.65, "bwt": -0.25, "fwt": 0.1, "forgetting": 0.25, "la": 0.81666667})
    assert all(one.low < one.value < one.high for one in chain.measures.values())
    # The error of a mean of three independent shares, and a half width of 1.96 of it
    stderr = np.sqrt(sum(p * (1 - p) / N for p in FULL[-1])) / 3
    assert chain.measures["op"].high - chain.measures["op"].low == pytest.approx(2 * 1.96 * stderr, rel=0.1)
    assert chain.measures["bwt"].mark("bwt") == "worse" and chain.measures["forgetting"].mark("forgetting") == "worse"
    assert chain.measures["fwt"].mark("fwt") == "better" and chain.measures["op"].mark("op") == ""


def test_changes_are_paired_over_items(run):
    """The same answers again, all but two: the interval is that of the two, not that of two samples."""
    close = (FULL[0], (0.5, 0.25, 0.2), (0.5, 0.9, 0.45), (0.49, 0.9, 0.75))
    run.chain("full", TASKS, close)
    (chain,) = chains(run.comparison(), 0)
    bwt = chain.measures["bwt"]
    # 1.96 standard errors of two items of N, and of the other task what no item of N shows (3.7 / N)
    half = np.hypot(1.96 * np.sqrt(2) / N, 1 - 0.025 ** (1 / N)) / 2
    assert bwt.value == pytest.approx(-0.005) and bwt.high - bwt.low == pytest.approx(2 * half, rel=0.1)


def test_models_between_tasks_are_no_part_of_the_matrix(run):
    """A model with fresh blocks ahead of each task, as `before` makes it; the first is what the chain starts from."""
    run.model("grown", "base", FULL[0], stage="expand")
    run.chain("blocks", TASKS[:1], FULL[:2], first="grown")
    run.model("again", "blocks-red", FULL[1], stage="expand")
    run.model("blocks-green", "again", FULL[2], "green")
    (chain,) = chains(run.comparison(), 0)
    assert [line.name for line in chain.models] == ["grown", "blocks-red", "blocks-green"]
    assert chain.scores == pytest.approx(np.array(FULL)[:3, :2])


def test_the_report_has_a_summary_and_a_heat_map_for_each_chain(run):
    run.chain("full", TASKS, FULL)
    run.chain("blocks", TASKS, (*FULL[:3], (0.70, 0.80, 0.75)), lr=2.0)
    summary, full, blocks = continual_sections(run.comparison(), run.path, 0)
    assert summary.leads and summary.sentences[0].startswith(
        "Mean score over the tasks when all were learned: full 65.0 % ["
    )
    assert "; blocks 75.0 % [" in summary.sentences[0]
    assert "How later tasks changed what had been learned: full −25.0 points [−" in summary.sentences[0]
    assert summary.sentences[1].startswith("full, 3 tasks in %: OP 65.0 (95 % CI ")
    assert "BWT −25.0 (95 % CI " in summary.sentences[1]
    assert summary.sentences[3].startswith("blocks against full, paired over items: OP +10.0 (95 % CI +")
    assert [column.title for column in summary.table.columns] == ["OP", "BWT", "FWT", "Forgetting", "Learning accuracy"]
    assert [column.unit for column in summary.table.columns][:4] == ["% ↑", "points ↑", "points ↑", "points ↓"]
    assert [entry.text for entry in summary.table.rows[0][1]] == ["65.0", "−25.0", "+10.0", "+25.0", "81.7"]
    assert [name for name, _ in full.table.rows] == ["0: before any", "1: Red", "2: Green", "3: Blue"]
    assert full.table.rows[3][1][0].text == "50.0" and full.values["scores"][3] == [0.5, 0.7, 0.75]
    for section in (full, blocks):
        assert section.plot.path.is_file() and section.plot.path.with_suffix(".png").stat().st_size > 5000
    assert full.plot.path != blocks.plot.path
    assert full.plot.alt.startswith(
        "Score of every task: before any task: Red 10.0, Green 20.0, Blue 30.0; after Red: Red"
    )


def test_many_models_without_bits_share_one_finding(run):
    """Twelve times that something was not measured tells nothing."""
    run.chain("full", TASKS, FULL)
    few = verdicts(run.comparison())[0].findings
    assert sum(one.question.endswith("beyond a general shift?") for one in few) == 3
    run.chain("blocks", TASKS, FULL, lr=2.0)
    run.chain("lora", TASKS, FULL, lr=3.0)
    questions = [one.question for one in verdicts(run.comparison())[0].findings]
    assert "Did the 9 trained models learn the domain beyond a general shift?" in questions
    assert sum("beyond a general shift?" in one for one in questions) == 1


def test_orders_of_the_same_tasks_are_averaged(run):
    """Over two orders the mean, with an interval that covers how far they are apart."""
    run.chain("a", TASKS, FULL)
    run.chain("b", TASKS[::-1], (FULL[0], (0.1, 0.2, 0.8), (0.2, 0.9, 0.7), (0.8, 0.8, 0.6)))
    run.chain("other", TASKS, FULL, lr=3.0)
    found = chains(run.comparison(), 0)
    (orders,) = over_orders(found, 0.95)
    assert orders.labels == ("a", "b")
    op = orders.measures["op"]
    values = [chain.measures["op"].value for chain in found[:2]]
    assert op.value == pytest.approx(np.mean(values))
    assert op.high - op.value > 12.7 * abs(values[0] - values[1]) / 2  # Student's t with one degree of freedom
    table = continual_sections(run.comparison(), run.path, 0)[0].table
    assert table.rows[-1][0] == "a: mean over orders (2)"


def test_answers_that_all_agree_are_not_certain(run):
    """Eight right answers of eight: as many as 37 % of all may be wrong, and as many forgotten."""
    run.size = dict.fromkeys(TASKS, 8)
    run.rows.clear()
    run.model("base", None, (0.0, 0.0, 0.0), stage="base")
    run.chain("full", TASKS[:2], ((0.0,) * 3, (1.0, 0.0, 0.0), (1.0, 1.0, 0.0)))
    (chain,) = chains(run.comparison(), 0)
    matrix = continual_sections(run.comparison(), run.path, 0)[1].table
    bound = 100 * (1 - 0.025 ** (1 / 8))  # 36.9 % of one cell
    assert matrix.rows[0][1][0].text == "0.0" and matrix.rows[1][1][0].text == "100.0"
    low, high = (float(text) for text in matrix.rows[0][1][0].interval.strip("[]").split(", "))
    assert low == 0.0 and high == pytest.approx(bound, abs=4)
    bwt = chain.measures["bwt"]
    assert bwt.value == 0.0 and bwt.low < -0.2 and bwt.high > 0.2 and bwt.mark("bwt") == "within"


def test_a_score_that_was_not_measured_is_shown_as_missing(run):
    run.chain("full", TASKS, (FULL[0], (0.8, None, None), (0.6, 0.9, None), FULL[3]))
    (chain,) = chains(run.comparison(), 0)
    assert np.isnan(chain.scores[1, 1]) and set(chain.measures) == {"op", "bwt", "forgetting", "la"}
    summary, matrix = continual_sections(run.comparison(), run.path, 0)
    assert matrix.table.rows[1][1][1].text == "–" and "FWT" not in [one.title for one in summary.table.columns]


def test_less_is_better_where_the_tasks_say_so(run):
    """Bits per byte that rise on an old task are forgotten."""
    run.metric = dict.fromkeys(TASKS, "bits_per_byte")
    run.rows.clear()
    run.model("base", None, (2.0, 2.0, 2.0), stage="base")
    run.chain("full", TASKS[:2], ((2.0,) * 3, (1.0, 1.9, 2.0), (1.3, 1.0, 2.0)))
    (chain,) = chains(run.comparison(), 0)
    found = {name: one.value for name, one in chain.measures.items()}
    assert found == pytest.approx({"op": 1.15, "bwt": -0.3, "fwt": 0.1, "forgetting": 0.3, "la": 1.0})


def test_no_mean_over_different_units(run):
    run.metric["green"] = "bits_per_byte"
    run.rows.clear()
    run.model("base", None, FULL[0], stage="base")
    run.chain("full", TASKS, FULL)
    (section,) = continual_sections(run.comparison(), run.path, 0)
    assert "different units" in section.sentences[1] and section.values["measures"] == {}


def test_without_a_chain_there_is_nothing(run):
    run.model("tuned", "base", FULL[1])
    assert continual_sections(run.comparison(), run.path, 0) == []
