"""A text model that is given sight in one run: trained on images, evaluated, reported; and what is refused before."""

from __future__ import annotations

import json

import pytest

from tests.lineage.test_calm import artifacts
from tests.lineage.test_stranger import drive  # noqa: F401  a fixture

SHORT = (
    "experiment=visual_experts", "model=tiny", "launch=inprocess", "launch.threads=1", "report.num_bootstrap=200",
    "benchmark=[digits,wikitext]", "benchmark.wikitext.documents=null",
    "+data@benchmark.wikitext.data=stdlib_texts", "~pretrain.data.sources.digits",
    "+pretrain.data.sources.a={_target_: tests.visual.TwoKinds, count: 60, weight: 1.0}",
    "expand.image_size=4", "expand.patch_size=2", "expand.expert_every=2", "pretrain.num_tokens=4000",
)  # fmt: skip
TUNED = ("sft=tiny", "+lineage.tuned={stage: sft, from: post-pretrained}")


def arguments(outputs, *more):
    return [*SHORT, f"paths.outputs={outputs}", *more]


@pytest.mark.slow
def test_it_runs_and_text_is_measured_as_the_bases(tmp_path, drive):  # noqa: F811
    drive(arguments(tmp_path))
    data = json.loads((tmp_path / "reports/visual_experts/data.json").read_text())
    rows = {model["row"]: model["scores"] for model in data["models"]}
    assert list(rows) == ["base", "expanded", "post-pretrained"] and "digits" not in rows["base"]
    assert rows["base"]["wikitext"] == rows["expanded"]["wikitext"] == rows["post-pretrained"]["wikitext"]
    report = (tmp_path / "reports/visual_experts/report.md").read_text()
    assert "linear_probe" in report and "A linear probe of the same patches, trained on the same 4" in report
    (grown,), (trained,) = (artifacts(tmp_path, stage).values() for stage in ("expand", "pretrain"))
    metrics = json.loads((trained / "manifest.json").read_text())["metrics"]
    assert metrics["val_loss"] < metrics["val_loss_before"]
    assert json.loads((grown / "manifest.json").read_text())["metrics"]["exact"]
    card = next((tmp_path / "reports/visual_experts/cards").glob("post-pretrained*")).read_text()
    assert "import pipeline.models.architecture.visual_experts" in card
    assert "0 to build" in drive(arguments(tmp_path, "dry_run=true"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.source.config.model_type=gpt2"], r"visual_experts stand beside .*model_type='gpt2'"),
        (["expand.patch_size=1"], "the data are images of 4 patches and the model is one that reads images of 16"),
        (["pretrain.packing=fill"], "packing=fill cuts a document where a row ends, and images are whole"),
        (["benchmark.digits.models=null"], "the model is a text model and reads no images; name those that do"),
        (["+data@benchmark.digits.data=stdlib_texts"], "this benchmark needs data of images"),
        ([*TUNED, "data@sft.data=digits"], "sft: this stage trains on chat data, but its data is of kind image"),
        ([*TUNED, "data@sft.data=stdlib_texts"], "sft: this stage trains on chat data, but its data is of kind text"),
        (["expand.image_size=5"], r"expand.patch_size=2 does not divide expand.image_size=5"),
        (["pretrain.track.every=2", "pretrain.track.measures=[domain]"], "and the data hold images"),
    ],
)
def test_what_does_not_go_together_is_refused_before_work(tmp_path, drive, changes, message):  # noqa: F811
    with pytest.raises(AssertionError, match=message):
        drive(arguments(tmp_path, "dry_run=true", *changes))
    assert not (tmp_path / "artifacts").exists()


def test_images_for_a_text_model_are_refused_before_work(tmp_path, drive):  # noqa: F811
    given = [one for one in arguments(tmp_path, "dry_run=true") if not one.startswith("expand.")]
    with pytest.raises(AssertionError, match="the data are images of 4 patches and the model is a text model"):
        drive([*given, "expand=none"])
