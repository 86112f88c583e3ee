"""Every file of conf/benchmark, as the driver composes it."""

import dataclasses
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import MissingMandatoryValue, OmegaConf, open_dict

import pipeline.__main__  # noqa: F401  # registers the resolvers of conf/
from pipeline.data.sources.documents import HubDataset, LocalFiles, PackageFiles
from pipeline.evaluation.tasks.rows import Mirror

CONF = Path(__file__).parents[2] / "conf"
SUITES = {"key_arithmetic", "law", "paper", "tiny", "trace"}
NAMES = sorted({file.stem for file in (CONF / "benchmark").glob("*.yaml")} - SUITES)
TASKS = ["arc_challenge", "arc_easy", "hellaswag", "lambada", "piqa", "winogrande"]
PAPER = {
    "arc_challenge_25": ("acc_norm", 25),
    "hellaswag_10": ("acc_norm", 10),
    "mmlu_5": ("acc", 5),
    "truthfulqa": ("acc", None),
    "winogrande_5": ("acc", 5),
    "gsm8k": ("exact_match", 5),
    "gsm8k_leaderboard": ("exact_match", 5),
    "lambada_perplexity": ("perplexity", None),
}
SUITE = [*PAPER, "unfair_tos"]
ITEMS = {
    "arc_challenge_25": "arc_challenge",
    "hellaswag_10": "hellaswag",
    "mmlu_5": "mmlu",
    "winogrande_5": "winogrande",
    "gsm8k_leaderboard": "gsm8k",
    "lambada_perplexity": "lambada",
}
PROGRAMS = {"gsm8k_pot", "humaneval", "humaneval_plus", "mbpp", "mbpp_3shot", "mbpp_plus"}
GIVEN = {name: f"benchmark.{name}.rows.source.path=/data" for name in ("humaneval_plus", "mbpp_plus")}
GIVEN["own"] = "benchmark.own.path=/data"
CHATS = ["mint", "mt_bench"]
DESCRIPTION = {"title", "group", "note"}
FOR_THE_GRAPH = {"data", "backend", "models", "reference", "samples", "endpoint", "folder", "path", "domain"}


@cache
def composed(name, *overrides):
    folder = [f"benchmark.{name}.folder=/mirror"] if name in CHATS else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = [GIVEN[name]] if name in GIVEN else []
        config = compose("config", [f"benchmark=[{name}]", *folder, *given, *overrides])
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
    assert description["group"] in ("domain", "drift", "general", "retention", "samples")
    assert description["title"] and description["note"]
    lines = (CONF / "benchmark" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == f"# @package benchmark.{name}" and lines[1].startswith("# ")
    assert max(map(len, lines)) <= 125
    reads = getattr(built, "documents", 0) is None or getattr(built, "chats", 0) is None
    assert reads_data == (reads or getattr(built, "reads_images", False))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_can_be_scored_whole_from_the_hub_and_from_a_mirror(name):
    built, *_ = composed(name, f"benchmark.{name}.limit=null")
    assert built.limit is None
    (split,) = built.splits
    hub = [f"benchmark.{name}.{change}" for change in ("splits=null", "revision=0123abc", "adapter=none")]
    built, *_ = composed(name, *hub)
    assert (built.splits, built.revision) == (None, "0123abc")
    mirror = (
        f"{{{split}: {{_target_: pipeline.data.sources.documents.LocalFiles, source: {{kind: local, path: /mirror}}}}}}"
    )
    built, *_ = composed(name, f"~benchmark.{name}.splits", f"+benchmark.{name}.splits={mirror}")
    assert built.splits == {split: LocalFiles({"kind": "local", "path": "/mirror"})}


@pytest.mark.parametrize(
    "name", sorted(set(NAMES) - set(TASKS) - set(SUITE) - PROGRAMS - set(CHATS) - {"shift", "writing", "own", "digits"})
)
def test_a_text_can_be_scored_whole(name):
    built, *_ = composed(name, f"benchmark.{name}.max_tokens=null")
    assert built.max_tokens is None and built.max_items is None


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_protocol_is_pinned(name):
    built, *_ = composed(name)
    assert (built.metric, built.num_fewshot) == PAPER[name]
    assert built.limit is None and built.adapter == "none"
    assert built.average == ("tasks" if name == "mmlu_5" else "documents")
    assert (built.until == [":", "Question:", "Question"]) is (name == "gsm8k_leaderboard")


def test_the_papers_suite_is_one_choice():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        names = set(compose("config", ["benchmark=paper"]).benchmark)
    assert names == {"domain", *SUITE} - {"gsm8k_leaderboard"}


@pytest.mark.parametrize("name", SUITE)
def test_the_suite_reads_the_hub_a_mirror_or_a_package(name):
    built, *_ = composed(name)
    for origin in built.splits.values():
        assert isinstance(origin, HubDataset)
        assert len(origin.source["revision"]) == 40 and int(origin.source["revision"], 16)
    mirrored, *_ = composed(name, "items=mirror", "items.path=/data")
    assert list(mirrored.splits) == list(built.splits)
    for split, origin in mirrored.splits.items():
        hub = built.splits[split]
        assert origin == Mirror({"kind": "local", "path": f"/data/{hub.source['repo']}"}, hub.name, split)
    lines = (CONF / "items" / ITEMS.get(name, name) / "mirror.yaml").read_text()
    assert f"{hub.source['repo']} --repo-type dataset --revision {hub.source['revision']}" in lines


@pytest.mark.parametrize("name", [name for name in SUITE if name != "mmlu_5"])
def test_what_no_package_holds_is_named_with_its_download(name):
    with pytest.raises(InstantiationException) as caught:
        composed(name, "items=package")
    assert "no package holds it" in str(caught.value.__cause__) and "hf download" in str(caught.value.__cause__)


def test_mmlu_is_whole_in_a_package():
    built, *_ = composed("mmlu_5", "items=package")
    assert all(isinstance(origin, PackageFiles) for origin in built.splits.values())
    built, *_ = composed("gsm8k", "items=package", "benchmark.gsm8k.num_fewshot=0")
    assert built.num_fewshot == 0


def test_every_choice_of_items_exists_for_every_data_set():
    choices = {file.stem for file in (CONF / "items").glob("*.yaml")}
    for folder in (CONF / "items").iterdir():
        if folder.is_dir():
            assert {file.stem for file in folder.glob("*.yaml")} == choices, folder.name


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


@pytest.mark.parametrize("name", sorted(set(GIVEN) - {"own"}))
def test_data_that_no_package_holds_must_be_given(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"benchmark=[{name}]"])
    with pytest.raises(MissingMandatoryValue):
        OmegaConf.to_container(config.benchmark[name], throw_on_missing=True)
    assert "hf download evalplus/" in (CONF / "benchmark" / f"{name}.yaml").read_text()


def test_what_the_base_writes_is_a_section_of_the_drift():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        section = OmegaConf.to_container(compose("config", ["benchmark=[drift]"]).benchmark.drift.samples)
    built = instantiate(section, _convert_="all")
    assert set(section) - {"_target_"} == {field.name for field in dataclasses.fields(built)}


def test_samples_are_asked_for_on_the_command_line():
    sampled = ["k=[1,10,100]", "num_samples=200", "temperature=0.8"]
    built, *_ = composed("humaneval", *(f"benchmark.humaneval.{change}" for change in sampled))
    assert (list(built.k), built.num_samples) == ([1, 10, 100], 200)
