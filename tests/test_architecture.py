"""Policy as tests: the walls between rooms, sizes and names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("stages/*.py")]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_driver_imports_no_torch():
    """Composing, building the graph and checking every stage's request: all without torch."""
    code = """
import sys, tempfile
sys.argv = ["pipeline", "dry_run=true", "paths.outputs=/nonexistent/outputs", "paths.cache=" + tempfile.mkdtemp()]
import pipeline.__main__ as driver
status = driver.run()
heavy = sorted({"torch", "transformers", "accelerate", "datasets", "peft", "lm_eval"} & set(sys.modules))
print("status", status, "heavy", heavy)
"""
    assert run(code).strip().splitlines()[-1] == "status 0 heavy []"


def test_help_is_answered_without_composing():
    result = subprocess.run([sys.executable, "-m", "pipeline", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "experiment: " in result.stdout and "python -m pipeline -m" in result.stdout


def test_import_walls():
    result = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


def test_no_file_without_a_meaning_and_none_too_long():
    for file in SOURCES:
        assert file.stem not in ("utils", "helpers", "helper", "common", "misc"), file
        assert len(file.read_text().splitlines()) <= 350, file


def test_no_pickle_no_eval_no_remote_code():
    for file in SOURCES:
        text = file.read_text()
        assert "import pickle" not in text, file
        assert all("weights_only=True" in call for call in text.split("torch.load(")[1:]), file
        assert "trust_remote_code=True" not in text, file


def test_every_stage_has_its_two_doors():
    code = """
import importlib, pkgutil, stages
for module in pkgutil.iter_modules(stages.__path__):
    stage = importlib.import_module("stages." + module.name)
    assert isinstance(stage.VERSION, int) and callable(stage.check) and callable(stage.run), module.name
print("ok")
"""
    assert run(code).strip() == "ok"
