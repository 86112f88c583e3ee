"""The lineage of a config: what is read out of it, and what is refused with the line to change."""

from __future__ import annotations

import pytest

from pipeline.engine.errors import ConfigError
from pipeline.lineage.entries import read_lineage

SECTIONS = {
    "model": {"source": {"kind": "random"}},
    "expand": {"skip": False, "per_group": 1, "save": "full"},
    "pretrain": {
        "skip": False,
        "lr": 1.0,
        "strategy": {"_target_": "a.B", "rank": 4},
        "data": {"sources": {"x": {"n": 1}}},
    },
    "sft": {"skip": True, "data": {}},
}  # fmt: skip
CHAIN = {
    "base": {"stage": "base"},
    "grown": {"stage": "expand", "from": "base"},
    "law": {"stage": "pretrain", "from": "grown"},
}


def entries(**changes):
    lineage = {**CHAIN, **changes}
    return {entry.name: entry for entry in read_lineage({**SECTIONS, "lineage": lineage})}


def test_parents_come_first_whatever_the_order_of_the_config():
    lineage = {"law": CHAIN["law"], "grown": CHAIN["grown"], "base": CHAIN["base"]}
    assert [entry.name for entry in read_lineage({**SECTIONS, "lineage": lineage})] == ["base", "grown", "law"]


def test_an_entry_overlays_the_section_of_its_stage():
    changed = {"lr": 0.5, "data": {"sources": {"y": {"n": 2}}}, "strategy": {"_target_": "c.D"}}
    law = entries(law={**CHAIN["law"], "with": changed})["law"]
    assert law.settings["lr"] == 0.5 and law.settings["data"]["sources"] == {"x": {"n": 1}, "y": {"n": 2}}
    assert law.settings["strategy"] == {"_target_": "c.D"}  # another class: nothing of the old one is kept
    assert SECTIONS["pretrain"]["lr"] == 1.0


def test_a_class_of_its_own_replaces_the_whole_section():
    mixed = {"_target_": "e.Mix", "skip": False, "t": 0.5, "save": "full"}
    found = entries(mixed={"stage": "expand", "from": "law", "with": mixed, "each": {"t": [0.25, 0.75]}})
    assert found["mixed-0.25"].settings == {**mixed, "t": 0.25} and found["mixed-0.75"].settings["t"] == 0.75
    assert found["grown"].settings == SECTIONS["expand"]


@pytest.mark.parametrize("given", [{"with": {"num_steps": 10}}, {"each": {"num_steps": [10]}}])
def test_a_budget_that_an_entry_gives_makes_the_others_step_back(given):
    section = {**SECTIONS["pretrain"], "num_steps": None, "num_tokens": 24576, "num_epochs": None}
    lineage = {**CHAIN, "law": {**CHAIN["law"], **given}, "plain": {**CHAIN["law"], "with": {"lr": 2.0}}}
    *_, law, plain = read_lineage({**SECTIONS, "pretrain": section, "lineage": lineage})
    assert [law.settings[key] for key in ("num_steps", "num_tokens", "num_epochs")] == [10, None, None]
    assert [plain.settings[key] for key in ("num_steps", "num_tokens", "num_epochs")] == [None, 24576, None]
    both = {**CHAIN["law"], "with": {"num_steps": 10, "num_tokens": 5}}  # which the stage refuses
    *_, law = read_lineage({**SECTIONS, "pretrain": section, "lineage": {**CHAIN, "law": both}})
    assert (law.settings["num_steps"], law.settings["num_tokens"]) == (10, 5)


def test_a_skipped_section_and_an_entry_that_is_left_out():
    found = entries(
        tuned={"stage": "sft", "from": "law", "with": {"lr": 1.0}}, grown=None, law={**CHAIN["law"], "from": "base"}
    )
    assert found["tuned"].is_skipped and not found["law"].is_skipped and "grown" not in found


