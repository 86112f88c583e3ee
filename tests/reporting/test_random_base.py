"""A report over models that started from random weights says so, and judges no claim of the paper."""

from __future__ import annotations

import json

import pytest

from pipeline.reporting.collect import collect
from pipeline.reporting.compare import compare
from pipeline.reporting.pages.answer import RANDOM_BASE, cautions
from pipeline.reporting.pages.page import html, report_markdown
from pipeline.reporting.paper.claims_section import claims_sections
from tests.reporting.synthetic import BENCHMARKS, Artifacts, chain, none

CLAIMS = {"over_full": {"of": "more", "than": "less"}}
MEASURES = ("domain_text", "sciq")


@pytest.fixture
def artifacts(tmp_path) -> Artifacts:
    return Artifacts(tmp_path)


def drawn(artifacts, row):
    """The row, its model one of random weights."""
    file = artifacts.inputs[row["model"]] / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | {"params": {"source": {"kind": "random", "seed": 0}}}))
    return row


def rows(artifacts, *, is_random):
    base = artifacts.row("base", "b", "base", none(*MEASURES))
    trained = {"less": 0.01, "more": 0.04}
    return [
        drawn(artifacts, base) if is_random else base,
        artifacts.row("expanded", "e", "expand", none(*MEASURES), num_new=10),
        *(artifacts.row(name, name, "pretrain", dict.fromkeys(MEASURES, g), seed=1) for name, g in trained.items()),
    ]


def compared(artifacts, variant):
    collection = collect("r", [variant], BENCHMARKS, artifacts.inputs)
    return compare(collection, confidence=0.95, num_bootstrap=300, seed=0, power=0.8)


@pytest.mark.parametrize("is_random", [True, False])
def test_what_random_weights_show_is_no_finding(artifacts, is_random):
    comparison = compared(artifacts, chain("default", rows(artifacts, is_random=is_random)))
    sections = claims_sections(comparison, CLAIMS, 0, may_lead=True)
    text, (section,) = report_markdown(comparison, sections), sections
    first, second = text.split("\n\n")[1:3]
    page = html(comparison, [], frontier=sections)
    verdict = "Of 1 claim of the paper, 1 holds (95 %)."
    told = "Of 1 claim of the paper none is judged, as the base has random weights."
    assert (second == RANDOM_BASE) is is_random and (RANDOM_BASE in page) is is_random
    assert (first == f"**{verdict}**") is (section.leads is True) is not is_random
    assert section.sentences[0] == (told if is_random else verdict) and section.sentences[0] in text
    assert section.values["claims"][0]["verdict"] == ("not judged" if is_random else "holds")
    assert section.values["claims"][0]["comparisons"][0]["p"] < 0.05  # what was measured is told all the same
    assert [row[1][2].holds for row in section.table.rows] == [not is_random]


@pytest.mark.parametrize(("reference", "is_said"), [("base", True), ("expanded", True), ("less", False)])
def test_a_model_that_was_trained_first_is_no_random_base(artifacts, reference, is_said):
    """Random weights that a first training taught are a base like another; those that were only grown are not."""
    variant = chain("default", rows(artifacts, is_random=True))
    for model in variant["models"][1:]:
        model["reference"] = None
    variant["models"][-1]["reference"] = reference
    assert (RANDOM_BASE in cautions(compared(artifacts, variant))) is is_said
