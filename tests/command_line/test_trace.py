"""A number of a report, or an artifact, is traced to what made it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import trace
from pipeline.command_line.exit_status import BAD_REQUEST
from pipeline.engine import artifact

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    """A whole run of a random model of 12 blocks."""
    folder = tmp_path_factory.mktemp("run") / "outputs"
    arguments = ["model=tiny", "launch=inprocess", "launch.threads=1", f"paths.outputs={folder}"]
    done = subprocess.run([sys.executable, "-m", "pipeline", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def told(capsys, outputs, *arguments) -> str:
    assert trace.main([*arguments, "--outputs", str(outputs)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        (["-m", "data=/a b,org/c", "name=x"], "-m 'data=/a b,org/c' name=x"),
        (["data@pretrain.data=local_text+%2Fa%20b", "expand=none"], "'data=/a b' expand=none"),  # by an earlier version
    ],
)
def test_the_command_of_an_artifact_can_be_pasted(recorded, shown):
    assert trace._command({"argv": ["pipeline/__main__.py", *recorded]}) == f"python -m pipeline {shown}"


@pytest.mark.slow
def test_an_artifact_is_traced_to_its_base_and_data(capsys, outputs):
    directory = next((outputs / "artifacts/sft").iterdir())
    manifest = artifact.load_manifest(directory)
    text = told(capsys, outputs, directory.name)
    assert text == told(capsys, outputs, manifest["fingerprint"][:8]) == told(capsys, outputs, str(directory))
    assert manifest["fingerprint"] in text and "python -m pipeline model=tiny launch=inprocess" in text
    for entry in manifest["inputs"].values():
        assert entry["directory"] in text
    base = next((outputs / "artifacts/base").iterdir())
    assert f"base/{base.name}" in text and "(see above)" in text  # read by every stage, told once
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert not commit or f"commit       {commit}" in text


@pytest.mark.slow
def test_ten_numbers_of_a_report_are_traced_to_their_evaluations(capsys, outputs):
    report = next((outputs / "reports").iterdir())
    values = json.loads((report / "data.json").read_text())
    for model in values["models"][:2] + values["models"][-1:]:
        for benchmark, score in list(model["scores"].items())[:4]:
            text = told(capsys, outputs, f"{score['value']:.6f}", "--report", str(report))
            assert f"{model['label']}, scores {benchmark} value = {score['value']!r}" in text
            name = benchmark.removesuffix(".gold")
            made = f"evaluate/{model['artifacts']['evaluations'][name]}"
            assert f"{made}: python -m pipeline model=tiny" in text
            assert f"config  {outputs}/artifacts/{made}/config.yaml" in text and "data    local, content " in text
    gain = values["models"][-1]["gains"]["domain"]["value"]
    text = told(capsys, outputs, f"{gain:+.5f}")
    names = [values["models"][i]["artifacts"]["evaluations"]["domain"] for i in (0, -1)]
    assert all(f"evaluate/{name}" in text for name in names)  # of the model, and of the base that it is compared with
    tokens = values["models"][-1]["tokens"]
    assert values["models"][-1]["artifacts"]["model"] in told(capsys, outputs, f"{tokens:,}")
    whole = told(capsys, outputs, "95 %", "--report", str(report))
    assert (
        "confidence = 0.95\n  of the report as a whole:\n  report/" in whole and "(all that it was made from" in whole
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("123456789.25", "stands in none of"), ("nothing-like-that", "neither a number nor the name"),
        ("base-", "artifacts; use one of"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said(capsys, outputs, what, said):
    assert trace.main([what, "--outputs", str(outputs)]) == BAD_REQUEST
    assert said in capsys.readouterr().err


def test_without_any_run(capsys, tmp_path):
    assert trace.main(["1.5", "--outputs", str(tmp_path)]) == BAD_REQUEST
    assert "no report" in capsys.readouterr().err
