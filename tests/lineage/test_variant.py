"""How far a run goes: the goals that a command line can give."""

from __future__ import annotations

import pytest

from pipeline.engine.errors import ConfigError
from pipeline.engine.graph import Node
from pipeline.lineage.variant import Model, Variant


@pytest.fixture
def variant() -> Variant:
    places = {"base": "base", "law": "pretrain", "tuned": "sft"}
    nodes = {name: Node(stage, name, 1, {"name": name}) for name, stage in places.items()}
    return Variant("x", lineage={name: Model(stage, {}, None) for name, stage in places.items()}, models=nodes)


@pytest.mark.parametrize("stage", ["report", "sft"])
def test_a_model_and_the_stage_that_makes_it_are_one_goal(variant, stage):
    assert variant.targets(stage, "tuned") == [variant.models["tuned"]]


@pytest.mark.parametrize("stage", ["pretrain", "data", "evaluate", "nothing"])
def test_two_goals_that_differ_are_refused(variant, stage):
    with pytest.raises(ConfigError, match=rf"^stage={stage} and to=tuned are two goals: tuned is made by stage sft"):
        variant.targets(stage, "tuned")
