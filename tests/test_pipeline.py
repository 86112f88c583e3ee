"""The whole pipeline on a tiny model: real launches, reuse, kills, and requests that fail late."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from pipeline.records.items import read_items
from tests.children import PATIENCE_S, wait_for

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """Text and conversations that a model can learn a little from: this project's own sources."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "text").mkdir()
    for index, file in enumerate(sorted((ROOT / "pipeline").rglob("*.py"))):
        (folder / "text" / f"{index}.txt").write_text(file.read_text()[:1500])
    with (folder / "chats.jsonl").open("w") as out:
        for file in sorted((ROOT / "pipeline").rglob("*.py")):
            lines = [line for line in file.read_text().splitlines() if len(line) > 20][:3]
            if len(lines) == 3:
                turns = [
                    {"role": "user", "content": f"{file.stem}: {lines[0]}"},
                    {"role": "assistant", "content": lines[1]},
                ]
                out.write(json.dumps({"id": str(file), "messages": turns}) + "\n")
    return folder


@pytest.fixture
def arguments(words, tmp_path) -> list[str]:
    return [
        "model=tiny",
        "expand.num_groups=2",
        "data@pretrain.data=local_text",
        f"pretrain.data.sources.local.origin.source.path={words / 'text'}",
        "pretrain.data.held_out.fraction=0.2",
        "pretrain.seq_len=64",
        "pretrain.num_tokens=1024",
        "pretrain.validation_tokens=256",
        "pretrain.lr=0.01",
        "data@sft.data=local_chat",
        f"sft.data.sources.local.origin.source.path={words / 'chats.jsonl'}",
        "sft.data.held_out.fraction=0.1",
        "sft.seq_len=256",
        "sft.num_tokens=1024",
        "sft.validation_tokens=256",
        "benchmark=[domain]",
        "report.num_bootstrap=200",
        "launch.cpu=true",
        "launch.threads=1",
        f"paths.outputs={tmp_path / 'outputs'}",
    ]


def run(arguments: list[str], expect: int = 0, timeout: float = PATIENCE_S) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "launch=local", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def run_here(monkeypatch, capfd):
    """As `run`, in this process, where everything is imported already."""
    import pipeline.__main__ as driver

    def run(arguments: list[str], expect: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["pipeline", "launch=inprocess", "launch.cpu=true", *arguments])
        status = driver.run()
        shown = "".join(capfd.readouterr())
        assert status == expect, shown
        return shown

    return run


def artifacts(outputs: Path, stage: str) -> list[Path]:
    folder = outputs / "artifacts" / stage
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []


def manifest(directory: Path) -> dict:
    return json.loads((directory / "manifest.json").read_text())


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model" / "model.safetensors")


def test_the_whole_run_in_process(arguments, run_here, tmp_path):
    """Every stage and the report; a second run does nothing; a changed knob rebuilds its descendants only."""
    output = run_here(arguments)
    outputs = tmp_path / "outputs"
    assert [len(artifacts(outputs, s)) for s in ("base", "data", "expand", "pretrain", "sft")] == [1, 2, 1, 1, 1]
    rows = {manifest(p)["label"].split("/")[1]: manifest(p)["metrics"]["value"] for p in artifacts(outputs, "evaluate")}
    assert rows["expanded"] == rows["base"] and rows["post-pretrained"] < rows["base"]
    for row in ("base", "expanded", "post-pretrained", "tuned"):
        assert row in output
    assert (outputs / "reports" / "demo" / "index.html").stat().st_size > 10_000
    told = (outputs / "reports" / "demo" / "report.md").read_text()
    assert "The scores of 1 measure are the base's, not computed again. In the expansion's own check" in told
    expand, pretrain = manifest(artifacts(outputs, "expand")[0]), manifest(artifacts(outputs, "pretrain")[0])
    assert expand["proof"]["logits_equal"] and expand["proof"]["cached_logits_equal"]
    assert len(expand["new_parameters"]) == 18 and pretrain["metrics"]["num_frozen_tensors"] == 38

    before = {p: p.stat().st_mtime_ns for p in outputs.rglob("manifest.json")}
    assert "0 to build" in run_here([*arguments, "dry_run=true"])
    planned = run_here([*arguments, "dry_run=true", "report.confidence=0.9"])
    assert "1 to build" in planned and "report.confidence" not in planned.partition("report/demo")[0]
    run_here(arguments)
    assert {p: p.stat().st_mtime_ns for p in outputs.rglob("manifest.json")} == before

    run_here([*arguments, "sft.lr=1e-3"])
    assert [len(artifacts(outputs, s)) for s in ("expand", "pretrain", "sft", "evaluate")] == [1, 1, 2, 5]
    assert "sft.lr=1e-3" in (outputs / "reports" / "demo" / "report.md").read_text()


