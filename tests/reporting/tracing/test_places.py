"""A number's places in a report: of which evaluations and models, the paper's own, and what only a sentence has."""

import pytest

from pipeline.reporting.tracing.places import places
from pipeline.reporting.tracing.written import read


def model(label, reference=None, **found):
    evaluations = {name: f"{label}-{name}-1" for name in ("held_out", "moved", "arc_challenge_25")}
    return {
        "label": label, "row": label, "variants": ["default"], "reference": reference, "num_parameters": 134515008,
        "artifacts": {"model": f"{label}-0", "evaluations": evaluations}, "scores": {}, **found,
    }  # fmt: skip


VALUES = {
    "confidence": 0.95,
    "benchmarks": {
        "held_out": {"group": "domain"}, "moved": {"group": "drift"}, "arc_challenge_25": {"group": "retention"},
    },
    "models": [
        model("base"),
        model("add_8", "base", gains={"domain": {"value": 0.0545, "low": 0.0445, "high": 0.0652}}),
        model("full", "base", drift={"moved": {"all": {"value": 0.2189}}}, tokens=24576),
    ],
    "corrected_p": [{"model": "full", "benchmark": "held_out", "p": 0.00042}],
    "frontier": [{"all": {"methods": [{"method": "new blocks", "points": [{"model": "add_8", "gain": 0.0545123}]}],
                          "levels": [{"gain": 0.05, "drift": {"new blocks": {"value": 0.1072}}}]}}],
    "paper": [{"table": "law", "pairs": [{"model": "add_8", "row": "Add 8 blocks", "cells": {
        "ARC": {"paper": 52.9, "ours": {"value": 41.25}, "gap": None}}}]}],
    "claims": [{"name": "over_full", "claim": "Added blocks learn more", "benchmarks": ["held_out"],
                "comparisons": [{"of": "add_8", "value": -0.0098, "models": ["add_8", "full"]}]}],
}  # fmt: skip
TEXT = "# law\n\nThe intervals still allow a loss of up to 12.3 points.\n\n| add_8 | 21 of 37 |\n"


@pytest.mark.parametrize(
    ("text", "where", "artifacts"),
    [
        ("+0.0545", "add_8, gains domain value", ("add_8-held_out-1", "base-held_out-1")),
        ("[+0.0445, +0.0652]", "add_8, gains domain low", ("add_8-held_out-1", "base-held_out-1")),
        ("0.2189", "full, drift moved all value", ("full-moved-1",)),
        ("24.6 k", "full, tokens", ("full-0",)),
        ("0.0004", "corrected_p full p", ("full-held_out-1",)),
        ("0.1072", "frontier 0 all levels 0 drift new blocks value", ("add_8-held_out-1", "add_8-moved-1")),
        ("41.25", "paper law pairs add_8 cells ARC ours value", ("add_8-arc_challenge_25-1",)),
        ("−0.0098", "claims over_full comparisons add_8 value", ("add_8-held_out-1", "full-held_out-1")),
        ("95 %", "confidence", ()),
        ("63.05", "the paper's own, Table 7 of v1, Table 5 of v2 (The law ablation), Add 2 blocks, Avg", None),
        ("12.3 points", "report.md, line 3", ()),
        ("37", "report.md, line 5", ("add_8-0",)),
    ],
)  # fmt: skip
def test_a_number_is_of_what_it_was_measured_in(text, where, artifacts):
    found = {one.where: one for one in places(VALUES, TEXT, read(text))}
    assert where in found, list(found)
    assert found[where].artifacts == artifacts


def test_a_number_in_two_places_and_one_in_none():
    assert len(places(VALUES, TEXT, read("134.5 M"))) == 3
    assert places(VALUES, TEXT, read("123456.7")) == []
