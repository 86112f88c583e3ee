"""Every file of conf/benchmark, as the driver composes it."""

import dataclasses
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import MissingMandatoryValue, OmegaConf

from pipeline.data.documents import LocalFiles

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(file.stem for file in (CONF / "benchmark").glob("*.yaml"))
TASKS = ["arc_challenge", "arc_easy", "hellaswag", "lambada", "piqa", "winogrande"]
PROGRAMS = {"gsm8k_pot", "humaneval", "humaneval_plus", "mbpp", "mbpp_3shot", "mbpp_plus"}
GIVEN = {name: f"benchmark.{name}.rows.source.path=/data" for name in ("humaneval_plus", "mbpp_plus")}
DESCRIPTION = {"title", "group", "note"}


def composed(name, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"benchmark=[{name}]", *([GIVEN[name]] if name in GIVEN else []), *overrides])
    section = config.benchmark[name]
    reads_data = "data" in section
    fields = {key: value for key, value in section.items() if key not in DESCRIPTION | {"data"}}
    built = instantiate(OmegaConf.to_container(OmegaConf.create(fields), resolve=True), _convert_="all")
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


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(TASKS) - PROGRAMS))
def test_a_text_can_be_scored_whole(name):
    built, *_ = composed(name, f"benchmark.{name}.max_tokens=null")
    assert built.max_tokens is None and built.max_items is None


def test_the_papers_protocol_of_programs():
    """Greedy, one program a problem; HumanEval and MBPP 0-shot with the reference harness' stops."""
    for name in PROGRAMS:
        built, *_ = composed(name)
        assert (built.num_samples, list(built.k), built.temperature, built.limit) == (1, [1], 0.0, None)
        assert built.limits.cpu_s == {"humaneval": 3, "gsm8k_pot": 3, "humaneval_plus": 20}.get(name, 10)
        assert list(built.limits.packages) == (["numpy"] if name in GIVEN else [])
    humaneval, mbpp = composed("humaneval")[0].form, composed("mbpp")[0].form
    assert humaneval.stop == ["\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "<file_sep>"]
    assert humaneval.strip_prompt and not mbpp.with_setup
    assert mbpp.stop == ["\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```"]


@pytest.mark.parametrize("name", sorted(GIVEN))
def test_data_that_no_package_holds_must_be_given(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"benchmark=[{name}]"])
    with pytest.raises(MissingMandatoryValue):
        OmegaConf.to_container(config.benchmark[name], throw_on_missing=True)
    assert "hf download evalplus/" in (CONF / "benchmark" / f"{name}.yaml").read_text()


def test_samples_are_asked_for_on_the_command_line():
    sampled = ["k=[1,10,100]", "num_samples=200", "temperature=0.8"]
    built, *_ = composed("humaneval", *(f"benchmark.humaneval.{change}" for change in sampled))
    assert (list(built.k), built.num_samples) == ([1, 10, 100], 200)