def test_a_model_proven_identical_takes_the_scores_of_its_parent_over_unless_told_otherwise(
    arguments, run_here, tmp_path
):
    arguments = [a for a in arguments if not a.startswith(("sft.", "data@sft", "benchmark="))]
    arguments += ["sft=none", "stage=evaluate", "benchmark=[domain,blocks]"]
    run_here(arguments)
    outputs = tmp_path / "outputs"
    found = {manifest(p)["label"]: p for p in artifacts(outputs, "evaluate")}
    base, expanded = found["evaluate/base/domain"], found["evaluate/expanded/domain"]
    assert manifest(expanded)["metrics"] == manifest(base)["metrics"] | {"taken_over": True}
    # what looks at the blocks themselves is measured on each model
    assert "taken_over" not in manifest(found["evaluate/expanded/blocks"])["metrics"]
    run_here([*arguments, "evaluate.reuse_exact=false"])
    scored = next(p for p in artifacts(outputs, "evaluate") if p not in found.values())
    assert manifest(scored)["label"] == "evaluate/expanded/domain" and "taken_over" not in manifest(scored)["metrics"]
    before, over, after = (read_items(one) for one in (base, expanded, scored))
    assert list(over.numerators) == list(before.numerators) == list(after.numerators)


def test_a_model_that_is_not_identical_is_scored(arguments, run_here, tmp_path):
    arguments = [a for a in arguments if not a.startswith(("sft.", "data@sft"))]
    run_here([*arguments, "sft=none", "stage=evaluate", "expand.init=copy"])
    found = {manifest(p)["label"]: manifest(p)["metrics"] for p in artifacts(tmp_path / "outputs", "evaluate")}
    assert "taken_over" not in found["evaluate/expanded/domain"]
    assert found["evaluate/expanded/domain"]["value"] != found["evaluate/base/domain"]["value"]


def test_methods_that_measure_on_general_text_read_what_each_names(arguments, words, run_here, tmp_path):
    """ADEPT while it expands and while it trains, and EWC: each from a source of its own."""
    arguments = [a for a in arguments if not a.startswith(("sft.", "data@sft", "expand.num_groups"))]
    arguments += ["sft=none", "stage=pretrain", "expand=adept", "expand.num_new_blocks=1"]
    arguments += ["+penalty@pretrain.strategy.penalties.ewc=ewc", "pretrain.strategy.penalties.ewc.max_tokens=128"]
    arguments += ["pretrain.strategy.every=4", "pretrain.strategy.extra_modules=[model.norm]"]
    for reader in ("expand", "pretrain.strategy", "pretrain.strategy.penalties.ewc"):
        arguments += [f"data/source@{reader}.general=local", f"{reader}.general.origin.source.path={words / 'text'}"]
    run_here(arguments)
    (trained,) = artifacts(tmp_path / "outputs", "pretrain")
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    penalties = [record["penalty/ewc"] for record in records if "loss" in record]
    assert len(penalties) == 8 and penalties[0] == 0 < penalties[-1]
    measured = [json.loads(line) for line in (trained / "rates.jsonl").read_text().splitlines()]
    assert [one["step"] for one in measured] == [4] and len(measured[0]["lr_scales"]) == 9
    (grown,) = artifacts(tmp_path / "outputs", "expand")
    changed = {n for n, t in weights(trained).items() if not torch.equal(t, weights(grown)[n])}
    assert "model.norm.weight" in changed and len(changed) > 1
    assert changed <= {*manifest(grown)["new_parameters"], "model.norm.weight"}


