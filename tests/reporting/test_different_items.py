"""Runs of one report that were measured on different items of a benchmark: no number of one is shown as another's."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from pipeline.engine.run.forecast import Request
from pipeline.reporting.collect import collect
from pipeline.reporting.compare import compare
from pipeline.reporting.continual import chains, over_orders
from pipeline.reporting.figures.plot import sweep_figure
from pipeline.reporting.pages.answer import cautions
from pipeline.reporting.pages.continual import continual_sections
from pipeline.reporting.pages.items_page import items_html
from pipeline.reporting.pages.verdict import verdicts
from pipeline.reporting.paper.contrasts import measure_of
from pipeline.reporting.seeds import seed_lines
from pipeline.reporting.statistics.alike import answered, are_alike
from pipeline.reporting.tables.files import csv_text
from pipeline.reporting.tables.table import differences_table, values_table
from pipeline.reporting.tracing.places import places
from pipeline.reporting.tracing.written import read
from stages import report
from tests.reporting.statistics.test_intervals import make_items
from tests.reporting.synthetic import BENCHMARKS, Artifacts, chain, items, none, params, write_items

GAINS = {"domain_text": 0.04, "sciq": 0.02}


class Runs:
    """Variants of one report; SciQ is measured on the first of its items, as many as each says."""

    def __init__(self, path) -> None:
        self.artifacts, self.path, self.variants = Artifacts(path / "artifacts"), path, []

    def add(self, variant: str, limit: int, trained: str = "p", measures=("domain_text", "sciq"), seed: int = 1):
        base = self._row("base", "smol", "base", none(*measures), limit, 0)
        tuned = self._row("post-pretrained", trained, "pretrain", {name: GAINS[name] for name in measures}, limit, seed)
        self.variants.append(chain(variant, [base, tuned]))

    def _row(self, name, slug, stage, gains, limit, seed):
        """A row whose model is the same for all variants of a slug, and its SciQ one artifact for each limit."""
        row = self.artifacts.row(name, slug, stage, {k: v for k, v in gains.items() if k != "sciq"}, seed=seed)
        if "sciq" in gains:
            right = [float((i * 7 + seed * (i % 3 == 0)) % (5 + limit % 3) > 1) for i in range(limit)]
            role = self.artifacts.add("evaluate", f"{slug}/{name}/sciq limit {limit}")
            write_items(self.artifacts.inputs[role], items("acc_norm", True, "sciq", right, [1.0] * limit))
            row["evaluations"]["sciq"] = role
        return row

    def compare(self):
        collection = collect("r", self.variants, BENCHMARKS, self.artifacts.inputs)
        return compare(collection, confidence=0.95, num_bootstrap=300, seed=0, power=0.8)

    def report(self, **changes):
        asked = params(self.variants, num_bootstrap=200, **changes)
        report.forecast(Request(asked))
        (self.path / "report").mkdir()
        context = SimpleNamespace(
            directory=self.path / "report", params=asked, inputs=self.artifacts.inputs, progress=lambda **_: None
        )
        report.run(context)
        return (self.path / "report" / "report.md").read_text(), json.loads(
            (self.path / "report" / "data.json").read_text()
        )


@pytest.fixture
def runs(tmp_path) -> Runs:
    return Runs(tmp_path)


def right(limit, seed):
    return sum(float((i * 7 + seed * (i % 3 == 0)) % (5 + limit % 3) > 1) for i in range(limit)) / limit


def test_one_model_measured_by_two_limits_stands_twice_with_its_own_numbers(runs):
    for limit in (40, 20, 10):
        runs.add(f"benchmark.sciq.limit={limit}", limit)
    comparison = runs.compare()
    found = {line.label: line.scores["sciq"] for line in comparison.lines}
    assert {label: (one.value, one.n) for label, one in found.items()} == {
        f"{name} · limit={limit}": (pytest.approx(right(limit, seed)), limit)
        for limit in (40, 20, 10)
        for name, seed in (("base", 0), ("post-pretrained", 1))
    }
    for variant, limit in zip(comparison.collection.variants, (40, 20, 10), strict=True):
        line = comparison.line(variant.name, "post-pretrained")
        assert line.differences["sciq"].n == limit and line.differences["sciq"].value == pytest.approx(
            right(limit, 1) - right(limit, 0)
        )
    text, values = runs.report()
    (caution,) = values["cautions"]
    assert caution in text and caution.startswith(
        "Runs were measured on different items by SciQ (40 in limit=40; 20 in limit=20; 10 in limit=10), "
    )
    assert caution.endswith("to compare them, run again with the same benchmark.sciq.limit.")
    assert caution in (runs.path / "report" / "index.html").read_text()


def test_cells_tell_their_number_of_items_where_a_column_cannot(runs):
    runs.add("default", 1200)
    runs.add("benchmark.sciq.limit=40,pretrain.seed=1", 40, trained="p1", seed=2)
    comparison = runs.compare()
    for table in (values_table(comparison), differences_table(comparison)):
        domain, sciq = (next(c for c in table.columns if c.title == t) for t in ("Terms of service", "SciQ"))
        assert domain.n == 200 and sciq.n is None
        place = table.columns.index(sciq)
        for label, entries in table.rows:
            assert entries[place].text.endswith("(n=1,200)" if label.endswith("default") else "(n=40)")
    assert "n=40" in csv_text(values_table(comparison))


def test_variants_without_a_measure_take_no_side(runs):
    """What both of the others measured differently is not told of a third that shares their model and has none."""
    runs.add("a=1", 20)
    runs.add("a=2", 40)
    runs.add("a=3", 0, measures=("domain_text",))
    comparison = runs.compare()
    third = comparison.line("a=3", "post-pretrained")
    assert third.variants == ("a=3",) and set(third.scores) == {"domain_text"}


def test_what_no_two_measured_differently_is_united_as_before(runs):
    runs.add("a=1", 20)
    runs.add("a=2", 0, measures=("domain_text",))
    comparison = runs.compare()
    assert [line.label for line in comparison.lines] == ["base", "post-pretrained"] and not cautions(comparison)


def test_a_model_without_the_measure_is_shared_though_its_base_is_not(runs):
    runs.add("a=1", 20)
    runs.add("a=2", 40)
    for variant in runs.variants:
        del variant["models"][1]["evaluations"]["sciq"]
    comparison = runs.compare()
    assert [line.label for line in comparison.lines] == ["base · a=1", "post-pretrained", "base · a=2"]


def test_the_method_is_compared_with_others_by_what_both_answered(runs):
    runs.add("default", 40)
    runs.add("benchmark.sciq.limit=20,pretrain.lr=1", 20, trained="p1", seed=2)
    comparison = runs.compare()
    (baseline,) = comparison.baselines
    assert baseline.apart == ("sciq",) and baseline.gains.domain is not None and baseline.gains.retention is None
    text = verdicts(comparison)[1].findings[-1].text
    assert text.endswith("Not compared, as the two answered different items: SciQ.")
    del runs.variants[0]["models"][1]["evaluations"]["domain_text"]
    assert verdicts(runs.compare())[1].findings[-1].text.startswith("The two variants share no measure on the same")


def test_seeds_of_a_benchmark_are_not_seeds_of_a_training(runs):
    """SciQ was drawn anew with each seed, so its runs share no items and are not pooled; the domain's are."""
    for seed, limit in enumerate((20, 21, 22), 1):
        runs.add(f"pretrain.seed={seed},benchmark.sciq.seed={seed}", limit, trained=f"p{seed}", seed=seed)
    (line,) = seed_lines(runs.compare())
    assert set(line.scores) == set(line.gains) == {"domain_text"} and line.num_runs == 3
    text, values = runs.report()
    assert (
        "(20 in seed=1, seed=1; 21 in seed=2, seed=2; 22 in seed=3, seed=3)" in text
        and "run again with the same benchmark.sciq.seed." in text
    )
    mean = values["over_seeds"][0]["scores"]["domain_text"]["mean"]
    found = places(values, text, read(repr(mean)))
    assert any(len(set(one.artifacts)) == 3 for one in found if "over_seeds" in one.where)


