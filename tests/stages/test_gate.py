"""The gate as the graph asks for it, as the stage judges it, and as the driver answers."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipeline.engine.errors import ConfigError
from pipeline.lineage import gate as asked
from pipeline.lineage.variant import Model, Variant
from stages import gate
from tests.reporting.synthetic import Artifacts
from tests.stages.requests import request

PARAMS = {
    "model": "tuned",
    "titles": {"sciq": "SciQ"},
    "budgets": {"sciq": 0.02},
    "overall": None,
    "overall_gold": None,
    "fail_if": "shown",
    "confidence": 0.95,
    "num_bootstrap": 500,
    "seed": 0,
}
SETTINGS = {"max_drop": 0.02, "benchmarks": {}, "overall": None, "overall_gold": None, "fail_if": "shown"}


@pytest.mark.parametrize(("gain", "passed"), [(0.0, True), (-0.3, False)])
def test_a_verdict_is_a_result(tmp_path, gain, passed):
    artifacts = Artifacts(tmp_path)
    roles = {"base-sciq": artifacts.evaluation("base", "sciq"), "model-sciq": artifacts.evaluation("m", "sciq", gain)}
    inputs = {name: artifacts.inputs[role] for name, role in roles.items()}
    metrics = gate.run(SimpleNamespace(params=PARAMS, inputs=inputs, directory=tmp_path))
    written = json.loads((tmp_path / "gate.json").read_text())
    assert metrics["passed"] is written["passed"] is passed and metrics["num_violated"] == int(not passed)
    assert written["judgements"][0]["title"] == "SciQ" and written["message"] == metrics["message"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fail_if": "maybe"}, "use one of shown, estimated, possible"),
        ({"confidence": 95}, "not between 0 and 1"),
        ({"num_bootstrap": 10}, "at least 100"),
        ({"seed": -1}, "not negative"),
    ],
    ids=str,
)
def test_a_gate_that_could_not_be_judged_is_refused(change, message):
    gate.forecast(request(PARAMS))
    with pytest.raises(ValueError, match=message):
        gate.forecast(request({**PARAMS, **change}))


def variant(**rows):
    """A chain of models, and benchmarks evaluated on each; nodes are named by strings."""
    groups = {"lambada": "retention", "wikitext": "general", "domain": "domain"}
    names = list(rows)
    made = Variant("default", models={name: f"model {name}" for name in names})
    for above, name in zip([None, *names], names, strict=False):
        made.lineage[name] = Model("stage", {"model": above} if above else {}, names[0] if above else None)
    return replace(
        made,
        evaluations={row: {b: f"{row}/{b}" for b in names} for row, names in rows.items()},
        benchmarks={name: {"title": name.title(), "group": group} for name, group in groups.items()},
        with_gold={"lambada"},
    )


EVERY = ["domain", "wikitext", "lambada"]


def test_a_gate_on_right_answers_needs_a_task_that_scores_them():
    rows = {"base": ["wikitext"], "tuned": ["wikitext"]}
    with pytest.raises(ConfigError, match="overall_gold has nothing to judge: none of wikitext scores right answers"):
        asked.request({**SETTINGS, "overall_gold": 0.01}, variant(**rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmarks": {"lambada": 2}}, r"evaluate.gate.benchmarks.lambada=2 must be a fraction"),
        ({"max_drop": "2%"}, r"evaluate.gate.max_drop='2%' must be a fraction"),
        ({"max_drop": True}, "max_drop=True"),
        ({"overall": -0.1}, "evaluate.gate.overall=-0.1"),
        ({"overall_gold": 5}, "evaluate.gate.overall_gold=5"),
    ],
    ids=str,
)
def test_a_budget_that_is_no_fraction_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        asked.request({**SETTINGS, **change}, variant(base=EVERY, tuned=EVERY))


def test_a_budget_holds_for_what_the_base_could_do():
    params, inputs = asked.request(SETTINGS, variant(base=EVERY, expanded=EVERY, tuned=EVERY))
    assert params["budgets"] == {"wikitext": 0.02, "lambada": 0.02} and params["model"] == "tuned"
    assert (inputs["made-0"], inputs["made-1"]) == ("model expanded", "model tuned")
    assert inputs["base-lambada"] == "base/lambada" and inputs["model-wikitext"] == "tuned/wikitext"
    assert params["titles"] == {"wikitext": "Wikitext", "lambada": "Lambada"}


@pytest.mark.parametrize(
    ("settings", "budgets"),
    [
        ({"max_drop": None}, None),
        ({"benchmarks": {"lambada": 0.1, "wikitext": None}}, {"lambada": 0.1}),
        ({"max_drop": None, "benchmarks": {"domain": 0.0}}, {"domain": 0.0}),
        ({"max_drop": None, "overall": 0.01}, {"wikitext": None, "lambada": None}),
        ({"max_drop": None, "overall_gold": 0.01}, {"wikitext": None, "lambada": None}),
    ],
    ids=str,
)
def test_budgets_of_their_own(settings, budgets):
    found = asked.request({**SETTINGS, **settings}, variant(base=EVERY, tuned=EVERY))
    assert (found[0]["budgets"] if found else None) == budgets


@pytest.mark.parametrize(
    ("settings", "rows", "message"),
    [
        ({}, {"base": EVERY}, "this config makes none from it"),
        (
            {"benchmarks": {"arc": 0.1}},
            {"base": EVERY, "tuned": EVERY},
            "arc is not evaluated.*these are: domain",
        ),
        ({}, {"base": ["domain"], "tuned": ["domain"]}, "nothing to judge"),
    ],
    ids=["only base", "unknown", "nothing"],
)
def test_a_gate_without_anything_to_judge_is_refused(settings, rows, message):
    with pytest.raises(ConfigError, match=message):
        asked.request({**SETTINGS, **settings}, variant(**rows))
