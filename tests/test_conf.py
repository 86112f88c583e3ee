"""The configs: every file composes, defaults live in yaml only, experiments win, wrong requests are answered."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import re
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import pipeline.__main__ as driver
from pipeline.command_line.selection import identity
from pipeline.engine.errors import ConfigError
from pipeline.engine.process import launch
from pipeline.engine.run import runner
from pipeline.engine.stage import find_stage
from pipeline.lineage.build import build
from pipeline.lineage.variant import Variant, load_variant, save_variant
from pipeline.training.kernels import attention, blocks
from pipeline.training.parallel import distributed

CONF = Path(__file__).parent.parent / "conf"


def composed(*overrides: str) -> dict:
    return copy.deepcopy(_composed(*overrides))


@functools.cache
def _composed(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("config", list(overrides)), resolve=True, throw_on_missing=True)


def needed(group: str, option: str) -> list[str]:
    """What an option leaves to be given."""
    return (
        {"local": ["model.source.path=/tmp"], "hub": ["model.source.repo=a/b"]}.get(option, [])
        if group == "model"
        else []
    )


def options(group: str) -> list[str]:
    return [f.stem for f in sorted((CONF / group).glob("*.yaml"))]


@pytest.mark.parametrize("group", ["expand", "pretrain", "sft", "launch", "debug", "report", "model"])
def test_every_option_composes(group):
    for option in options(group):
        assert composed(f"{group}={option}", *needed(group, option))


GIVEN = {name: ["paths.trace=/data"] for name in ("trace", "trace_small")}
"""What an experiment leaves to be given."""


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_composes(experiment):
    assert composed(f"experiment={experiment}", *GIVEN.get(experiment, ()))


@pytest.mark.parametrize("experiment", options("experiment"))
def test_an_experiment_says_its_own_command(experiment):
    lines = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_" and f"python -m pipeline experiment={experiment}" in lines[1]


def test_an_experiment_wins_over_the_main_file():
    assert composed()["name"] == "demo" and composed("experiment=llama_pro")["name"] == "llama_pro"


def test_lora_in_the_papers_run_trains_as_many_parameters_as_the_papers_new_blocks():
    found = composed("experiment=[llama_pro,lora]")
    assert found["pretrain"]["strategy"]["rank"] == "matched" and found["name"] == "llama_pro"
    assert found["expand"]["num_groups"] == 8 and found["lineage"]["expanded"] is None


def test_an_override_wins_over_an_experiment():
    assert composed("experiment=llama_pro", "expand.num_groups=4")["expand"]["num_groups"] == 4


def targets(node: object) -> list[dict]:
    if isinstance(node, dict):
        here = [node] if "_target_" in node else []
        return here + [found for value in node.values() for found in targets(value)]
    return [found for value in node for found in targets(value)] if isinstance(node, list) else []


def every_target() -> dict[str, dict]:
    found: dict[str, dict] = {}
    runs = [["experiment=llama_pro"], []]
    runs += [[f"strategy@pretrain.strategy={o}"] for o in options("strategy")]
    runs += [[f"+penalty@sft.strategy.penalties.{o}={o}"] for o in options("penalty")]
    runs += [[f"expand={o}"] for o in options("expand")]
    runs += [[f"data@pretrain.data={o}"] for o in options("data") if not re.search("sft|chat|trace", o)]
    runs += [["experiment=trace", *GIVEN["trace"]]]
    for overrides in runs:
        try:
            config = composed(*overrides)
        except Exception as error:
            assert "Missing mandatory value" in str(error), error
            continue
        for node in targets(config):
            found.setdefault(f"{node['_target_']} {sorted(node)}", node)
    return found


# What a section holds for the graph, beside the fields of the class that it names.
FOR_THE_GRAPH = {
    "skip", "save", "title", "group", "note", "data", "backend", "models", "reference", "samples", "endpoint", "folder",
    "domain", "domains", "path", "num_blocks", "task",
}  # fmt: skip


def test_yaml_keys_equal_dataclass_fields():
    for name, node in every_target().items():
        module, _, cls = node["_target_"].rpartition(".")
        fields = {f.name for f in dataclasses.fields(getattr(importlib.import_module(module), cls))}
        assert set(node) - {"_target_"} - (FOR_THE_GRAPH - fields) == fields, name


@pytest.mark.parametrize("stage", ["base", "pretrain", "sft"])
def test_keys_of_a_section_equal_the_fields_of_its_stage(stage):
    declared = find_stage(stage).STAGE
    fields = {f.name for f in dataclasses.fields(declared.params)}
    graph = {"skip", "data"} if stage != "base" else set()
    section = declared.section or stage
    for option in set(options(section)) - {"none"}:
        keys = set(composed(f"{section}={option}", *needed(section, option))[section])
        assert keys - set(declared.hints) == fields | graph


def test_every_launch_key_is_read():
    code = "\n".join(
        f.read_text() for f in [*(CONF.parent / "pipeline").rglob("*.py"), *CONF.parent.glob("stages/*.py")]
    )
    for key in composed()["launch"]:
        assert f'"{key}"' in code, f"launch.{key} is declared and never read"


def test_the_driver_knows_the_choices_of_the_library():
    assert launch.CHOICES["attention"] == attention.KERNELS
    assert launch.CHOICES["sharding"] == distributed.SHARDING
    assert launch.CHOICES["checkpointing"] == blocks.CHECKPOINTING


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_is_a_way_to_launch(monkeypatch, stage):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    section = composed(f"launch=deepspeed_zero{stage}")["launch"]
    assert (section["sharding"], section["num_processes"]) == (f"zero{stage}", 2)
    assert {**section, "sharding": "none", "compile": "auto", "num_processes": 1} == composed("launch=local")["launch"]
    launch.check(section)


def test_hub_models_carry_a_commit():
    for option in options("model"):
        source = yaml.safe_load((CONF / "model" / f"{option}.yaml").read_text())["source"]
        if source["kind"] == "hub" and source["repo"] != "???":  # one's own may be on a branch, which is told
            assert len(source["revision"]) == 40 and int(source["revision"], 16)


def plan(*overrides: str, tmp_path: Path) -> Variant:
    hashes = tmp_path.parent / "hashes"  # of the files that the configs name, read by one test for all
    variant = build(composed(*overrides), "default", hashes)
    runner.plan([*variant.targets("data"), *variant.targets("report")], tmp_path / "outputs", hashes)
    return variant


def test_the_papers_run(tmp_path):
    """LLaMA2-7B, N=8, P=1, 32 -> 40; batch 1024 x 4096, lr 2e-4, 15,900 steps; SFT batch 128, lr 2e-5."""
    cell = plan("experiment=llama_pro", tmp_path=tmp_path)
    assert cell.models["base"].params["num_blocks"] == 32
    method = {
        "num_groups": 8, "per_group": 1, "position": "interleaved", "origin": "top", "init": "zero_writers",
        "positions": None, "strict": True, "seed": 0,
    }  # fmt: skip
    assert {**cell.models["expanded"].params["method"], "_target_": 0} == {**method, "_target_": 0}
    pretrain, sft = cell.models["post-pretrained"].params, cell.models["tuned"].params
    expected = {
        "seq_len": 4096, "batch_size": 1024, "num_steps": 15900, "lr": 2e-4, "warmup_ratio": 0.06, "weight_decay": 0.1,
        "max_grad_norm": 1.0, "precision": "bf16",
    }  # fmt: skip
    assert {k: pretrain[k] for k in expected} == expected
    assert {k: sft[k] for k in ("seq_len", "batch_size", "lr", "warmup_ratio")} == {
        "seq_len": 4096, "batch_size": 128, "lr": 2e-5, "warmup_ratio": 0.03,
    }  # fmt: skip
    assert pretrain["strategy"]["_target_"].endswith("NewBlocks") and sft["strategy"]["_target_"].endswith("Full")
    assert pretrain["spike_sigmas"] is None and sft["spike_sigmas"] is None  # the paper skips no step
    assert sft["batch_unit"] == "examples"  # as the paper counts; 128 packed rows are 3 to 12 times as many
    columns = {"arc_challenge_25", "hellaswag_10", "mmlu_5", "truthfulqa", "winogrande_5", "gsm8k", "gsm8k_pot",
               "humaneval", "mbpp"}  # fmt: skip
    assert set(cell.benchmarks) == columns | {"domain", "lambada_perplexity", "unfair_tos", "wikitext", "drift"}
    launched = cell.models["post-pretrained"].settings["launch"]
    assert (launched["sharding"], launched["num_processes"]) == ("fsdp2", 16)
    weights = {s["weight"] for s in cell.data["data/pretrain"].params["data"]["sources"].values()}
    assert weights == {1.0, 1.5}


@pytest.mark.parametrize(
    "shares", ["{stdlib: 0.7, sympi: 0.3}", "{stdlib: 0.7}", "[[0,{stdlib: 1, sympy: 1}],[1,{stdlib: 1}]]"]
)
def test_shares_of_other_sources_are_refused_before_any_work(tmp_path, shares):
    with pytest.raises(ConfigError, match=r"^pretrain: shares name .*: \['stdlib', 'sympy'\]"):
        plan(f"pretrain.shares={shares}", tmp_path=tmp_path)


def test_a_sweep_shares_base_data_and_base_evaluations(tmp_path):
    one, two = (plan(f"expand.num_groups={n}", tmp_path=tmp_path) for n in (1, 2))
    assert one.models["base"] == two.models["base"] and one.data == two.data
    assert one.evaluations["base"] == two.evaluations["base"]
    assert one.models["expanded"] != two.models["expanded"]
    assert not set(one.evaluations["tuned"].values()) & set(two.evaluations["tuned"].values())


def test_samples_are_drawn_once_a_base(tmp_path):
    """One node for all models of all variants of a sweep; another seed of training draws none again."""
    drift = "benchmark=[domain,drift]"
    runs = [plan(drift, more, tmp_path=tmp_path) for more in ("expand.num_groups=1", "pretrain.seed=4")]
    nodes = [found["drift"] for run in runs for found in run.evaluations.values() if "drift" in found]
    assert len(nodes) == 6 and all("drift" not in run.evaluations["base"] for run in runs)
    assert {node.inputs["samples"].fingerprint for node in nodes} == {nodes[0].inputs["samples"].fingerprint}
    assert nodes[0].inputs["samples"].inputs == {"model": runs[0].models["base"]}
    assert "samples" not in nodes[0].params["benchmark"]
    without = plan("benchmark=[drift]", "benchmark.drift.data=null", tmp_path=tmp_path)
    assert set(without.evaluations["tuned"]["drift"].inputs) == {"model", "reference", "samples"}


def test_what_is_tracked_is_read(tmp_path):
    """The samples are those of the benchmark; sft measures the domain that was pretrained on."""
    cell = plan("pretrain.track.every=8", "sft.track.every=4", "benchmark=[domain,drift]", tmp_path=tmp_path)
    pretrain, tuned = cell.models["post-pretrained"], cell.models["tuned"]
    for node in (pretrain, tuned):
        assert set(node.inputs) == {"model", "data", "domain", "samples", "base"}
        assert node.inputs["base"] == cell.models["base"]
        assert node.inputs["domain"] == cell.data["data/pretrain"] == pretrain.inputs["data"]
        assert node.inputs["samples"] == cell.evaluations["tuned"]["drift"].inputs["samples"]
    plain = plan("pretrain.track.domain_tokens=9", "benchmark=[domain,drift]", tmp_path=tmp_path)
    assert plain.models["post-pretrained"] == plan(tmp_path=tmp_path).models["post-pretrained"]
    assert set(plain.models["tuned"].inputs) == {"model", "data"} and plain.models["tuned"].params["track"] is None
    alone = plan("pretrain.track.every=8", "pretrain.track.measures=[domain]", tmp_path=tmp_path)
    assert set(alone.models["post-pretrained"].inputs) == {"model", "data", "domain"}


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("sft.lr=1e-6", {"tuned"}),
        ("pretrain.seed=5", {"post-pretrained", "tuned"}),
        ("expand.per_group=2", {"expanded", "post-pretrained", "tuned"}),
        ("launch.micro_batch=1", set()),
    ],
)
def test_a_knob_changes_exactly_its_descendants(tmp_path, override, changed):
    before, after = plan(tmp_path=tmp_path), plan(override, tmp_path=tmp_path)
    assert {row for row in before.models if before.models[row] != after.models[row]} == changed
    assert before.data == after.data


def test_a_skipped_stage_passes_the_model_through(tmp_path):
    cell = plan("expand=none", "strategy@pretrain.strategy=full", "sft=none", tmp_path=tmp_path)
    assert list(cell.models) == ["base", "post-pretrained"]
    assert cell.models["post-pretrained"].inputs["model"] == cell.models["base"]


def test_a_cell_survives_its_file(tmp_path):
    cell = plan(tmp_path=tmp_path)
    loaded = load_variant(save_variant(cell, tmp_path / "runs", ["a=1"]))
    assert (
        loaded.models == cell.models
        and loaded.lineage == cell.lineage
        and loaded.evaluations == cell.evaluations
        and loaded.name == cell.name
        and loaded.overrides == ("a=1",)
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["report.num_bootstrap=-3"], "report.num_bootstrap=-3 must be an integer of at least 100"),
        (["pretrain.num_tokens=many"], "num_tokens='many' must be a whole number or null"),
        (["pretrain.batch_size=0.5"], "batch_size=0.5 must be a whole number"),
        (["sft.batch_unit=row"], "batch_unit='row' must be rows "),
        (["sft.lr=fast"], "lr='fast' must be a number"),
        (["expand.num_groups=two"], "num_groups='two' must be a whole number"),
        (["benchmark.domain.window=abc"], "window='abc' must be a whole number"),
        (["strategy@pretrain.strategy=lora", "pretrain.strategy.rank=high"], "rank='high' must be a whole number"),
        (["experiment=lora", "pretrain.strategy.rank=0"], "pretrain: strategy.rank=0 must be at least 1, or matched"),
        (
            ["experiment=lora", "expand=none"],
            "pretrain: strategy lora with rank=matched: .* expand=none adds none; .* or give strategy.rank a number",
        ),
        (["experiment=lora", "expand=soft_moe"], "cannot be told of SoftMoe beforehand; use expand=block, or give"),
        (["experiment=lora", "expand.num_groups=7"], "num_groups=7 does not divide the model's 30 blocks"),
        (["strategy@pretrain.strategy=existing_blocks"], "not expanded, but its model was; use expand=none and give"),
        (
            ["expand=none", "strategy@pretrain.strategy=existing_blocks"],
            "strategy existing_blocks: .* expand=none adds none; .* or give strategy.blocks",
        ),
        (["experiment=existing_blocks", "pretrain.strategy.blocks=[3,30]"], "has no block 30; its blocks are 0 to 29"),
        (["experiment=existing_blocks", "expand.per_group=2", "expand.origin=last"], "train block 4 more than once"),
        (["expand.num_groups=7"], "num_groups=7 does not divide the model's 30 blocks; use one of 1, 2, 3, 5, 6"),
        (["expand.per_group=0"], "per_group=0 must be at least 1"),
        (["pretrain.seq_len=9000"], "seq_len=9000 is more than the model's maximum of 8192"),
        (
            ["benchmark=[drift]", "benchmark.drift.samples.num_tokens=8192"],
            "num_tokens=8192 .* do not fit into the base's 8192 positions; use at most 8191",
        ),
        (["benchmark=[drift]", "benchmark.drift.reference=null"], "has samples but no reference"),
        (["benchmark=[drift]", "benchmark.drift.samples=null"], "samples is null or missing"),
        (["benchmark=[shift]", "benchmark.shift.reference=null"], "reference is null or missing"),
        (
            ["expand=none", "strategy@pretrain.strategy=new_blocks"],
            "use expand=block, or strategy@pretrain.strategy=full",
        ),
        (["model=local", "model.source.path=/does/not/exist"], "/does/not/exist: no such directory"),
        (["pretrain.precision=fp8"], "use fp32 or bf16"),
        (["pretrain.replay=1.5"], "at least 0 and less than 1"),
        (["pretrain.replay=0.1"], "replay=0.1 asks for general text, but the data has none; add some to data.replay"),
        (["pretrain.strategy=lora"], r"found 'lora' where a section .* such as strategy@pretrain.strategy=lora"),
        (
            ["+benchmark.humaneval.limit=3"],
            "humaneval is not among the chosen benchmarks; add it: \\+benchmark=humaneval",
        ),
        (["expand=soft_moe", "+expand.num_groups=2"], "num_groups is not a setting of SoftMoe; it has mode"),
        (["pretrain.packing=tight"], "packing='tight' must be fill"),
        (["pretrain.data.bad_rows=drop"], "data.bad_rows='drop' must be skip"),
        (["pretrain.track.every=0"], "track.every=0 must be at least 1; null tracks nothing"),
        (
            ["pretrain.track.every=5", "pretrain.track.measures=[kl]"],
            "measures has 'kl', which is not known; use domain",
        ),
        (["sft.track.keep_best=drift"], "sft.track.keep_best='drift' needs measures; set track.every"),
        (["sft.track.stop_if={drift: 0.2}"], "sft.track.stop_if={'drift': 0.2} needs measures; set track.every"),
        (["sft.track.every=2", "sft.track.keep_best=gain"], "keep_best names 'gain', which is not tracked"),
        (
            ["sft.track.every=2", "sft.track.samples=null"],
            "measures has drift, which needs samples of the base; set tra",
        ),
        (
            ["sft.track.every=2", "sft.track.data=null"],
            "and the data hold conversations; set track.data to data of the",
        ),
        (["pretrain.num_steps=5"], "exactly one of num_steps, num_tokens, num_epochs, num_flops"),
        (
            ["data@pretrain.data=local_text", "pretrain.data.sources.local.origin.source.path=/does/not/exist"],
            r"pretrain.data.sources.local.origin.source.path: /does/not/exist does not exist",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_wrong_requests_are_answered_before_any_work(tmp_path, overrides, message):
    with pytest.raises((ValueError, ConfigError), match=message.replace("(", r"\(")):
        plan(*overrides, tmp_path=tmp_path)


@pytest.mark.parametrize(("groups", "rank", "blocks"), [(6, 70, [4, 9, 14, 19, 24, 29]), (3, 35, [9, 19, 29])])
def test_what_follows_an_expansion_that_is_not_carried_out(tmp_path, groups, rank, blocks):
    """LoRA of as many parameters as the new blocks would have, and as many blocks in place: told before any work."""
    asked = [f"expand.num_groups={groups}", "stage=pretrain", "dry_run=true"]
    lora, existing = (
        build(composed(f"experiment={one}", *asked), "default", tmp_path) for one in ("lora", "existing_blocks")
    )
    assert list(lora.models) == ["base", "post-pretrained", "tuned"] == list(existing.models)
    (told,) = re.findall(r"train.*LoRA of rank (\d+)", runner.plan(lora.targets("pretrain"), tmp_path, tmp_path))
    new = groups * 3_540_096  # parameters of a block of SmolLM2-135M
    shown = runner.plan(existing.targets("pretrain"), tmp_path, tmp_path)
    assert int(told) == rank and f"{new:,} train" in shown
    assert abs(rank * 305_280 - new) <= min(abs(other * 305_280 - new) for other in (rank - 1, rank + 1))


def test_a_misspelt_key_is_answered_with_the_right_one(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pipeline", "expand.per_gruop=2"])
    assert driver.run() == 1
    message = capsys.readouterr().err
    assert "expand.per_gruop is not a key" in message and "did you mean expand.per_group?" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("benchmark=[domian]", r"benchmark has no 'domian'; did you mean domain\? \(it has: "),
        ("expand=blok", r"expand has no 'blok'; did you mean block\? \(it has: adept, block, "),
        ("model=gpt5", r"model has no 'gpt5' \(it has: .*llama2_7b"),
        ("data@pretrain.data=local_txt", r"data has no 'local_txt'; did you mean local_text\?"),
        (
            "experiment=paper/positon",
            r"experiment/paper has no 'positon'; did you mean position\? \(it has: controls, ",
        ),
        ("launch=null", r"launch=null names no option of launch; it has: ddp, "),
        ("experiment=position", r"experiment has no 'position'; did you mean paper/position\?"),
        ("experiment=papr/position", r"experiment has no 'papr/position'; did you mean paper/position\?"),
        ("model=llama/seven/b", r"model=llama/seven/b is neither a path, which begins with \./"),
    ],
)
def test_a_misspelt_choice_is_answered_with_the_choices(monkeypatch, capsys, override, message):
    monkeypatch.setattr("sys.argv", ["pipeline", override])
    assert driver.run() == 1
    assert re.search(message, capsys.readouterr().err)


def test_tokens_may_be_written_as_people_write_them(tmp_path):
    short, long = (plan(f"pretrain.num_tokens={one}", tmp_path=tmp_path).models for one in ("2e6", "2000000"))
    assert short == long and type(short["post-pretrained"].params["num_tokens"]) is int


def test_a_missing_value_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pipeline", "model=local"])
    assert driver.run() == 1
    assert "model.source.path must be given" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["pipeline", "experiment=trace"])  # where it stands, not who refers to it
    assert driver.run() == 1
    assert "paths.trace must be given: paths.trace=VALUE" in capsys.readouterr().err


def test_a_plan_needs_no_files_of_a_benchmark(monkeypatch, capsys, tmp_path):
    command = ["pipeline", "experiment=paper/mint", "scale=small", f"paths.outputs={tmp_path}"]
    monkeypatch.setattr("sys.argv", [*command, "benchmark=[mint]", "dry_run=true"])
    with pytest.warns(UserWarning, match="left out of this plan: mint; a run needs benchmark.mint.folder=VALUE"):
        assert driver.run() == 0
    assert re.search(r"tuned: LLaMA Pro 8B - Instruct +0.68 .* 14.68", capsys.readouterr().out)
    monkeypatch.setattr("sys.argv", [*command, "benchmark=[mint]"])
    assert driver.run() == 1
    assert "benchmark.mint.folder must be given" in capsys.readouterr().err


def test_where_a_task_is_scored_is_identity_and_how_the_server_is_reached_is_not(tmp_path):
    names = "evaluate.server.models={base: a, expanded: b, post-pretrained: c, tuned: d}"
    asked = ["benchmark=[piqa,wikitext]", "evaluate.backend=endpoint", names]
    one, two = (plan(*asked, f"evaluate.server.url={url}", tmp_path=tmp_path) for url in ("http://a", "http://b"))
    local = plan("benchmark=[piqa,wikitext]", tmp_path=tmp_path)
    tuned = one.evaluations["tuned"]["piqa"]
    assert (tuned.params["backend"], tuned.params["served_model"]) == ("endpoint", "d")
    assert tuned.settings["access"]["server"]["url"] == "http://a"
    assert one.evaluations == two.evaluations
    assert one.evaluations["tuned"]["piqa"] != local.evaluations["tuned"]["piqa"]
    assert one.evaluations["tuned"]["wikitext"] == local.evaluations["tuned"]["wikitext"]
    assert "backend" not in local.evaluations["tuned"]["piqa"].params


def test_programs_follow_the_backend_and_what_cannot_is_told(tmp_path):
    asked = ["benchmark=[humaneval,piqa,wikitext,shift]", "evaluate.backend=vllm"]
    with pytest.warns(
        UserWarning, match=r"evaluate\.backend=vllm cannot run wikitext, shift: evaluated with the model in"
    ):
        cell = plan(*asked, tmp_path=tmp_path)
    found = {name: node.params.get("backend") for name, node in cell.evaluations["tuned"].items()}
    assert found == {"humaneval": "vllm", "piqa": "vllm", "wikitext": None, "shift": None}
    with pytest.warns(UserWarning, match="cannot run humaneval, wikitext, shift"):
        other = plan(asked[0], "evaluate.backend=hf", tmp_path=tmp_path)
    local = plan(asked[0], tmp_path=tmp_path)
    assert other.evaluations["tuned"]["humaneval"] == local.evaluations["tuned"]["humaneval"]
    alone = plan("benchmark=[humaneval]", asked[1], "benchmark.humaneval.backend=local", tmp_path=tmp_path)
    assert alone.evaluations["tuned"]["humaneval"] == local.evaluations["tuned"]["humaneval"]


MT_BENCH = ["benchmark=[domain,mt_bench]"]


@pytest.fixture
def folder(tmp_path) -> str:
    """A folder that has the files which MT-Bench is told of, whatever they hold."""
    for name in ("question.jsonl", "judge_prompts.jsonl", "reference_answer/gpt-4.jsonl"):
        (tmp_path / "bench" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bench" / name).write_text("{}\n")
    return f"benchmark.mt_bench.folder={tmp_path / 'bench'}"


def test_the_way_to_a_judge_is_no_part_of_what_it_says(tmp_path, folder):
    def judged(*overrides: str):
        return plan(*MT_BENCH, folder, *overrides, tmp_path=tmp_path).evaluations["tuned"]["mt_bench"]

    node, other = judged(), judged("benchmark.mt_bench.endpoint.url=http://localhost:8000/v1")
    assert node.fingerprint == other.fingerprint
    assert (node.settings["access"]["endpoint"]["url"], other.settings["access"]["endpoint"]["url"]) == (
        "https://api.openai.com/v1",
        "http://localhost:8000/v1",
    )
    assert "endpoint" not in node.params["benchmark"] and str(tmp_path) not in str(node.params)
    assert judged("benchmark.mt_bench.judge=gpt-4o").fingerprint != node.fingerprint


def test_a_benchmark_may_be_meant_for_some_models(tmp_path, folder):
    cell = plan(*MT_BENCH, folder, "benchmark.mt_bench.models=[tuned]", tmp_path=tmp_path)
    assert [row for row, found in cell.evaluations.items() if "mt_bench" in found] == ["tuned"]
    assert cell.targets("report") and load_variant(save_variant(cell, tmp_path / "runs", [])).benchmarks
    with pytest.raises(ConfigError, match=r"benchmark.mt_bench.models=\['best'\]: give a list of base, expanded"):
        plan(*MT_BENCH, folder, "benchmark.mt_bench.models=[best]", tmp_path=tmp_path)


TASKS = "benchmark=[gsm8k,unfair_tos,humaneval,domain,hellaswag]"


@pytest.mark.parametrize(
    ("overrides", "domain", "retention"),
    [
        ([], {"gsm8k", "humaneval", "domain"}, {"unfair_tos", "hellaswag"}),  # Python, mathematics; Python
        (["pretrain.data.domains=[law]", "sft=none"], {"unfair_tos", "domain"}, {"gsm8k", "humaneval"}),
        (["pretrain.data.domains=[law]"], {"unfair_tos", "humaneval"}, {"gsm8k", "hellaswag"}),
        (["pretrain.data.domains=null", "sft=none"], {"unfair_tos", "humaneval"}, {"gsm8k"}),  # as they say
        (["pretrain=none", "sft=none"], {"unfair_tos", "humaneval"}, {"gsm8k"}),
    ],
)
def test_groups_follow_what_a_run_trains(tmp_path, overrides, domain, retention):
    cell = plan(TASKS, *overrides, tmp_path=tmp_path)
    groups = {name: found["group"] for name, found in cell.benchmarks.items()}
    assert {groups[name] for name in domain} == {"domain"} and {groups[name] for name in retention} == {"retention"}
    assert all("domains" not in node.params["data"] for node in cell.data.values())


def test_what_data_teach_is_no_part_of_what_is_trained(tmp_path):
    one, two = (plan(TASKS, f"pretrain.data.domains={d}", tmp_path=tmp_path) for d in ("[law]", "null"))
    assert one.models == two.models and one.evaluations == two.evaluations
    with pytest.raises(ConfigError, match=r"pretrain\.data\.domains='law' must be a list of names"):
        plan("pretrain.data.domains=law", tmp_path=tmp_path)
    with pytest.raises(ConfigError, match=r"benchmark\.gsm8k\.domain=3 must be a name"):
        plan(TASKS, "benchmark.gsm8k.domain=3", tmp_path=tmp_path)


def test_a_gate_judges_no_task_of_what_was_trained(tmp_path):
    cell = plan(TASKS, "evaluate.gate.max_drop=0.02", tmp_path=tmp_path)
    assert cell.gate is not None and set(cell.gate.params["budgets"]) == {"unfair_tos", "hellaswag"}


def test_a_benchmark_may_set_a_model_against_another(tmp_path):
    cell = plan("benchmark=[shift]", tmp_path=tmp_path)
    assert [row for row, found in cell.evaluations.items() if found] == ["expanded", "post-pretrained", "tuned"]
    assert cell.evaluations["tuned"]["shift"].inputs["reference"] == cell.models["base"]
    with pytest.raises(ConfigError, match="reference='post-pretrained': this run has no such model; it has base"):
        plan("benchmark=[shift]", "benchmark.shift.reference=post-pretrained", "pretrain=none", tmp_path=tmp_path)


def test_a_gate_judges_the_last_model_against_the_base(tmp_path):
    cell = plan("evaluate.gate.max_drop=0.02", tmp_path=tmp_path)
    assert plan(tmp_path=tmp_path).gate is None
    assert cell.gate.params["model"] == "tuned" and cell.gate in cell.targets("report")
    assert set(cell.gate.params["budgets"]) == set(cell.evaluations["base"]) - {"domain", "writing"}
    assert cell.gate.inputs["model-lambada"] == cell.evaluations["tuned"]["lambada"]
    assert cell.gate not in cell.targets("sft")
    for overrides, message in [
        (["evaluate.gate.max_drop=2"], r"evaluate.gate.max_drop=2 must be a fraction"),
        (["+evaluate.gate.benchmarks.mmlu=0.1"], "mmlu is not evaluated on both"),
    ]:
        with pytest.raises((ValueError, ConfigError), match=message):
            plan(*overrides, tmp_path=tmp_path)


def test_the_gate_does_not_name_a_cell():
    assert identity(["evaluate.gate.max_drop=0.1", "+evaluate.gate.benchmarks.chat=0.1"]) == ("default", [])


def test_a_local_model_without_a_chat_template_is_refused_before_any_work(tmp_path, folder, make_model):
    import shutil

    plain = tmp_path / "plain"
    shutil.copytree(make_model(), plain)
    (plain / "chat_template.jinja").unlink()
    given = [
        *MT_BENCH,
        folder,
        "model=local",
        f"model.source.path={plain}",
        "expand.num_groups=2",
        "pretrain.seq_len=64",
    ]
    with pytest.raises(ConfigError, match="the model has no chat template, and no stage of this run gives it one"):
        plan(*given, "sft=none", "benchmark=[mt_bench]", tmp_path=tmp_path)
    plan(*given, "sft=none", "benchmark=[mt_bench]", "benchmark.mt_bench.template='{{ messages }}'", tmp_path=tmp_path)


def test_a_run_may_have_no_benchmarks(tmp_path):
    variant = plan("benchmark=[]", tmp_path=tmp_path)
    assert list(variant.models) == ["base", "expanded", "post-pretrained", "tuned"]
    assert not any(variant.evaluations.values())


def test_the_driver_takes_a_run_without_benchmarks(monkeypatch, capsys, tmp_path):
    asked = ["benchmark=[]", "dry_run=true", "stage=pretrain", f"paths.outputs={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["pipeline", *asked])
    assert driver.run() == 0, capsys.readouterr().err