def test_a_sweep_over_a_limit_is_no_picture_of_a_model(runs):
    for limit in (1, 2, 3):
        runs.add(f"pretrain.lr={limit}", 20, trained=f"p{limit}", seed=limit)
    assert sweep_figure(runs.compare()) is not None
    role = runs.variants[1]["models"][1]["evaluations"]["domain_text"]
    base = runs.artifacts.add("evaluate", "smol/base/domain_text on fewer")
    for one, sizes in ((role, 3.0), (base, 2.0)):
        write_items(runs.artifacts.inputs[one], items("bits_per_byte", False, "domain_text", [sizes] * 9, [3.0] * 9))
    runs.variants[1]["models"][0]["evaluations"]["domain_text"] = base
    assert sweep_figure(runs.compare()) is None


def test_a_claim_is_checked_in_each_run_that_measured_its_models_differently(runs):
    for limit in (20, 40):
        runs.add(f"benchmark.sciq.limit={limit}", limit)
    _, values = runs.report(claims={"abilities_kept": {"of": "post-pretrained", "than": "base"}})
    assert [claim["variant"] for claim in values["claims"]] == ["limit=20", "limit=40"]
    assert [claim["comparisons"][0]["models"] for claim in values["claims"]] == [
        [f"post-pretrained · limit={limit}", f"base · limit={limit}"] for limit in (20, 40)
    ]
    comparison = runs.compare()
    ends = [comparison.line(variant.name, "post-pretrained") for variant in comparison.collection.variants]
    assert measure_of(comparison, ends, ("sciq",)) is None and measure_of(comparison, ends[:1], ("sciq",)) is not None


