"""A stage kind, its yaml and experiments from outside this repository: planned, run, resumed after a kill, reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
STAGE = '''"""The mean of two models of one architecture."""

from pipeline.engine.process import worker
from pipeline.engine.artifact import model_dir
from pipeline.engine.run.forecast import Forecast
from pipeline.engine.stage import Stage

STAGE = Stage(version=1, makes="model", inputs={"a": "model", "b": "model"}, section="mean", single_process=True)


def forecast(request):
    if request.fact("num_blocks", "a") != request.fact("num_blocks", "b"):
        raise ValueError("the two models differ in their number of blocks")
    return Forecast({"num_blocks": request.fact("num_blocks", "a"), "expanded": False})


def run(context):
    from safetensors.torch import load_file

    from pipeline.models.save import save_trained

    share = context.params["share"]
    one, other = (load_file(model_dir(context.inputs[role]) / "model.safetensors") for role in ("a", "b"))
    mixed = {name: share * one[name] + (1 - share) * other[name] for name in one}
    save_trained(model_dir(context.inputs["a"]), context.directory / "model", mixed)
    return {"share": share}


if __name__ == "__main__":
    worker.main(run)
'''
MEAN = """# @package _global_
defaults:
  - /mean@mean: half
lineage:
  expanded: null
  post-pretrained: {stage: pretrain, from: base}
  tuned: null
  mixed: {stage: strangers.mean, from: {a: post-pretrained, b: base}}
"""
CHAIN = """# @package _global_
lineage:
  expanded: null
  post-pretrained: null
  tuned: null
  grown-1: {stage: expand, from: base}
  task-1: {stage: pretrain, from: grown-1}
  grown-2: {stage: expand, from: task-1, with: {per_group: 2}}
  task-2: {stage: pretrain, from: grown-2, with: {seed: 2, data: {sources: {local: {origin: {source: {path: TEXT2}}}}}}}
  grown-3: {stage: expand, from: task-2, with: {num_groups: 1}}
  task-3: {stage: pretrain, from: grown-3, with: {seed: 3, num_tokens: 512}}
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A package `strangers` on the path of this process and of its workers, and a folder with its yaml."""
    for name, text in {
        "strangers/__init__.py": "", "strangers/mean.py": STAGE, "conf/mean/half.yaml": "skip: false\nshare: 0.5\n",
        "conf/experiment/mean.yaml": MEAN,
        "conf/experiment/three_tasks.yaml": CHAIN.replace("TEXT2", str(tmp_path / "2")),
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for folder, files in (("1", "data"), ("2", "training")):
        (tmp_path / folder).mkdir()
        for index, file in enumerate(sorted((ROOT / "pipeline" / files).rglob("*.py"))):
            (tmp_path / folder / f"{index}.txt").write_text(file.read_text()[:1500])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def arguments(folder: Path, experiment: str, *more: str) -> list[str]:
    return [
        f"hydra.searchpath=[file://{folder / 'conf'}]", f"experiment={experiment}", "model=tiny", "expand.num_groups=2",
        "data@pretrain.data=local_text", f"pretrain.data.sources.local.origin.source.path={folder / '1'}",
        "pretrain.data.held_out.fraction=0.2", "pretrain.seq_len=64", "pretrain.num_tokens=1024", "pretrain.lr=0.01",
        "pretrain.validation_tokens=256", "benchmark=[domain]", "report.num_bootstrap=200", "launch=inprocess",
        "launch.cpu=true", "launch.threads=1", f"paths.outputs={folder / 'outputs'}", *more,
    ]  # fmt: skip


@pytest.fixture
def drive(monkeypatch, capfd):
    """Runs the driver in this process; returns what it printed."""
    import pipeline.__main__ as driver

    def run(given: list[str]) -> str:
        monkeypatch.setattr("sys.argv", ["pipeline", *given])
        status = driver.run()
        shown = "".join(capfd.readouterr())
        assert status == 0, shown
        return shown

    return run


def report(outputs: Path) -> dict[str, dict]:
    """data.json's models by name."""
    data = json.loads((outputs / "reports" / "demo" / "data.json").read_text())
    return {model["row"]: model for model in data["models"]}


def test_a_stage_of_two_models_from_elsewhere(stranger, drive):
    given = arguments(stranger, "mean", "strategy@pretrain.strategy=full")
    assert "strangers.mean" in drive([*given, "dry_run=true"])
    drive([*given, "to=mixed"])
    (mixed,) = (stranger / "outputs/artifacts/strangers.mean").glob("[!.]*")
    inputs = json.loads((mixed / "manifest.json").read_text())["inputs"]
    weights = [stranger / "outputs/artifacts" / inputs[role]["directory"] / "model/model.safetensors" for role in "ab"]
    one, other, made = (load_file(path) for path in (*weights, mixed / "model/model.safetensors"))
    assert any((one[name] != other[name]).any() for name in one)
    assert all(((one[name] + other[name]) / 2 == made[name]).all() for name in made)
    drive(given)
    models = report(stranger / "outputs")
    assert list(models) == ["base", "post-pretrained", "mixed"]
    assert models["mixed"]["gains"]["domain"]["value"] > 0  # between its parents
    assert "mixed" in (stranger / "outputs/reports/demo/report.md").read_text()


@pytest.mark.slow
def test_a_chain_of_three_tasks_with_fresh_blocks_goes_on_after_a_kill(stranger, drive):
    given = arguments(stranger, "three_tasks")
    plan = drive([*given, "dry_run=true"])
    assert all(f"pretrain/task-{n}" in plan and f"expand/grown-{n}" in plan for n in (1, 2, 3))
    outputs = stranger / "outputs"
    driver = subprocess.Popen([sys.executable, "-m", "pipeline", *given], cwd=ROOT, env=dict(os.environ))
    while not (outputs / "artifacts/pretrain").is_dir() or not any(
        path.suffix != ".partial" for path in (outputs / "artifacts/pretrain").iterdir()
    ):
        assert driver.poll() is None, "it ended before it was killed"
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {path: path.stat().st_mtime_ns for path in outputs.rglob("manifest.json")}
    drive(given)
    assert before and all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())
    models = report(outputs)
    assert list(models) == ["base", "grown-1", "task-1", "grown-2", "task-2", "grown-3", "task-3"]
    assert models["grown-1"]["differences"]["domain"]["mark"] == "identical"
    assert models["grown-2"]["differences"]["domain"] == {
        **models["task-1"]["differences"]["domain"], "p": models["grown-2"]["differences"]["domain"]["p"],
    }  # fmt: skip
    sizes = [models[name]["num_parameters"] for name in models]
    block = sizes[1] - sizes[0]  # two blocks
    assert [size - sizes[0] for size in sizes] == [0, block, block, 3 * block, 3 * block, 3.5 * block, 3.5 * block]
    assert "0 to build" in drive([*given, "dry_run=true"])
