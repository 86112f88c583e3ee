"""Identity is stage, version, params and inputs, and nothing else; the order is deterministic and inputs come first."""

import dataclasses

import pytest

from pipeline.engine.errors import ConfigError
from pipeline.engine.graph import Node, topological


def node(stage="expand", params=None, inputs=None, label=None, settings=None, version=1):
    return Node(stage, label or stage, version, params or {}, inputs or {}, settings or {})


def test_fingerprint_depends_on_the_identity_only():
    base = node("base")
    one = node(params={"n": 1}, inputs={"model": base})
    same = node(params={"n": 1}, inputs={"model": base}, label="other", settings={"launch": {"micro_batch": 4}})
    assert one.fingerprint == same.fingerprint and one == same and hash(one) == hash(same)
    changed = [
        node(params={"n": 2}, inputs={"model": base}),
        node(params={"n": 1}, inputs={"source": base}),
        node(params={"n": 1}, inputs={"model": node("base", {"x": 1})}),
        node("pretrain", params={"n": 1}, inputs={"model": base}),
        node(params={"n": 1}, inputs={"model": base}, version=2),
    ]
    assert len({one.fingerprint, *(other.fingerprint for other in changed)}) == 6


def test_fingerprint_is_pinned():
    """If this fails, every artifact of every user is rebuilt: change the value only on purpose."""
    child = node(params={"lr": 1e-3, "names": ["a"]}, inputs={"model": node("base", {"kind": "hub"})})
    assert child.fingerprint == "b5401fab8c22bdfbdd0f65f38e988e410ea4b967e804b38bce6e3d509a41ae35"


def test_node_keeps_its_own_params():
    params = {"a": [1]}
    kept = node(params=params)
    params["a"].append(2)
    assert kept.params == {"a": [1]}
    with pytest.raises(dataclasses.FrozenInstanceError):
        kept.stage = "x"


def test_unstable_params_name_the_node_and_the_path():
    with pytest.raises(ConfigError, match=r"^evaluate/x: params\.a\.b is "):
        node("evaluate", {"a": {"b": {1}}}, label="evaluate/x")


@pytest.mark.parametrize(
    "stage, label, slug",
    [
        ("evaluate", "evaluate/base/arc_easy", "base-arc_easy"),
        ("pretrain", "pretrain", "pretrain"),
        ("data", "data/Pre train!", "pre-train"),
        ("base", "../..", "base"),
        ("base", "x" * 200, "x" * 60),
    ],
)
def test_slug(stage, label, slug):
    made = node(stage, label=label)
    assert made.slug == slug
    assert made.name == f"{slug}-{made.fingerprint[:12]}"


def test_order_has_inputs_first_sources_before_work_and_each_once():
    early = {"early": True}
    base = node("base", settings=early)
    expand = node("expand", inputs={"model": base})
    late = node("data", {"name": "late"}, {"base": base}, settings=early)
    pretrain = node("pretrain", inputs={"model": expand, "data": late})
    twin = node("expand", inputs={"model": node("base", settings=early)}, label="twin")
    scores = [node("evaluate", {"n": n}, {"model": model}) for n, model in enumerate([base, twin, pretrain])]
    order = topological([*scores, pretrain])
    assert [one.stage for one in order] == ["base", "data", "evaluate", "expand", "evaluate", "pretrain", "evaluate"]
    assert order == topological([*scores, pretrain])
    for index, one in enumerate(order):
        assert all(source in order[:index] for source in one.inputs.values())
