"""`verify_resume=true`: exact resume, tried on the whole chain of processes, and answered where it is not so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.engine.artifact import MANIFEST
from pipeline.engine.run import resume_check
from tests.children import PATIENCE_S

ROOT = Path(__file__).parent.parent


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    (tmp_path / "text").mkdir()
    for index, file in enumerate(sorted((ROOT / "pipeline").rglob("*.py"))):
        (tmp_path / "text" / f"{index}.txt").write_text(file.read_text()[:1500])
    return [
        "model=tiny", "expand.num_groups=2", "data@pretrain.data=local_text", "pretrain.data.held_out.fraction=0.2",
        f"pretrain.data.sources.local.origin.source.path={tmp_path / 'text'}", "pretrain.seq_len=64", "sft=none",
        "pretrain.validation_tokens=256", "benchmark=[]", "launch.cpu=true", "launch.threads=1",
        f"paths.outputs={tmp_path / 'outputs'}",
    ]  # fmt: skip


def run(arguments: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, env=dict(os.environ))


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "launch"), [(3, []), (2, ["launch=fsdp2"])], ids=["one", "fsdp2"])
def test_kills_of_the_whole_chain(arguments, tmp_path, kills, launch):
    more = ["stage=pretrain", "verify_resume=true", f"verify.num_kills={kills}", "verify.num_steps=24", *launch]
    done = run([*arguments, *more])
    assert done.returncode == 0, done.stdout + done.stderr
    told = re.search(r"resume is exact: 24 steps, killed (\d+) times \(resumed from steps (.*)\); weights", done.stdout)
    assert told and int(told[1]) == kills and len(set(json.loads(told[2]))) > 1, done.stdout
    assert not list((tmp_path / "outputs" / "resume_checks").iterdir())
    assert not (tmp_path / "outputs" / "artifacts" / "pretrain").exists(), "a check leaves no artifact of the stage"


def test_it_asks_for_a_training_stage(tmp_path):
    done = run(["verify_resume=true", f"paths.outputs={tmp_path}"])
    assert done.returncode == 1 and "not stage=report; add stage=pretrain or sft" in done.stderr


def test_what_differs_is_named(tmp_path, monkeypatch):
    for name, sha, tokens_per_s, loss in (("whole", "1", 10, 1.0), ("cut", "2", 20, 1.5)):
        (tmp_path / name).mkdir()
        files = {"model/a.safetensors": {"sha256": sha}, "model/b": {"sha256": "0"}, "config.yaml": {"sha256": name}}
        (tmp_path / name / MANIFEST).write_text(json.dumps({"files": files}))
        record = {"step": 1, "loss": loss, "tokens_per_s": tokens_per_s}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        (tmp_path / name / "samples.jsonl").write_text('{"step": 1}\n')
    monkeypatch.setattr(resume_check.artifact, "load_manifest", lambda d: json.loads((d / MANIFEST).read_text()))
    found = list(resume_check._differences(tmp_path / "whole", tmp_path / "cut"))
    assert found == ["model/a.safetensors", "metrics.jsonl"]
    verdict = resume_check.Verdict(found, 1, [3], 1, tmp_path)
    assert "resume is NOT exact" in str(verdict) and "model/a.safetensors" in str(verdict)
