"""A run beside the paper: the number, the gap and its interval, the change, and what may not be subtracted."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.engine.run.forecast import Request
from pipeline.reporting.collect import collect
from pipeline.reporting.compare import compare
from pipeline.reporting.paper.beside import pairs
from pipeline.reporting.paper.section import paper_sections
from pipeline.reporting.paper.tables import paper_tables
from stages import report
from tests.reporting.synthetic import Artifacts, chain, items, params, write_items

GENERAL = ("arc_challenge_25", "hellaswag_10", "mmlu_5", "truthfulqa", "winogrande_5")
BENCHMARKS = {name: {"title": name, "group": "retention"} for name in (*GENERAL, "unfair_tos", "arc_easy")}
BENCHMARKS |= {name: {"title": name, "group": "drift"} for name in ("lambada_perplexity", "shift")}
LAW = {"law": {"base": "Add 1 block", "grown": "Add 8 blocks"}}
N = 400


def answers(name, share, seed):
    return items("acc", True, name, (np.random.default_rng(seed).random(N) < share).astype(float).tolist(), [1.0] * N)


class Written:
    def __init__(self, path):
        self.artifacts, self.models = Artifacts(path), []

    def add(self, name, **found):
        evaluations = {}
        for benchmark, content in found.items():
            evaluations[benchmark] = self.artifacts.add("evaluate", f"{name}/{benchmark}")
            write_items(self.artifacts.inputs[evaluations[benchmark]], content)
        role = self.artifacts.model("base" if not self.models else "pretrain", name, training=bool(self.models))
        stage = "pretrain" if self.models else "base"
        self.models.append({"name": name, "stage": stage, "model": role, "evaluations": evaluations})

    def compare(self):
        collection = collect("n", [chain("default", self.models)], BENCHMARKS, self.artifacts.inputs)
        return compare(collection, confidence=0.95, num_bootstrap=500, seed=0, power=0.8)


@pytest.fixture
def law(tmp_path):
    written = Written(tmp_path / "artifacts")
    for name, shares in {"base": (0.52, 0.70), "grown": (0.58, 0.75)}.items():
        own = {one: answers(one, shares[0], [len(name), i]) for i, one in enumerate(GENERAL)}
        written.add(name, **own, unfair_tos=answers("unfair_tos", shares[1], len(name)))
    return written


def cells(pair):
    return {cell.column: cell for cell in pair.cells}


def test_a_gap_is_ours_minus_the_papers_with_the_interval_of_our_items(law):
    comparison = law.compare()
    found = cells(pairs(comparison, paper_tables()["law"], LAW["law"])[1])
    score = next(line for line in comparison.lines if line.name == "grown").scores["unfair_tos"]
    cell = found["Unfair-ToS"]
    assert cell.paper == 75.11 and cell.ours.value == pytest.approx(100 * score.value) and cell.ours.n == N
    assert cell.gap.value == pytest.approx(100 * score.value - 75.11)
    assert cell.gap.high - cell.gap.low == pytest.approx(2 * 1.959964 * 100 * score.stderr, rel=1e-6)
    assert cell.is_within == (abs(cell.gap.value) <= 1.959964 * 100 * score.stderr)
    assert found["HellaSwag"].gap.value < -10 and not found["HellaSwag"].is_within


def test_a_mean_over_columns_is_ours_too_and_its_error_is_that_of_independent_columns(law):
    comparison = law.compare()
    found = cells(pairs(comparison, paper_tables()["law"], LAW["law"])[0])
    own = [found[name].ours for name in ("ARC", "HellaSwag", "MMLU", "TruthfulQA", "WinoGrande")]
    assert found["General"].ours.value == pytest.approx(np.mean([one.value for one in own]))
    assert found["General"].ours.stderr == pytest.approx(math.sqrt(sum(one.stderr**2 for one in own)) / 5)
    both = found["General"].ours, found["Unfair-ToS"].ours
    assert found["Avg"].ours.value == pytest.approx((both[0].value + both[1].value) / 2)
    assert found["Avg"].ours.stderr == pytest.approx(math.hypot(both[0].stderr, both[1].stderr) / 2)


def test_a_change_is_paired_by_item_and_set_against_that_of_the_papers_rows(law):
    comparison = law.compare()
    change = pairs(comparison, paper_tables()["law"], LAW["law"])[2]
    assert (change.reference, change.reference_row) == ("base", "Add 1 block")
    found, line = cells(change), next(line for line in comparison.lines if line.name == "grown")
    difference = line.differences["unfair_tos"]
    assert found["Unfair-ToS"].paper == pytest.approx(75.11 - 67.45)
    own = found["Unfair-ToS"].ours
    assert (own.value, own.low, own.high) == pytest.approx(
        [100 * x for x in (difference.value, difference.low, difference.high)]
    )
    mean = np.mean([line.differences[name].value for name in GENERAL])
    assert found["Avg"].ours.value == pytest.approx(100 * (mean + difference.value) / 2)


def test_a_stand_in_is_shown_and_never_subtracted(tmp_path):
    written = Written(tmp_path / "artifacts")
    written.add("base", arc_easy=answers("arc_easy", 0.6, 1))
    written.add("grown", arc_easy=answers("arc_easy", 0.7, 2))
    comparison = written.compare()
    scores, _, change = pairs(comparison, paper_tables()["law"], LAW["law"])
    assert cells(scores)["ARC"].ours.value > 50 and cells(scores)["ARC"].gap is None
    assert cells(scores)["General"].ours is None and cells(scores)["Unfair-ToS"].ours is None
    assert cells(change)["ARC"].ours.value > 0 and cells(change)["ARC"].gap is None
    (section,) = paper_sections(comparison, LAW, tmp_path)
    assert "no measure of it as the paper has it" in section.sentences[0]
    assert "ARC: arc_easy" in " ".join(section.sentences)
    entries = dict(section.table.rows)["base · ours"]
    assert entries[0].text.endswith("(stand-in)") and entries[1].text == "–"


def test_nats_become_a_perplexity_and_parts_of_a_benchmark_columns(tmp_path):
    written = Written(tmp_path / "artifacts")
    nats = items("perplexity", False, "l", np.random.default_rng(0).normal(1.22, 0.5, N).tolist(), [1.0] * N)
    moved = items("unshifted", True, "s", [9.0] * 20, [10.0] * 20)
    for item in moved["items"]:
        item["parts"] = {"unshifted": (9.0, 10.0), "marginal": (1.0, 10.0), "shifted": (0.0, 10.0)}
    written.add("base", lambada_perplexity=nats, shift=moved)
    comparison = written.compare()
    (one,) = pairs(comparison, paper_tables()["perplexity"], {"base": "LLaMA2-7B"})
    score = comparison.lines[0].scores["lambada_perplexity"]
    ours = cells(one)["LAMBADA (OpenAI)"].ours
    assert ours.value == pytest.approx(math.exp(score.value)) and ours.low < ours.value < ours.high
    assert ours.stderr == pytest.approx(ours.value * score.stderr)
    (shift,) = pairs(comparison, paper_tables()["token_shift"], {"base": "LLaMA Pro 8B"})
    assert [cell.ours.value for cell in shift.cells] == pytest.approx([90, 10, 0])


def test_the_report_shows_it_cell_by_cell(law, tmp_path):
    directory = tmp_path / "report"
    directory.mkdir()
    request = params([chain("default", law.models)], benchmarks=BENCHMARKS, paper=LAW)
    assert any("grown: Add 8 blocks" in line for line in report.forecast(Request(request)).lines)
    report.run(SimpleNamespace(directory=directory, params=request, inputs=law.artifacts.inputs, is_main=True,
                               progress=lambda **_: None))  # fmt: skip
    text, page = ((directory / name).read_text() for name in ("report.md", "index.html"))
    page = page.replace("<small>", " · ").replace("&#39;", "'")
    for shown in ("The paper's numbers: The law ablation", "grown · paper: Add 8 blocks", "grown · ours − paper",
                  "grown − base · ours", "paper: Prefix stacking"):  # fmt: skip
        assert shown in text and shown in page
    (values,) = json.loads((directory / "data.json").read_text())["paper"]
    cell = values["pairs"][1]["cells"]["Unfair-ToS"]
    assert cell["paper"] == 75.11 and cell["gap"] == pytest.approx(cell["ours"]["value"] - 75.11)
    refused = params([chain("default", law.models)], benchmarks=BENCHMARKS, paper={"law": {"base": "Add 9 blocks"}})
    with pytest.raises(ValueError, match=r"report\.paper\.law\.base='Add 9 blocks' is no row"):
        report.forecast(Request(refused))


def test_the_scatter_has_the_papers_points_and_ours(tmp_path):
    names = (*GENERAL, "gsm8k", "humaneval", "mbpp")
    known = {name: {"title": name, "group": "retention"} for name in names}
    written = Written(tmp_path / "artifacts")
    written.add("base", **{name: answers(name, 0.4, i) for i, name in enumerate(names)})
    collection = collect("n", [chain("default", written.models)], known, written.artifacts.inputs)
    comparison = compare(collection, confidence=0.95, num_bootstrap=100, seed=0, power=0.8)
    (section,) = paper_sections(comparison, {"pareto": {"base": "LLaMA2-7B"}}, tmp_path)
    drawn = (tmp_path / "paper_pareto.svg").read_text()
    assert (
        section.plot.path.is_file() and "CrystalCoder" in drawn.replace("<!-- ", "") and "base" in section.plot.caption
    )


def test_a_single_item_gives_no_number_that_json_has_not(tmp_path):
    written = Written(tmp_path / "artifacts")
    for name, right in {"base": 0.0, "grown": 1.0}.items():
        written.add(name, unfair_tos=items("acc", True, "unfair_tos", [right], [1.0]))
    (section,) = paper_sections(written.compare(), LAW, tmp_path)
    values = json.loads(json.dumps(section.values, allow_nan=False))
    change = next(pair for pair in values["pairs"] if pair["reference"])["cells"]["Unfair-ToS"]["ours"]
    assert change["value"] == 100 and change["low"] is None and change["stderr"] is None