def test_a_comparison_that_two_rows_share_is_corrected_for_once(runs):
    for limit in (20, 40):
        runs.add(f"benchmark.sciq.limit={limit}", limit)
    comparison = runs.compare()
    assert len(comparison.corrected()) == 4 and comparison.num_corrected == 3


def test_chains_on_different_items_stand_apart(tmp_path):
    artifacts, variants = Artifacts(tmp_path / "artifacts"), []
    benchmarks = {task: {"title": task.title(), "group": "domain"} for task in ("red", "blue")}
    for n, order in ((30, ("red", "blue")), (40, ("blue", "red")), (40, ("red", "blue"))):
        models = []
        for name, task in zip(("base", "one", "two"), (None, *order), strict=True):
            slug = f"{name}-{'-'.join(order)}" if task else "base"
            model = artifacts.model("sft" if task else "base", slug, training=task is not None)
            row = {"name": f"{name}-{task}" if task else "base", "model": model, "evaluations": {}}
            for benchmark in benchmarks:
                role = artifacts.add("evaluate", f"{slug}/{benchmark} {n}")
                share = 0.5 + 0.1 * len(models)
                answers = [float(i < share * n) for i in range(n)]
                write_items(artifacts.inputs[role], items("exact_match", True, benchmark, answers, [1.0] * n))
                row["evaluations"][benchmark] = role
            models.append(row | ({"task": task} if task else {}))
        variants.append(chain(f"n={n},order={'-'.join(order)}", models))
    collection = collect("r", variants, benchmarks, artifacts.inputs)
    comparison = compare(collection, confidence=0.95, num_bootstrap=200, seed=0, power=0.8)
    found = chains(comparison, 0)
    assert [len(set(one.answered)) for one in found] == [2, 2, 2] and found[0].answered != found[2].answered
    (orders,) = over_orders(found, 0.95)
    assert set(orders.labels) == {found[1].label, found[2].label}
    told = " ".join(continual_sections(comparison, tmp_path, 0)[0].sentences)
    assert told.count("answered other items of its tasks than") == 2


def test_the_same_items_in_any_order_are_alike():
    one, other = make_items([1.0, 0.0, 1.0]), make_items([0.0, 0.0, 1.0])
    turned = make_items([1.0, 0.0, 1.0])
    object.__setattr__(turned, "ids", turned.ids[::-1])
    object.__setattr__(turned, "hashes", turned.hashes[::-1])
    changed = make_items([1.0, 0.0, 1.0])
    object.__setattr__(changed, "hashes", ("other", *changed.hashes[1:]))
    assert are_alike([one, other, turned]) and are_alike([]) and are_alike([one])
    assert not are_alike([one, changed]) and not are_alike([one, make_items([1.0, 0.0])])
    assert answered(one) == answered(turned)


def test_single_items_of_one_id_but_other_content_stand_apart(runs):
    """SciQ with other prompts under the same ids: no model's answer stands below a prompt that it was not given."""
    for limit, words in ((3, "Short"), (4, "Long")):
        runs.add(f"benchmark.sciq.shots={words}", limit)
        for model in runs.variants[-1]["models"]:
            content = items("acc_norm", True, "sciq", [1.0] * limit, [1.0] * limit)
            for item in content["items"]:
                item |= {"hash": f"{words}{item['id']}", "prompt": f"{words} {item['id']}", "answer": words}
            write_items(runs.artifacts.inputs[model["evaluations"]["sciq"]], content)
    page = items_html(runs.compare(), per_benchmark=20, characters=99)
    (sciq,) = json.loads(page.partition('id="data">')[2].partition("</script>")[0])["benchmarks"]
    assert sciq["total"] == 7 and sciq["changed"] == 0
    found = {item["prompt"]: [text for text in item["answers"] if text] for item in sciq["items"]}
    assert found["Short sciq/0"] == ["Short"] * 2 and found["Long sciq/0"] == ["Long"] * 2 and len(found) == 7


def test_variants_of_which_the_same_is_found_have_one_verdict(runs):
    for i in (1, 2):
        runs.add(f"a={i}", 20)
    runs.add("a=3", 20, trained="other", seed=2)
    assert [(one.label, one.variants) for one in verdicts(runs.compare())] == [
        ("a=1 / a=2", ("a=1", "a=2")),
        ("a=3", ("a=3",)),
    ]