def test_each_stands_for_a_model_of_every_value():
    several = {**CHAIN["law"], "with": {"strategy": {"_target_": "c.D", "r": 1}}}
    found = entries(law={**several, "each": {"lr": [1e-4, 2.5e-3, 0.5]}}, other={"stage": "sft", "from": "law-1e-4"})
    assert [name for name in found if name.startswith("law")] == ["law-1e-4", "law-2.5e-3", "law-0.5"]
    assert [found[f"law-{rate}"].settings["lr"] for rate in ("1e-4", "2.5e-3", "0.5")] == [1e-4, 2.5e-3, 0.5]
    assert found["law-0.5"].settings["strategy"] == {"_target_": "c.D", "r": 1}
    deep = entries(law={**several, "each": {"strategy.r": [4, 8]}})
    assert deep["law-8"].settings["strategy"] == {"_target_": "c.D", "r": 8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"law": {**CHAIN["law"], "each": {"lr": []}}}, r"lineage\.law\.each=.* must name one setting and a list"),
        ({"law": {**CHAIN["law"], "each": {"lr": 1e-4}}}, r"lineage\.law\.each=.* must name one setting and a list"),
        ({"law": {**CHAIN["law"], "each": {"lr": [1, 2], "seed": [1]}}}, "must name one setting and a list"),
        ({"law": {**CHAIN["law"], "each": {"lr": [1e-4, 0.0001]}}}, "has the same value twice"),
        ({"law": {**CHAIN["law"], "each": {"rate": [1.0]}}}, r"lineage\.law-1\.with\.rate is not a key"),
        (
            {"law": {**CHAIN["law"], "each": {"lr": [0.5]}}, "more": {"stage": "sft", "from": "law"}},
            r"no model 'law'; did you mean law-0\.5\?",
        ),
        (
            {"law-0.5": CHAIN["law"], "law": {**CHAIN["law"], "each": {"lr": [0.5]}}},
            r"names the model 'law-0\.5' twice",
        ),
        (
            {"grown": {"stage": "expnad", "from": "base"}},
            r"grown\.stage: there is no stage 'expnad'; did you mean expand",
        ),
        ({"grown": {"stage": "data", "from": "base"}}, r"lineage\.grown\.stage=data makes data, not a model"),
        ({"law": {"stage": "pretrain", "from": "gorwn"}}, r"no model 'gorwn'; did you mean grown\?"),
        ({"law": {"stage": "pretrain"}}, r"lineage\.law\.from names no model for the role 'model'"),
        ({"base": {"stage": "base", "from": "law"}}, r"lineage\.base\.from: its stage reads no model in the role"),
        ({"law": {"stage": "pretrain", "from": {"a": "grown"}}}, "no model in the role 'a'; it has model"),
        ({"grown": {"stage": "expand", "from": "law"}}, "lineage has a cycle: grown <- law <- grown"),
        ({"law": {**CHAIN["law"], "with": {"lrr": 1}}}, r"lineage\.law\.with\.lrr is not a key .* did you mean lr\?"),
        ({"law": {**CHAIN["law"], "wiht": {}}}, r"lineage\.law has the keys 'wiht'; known are stage, from, with"),
        (
            {"law": {**CHAIN["law"], "reference": "nobody"}},
            r"law\.reference: the lineage has no model 'nobody'",
        ),
        ({"law": "pretrain"}, r"lineage\.law='pretrain' must be a mapping with a stage"),
        ({"law": {"stage": "pretrain", "from": ["a"]}}, r"lineage\.law\.from=\['a'\] must be the name of a model"),
        ({"base": None, "grown": None, "law": None}, "lineage is empty"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_made_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        entries(**changes)


def test_a_stage_without_a_section_is_refused():
    with pytest.raises(ConfigError, match=r"lineage\.law\.stage=pretrain has no section 'pretrain' in the config"):
        read_lineage({**{k: v for k, v in SECTIONS.items() if k != "pretrain"}, "lineage": CHAIN})
