"""Two chains of one run that are composed: planned, trained, evaluated, reported; and pairs that are refused."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from tests.lineage.test_stranger import drive  # noqa: F401  a fixture

SHORT = (
    "model=tiny", "pretrain.seq_len=64", "launch=inprocess", "launch.threads=1",
    *(f"{name}.num_tokens=512" for name in ("pretrain", "lineage.digits.with", "lineage.calm.with")),
    *(f"{name}.sources.lines.origin.count=200" for name in ("lookups", "additions", "sums")),
)  # fmt: skip


def arguments(outputs, *more):
    return ["experiment=calm", *SHORT, "report.num_bootstrap=200", f"paths.outputs={outputs}", *more]


def artifacts(outputs, stage):
    found = (outputs / "artifacts" / stage).glob("[!.]*/manifest.json")
    return {json.loads(file.read_text())["label"].rpartition("/")[2]: file.parent for file in found}


@pytest.mark.slow
def test_it_runs_and_the_bridges_alone_move(tmp_path, drive):  # noqa: F811
    drive(arguments(tmp_path))
    trained, (grown,) = artifacts(tmp_path, "pretrain"), artifacts(tmp_path, "expand").values()
    made, calm, keys = (load_file(one / "model/model.safetensors") for one in (grown, trained["calm"], trained["keys"]))
    moved = {name for name in made if (made[name] != calm[name]).any()}
    assert moved == set(json.loads((grown / "manifest.json").read_text())["new_parameters"])
    assert all((calm[name.replace("model.", "model.augmenting.", 1)] == keys[name]).all() for name in keys)
    data = json.loads((tmp_path / "reports/calm/data.json").read_text())
    rows = {model["row"]: model for model in data["models"]}
    assert list(rows) == ["base", "keys", "digits", "composed", "calm"]
    assert rows["composed"]["scores"] == rows["digits"]["scores"]  # the same function
    card = next((tmp_path / "reports/calm/cards").glob("calm*")).read_text()
    assert "import pipeline.models.architecture.calm" in card
    assert "0 to build" in drive(arguments(tmp_path, "dry_run=true"))


def test_models_that_do_not_go_together_are_refused_before_work(tmp_path, drive):  # noqa: F811
    with pytest.raises(AssertionError, match=r"expand.every=5 makes 0 bridges from an augmenting model of 4 blocks"):
        drive(arguments(tmp_path, "expand.every=5", "dry_run=true"))
    other = "lineage.other={stage: base, with: {source: {config: {model_type: gpt2}}}}"
    with pytest.raises(AssertionError, match=r"in the role augmenting is of model_type='gpt2'"):
        drive(arguments(tmp_path, f"+{other}", "lineage.composed.from.augmenting=other", "dry_run=true"))
    with pytest.raises(AssertionError, match=r"Calm needs a model in the role augmenting; add it to from"):
        drive(arguments(tmp_path, "lineage.composed.from=digits", "dry_run=true"))
    assert not (tmp_path / "artifacts").exists()
