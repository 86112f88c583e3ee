"""Every experiment of the paper plans at both sizes, with the paper's numbers in the plan."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.engine.errors import ConfigError
from pipeline.engine.run import runner
from pipeline.lineage.build import build
from pipeline.lineage.report import report_node
from pipeline.reporting.paper.claims import asked_claims
from pipeline.reporting.paper.tables import asked_rows, paper_tables
from tests.test_conf import CONF, composed

EXPERIMENTS = sorted(f"paper/{path.stem}" for path in (CONF / "experiment" / "paper").glob("*.yaml"))
MINT = ("humaneval", "mbpp", "gsm8k", "hotpotqa", "math", "mmlu", "theoremqa")
FILES = {  # of the benchmarks that need files of others, in the folder that is given
    "paper/mt_bench": ("question.jsonl", "judge_prompts.jsonl", "reference_answer/gpt-4.jsonl"),
    "paper/mint": tuple(f"{task}/test_prompts.json" for task in MINT),
}
DEVICE_GIB = 80e9 / 2**30


def folder(tmp_path: Path, experiment: str) -> list[str]:
    for name in FILES.get(experiment, ()):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    return [f"benchmark.{experiment.partition('/')[2]}.folder={tmp_path}"] if experiment in FILES else []


def planned(tmp_path: Path, experiment: str, *overrides: str):
    config = composed(f"experiment={experiment}", *overrides)
    hashes = tmp_path.parent / "hashes"
    variant = build(config, "default", hashes)
    report = report_node(config["report"], config["name"], [variant], config["launch"])
    return config, variant, runner.plan([*variant.targets("report"), report], tmp_path / "outputs", hashes)


def check_rows(config, variant, text):
    """Models that stand beside a row of the paper are made, and the plan has the row's numbers."""
    asked = [(table, rows) for table, rows in asked_rows(config["report"]["paper"]) if rows]
    assert asked
    for table, rows in asked:
        assert table.where in text
        for model, row in rows.items():
            if model in variant.models:
                numbers = [value for value in table.rows[row].values() if value is not None]
                assert re.search(rf"{re.escape(model)}: {re.escape(row)} .*{numbers[-1]:.2f}", text), (model, row)
    return {model for _, rows in asked for model in rows}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["llama_pro", *EXPERIMENTS])
def test_at_the_papers_size(tmp_path, experiment):
    config, variant, text = planned(tmp_path, experiment, *folder(tmp_path, experiment))
    assert check_rows(config, variant, text) <= set(variant.models)
    assert config["model"]["num_blocks"] == 32 and config["launch"]["num_processes"] == 16
    needed = [float(found) for found in re.findall(r"memory +about ([\d.]+) GiB a process", text)]
    assert max(needed, default=0) < DEVICE_GIB


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["llama_pro", *EXPERIMENTS])
def test_its_twin_needs_no_hub(tmp_path, experiment):
    config, variant, text = planned(tmp_path, experiment, "scale=small")
    left_out = check_rows(config, variant, text) - set(variant.models)
    assert left_out <= {"add_32"}  # 30 blocks make no 32 groups
    assert config["model"]["source"]["kind"] == "package" and config["launch"]["num_processes"] == 1
    assert config["name"].endswith("_small")
    # its own conversations for one figure, but not those of the hub
    assert not any("hub" in str(node.params) for node in variant.data.values())


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["llama_pro", *EXPERIMENTS])
def test_its_wiring_needs_nothing_at_all(tmp_path, experiment):
    config, variant, text = planned(tmp_path, experiment, "scale=tiny")
    assert check_rows(config, variant, text) <= set(variant.models)  # 32 blocks, as the paper's model has
    assert config["model"]["source"]["kind"] == "random" and config["launch"]["inprocess"]
    assert config["name"].endswith("_tiny")  # in no report with the numbers of others
    sources = str([node.params for node in (*variant.models.values(), *variant.data.values())])
    assert "'hub'" not in sources and ("'package'" in sources) is (experiment == "paper/controls")  # what it replays


def run(outputs: Path, *words: str) -> str:
    """A whole run in a process of its own; returns the report that it prints."""
    command = [sys.executable, "-m", "pipeline", *words, "pretrain.num_tokens=512", f"paths.outputs={outputs}"]
    done = subprocess.run(command, cwd=CONF.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_twins_of_one_table_end_in_one_report(tmp_path):
    """Blocks at three places, then the width baseline: the second report has the rows and claims of the first too, and
    each claim the command that makes its models."""
    first = run(tmp_path, "experiment=paper/position", "scale=tiny")
    assert "Of 2 claims of the paper" in first and "| add_8 · paper: Add 8 blocks" in first
    assert "this run has no measure of it and no stand-in" in first
    both = run(tmp_path, "experiment=paper/width", "scale=tiny")
    assert "Of 3 claims of the paper" in both and "than the width baseline" in both
    assert re.search(r"\| prefix · paper/position · paper: Prefix stacking +\| +27.82", both)
    assert re.search(r"\| moe · paper/width · paper: MoE +\| +51.45", both)
    width = next(
        line for line in both.splitlines() if line.startswith("| Added blocks learn more of the domain than the")
    )
    assert "add_8 against moe" in width and "experiment=paper/position" in width and "experiment=paper/width" in width
    again = run(tmp_path, "experiment=paper/width", "scale=tiny", "+report.claims.interleaved=null")
    assert "Of 2 claims of the paper" in again and "Interleaved blocks" not in again


@pytest.mark.slow
def test_the_twin_of_the_same_tuning_ends_in_a_report(tmp_path):
    """Two pairs of models that are tuned alike, at this size on the same conversations: each pair is compared."""
    text = run(tmp_path, "experiment=paper/same_sft", "scale=tiny")
    assert "grown_math against base_math" in text and "grown_code against base_code" in text
    assert (
        "Who drifts least" not in text and "not measured (" not in text.partition("## Which")[2].partition("## The")[0]
    )


@pytest.mark.parametrize("experiment", ["frontier", "llama_pro", *EXPERIMENTS])
def test_its_claims_are_about_models_that_it_names(tmp_path, experiment):
    """Those that another experiment of the same report makes are null in its lineage."""
    config = composed(f"experiment={experiment}", *folder(tmp_path, experiment))
    named = {name for one in asked_claims(config["report"]["claims"]) for name in one.names}
    assert named <= set(config["lineage"])
    assert named or experiment in ("paper/mint", "paper/mt_bench", "paper/token_shift")


def test_a_claim_about_a_model_that_is_not_there_is_refused_before_work(tmp_path):
    config = composed("experiment=paper/position", "scale=small", "report.claims.interleaved.than=[prefix,sufix]")
    with pytest.raises(
        ConfigError, match=r"interleaved is about 'sufix'.*did you mean 'suffix'.*interleaved=null leaves"
    ):
        build(config, "default", tmp_path)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_it_says_its_own_command(experiment):
    lines = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_" and f"python -m pipeline experiment={experiment}" in lines[1]
    assert "scale=small" in "\n".join(lines)


def test_every_table_of_the_paper_has_an_experiment_or_waits_for_one(tmp_path):
    named = set()
    for experiment in ("llama_pro", *EXPERIMENTS):
        asked = composed(f"experiment={experiment}", *folder(tmp_path, experiment))["report"]["paper"]
        named |= {table.name for table, rows in asked_rows(asked) if rows}
    assert set(paper_tables()) - named == {"trace", "metamath"}
