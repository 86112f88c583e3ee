"""The figure of what was learned against how far a model moved, along its training."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.reporting.collect import collect
from pipeline.reporting.compare import compare
from pipeline.reporting.figures.path_figure import path_figure, path_plot, runs
from tests.reporting.synthetic import BENCHMARKS, Artifacts

STEPS = (0, 20, 40, 60)


def track(directory: Path, start: float, gain: float, drift: float, **metrics) -> None:
    """Append measures to a made-up training log, and metrics to its manifest."""
    with (directory / "metrics.jsonl").open("a") as out:
        for step in STEPS:
            share = step / STEPS[-1]
            record = {"step": step, "tokens": step * 4096, "base/domain": 1.0, "track/domain": start - gain * share}
            out.write(json.dumps({**record, "track/drift": (1.0 - start) + drift * share}) + "\n")
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["metrics"] |= metrics
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def made(tmp_path):
    """A function that gives a comparison of one or two variants; `tracked` says whether any step was measured."""

    def make(num_variants: int = 1, tracked: bool = True, **metrics):
        artifacts = Artifacts(tmp_path)
        base = artifacts.row("base", "base", "base", {"domain_text": 0.0}) | {"parents": {}, "reference": None}
        variants = []
        for number in range(num_variants):
            name = f"pretrain.lr={number}"
            row = artifacts.row("post-pretrained", name, "pretrain", {"domain_text": 0.1}, num_new=50)
            tuned = artifacts.row("tuned", name, "sft", {"domain_text": 0.1}, num_new=50)
            if tracked:
                track(artifacts.inputs[row["model"]], 1.0, 0.05, 0.06 * (1 + number), **metrics)
                track(artifacts.inputs[tuned["model"]], 0.95, -0.01, 0.02)
            rows = [
                row | {"parents": {"model": "base"}, "reference": "base"},
                tuned | {"parents": {"model": "post-pretrained"}, "reference": "base"},
            ]
            variants.append({"variant": name, "models": [base, *rows]})
        collection = collect("a run", variants, BENCHMARKS, artifacts.inputs)
        return compare(collection, confidence=0.95, num_bootstrap=50, seed=0, power=0.8)

    return make


def test_gain_and_drift_of_every_step(made):
    first, second = runs(made())
    assert (first.line.name, second.line.name) == ("post-pretrained", "tuned")
    assert first.steps.tolist() == list(STEPS) and first.gain[0] == 0
    assert np.allclose(first.gain, [0, 0.05 / 3, 0.1 / 3, 0.05]) and np.allclose(first.drift, [0, 0.02, 0.04, 0.06])
    assert np.allclose(second.gain, [0.05, 0.05 - 0.01 / 3, 0.05 - 0.02 / 3, 0.04])  # over the base, not over its start


@pytest.mark.parametrize("num_variants", [1, 2])
def test_one_line_a_run_of_its_variants_colour(made, num_variants):
    figure = path_figure(made(num_variants))
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == len(STEPS)]
    assert len(lines) == 2 * num_variants and len({line.get_color() for line in lines}) == num_variants
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts >= ({"base", "tuned, step 60"} if num_variants == 1 else {"base", "lr=0", "lr=1"})


def test_what_tracking_did_is_said(made, tmp_path):
    told = "stopped after step 60 of 90: drift is 0.06 nats/token, more than track.stop_if.drift=0.05"
    plot = path_plot(made(stopped=told, kept_step=40), tmp_path)
    assert f"post-pretrained was {told}." in plot.caption and "after step 40 were kept" in plot.caption
    assert "post-pretrained: +0.0500 bits per byte at 0.060 nats per token after step 60" in plot.alt
    assert plot.path.read_text().startswith("<?xml") and (tmp_path / "path.png").stat().st_size > 5000


def test_there_is_none_where_nothing_was_tracked(made, tmp_path):
    assert path_figure(made(tracked=False)) is None and path_plot(made(tracked=False), tmp_path) is None