def test_a_sweep_shares_what_it_can_and_ends_in_one_report(arguments, run_here, tmp_path):
    arguments = [*arguments, "sft=none", "expand.num_groups=1,2", "-m"]
    arguments.remove("expand.num_groups=2")
    arguments = [a for a in arguments if not a.startswith("sft.") and not a.startswith("data@sft")]
    run_here(arguments)
    outputs = tmp_path / "outputs"
    assert [len(artifacts(outputs, s)) for s in ("base", "data", "expand", "pretrain", "report")] == [1, 1, 2, 2, 1]
    assert len(artifacts(outputs, "evaluate")) == 5  # base once, expanded and post-pretrained twice
    data = json.loads((outputs / "reports" / "demo" / "data.json").read_text())
    assert json.dumps(data).count("expand.num_groups=") >= 2


@pytest.mark.slow
def test_cells_side_by_side_end_in_the_report_of_those_that_finished(arguments, run_here, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    arguments = [a for a in arguments if not a.startswith(("sft.", "data@sft", "expand.num_groups"))]
    arguments += ["sft=none", "-m", "expand.num_groups=1,2,3", "hydra/launcher=joblib", "sweep.max_parallel=2"]
    output, outputs = run_here(arguments, expect=1), tmp_path / "outputs"
    assert "2 done, 1 failed" in output and "num_groups=3 does not divide the model's 4 blocks" in output
    assert [len(artifacts(outputs, s)) for s in ("base", "data", "expand", "pretrain", "report")] == [1, 1, 2, 2, 1]
    page = (outputs / "reports" / "demo" / "report.md").read_text()
    missing, verdicts = page.split("## Verdict", 1)
    assert "1 of 3 cells of this sweep is missing: expand.num_groups=3 (ConfigError: " in missing
    assert all(f"expand.num_groups={n}" in page for n in (1, 2)) and "expand.num_groups=3" not in verdicts
    before = {p: p.stat().st_mtime_ns for p in outputs.rglob("manifest.json")}
    command = [sys.executable, "-m", "pipeline.sweep", str(outputs), "--report"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and f"report: {outputs / 'reports' / 'demo' / 'index.html'}" in shown.stdout
    assert {p: p.stat().st_mtime_ns for p in outputs.rglob("manifest.json")} == before


@pytest.mark.slow
def test_drift_is_measured_on_samples_that_a_sweep_draws_once(arguments, run_here, tmp_path):
    arguments = [a for a in arguments if not a.startswith(("sft.", "data@sft", "benchmark=", "expand.num_groups"))]
    run_here([*arguments, "sft=none", "benchmark=[domain,drift]", "expand.num_groups=1,2", "-m"])
    outputs = tmp_path / "outputs"
    assert [len(artifacts(outputs, s)) for s in ("samples", "expand", "pretrain")] == [1, 2, 2]
    assert "num_chat" in manifest(artifacts(outputs, "samples")[0])["metrics"]
    found = {manifest(p)["label"]: manifest(p)["metrics"] for p in artifacts(outputs, "evaluate")}
    assert found["evaluate/expanded/drift"]["value"] == 0 and found["evaluate/post-pretrained/drift"]["value"] > 0
    data = json.loads((outputs / "reports" / "demo" / "data.json").read_text())
    drift = {model["label"]: model["drift"] for model in data["models"]}
    assert drift.pop("base") == {} and len(drift) == 4
    for label, found in drift.items():
        assert set(found["drift"]) == {"all", "free", "chat", "domain"}
        assert all((one["low"] > 0) is label.startswith("post") for one in found["drift"].values())
    assert data["against_first_variant"][0]["drift"]["n"] == found["drift"]["all"]["n"]


@pytest.mark.slow
def test_a_damaged_artifact_is_noticed_before_it_is_used(arguments, tmp_path):
    arguments = [*arguments, "launch=inprocess", "launch.cpu=true"]
    run([*arguments, "stage=base"])
    base = artifacts(tmp_path / "outputs", "base")[0]
    file, text = base / "model" / "model.safetensors", (base / "manifest.json").read_text()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    output = run([*arguments, "stage=expand"], expect=1)
    assert "ArtifactError" in output and "model.safetensors" in output and "delete" in output
    assert not artifacts(tmp_path / "outputs", "expand")
    (base / "manifest.json").write_text(text[:100])
    output = run([*arguments, "stage=base"], expect=1)
    assert "ArtifactError" in output and "manifest.json" in output and "delete" in output


def local(arguments: list[str], directory: Path) -> list[str]:
    return [a for a in arguments if a != "model=tiny"] + ["model=local", f"model.source.path={directory}"]


@pytest.mark.slow
def test_a_local_model_is_used_where_it_lies(arguments, make_model, tmp_path):
    run([*local(arguments, make_model()), "stage=expand", "launch=inprocess"])
    outputs = tmp_path / "outputs"
    assert not (artifacts(outputs, "base")[0] / "model").exists()
    assert manifest(artifacts(outputs, "expand")[0])["metrics"]["num_blocks"] == 6


@pytest.mark.slow
def test_another_family_in_an_old_format_goes_all_the_way(arguments, make_model, tmp_path):
    """GPT-2 calls its depth n_layer, its writers c_proj, and this one is a pytorch_model.bin; saved by reference."""
    sizes = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512, "bos_token_id": 0}
    directory = shutil.copytree(make_model(model_type="gpt2", **sizes), tmp_path / "gpt2")
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(tensors, directory / "pytorch_model.bin")
    run([*local(arguments, directory), "stage=pretrain", "launch=inprocess", "expand.save=delta"])
    outputs = tmp_path / "outputs"
    grown, trained = manifest(artifacts(outputs, "expand")[0]), manifest(artifacts(outputs, "pretrain")[0])
    assert grown["metrics"]["exact"] and grown["metrics"]["num_blocks"] == 6
    assert not (artifacts(outputs, "expand")[0] / "model" / "model.safetensors").exists()
    assert trained["metrics"]["num_trainable"] == grown["metrics"]["num_new_parameters"]


def pickled(directory):
    (directory / "tokenizer.json").unlink()
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda d: os.truncate(d / "model.safetensors", 5000), "model.safetensors"),
        (lambda d: (d / "config.json").write_text("{"), "config.json is damaged"),
        (lambda d: (d / "model.safetensors").unlink(), "needs its safetensors weights"),
        (lambda d: pickled(d), "has no tokenizer"),
    ],
    ids=["no-tokenizer", "truncated-shard", "damaged-config", "no-weights", "pickles-without-tokenizer"],
)
def test_a_damaged_local_model_is_answered_before_any_work(arguments, make_model, tmp_path, damage, message):
    directory = shutil.copytree(make_model(), tmp_path / "model")
    damage(directory)
    output = run(local(arguments, directory), expect=1)
    assert message in output and "Traceback" not in output
    assert not (tmp_path / "outputs" / "artifacts").exists() or not artifacts(tmp_path / "outputs", "base")


