"""The stage as the driver runs it, on synthetic artifacts."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from pipeline.engine.run.forecast import Request
from pipeline.lineage.report import report_node
from pipeline.reporting.missing_cells import missing_lines
from stages import report
from tests.reporting.synthetic import (
    BENCHMARKS,
    Artifacts,
    chain,
    choice_items,
    none,
    one_variant,
    params,
    sweep,
    write_items,
)

ALONE = {"name": "base", "evaluations": {}, "parents": {}, "reference": None}


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(tmp_path / "artifacts")


def run(artifacts, tmp_path, variants, **changes):
    directory = tmp_path / "report"
    directory.mkdir(exist_ok=True)
    request = params(variants, **changes)
    report.forecast(Request(request))
    context = SimpleNamespace(
        directory=directory, params=request, inputs=artifacts.inputs, is_main=True, progress=lambda **fields: None
    )
    return report.run(context), directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A report on one variant: its metrics, its directory, and how to make it again elsewhere."""
    path = tmp_path_factory.mktemp("finished")
    artifacts = Artifacts(path / "artifacts")
    variants = [one_variant(artifacts)]
    return *run(artifacts, path, variants), lambda other: run(artifacts, other, variants)


def files_of(directory):
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


class Page(HTMLParser):
    """Counts tags and what a page would load."""

    VOID = ("meta", "img", "link", "br", "source")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.images = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_one_cell(finished):
    metrics, directory, _ = finished
    figures = {f"{name}.{kind}" for name in ("loss", "tradeoff", "tradeoff-narrow") for kind in ("png", "svg")}
    cards = {f"cards/{name}.md" for name in ("expanded", "post-pretrained", "tuned")}
    names = ("01-gains-over-the-base", "02-difference-against-the-base", "03-too-small-to-tell-the-change-that-would",
             "04-scores-standard-error", "05-models")  # fmt: skip
    tables = {f"tables/{name}.{kind}" for name in names for kind in ("csv", "tex")}
    assert files_of(directory) == {"report.md", "index.html", "data.json", *figures, *cards, *tables}
    assert metrics["expanded_equals_base"] is True and metrics["beyond_general_shift"] > 0.03
    data = json.loads((directory / "data.json").read_text())
    assert [model["row"] for model in data["models"]] == ["base", "expanded", "post-pretrained", "tuned"]
    assert data["models"][1]["differences"]["sciq"]["mark"] == "identical"


def test_the_page_is_complete_in_itself(finished):
    _, directory, _ = finished
    text = (directory / "index.html").read_text()
    page = Page(text)
    assert page.open == [] and not {"script", "link", "iframe"} & set(page.tags)
    assert "http://" not in text and "https://" not in text and "url(" not in text
    assert len(page.images) == 2
    assert all(i["src"].startswith("data:image/svg+xml;base64,") and len(i["alt"]) > 40 for i in page.images)
    assert text.count('scope="row"') > 10 and '<html lang="en">' in text


def test_two_cells(artifacts, tmp_path):
    variants = [one_variant(artifacts), one_variant(artifacts, "expand=none", seed=3, full=True)]
    metrics, directory = run(artifacts, tmp_path, variants)
    assert metrics["default/num_worse"] < metrics["expand=none/num_worse"]
    assert "expand=none/expanded_equals_base" not in metrics
    text = (directory / "report.md").read_text()
    assert "## Verdict: default" in text and "How does expand=none end up against default?" in text


def test_a_sweep_is_drawn_over_its_number(artifacts, tmp_path):
    _, directory = run(artifacts, tmp_path, sweep(artifacts, [1, 2, 5, 10, 30]))
    assert (directory / "sweep.png").is_file()
    assert len(Page((directory / "index.html").read_text()).images) == 3


