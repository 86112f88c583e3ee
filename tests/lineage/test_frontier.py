"""experiment=frontier: planned as it stands, and run with two methods at two rates each on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.engine.run import runner
from pipeline.lineage.build import build
from tests.lineage.small import small_run
from tests.test_conf import composed

ROOT = Path(__file__).parents[2]


def test_every_arm_trains_on_the_same_data_with_what_it_should(tmp_path):
    variant = build(composed("experiment=frontier"), "default", tmp_path / "hashes")
    arms = {name: node for name, node in variant.models.items() if variant.lineage[name].stage == "pretrain"}
    assert len(arms) == 16 and len({node.inputs["data"].fingerprint for node in arms.values()}) == 1
    for name, node in arms.items():
        target = node.params["strategy"]["_target_"].rpartition(".")[2]
        wanted = {"new_blocks": "NewBlocks", "full": "Full", "lora": "Lora", "existing_blocks": "ExistingBlocks"}
        method, rate = name.rsplit("-", 1) if "e-" not in name else name.split("-", 1)
        assert target == wanted[method] and node.params["lr"] == float(rate)
        assert node.inputs["model"] == variant.models["expanded" if method == "new_blocks" else "base"]
        assert set(variant.evaluations[name]) == {"domain", "drift"}
    same = {json.dumps({k: v for k, v in node.params.items() if k not in ("lr", "strategy")}) for node in arms.values()}
    assert len(same) == 1
    shown = runner.plan(variant.targets("report"), tmp_path / "outputs", tmp_path / "hashes")
    assert shown.count("LoRA of rank 70") == 4 and shown.count("134,515,008; 21,240,576 train") == 4


@pytest.mark.slow
def test_a_small_one_from_start_to_report(tmp_path, monkeypatch, capfd):
    import pipeline.__main__ as driver

    arguments = small_run(
        tmp_path, "experiment=frontier", "lineage.lora=null", "lineage.new_blocks=null", "lineage.expanded=null",
        "lineage.full.each.lr=[1e-3,4e-3]", "lineage.existing_blocks.each.lr=[3e-3,1e-2]",
    )  # fmt: skip
    monkeypatch.setattr("sys.argv", ["pipeline", *arguments])
    assert driver.run() == 0, "".join(capfd.readouterr())
    page = tmp_path / "outputs" / "reports" / "frontier"
    (found,) = json.loads((page / "data.json").read_text())["frontier"]
    methods = {one["method"]: one["points"] for one in found["all"]["methods"]}
    assert {name: [one["lr"] for one in points] for name, points in methods.items()} == {
        "full fine-tuning": [1e-3, 4e-3],
        "existing blocks": [3e-3, 1e-2],
    }
    assert all(one["gain"] > 0 and one["drift"] > 0 for points in methods.values() for one in points)
    assert methods["full fine-tuning"][1]["gain"] > methods["full fine-tuning"][0]["gain"]
    assert "Who drifts least for the same gain?" in (page / "report.md").read_text()
    assert 'id="lead-1"' in (page / "index.html").read_text() and (page / "frontier.svg").is_file()
