"""The page of single items: what it shows, what it leaves out, and that nothing on it can run."""

from __future__ import annotations

import json
import re

import pytest

from pipeline.reporting.collect import collect
from pipeline.reporting.compare import compare
from pipeline.reporting.pages.items_page import items_html
from tests.reporting.synthetic import BENCHMARKS, Artifacts, chain, items, none, write_items

NASTY = "</script><script>alert(1)</script><!-- <b>&amp;\u2028 ½"


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(tmp_path)


def answered(artifacts, slug, values, texts) -> str:
    role = artifacts.add("evaluate", slug)
    content = items("acc", True, "q", values, [1.0] * len(values))
    for number, item in enumerate(content["items"]):
        item.update(prompt=f"Question {number}? {texts}", answer=f"{slug} says {number}", gold=f"gold {number}")
        item["category"] = ["odd", "even"][number % 2]
    write_items(artifacts.inputs[role], content)
    return role


def page(artifacts, base, model, texts="", **changes) -> tuple[str, dict]:
    rows = [artifacts.row("base", "smol", "base", {}), artifacts.row("post-pretrained", "p", "pretrain", {})]
    rows[0]["evaluations"] = {"sciq": answered(artifacts, "base", base, texts)}
    rows[1]["evaluations"] = {"sciq": answered(artifacts, "trained", model, texts)}
    collection = collect("<i>run</i>", [chain("default", rows)], BENCHMARKS, artifacts.inputs)
    comparison = compare(collection, confidence=0.95, num_bootstrap=100, seed=0, power=0.8)
    html = items_html(comparison, **{"per_benchmark": 10, "characters": 300, **changes})
    found = re.search(r'id="data">(.*?)</script>', html, re.S)
    return html, json.loads(found[1])["benchmarks"][0] if found else {}


def test_every_model_answers_every_item_and_changes_come_first(artifacts):
    _, shown = page(artifacts, [1, 0, 1, 0, 1], [1, 0, 1, 1, 1])
    assert shown["models"] == ["base", "post-pretrained"] and shown["bases"] == [None, 0]
    assert (shown["total"], shown["changed"]) == (5, 1) and len(shown["items"]) == 5
    first = shown["items"][0]
    assert first["id"] == "q/3" and first["changed"] and first["category"] == "even"
    assert (first["values"], first["golds"]) == ([0.0, 1.0], ["gold 3"])
    assert first["answers"] == ["base says 3", "trained says 3"]
    assert not any(item["changed"] for item in shown["items"][1:])


def test_sizes_are_bounded(artifacts):
    html, shown = page(artifacts, [1.0] * 50, [0.0] * 50, texts="x" * 5000, per_benchmark=7, characters=90)
    assert len(shown["items"]) == 7 and (shown["total"], shown["changed"]) == (50, 50)
    prompt = shown["items"][0]["prompt"]
    assert prompt.startswith("Question") and "characters …]" in prompt and len(prompt) < 130 and len(html) < 20_000


def test_nothing_of_an_artifact_becomes_part_of_the_page(artifacts):
    html, shown = page(artifacts, [1, 0], [0, 0], texts=NASTY)
    assert html.count("<script") == 2 and html.count("</script") == 2 and "<!-- <b>" not in html
    assert "<i>run" not in html and NASTY in shown["items"][0]["prompt"]
    assert "http://" not in html and "https://" not in html and "innerHTML" not in html
    assert "default-src 'none'" in html


def test_without_texts_there_is_no_page(artifacts):
    rows = [artifacts.row("base", "smol", "base", none("sciq"))]
    collection = collect("run", [chain("default", rows)], BENCHMARKS, artifacts.inputs)
    comparison = compare(collection, confidence=0.95, num_bootstrap=100, seed=0, power=0.8)
    assert items_html(comparison, per_benchmark=10, characters=100) == ""
    assert page(artifacts, [1, 0], [0, 0], per_benchmark=0)[0] == ""