def test_missing_stages_leave_out_what_they_would_show(artifacts, tmp_path):
    variant = chain("default", [artifacts.row("base", "smol", "base", none("sciq"))])
    metrics, directory = run(artifacts, tmp_path, [variant])
    tables = {f"tables/{name}.{kind}" for name in ("01-scores-standard-error", "02-models") for kind in ("csv", "tex")}
    assert files_of(directory) == {"report.md", "index.html", "data.json", *tables}
    assert metrics == {"num_models": 1, "num_benchmarks": 1}
    assert "no trained model" in (directory / "report.md").read_text()


LEFT = "python -m pipeline -m pretrain.lr=1e-3,1e30"


def test_cells_of_the_sweep_that_are_missing_stand_below_the_title(artifacts, tmp_path):
    lost = {"cell": "pretrain.lr=1e+30", "variant": "pretrain.lr=1e+30", "why": "the loss is <nan>", "command": ""}
    sweep = {"num_cells": 2, "present": ["pretrain.lr=0.001"], "missing": [lost], "command": LEFT}
    _, directory = run(artifacts, tmp_path, [one_variant(artifacts, "pretrain.lr=0.001")], sweep=sweep)
    text = (directory / "report.md").read_text().split("\n\n")
    assert text[1:3] == [
        "1 of 2 cells of this sweep is missing: pretrain.lr=1e+30 (the loss is &lt;nan>).",
        f"This report has its other cell, pretrain.lr=0.001. Run what is left: {LEFT}",
    ]
    page = (directory / "index.html").read_text()
    after = page.partition("</h1>")[2]
    assert after.strip().startswith(
        '<p class="note missing-cells">1 of 2 cells of this sweep is missing: pretrain.lr=1e'
    )
    assert json.loads((directory / "data.json").read_text())["sweep"] == sweep


def test_of_many_missing_cells_each_has_a_line_and_the_rest_a_number():
    missing = [{"cell": f"n={n}", "variant": "", "why": "not run yet", "command": ""} for n in range(25)]
    lines = missing_lines({"num_cells": 28, "present": ["a", "b", "c"], "missing": missing, "command": LEFT})
    assert lines[:2] == ["25 of 28 cells of this sweep are missing:", "n=0: not run yet"] and len(lines) == 23
    assert lines[-2:] == ["and 5 more", f"This report has its other 3 cells: a; b; c. Run what is left: {LEFT}"]
    alone = missing_lines({"num_cells": 1, "present": [], "missing": missing[:1], "command": LEFT})
    assert "none of its cells" in alone[1] and missing_lines(None) == []


def test_what_is_missing_makes_another_report(artifacts):
    settings = {key: params([])[key] for key in ("paper", "claims")}
    whole, same, lacking = (
        report_node(settings, "x", [], {}, sweep=one) for one in (None, None, {"num_cells": 2, "missing": []})
    )
    assert whole.fingerprint == same.fingerprint != lacking.fingerprint


def test_a_report_over_nothing_shows_no_more_than_it_has(artifacts, tmp_path):
    """Without a measure: that nothing was measured, what the expansion proved, and the models."""
    variant = one_variant(artifacts)
    for model in variant["models"]:
        model["evaluations"] = {}
    metrics, directory = run(artifacts, tmp_path, [variant], benchmarks={})
    text, page = (directory / "report.md").read_text(), (directory / "index.html").read_text()
    assert text.splitlines()[2].startswith("**Nothing was measured")
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# terms of service", "## Verdict", "## Models"
    ]  # fmt: skip
    (finding,) = (line for line in text.splitlines() if line.startswith("- "))
    assert finding.startswith("- **Does the expanded model equal the base exactly? Yes.**")
    assert metrics == {"num_models": 4, "num_benchmarks": 0} and "interval" not in text
    assert 'id="method"' not in page and 'id="results"' not in page and Page(page).open == []


def test_text_from_artifacts_is_escaped(artifacts, tmp_path):
    benchmarks = {**BENCHMARKS, "sciq": {"title": "<b>Sci|Q</b>", "group": "general", "note": "<i>&</i>"}}
    variant = one_variant(artifacts, "x=<script>alert(1)</script>$a$")
    other = one_variant(artifacts, "x=2", seed=2)
    _, directory = run(artifacts, tmp_path, [variant, other], name='<img src=x onerror="1">', benchmarks=benchmarks)
    text = (directory / "index.html").read_text()
    assert "<script" not in text and "<b>Sci" not in text and "<img src=x" not in text and "<i>&" not in text
    assert "&lt;script&gt;alert(1)" in text and "&lt;b&gt;Sci|Q" in text
    markdown = (directory / "report.md").read_text()
    assert "<img" not in markdown and "Sci\\|Q" in markdown


