"""Every file of conf/benchmark, as the driver composes it."""

import dataclasses
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict

from pipeline.data.documents import LocalFiles

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(file.stem for file in (CONF / "benchmark").glob("*.yaml"))
TASKS = ["arc_challenge", "arc_easy", "hellaswag", "lambada", "piqa", "winogrande"]
CHATS = ["mint", "mt_bench"]
DESCRIPTION = {"title", "group", "note"}
FOR_THE_GRAPH = {"data", "rows", "reference", "endpoint", "folder"}


def composed(name, *overrides):
    folder = [f"benchmark.{name}.folder=/mirror"] if name in CHATS else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"benchmark=[{name}]", *folder, *overrides])
    reads_data = "data" in config.benchmark[name]
    with open_dict(config):
        config.benchmark[name].pop("data", None)
    section = OmegaConf.to_container(config.benchmark[name], resolve=True)
    fields = {key: value for key, value in section.items() if key not in DESCRIPTION | FOR_THE_GRAPH}
    built = instantiate(fields, _convert_="all")
    return built, {key: section[key] for key in DESCRIPTION}, reads_data, set(fields)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_is_complete_and_says_what_it_is(name):
    built, description, reads_data, keys = composed(name)
    assert keys - {"_target_"} == {field.name for field in dataclasses.fields(built)}
    assert description["group"] in ("domain", "general", "retention")
    assert description["title"] and description["note"]
    lines = (CONF / "benchmark" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == f"# @package benchmark.{name}" and lines[1].startswith("# ")
    assert max(map(len, lines)) <= 125
    assert reads_data == (getattr(built, "documents", 0) is None or getattr(built, "chats", 0) is None)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_can_be_scored_whole_from_the_hub_and_from_a_mirror(name):
    built, *_ = composed(name, f"benchmark.{name}.limit=null")
    assert built.limit is None
    hub = [f"benchmark.{name}.{change}" for change in ("splits=null", "revision=0123abc", "adapter=none")]
    built, *_ = composed(name, *hub)
    assert (built.splits, built.revision) == (None, "0123abc")
    mirror = "{test: {_target_: pipeline.data.documents.LocalFiles, source: {kind: local, path: /mirror}}}"
    built, *_ = composed(name, f"~benchmark.{name}.splits", f"+benchmark.{name}.splits={mirror}")
    assert built.splits == {"test": LocalFiles({"kind": "local", "path": "/mirror"})}


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(TASKS) - set(CHATS) - {"shift"}))
def test_a_text_can_be_scored_whole(name):
    built, *_ = composed(name, f"benchmark.{name}.max_tokens=null")
    assert built.max_tokens is None and built.max_items is None
