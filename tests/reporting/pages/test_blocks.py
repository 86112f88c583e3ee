"""The report's sections on blocks, from made-up diagnoses whose truth is known."""

from __future__ import annotations

import json
import re

import pytest

from pipeline.reporting.collect import collect
from pipeline.reporting.compare import compare
from pipeline.reporting.pages.blocks import block_sections, diagnosis_table, sentences
from pipeline.reporting.pages.page import html, report_markdown
from pipeline.reporting.pages.values import data
from pipeline.reporting.tables.table import values_table
from tests.reporting.synthetic import (
    BENCHMARKS,
    Artifacts,
    chain,
    items,
    none,
    write_items,
    write_json,
    write_safetensors,
)

BASE = [100.0 + i for i in range(40)]
SIZES = [50.0] * 40
LISTED = {**BENCHMARKS, "blocks": {"title": "Blocks", "group": "domain", "note": ""}}


def removal(positions: list[int], value: float, reach: float, bits: list[float] = BASE) -> dict:
    return {
        "positions": positions,
        "value": value,
        "stderr": reach / 2,
        "low": value - reach,
        "high": value + reach,
        "numerators": bits,
    }


def block(position: int, origin: int, value: float, reach: float, **changes) -> dict:
    without = removal([position], value, reach)
    facts = {"position": position, "origin": origin, "group": 0, "round": 1, "is_identity": False}
    return {**facts, "without": without, "is_candidate": value <= reach, **changes}


TRAINED = {
    "confidence": 0.95,
    "updates": [0.5, 0.25, 0.0312, 0.2, 0.0049],
    "blocks": [block(2, 1, 0.05, 0.01), block(4, 2, 0.002, 0.004)],
    "without_all": removal([2, 4], 0.08, 0.02),
    "without_candidates": removal([4], 0.002, 0.004),
}
UNTOUCHED = {
    "confidence": 0.95,
    "updates": [0.5, 0.25, 0.0, 0.2, 0.0],
    "blocks": [block(2, 1, 0.0, 0.0, is_identity=True), block(4, 2, 0.0, 0.0, is_identity=True)],
    "without_all": removal([2, 4], 0.0, 0.0),
    "without_candidates": removal([2, 4], 0.0, 0.0),
}
NONE_NEW = {**UNTOUCHED, "updates": [0.5] * 3, "blocks": [], "without_all": None, "without_candidates": None}


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(tmp_path / "artifacts")


def diagnosed(artifacts, slug: str, diagnosis: dict, bits: list[float]) -> str:
    role = artifacts.add("evaluate", f"{slug}/blocks")
    content = {**items("bits_per_byte", False, "blocks", bits, SIZES), "diagnosis": diagnosis}
    write_items(artifacts.inputs[role], content)
    return role


def variant(artifacts, trained=TRAINED, base_bits=BASE) -> dict:
    """Base, expanded with a real record beside its weights, and post-pretrained, each diagnosed."""
    rows = [artifacts.row("base", "smol", "base", none("domain_text"))]
    rows.append(artifacts.row("expanded", "e", "expand", none("domain_text")))
    rows.append(artifacts.row("post-pretrained", "p", "pretrain", {"domain_text": 0.04}))
    model = artifacts.inputs[rows[1]["model"]] / "model"
    write_safetensors(model / "model.safetensors", {f"model.layers.{i}.w": [10, 10] for i in range(5)})
    entries = [{"position": p, "origin": o, "group": g, "round": 1} for g, (p, o) in enumerate([(2, 1), (4, 2)])]
    names = ["model.layers.2.w", "model.layers.4.w"]
    write_json(model / "expansion.json", {"method": "block", "blocks": entries, "new_parameters": names, "rounds": []})
    better = [bits - 4 for bits in BASE]
    for row, diagnosis, bits in zip(rows, (NONE_NEW, UNTOUCHED, trained), (base_bits, BASE, better), strict=True):
        row["evaluations"]["blocks"] = diagnosed(artifacts, row["name"], diagnosis, bits)
    return chain("default", rows)


def compared(artifacts, variants):
    collection = collect("a run", variants, LISTED, artifacts.inputs)
    return compare(collection, confidence=0.95, num_bootstrap=200, seed=0, power=0.8)


def trained_of(comparison, name="post-pretrained"):
    return comparison.line("default", name).row.diagnoses["blocks"]


def test_the_main_tables_know_nothing_of_it(artifacts):
    comparison = compared(artifacts, [variant(artifacts)])
    assert [b.name for b in comparison.benchmarks] == ["domain_text"]
    assert [column.title for column in values_table(comparison).columns] == ["Terms of service"]


def test_a_section_for_the_stack_and_for_every_diagnosed_model_with_new_blocks(artifacts, tmp_path):
    sections = block_sections(compared(artifacts, [variant(artifacts)]), tmp_path)
    assert [s.title for s in sections] == ["Stack: expanded", "Blocks: expanded", "Blocks: post-pretrained"]
    assert [s.is_open for s in sections] == [False, False, True]
    assert {file.name for file in tmp_path.glob("*.svg")} == {"stack.svg", "blocks.svg"}
    assert [label for label, _ in sections[0].table.rows][3] == "Optimizer (AdamW)"
    stack, untouched, trained = sections
    assert stack.sentences[0] == "5 blocks: 3 old and 2 new; 200 new parameters, 40 % of the model."
    assert "block 2 from block 1; block 4 from block 3" in stack.plot.alt
    assert untouched.plot is None and "still are exact identities" in untouched.sentences[0]
    assert "block 2: update 3.12 %, without it +0.0500" in trained.plot.alt