def test_single_items_have_a_page_of_their_own(artifacts, tmp_path):
    variant = one_variant(artifacts)
    for row in variant["models"]:
        directory = artifacts.inputs[row["evaluations"]["sciq"]]
        content = choice_items("sciq", 0.0, 200, 0)
        for item in content["items"]:
            item.update(prompt=f"Question {item['id']}?", answer="yes", parts={"half": (item["numerator"], 1.0)})
        write_items(directory, {**content, "notes": ["<b>Two</b> answers are missing."]})
    _, directory = run(artifacts, tmp_path, [variant])
    page, items = (directory / "index.html").read_text(), (directory / "items.html").read_text()
    assert '<a href="items.html">' in page and "Question sciq/" in items
    assert "SciQ, base: &lt;b&gt;Two&lt;/b&gt; answers are missing." in page and "Inside SciQ" in page
    assert Page(page).open == [] and "<script" not in page
    parts = json.loads((directory / "data.json").read_text())["parts"]
    assert parts[0]["models"]["base"]["all"]["half"]["n"] == 200
    (tmp_path / "without").mkdir()
    _, directory = run(artifacts, tmp_path / "without", [variant], items={"per_benchmark": 0, "characters": 9})
    assert not (directory / "items.html").exists() and "items.html" not in (directory / "index.html").read_text()


def test_the_same_request_gives_the_same_files(finished, tmp_path):
    _, directory, again = finished
    other = again(tmp_path)[1]
    first, second = ({name: (d / name).read_bytes() for name in files_of(d)} for d in (directory, other))
    assert first == second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confidence": 1.0}, "confidence=1.0"),
        ({"num_bootstrap": 10}, "at least 100"),
        ({"seed": -1}, "seed=-1"),
        ({"power": 1.0}, "report.power=1.0"),
        ({"items": {"per_benchmark": 3}}, "characters and per_benchmark"),
        ({"items": {"per_benchmark": -1, "characters": 10}}, "at least 0"),
        ({"variants": []}, "no variants"),
        ({"card": {"license": None}}, "it must have language, license, origins"),
        ({"card": {"license": None, "language": None, "origins": {"x": "mit"}}}, "origins.x='mit' must be a mapping"),
        ({"surprise": 1}, "'surprise'"),
        ({"benchmarks": {"a": {"title": "A", "group": "other"}}}, "group='other' is unknown"),
        ({"variants": [chain("default", [])]}, "at least one is required"),
        ({"variants": [chain("default", [{"name": "base", "evaluations": {"z": "r"}}])]}, r"\['z'\]"),
        ({"variants": [chain("a", [{"name": "base", "evaluations": {}}])] * 2}, "not all different"),
        ({"variants": [{"variant": "a", "models": [{**ALONE, "parents": {"model": "x"}}]}]}, "comes from .'x'."),
        ({"variants": [{"variant": "a", "models": [{**ALONE, "reference": "y"}]}]}, "the reference 'y', no model"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_runs(changes, message):
    with pytest.raises(ValueError, match=message):
        asked = {**params([chain("default", [{"name": "base", "evaluations": {}}])]), **changes}
        report.STAGE.check(asked)
        report.forecast(Request(asked))


def test_groups_are_those_that_the_library_knows():
    from pipeline.reporting import collect

    assert report.GROUPS == collect.GROUPS


def test_the_stage_is_light_and_the_library_knows_no_torch():
    code = (
        "import sys, stages.report; assert not {'numpy', 'matplotlib', 'torch'} & set(sys.modules);"
        "import pipeline.reporting.pages.page, pipeline.reporting.figures.draw; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