def test_an_empty_data_source_is_answered(arguments, tmp_path):
    (tmp_path / "nothing").mkdir()
    arguments = [a for a in arguments if "pretrain.data.sources" not in a]
    output = run([*arguments, f"pretrain.data.sources.local.origin.source.path={tmp_path / 'nothing'}"], expect=1)
    assert "ConfigError" in output and "nothing holds no files" in output


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    with log.open("w") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", "launch=local", *arguments], cwd=ROOT, stdout=out, stderr=out
        )


def wait_for_step(outputs: Path, stage: str, step: int, driver: subprocess.Popen, log: Path) -> None:
    def reached() -> bool:
        assert driver.poll() is None, log.read_text()
        files = outputs.glob(f"artifacts/{stage}/*.partial/metrics.jsonl")
        return any(f'"step": {step}' in file.read_text() for file in files)

    wait_for(reached, log.read_text)


def workers(stage: str, outputs: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(outputs) in line and (f"stages.{stage}" in line or f"stages/{stage}.py" in line):
            found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_sigkill_of_the_worker_then_the_same_command_gives_the_same_bits(arguments, tmp_path, stage):
    """Through Accelerate, with a checkpoint after every step: killed in the middle, the weights are those unbroken."""
    longer = [*arguments, f"stage={stage}", "launch.checkpoint_every_s=0", f"{stage}.num_tokens=16384"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run([*longer, f"paths.outputs={whole}"])
    command = [*longer, f"paths.outputs={cut}"]
    driver = start(command, tmp_path / "log")
    wait_for_step(cut, stage, 4, driver, tmp_path / "log")
    for process in workers(stage, cut):
        process.kill()
    assert driver.wait(PATIENCE_S) == 1
    assert not [p for p in artifacts(cut, stage) if not p.name.endswith(".partial")]
    run(command)
    a, b = (weights(artifacts(out, stage)[0]) for out in (whole, cut))
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.slow
def test_ctrl_c_leaves_no_child_and_a_state_that_resumes(arguments, tmp_path):
    longer = [*arguments, "stage=pretrain", "pretrain.num_tokens=16384"]
    outputs = tmp_path / "outputs"
    driver = start(longer, tmp_path / "log")
    wait_for_step(outputs, "pretrain", 3, driver, tmp_path / "log")
    driver.send_signal(signal.SIGINT)
    assert driver.wait(PATIENCE_S) == 130
    assert not workers("pretrain", outputs)
    partial = artifacts(outputs, "pretrain")[0]
    assert partial.name.endswith(".partial") and list((partial / "checkpoints").glob("step-*"))
    run(longer)
    steps = [
        json.loads(line)["step"]
        for line in (artifacts(outputs, "pretrain")[0] / "metrics.jsonl").open()
        if '"loss"' in line
    ]
    assert steps == list(range(1, 129))


@pytest.mark.slow
def test_two_processes_follow_one(arguments, tmp_path):
    """Really two ranks (DDP on the CPU): the same loss curve as one, within the order of sums."""
    curves = []
    for n in (1, 2):
        outputs = tmp_path / str(n)
        run(
            [
                *arguments,
                "stage=pretrain",
                f"launch.num_processes={n}",
                "launch.micro_batch=1",
                f"paths.outputs={outputs}",
            ]
        )
        directory = artifacts(outputs, "pretrain")[0]
        curves.append([json.loads(line)["loss"] for line in (directory / "metrics.jsonl").open() if '"loss"' in line])
        assert manifest(directory)["metrics"]["num_processes"] == n
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


@pytest.mark.slow
def test_a_gate_fails_a_run_and_says_why(arguments, tmp_path):
    """Training on Latin letters loses Cyrillic ones; the run ends with an error, and everything it made is kept."""
    folder = tmp_path / "cyrillic"
    folder.mkdir()
    for index in range(8):  # bytes that no text of the training has: what it learns there, these must pay
        (folder / f"{index}.txt").write_text(f"{'абвгдежзик'[index]} слово о полку " * 8)
    source = f"{{kind:local,path:'{folder}',include:['**'],exclude:[]}}"
    origin = f"origin:{{_target_:pipeline.data.sources.documents.LocalFiles,source:{source}}}"
    rest = "weight:1.0,text_field:text,boundary:null,max_symbol_fraction:null"
    documents = f"{{_target_:pipeline.data.sources.documents.Text,{origin},{rest}}}"
    arguments = [one for one in arguments if "sft" not in one and "expand" not in one]
    arguments += ["launch=inprocess", "launch.cpu=true", "expand=none", "sft=none", "strategy@pretrain.strategy=full"]
    arguments += [f"benchmark.domain.documents={documents}", "+evaluate.gate.benchmarks.domain=0.01"]
    arguments += ["evaluate.gate.num_bootstrap=200"]
    output = run(arguments, expect=1)
    outputs = tmp_path / "outputs"
    assert "GateError: the post-pretrained model does not keep what the gate asks for" in output
    assert "FAILED  Domain:" in output and "budget −1.00 %" in output
    assert (outputs / "reports" / "demo" / "index.html").is_file()  # what is to be looked at is there
    verdict = json.loads((artifacts(outputs, "gate")[0] / "gate.json").read_text())
    assert verdict["passed"] is False and verdict["judgements"][0]["change"] < -0.01
    before = {p: p.stat().st_mtime_ns for p in outputs.rglob("manifest.json")}
    run(arguments, expect=1)  # nothing is built again, and the answer is the same
    assert {p: p.stat().st_mtime_ns for p in outputs.rglob("manifest.json")} == before
    sound = run([*arguments, "pretrain.lr=1e-7"])  # next to no training: next to nothing is lost
    assert "gate: the post-pretrained model keeps what the gate asks for" in sound


@pytest.mark.slow
def test_a_judge_that_goes_down_is_named_and_the_same_command_goes_on(arguments, tmp_path):
    """Through the whole pipeline: two of four turns are rated, then the judge is gone; later it is asked for two."""
    from tests.evaluation.judge_server import serving
    from tests.evaluation.remote.test_endpoint import ROWS

    folder = tmp_path / "bench"
    (folder / "reference_answer").mkdir(parents=True)
    questions = [{"question_id": i, "category": "writing", "turns": [f"Say {i}.", "Again."]} for i in (1, 2)]
    reference = [{"question_id": 9, "choices": [{"turns": ["a", "b"]}]}]
    for name, rows in {
        "question": questions,
        "judge_prompts": ROWS,
        "reference_answer/gpt-4": reference,
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"models": "[base]", "folder": folder, "max_new_tokens": 8, "endpoint.key_variable": "null"}
    settings |= {"endpoint.num_attempts": 2, "endpoint.wait_s": 0, "endpoint.num_parallel": 1}
    arguments = [one for one in arguments if not one.startswith("benchmark=")]
    arguments += ["benchmark=[mt_bench]", "stage=evaluate", "launch=inprocess", "launch.cpu=true"]
    arguments += [f"benchmark.mt_bench.{key}={value}" for key, value in settings.items()]
    with serving(lambda body, number: "[[8]]" if number < 2 else (503, {}, "gone")) as (judge, endpoint):
        output = run([*arguments, f"benchmark.mt_bench.endpoint.url={endpoint['url']}"], expect=1)
    assert "MT-Bench is not complete: 2 of 4 turns are rated, mean so far 8.00" in output
    assert "gave no answer in 2 attempts: HTTP 503" in output and "the same command goes on from there" in output
    with serving(lambda body, number: "[[4]]") as (judge, endpoint):
        run([*arguments, f"benchmark.mt_bench.endpoint.url={endpoint['url']}"])
        assert len(judge.requests) == 2
    (found,) = artifacts(tmp_path / "outputs", "evaluate")
    metrics = manifest(found)["metrics"]
    assert (metrics["value"], metrics["n"], metrics["metric"]) == (6.0, 2, "rating")
    assert {"answers.jsonl", "judgements.jsonl", "items.parquet"} <= set(manifest(found)["files"])
    assert not (found / "partial.json").exists()


def test_rows_that_no_machine_without_a_network_has_are_refused_before_any_work(arguments, tmp_path):
    """The benchmark comes last, but its absence is known first; a plan is made all the same."""
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    asked = [sys.executable, "-m", "pipeline", *arguments, "benchmark=[gsm8k]"]
    for more, status in ((["items=hub"], 1), (["items=hub", "dry_run=true"], 0)):
        done = subprocess.run(
            [*asked, *more], cwd=ROOT, capture_output=True, text=True, env=offline, timeout=PATIENCE_S
        )
        assert done.returncode == status, done.stdout + done.stderr
        if status:
            assert re.search(
                r"evaluate/base/gsm8k: dataset openai/gsm8k .* could not be downloaded from the Hub", done.stderr
            )
            assert "items=mirror items.path=DIR" in done.stderr
    assert not list((tmp_path / "outputs").glob("artifacts/*/*"))
    lacking = [*asked, "items=mirror", f"items.path={tmp_path}"]
    done = subprocess.run(lacking, cwd=ROOT, capture_output=True, text=True, env=offline, timeout=PATIENCE_S)
    command = f"hf download openai/gsm8k --repo-type dataset --local-dir {tmp_path}/openai/gsm8k"
    assert done.returncode == 1 and "does not exist" in done.stderr and command in done.stderr
