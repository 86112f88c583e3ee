"""The report's section on data: shares asked and observed, repetition, and nothing dropped in silence."""

from __future__ import annotations

import json

import pytest

from pipeline.reporting.collect import collect
from pipeline.reporting.compare import compare
from pipeline.reporting.pages.data import data_sections
from pipeline.reporting.pages.page import html, report_markdown
from tests.reporting.synthetic import BENCHMARKS, Artifacts, one_variant

METRICS = {
    "tokens_by_source": {"code": 7000, "web": 3000},
    "epochs_by_source": {"code": 1.4, "web": 0.25},
    "repeated_tokens_by_source": {"code": 2000, "web": 0},
    "shares_by_source": {
        "code": {"asked": 0.7001, "observed": 0.7},
        "web": {"asked": 0.2999, "observed": 0.3},
    },
    "packing": {
        "policy": "fill", "rows": 100, "efficiency": 0.9876, "documents_cut_at_a_row_end": 12,
        "overlong": {"code": {}, "web": {"truncated": 4}},
    },
    "data": {
        "rejected": {"code": {}, "web": {"invalid UTF-8": 3, "broken gzip (EOFError)": 1}},
        "left_out": {"code": {"mostly digits and punctuation": 5}, "web": {}},
        "ignored_keys": {"web": {"url": 1200, "messages[].mood": 7}},
        "reasoning_left_out": {"web": 7},
        "overlap": {
            "ngram": 13, "removed": {"web": 2},
            "sets": {"exam": {"items": 500, "met": 1, "too_short": 3}},
        },
    },
}  # fmt: skip


@pytest.fixture
def comparison(tmp_path):
    artifacts = Artifacts(tmp_path)
    variant = one_variant(artifacts)
    for row in variant["models"]:
        file = artifacts.inputs[row["model"]] / "manifest.json"
        manifest = json.loads(file.read_text())
        if "num_trainable" in manifest["metrics"]:
            manifest["metrics"] |= METRICS
            file.write_text(json.dumps(manifest))
    collection = collect("test", [variant], BENCHMARKS, artifacts.inputs)
    return compare(collection, confidence=0.95, num_bootstrap=200, seed=0, power=0.8)


def test_the_section_says_what_was_used_and_what_was_not(comparison):
    section, *_ = data_sections(comparison)
    rows = {name: [entry.text for entry in entries] for name, entries in section.table.rows}
    assert rows["code"] == ["7,000", "70.01", "70.00", "1.400", "0", "5"]
    assert rows["web"] == ["3,000", "29.99", "30.00", "0.250", "4", "0"]
    text = " ".join(section.sentences)
    for said in (
        "100 rows, 98.76 % of them tokens", "12 documents go on in the next row", "web: truncated 4",
        "2,000 tokens of code", "web: rejected as damaged or of another form: invalid UTF-8 3, broken gzip (EOF",
        "code: left out by a rule: mostly digits and punctuation 5", "2 documents were left out because they hold 13",
        "1 of 500 of exam", "web: keys of rows that nothing reads: url 1,200, messages[].mood 7.",
        "web: of 7 conversations the chat template leaves reasoning out",
    ):  # fmt: skip
        assert said in text
    assert section.in_text and section.values["packing"]["efficiency"] == 0.9876


def test_it_stands_on_the_page_and_in_the_text(comparison):
    sections = data_sections(comparison)
    for text in (html(comparison, [], sections), report_markdown(comparison, sections)):
        assert "invalid UTF-8 3" in text


def test_artifacts_of_before_have_none(tmp_path):
    artifacts = Artifacts(tmp_path)
    collection = collect("test", [one_variant(artifacts)], BENCHMARKS, artifacts.inputs)
    assert data_sections(compare(collection, confidence=0.95, num_bootstrap=200, seed=0, power=0.8)) == []
