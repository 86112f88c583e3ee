"""A chain of tasks stands for models that come one from the other; what cannot be one is refused."""

from __future__ import annotations

import pytest

from pipeline.engine.errors import ConfigError
from pipeline.lineage.entries import read_lineage


def source(path):
    return {"origin": {"path": path}, "weight": 1.0, "limit": None}


def data(path):
    return {"_target_": "a.Chats", "sources": {"files": source(path)}}


TASKS = {"red": {"data": data("/red")}, "green": {"data": data("/green"), "num_epochs": 5}, "blue": {}}
CONFIG = {
    "model": {"source": {"kind": "random"}},
    "expand": {"skip": False, "per_group": 1, "save": "full"},
    "sft": {"skip": False, "lr": 1.0, "num_epochs": 1, "data": {"_target_": "a.Own"}, "strategy": {"_target_": "a.B"}},
    "tasks": TASKS,
}


def entries(tasks=TASKS, **lineage):
    found = read_lineage({**CONFIG, "tasks": tasks, "lineage": {"base": {"stage": "base"}, **lineage}})
    return {entry.name: entry for entry in found}


def chain(tasks=("red", "green"), **more):
    return {"stage": "sft", "from": "base", "chain": tasks if isinstance(tasks, dict) else list(tasks), **more}


def test_each_task_comes_from_the_one_before():
    found = entries(full=chain(("green", "red", "blue")))
    assert list(found) == ["base", "full-green", "full-red", "full-blue"]
    assert [one.parents.get("model") for one in found.values()] == [None, "base", "full-green", "full-red"]
    assert [one.task for one in found.values()] == [None, "green", "red", "blue"]
    assert [found[f"full-{task}"].settings["data"] for task in ("green", "red", "blue")] == [
        data("/green"), data("/red"), {"_target_": "a.Own"},
    ]  # fmt: skip


def test_what_a_chain_changes_wins_over_the_task_and_what_it_says_of_a_task_over_both():
    found = entries(
        low=chain(**{"with": {"lr": 0.1, "num_epochs": 2}}),
        own=chain({"red": {"num_epochs": 3}, "green": None}, **{"with": {"lr": 0.5}}),
    )
    rates = {name: (one.settings["lr"], one.settings["num_epochs"]) for name, one in found.items() if one.task}
    assert rates == {"low-red": (0.1, 2), "low-green": (0.1, 2), "own-red": (0.5, 3), "own-green": (0.5, 5)}


def test_before_makes_a_model_ahead_of_each_task():
    found = entries(grown=chain(before={"stage": "expand", "with": {"per_group": 2}}))
    assert list(found) == ["base", "grown-red-expand", "grown-red", "grown-green-expand", "grown-green"]
    parents = [one.parents.get("model") for one in found.values()]
    assert parents == [None, "base", "grown-red-expand", "grown-red", "grown-green-expand"]
    assert [one.task for one in found.values()] == [None, None, "red", None, "green"]
    assert found["grown-green-expand"].settings["per_group"] == 2


def test_replay_adds_some_conversations_of_each_task_before():
    found = entries(again=chain(("red", "green"), replay=7))
    assert list(found["again-red"].settings["data"]["sources"]) == ["files"]
    sources = found["again-green"].settings["data"]["sources"]
    assert sources == {"files": source("/green"), "red-files": {**source("/red"), "limit": 7}}
    assert TASKS["red"] == {"data": data("/red")}, "the tasks of other chains stay as they are"


def test_a_model_of_its_own_may_name_its_task():
    assert entries(one={"stage": "sft", "from": "base", "task": "red"})["one"].task == "red"


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (chain(("red", "gren")), r"lineage\.x\.chain names 'gren', which is not a key of tasks; did you mean green\?"),
        (chain(()), r"lineage\.x\.chain=\[\] must list tasks"),
        ({**chain(), "chain": "red"}, r"lineage\.x\.chain='red' must list tasks"),
        (chain(("red", "red")), "has a task twice"),
        (chain(each={"lr": [1.0]}), "has both chain and each"),
        (chain(replay=0.5), r"lineage\.x\.replay=0\.5 must be a number of conversations"),
        (chain(("blue", "red"), replay=3), r"replay takes so many conversations of each source of tasks\.blue\.data"),
        (chain(before="expand"), r"lineage\.x\.before='expand' must be a mapping with a stage"),
        ({"stage": "sft", "from": "base", "replay": 3}, r"lineage\.x has replay and no chain"),
    ],
)
def test_what_is_no_chain_is_refused(entry, told):
    with pytest.raises(ConfigError, match=told):
        entries(x=entry)


def test_a_task_that_is_null_is_left_out_of_every_chain():
    tasks = {**TASKS, "red": None}
    found = entries(tasks, full=chain(("green", "red", "blue")), own=chain({"red": {"lr": 2.0}, "green": None}))
    assert list(found) == ["base", "full-green", "full-blue", "own-green"]
    assert found["full-blue"].parents == {"model": "full-green"}
    with pytest.raises(ConfigError, match=r"lineage\.x\.chain has no task left"):
        entries(tasks, x=chain(("red",)))


def test_no_task_at_all_is_told():
    with pytest.raises(ConfigError, match="not a key of tasks; there are none"):
        entries(tasks={}, x=chain())
