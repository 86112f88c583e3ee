"""Mixing in a lineage: chains of one run mixed, sweeps that train nothing twice, what is refused before work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.engine.errors import ConfigError
from pipeline.engine.run import runner
from pipeline.lineage.build import build
from tests.lineage.small import small_run
from tests.test_conf import composed

ROOT = Path(__file__).parents[2]
TINY = ("model=tiny", "data@pretrain.data=stdlib_texts", "sft=none", "benchmark=[domain]")


def variant(tmp_path, *overrides):
    return build(composed(*overrides), "default", tmp_path / "hashes")


def plan(tmp_path, *overrides):
    found = variant(tmp_path, *overrides)
    return runner.plan(found.targets("report"), tmp_path / "outputs", tmp_path / "hashes")


def test_the_experiment_mixes_one_training_at_several_t(tmp_path):
    found = variant(tmp_path, "experiment=wise_ft")
    mixed = {name: node for name, node in found.models.items() if name.startswith("mixed")}
    assert list(mixed) == ["mixed-0.25", "mixed-0.5", "mixed-0.75"]
    for name, node in mixed.items():
        assert node.params["method"]["t"] == float(name.split("-")[1])
        assert node.params["method"]["_target_"].endswith("mix.Mix") and node.params["save"] == "full"
        assert node.inputs == {"model": found.models["expanded"], "trained": found.models["trained-4e-3"]}
        assert node.settings["derived"] == {"model": True, "trained": True}
        assert set(found.evaluations[name]) == {"domain", "drift"} and found.lineage[name].reference == "base"
    assert found.models["expanded"].params["method"]["_target_"].endswith("BlockExpansion")
    trainings = [node for node in found.models.values() if node.stage == "pretrain"]
    assert len(trainings) == 3 and all(node.params["strategy"]["_target_"].endswith("NewBlocks") for node in trainings)


def test_a_sweep_over_t_shares_every_training(tmp_path):
    one = variant(tmp_path, "experiment=wise_ft")
    other = variant(tmp_path, "experiment=wise_ft", "lineage.mixed.each.t=[0.1,0.5]")
    arc = variant(tmp_path, "experiment=wise_ft", "lineage.mixed.with.method=slerp")
    for run in (other, arc):
        assert [n for n in run.models.values() if n.stage == "pretrain"] == [
            n for n in one.models.values() if n.stage == "pretrain"
        ]
    assert one.models["mixed-0.5"] == other.models["mixed-0.5"] != arc.models["mixed-0.5"]


def test_it_can_be_planned(tmp_path):
    shown = plan(tmp_path, "experiment=wise_ft", "benchmark=[domain]")
    assert all(f"expand/mixed-{t}" in shown for t in ("0.25", "0.5", "0.75"))


def test_a_deeper_stack_is_planned_at_its_size(tmp_path):
    """Six blocks of the four: 6 x 9,280 parameters, the embedding of 300 x 32 and the last norm, all trained."""
    assert "65,312; 65,312 train" in plan(tmp_path, *TINY, "expand=depth_upscale")


def test_two_models_of_one_run_are_mixed_by_the_section(tmp_path):
    twin = "+lineage.twin={stage: base, with: {source: {seed: 1}}}"
    both = ["expand=mix", "lineage.expanded.from={model: base, twin: twin}", "strategy@pretrain.strategy=full"]
    found = variant(tmp_path, *TINY, *both, twin)
    assert found.models["expanded"].inputs == {"model": found.models["base"], "twin": found.models["twin"]}
    assert found.models["expanded"].settings["derived"] == {"model": True, "twin": False}
    shown = runner.plan(found.targets("report"), tmp_path / "outputs", tmp_path / "hashes")
    assert "46,752; 46,752 train" in shown  # four blocks, as each has


def test_depth_upscale_trains_everything_unless_told_otherwise():
    assert composed("expand=depth_upscale")["pretrain"]["strategy"]["_target_"].endswith("Full")
    chosen = composed("expand=depth_upscale", "strategy@pretrain.strategy=new_blocks")
    assert chosen["pretrain"]["strategy"]["_target_"].endswith("NewBlocks")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["expand=depth_upscale", "expand.num_dropped=2"], "num_dropped=2 of the model's 4 blocks leaves 4"),
        (["expand=depth_upscale", "expand.num_dropped=9"], "num_dropped=9 of the model's 4 blocks leaves"),
        (["expand=depth_upscale", "expand.num_dropped=half"], "num_dropped='half' must be a whole number"),
        (["expand=mix"], "a mix needs a second model: give the lineage's entry one beside it"),
        (["expand=mix", "expand.method=slurp"], "method='slurp' must be one of 'linear', 'slerp'"),
        (["expand=mix", "expand.t=[0,x]"], r"t has 'x' in a list of numbers over the depth"),
        (
            ["expand=mix", "lineage.expanded.from={model: base, other: other}", "OTHER={vocab_size: 301}"],
            "vocabulary is 300 in the role model and 301 in the role other",
        ),
        (
            ["expand=mix", "lineage.expanded.from={model: base, other: other}", "OTHER={tie_word_embeddings: false}"],
            "tie_word_embeddings is True in the role model and False in the role other",
        ),
        (
            ["expand=mix", "lineage.expanded.from={model: base, other: other}", "OTHER={model_type: mistral}"],
            "model_type is llama in the role model and mistral in the role other",
        ),
        (
            ["expand=mix", "lineage.expanded.from={model: base, other: other}", "OTHER={hidden_size: 64}"],
            "hidden_size is 32 in the role model and 64 in the role other",
        ),
        (
            ["expand=mix", "expand.method=ties", "lineage.expanded.from={model: base, other: other}", "OTHER={}"],
            "differences to the model in the role model are asked for, and that in the role other was not made from it",
        ),
        (
            ["expand=block", "lineage.expanded.from={model: base, other: other}", "OTHER={}"],
            "BlockExpansion grows the model in the role model and takes no other; from has other",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused_before_any_work(tmp_path, overrides, message):
    other = "+lineage.other={stage: base, with: {source: {seed: 1, config: %s}}}"
    given = [other % one.removeprefix("OTHER=") if one.startswith("OTHER=") else one for one in overrides]
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, *TINY, "strategy@pretrain.strategy=full", *given)


@pytest.mark.slow
def test_a_trained_model_goes_part_of_the_way_back(tmp_path, monkeypatch, capfd):
    """The experiment on a tiny model, from start to report: gains and drifts between those of its two models."""
    import pipeline.__main__ as driver

    arguments = small_run(
        tmp_path, "experiment=wise_ft", "benchmark=[domain,drift]", "lineage.trained.each.lr=[3e-3,1e-2]",
        "lineage.mixed.from.trained=trained-0.01",
    )  # fmt: skip

    def run(*more):
        monkeypatch.setattr("sys.argv", ["pipeline", *arguments, *more])
        assert driver.run() == 0, "".join(capfd.readouterr())

    run()
    trainings = {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs/artifacts/pretrain").iterdir()}
    page = tmp_path / "outputs" / "reports" / "wise_ft"
    data = json.loads((page / "data.json").read_text())
    (found,) = data["frontier"]
    methods = {one["method"]: one["points"] for one in found["all"]["methods"]}
    assert list(methods) == ["new blocks", "mix"]
    points = methods["mix"]
    assert [point["t"] for point in points] == [0.25, 0.5, 0.75]
    top = methods["new blocks"][-1]
    assert top["lr"] == 0.01 and 0 < points[0]["drift"] < points[1]["drift"] < points[2]["drift"] < top["drift"]
    assert "mix" in (page / "report.md").read_text() and (page / "frontier.svg").is_file()
    run("lineage.mixed.each.t=[0.1]")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs/artifacts/pretrain").iterdir()}
    assert after == trainings
