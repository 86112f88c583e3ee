"""Really two processes under DeepSpeed: the curve of one, and checkpoints that every layout goes on from."""

import importlib.util
import json

import pytest
import torch

from tests.training.parallel.test_distributed import check_curve, expanded  # noqa: F401
from tests.training.processes import curve, run_on_ranks, samples, weights

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed: pip install -e '.[deepspeed]'"
)
ONE = {"world": 1}
TWO, THREE = ({"world": 2, "launch": {"sharding": sharding}} for sharding in ("zero2", "zero3"))


@pytest.fixture(scope="module")
def runs(expanded, tmp_path_factory):  # noqa: F811
    """One process, each stage on two, and a relay of all layouts, stopped every other step."""
    root = tmp_path_factory.mktemp("runs")
    specs = [{**kind, "directory": name} for name, kind in {"one": ONE, "zero2": TWO, "zero3": THREE}.items()]
    legs = [{**TWO, "stop_after": 2}, {**THREE, "stop_after": 2}, {**ONE, "stop_after": 2}, TWO]
    ends = run_on_ranks(root, expanded, [*specs, *({**leg, "directory": "relay"} for leg in legs)])
    assert ends[3:] == [[3, 3], [3, 3], [3], [0, 0]], "each leg was stopped after two steps but the last"
    return root


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2", "zero3", "relay"])
def test_the_curve_and_the_weights_are_those_of_one_process(runs, name):
    metrics = json.loads((runs / name / "metrics.json").read_text())
    assert metrics["num_processes"] == 2 and metrics["reload_check_s"] > 0
    check_curve(curve(runs / "one"), curve(runs / name))
    assert samples(runs / "one") == samples(runs / name)
    one, other = weights(runs / "one"), weights(runs / name)
    assert one.keys() == other.keys()
    for key in one:
        assert torch.allclose(one[key].float(), other[key].float(), rtol=2**-7, atol=1e-6), key


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "precision", "tolerance"), [("full", "fp32", 1e-4), ("lora", "bf16", 1e-2)])
def test_a_gradient_that_no_step_took_is_gone(expanded, tmp_path, strategy, precision, tolerance):  # noqa: F811
    """One is tried before the run, others stand out and are skipped; there are several micro batches a step."""
    guard = {"spike_sigmas": 0.5, "spike_window": 4, "max_skipped_steps": 12}
    settings = {"batch_size": 7, "num_steps": 9, "precision": precision, "lr": 1e-3, **guard}
    kinds = {"one": {"world": 1, "launch": {}}, "zero2": TWO, "zero3": THREE}
    specs = [
        {"directory": name, "world": kind["world"], "strategy": strategy, "settings": settings,
         "launch": {**kind["launch"], "preflight": True, "checkpoint_every_s": 999, "checkpointing": "full"}}
        for name, kind in kinds.items()
    ]  # fmt: skip
    run_on_ranks(tmp_path, expanded, specs)
    one, *others = ([record for record in curve(tmp_path / name) if "loss" in record] for name in kinds)
    skipped = [record.get("skipped") is not None for record in one]
    assert any(skipped) and not all(skipped)
    for other in others:
        assert [record.get("skipped") is not None for record in other] == skipped
        for key in ("loss", "grad_norm"):
            assert [r[key] for r in one] == pytest.approx([r[key] for r in other], rel=tolerance), key