def test_the_table_says_what_each_block_is_worth(artifacts):
    table = diagnosis_table(trained_of(compared(artifacts, [variant(artifacts)])))
    rows = {label: [(e.text, e.mark) for e in entries] for label, entries in table.rows}
    assert rows["block 2"] == [("1", ""), ("1", ""), ("3.12 %", ""), ("+0.0500", "worse"), ("", "needed")]
    assert rows["block 4"] == [("3", ""), ("1", ""), ("0.49 %", ""), ("+0.0020", "within"), ("", "candidate")]
    assert rows["all new blocks"][3] == ("+0.0800", "worse") and rows["all candidates"][3] == ("+0.0020", "within")
    untouched = dict(diagnosis_table(trained_of(compared(artifacts, [variant(artifacts)]), "expanded")).rows)
    assert [(e.text, e.mark) for e in untouched["block 2"][2:]] == [("0", ""), ("0", "identical"), ("identity", "")]


def test_the_base_is_recognised_in_what_is_left(artifacts):
    comparison = compared(artifacts, [variant(artifacts)])
    found = sentences(trained_of(comparison), trained_of(comparison, "base"))
    assert found[0].startswith("Candidates for dropping: block 4. The loss does not rise outside its 95 % interval")
    assert "Without it the loss changes by +0.0020 bits per byte (95 % CI −0.0020 to +0.0060)" in found[0]
    assert "exactly the base's loss on every document" in found[1] and len(found) == 2


def test_candidates_that_cost_something_together_are_not_recommended(artifacts):
    blocks = [block(2, 1, 0.004, 0.005), block(4, 2, 0.002, 0.004)]
    joint = {**TRAINED, "blocks": blocks, "without_candidates": removal([2, 4], 0.03, 0.01)}
    found = sentences(trained_of(compared(artifacts, [variant(artifacts, joint)])), None)[0]
    assert "blocks 2 and 4" in found and found.endswith("so do not drop all.")


def test_what_is_left_of_a_model_that_was_trained_whole_is_not_the_base(artifacts):
    comparison = compared(artifacts, [variant(artifacts, base_bits=[bits + 1 for bits in BASE])])
    found = sentences(trained_of(comparison), trained_of(comparison, "base"))
    assert "What is left is not the base: its loss differs by −0.0200 bits per byte" in found[1]
    assert "base" not in sentences(trained_of(comparison), None)[1]


def test_no_candidate_and_no_interval_are_said(artifacts):
    needed = {**TRAINED, "blocks": [block(2, 1, 0.05, 0.01)], "without_candidates": None}
    found = trained_of(compared(artifacts, [variant(artifacts, needed)]))
    assert sentences(found, None)[0].startswith("No new block is a candidate for dropping")
    unknown = {**removal([2], 0.05, 0.0), "stderr": None, "low": None, "high": None}
    single = {**TRAINED, "blocks": [block(2, 1, 0.05, 0.01, without=unknown)], "without_all": unknown}
    found = trained_of(compared(artifacts, [variant(artifacts, single)]))
    entries = dict(diagnosis_table(found).rows)["block 2"]
    assert (entries[3].interval, entries[4].mark) == ("[no interval]", "unknown")
    assert "(one document, so no interval)" in sentences(found, None)[1]


def test_page_text_and_data_hold_the_sections(artifacts, tmp_path):
    comparison = compared(artifacts, [variant(artifacts)])
    sections = block_sections(comparison, tmp_path)
    page, text = html(comparison, [], sections), report_markdown(comparison, sections)
    assert '<h2 id="blocks">' in page and page.count('<details class="section"') == 3
    assert page.count('<details class="section" open>') == 1 and page.count("<img ") == 2
    assert '<th scope="col">Left out</th>' in page and 'class="mark candidate"' in page
    assert "## Blocks: post-pretrained" in text and "## Stack" not in text
    assert re.search(r"\| block 4 +\| +3 \| +1 \| +0\.49 % \|", text)
    values = json.loads(json.dumps(data(comparison, sections), allow_nan=False))["blocks"]
    assert [v["model"] for v in values] == ["expanded", "expanded", "post-pretrained"]
    assert values[2]["blocks"][1]["without"]["mark"] == "within" and values[0]["new"][1]["origin"] == 3


def test_a_report_without_diagnoses_has_no_such_section(artifacts, tmp_path):
    rows = [artifacts.row("base", "smol", "base", none("domain_text"))]
    comparison = compared(artifacts, [chain("default", rows)])
    assert block_sections(comparison, tmp_path) == [] and 'id="blocks"' not in html(comparison, [])


def test_a_damaged_diagnosis_is_named(artifacts):
    damaged = {key: value for key, value in TRAINED.items() if key != "updates"}
    with pytest.raises(ValueError, match=r"holds no whole diagnosis \(KeyError\('updates'\)\)"):
        compared(artifacts, [variant(artifacts, damaged)])
