"""Really two processes: the curve of one, whatever way parameters lie, and a run that changes its number midway."""

import json
from types import SimpleNamespace

import pytest
import torch

from pipeline.expansion.methods.scale import Scale
from pipeline.expansion.source import read_source
from pipeline.expansion.writer import write_expansion
from pipeline.training.parallel.distributed import Layout, distribute
from tests.training.processes import curve, run_on_ranks, samples, weights

DDP, FSDP = {"world": 2}, {"world": 2, "launch": {"sharding": "fsdp2"}}
ONE, KEPT = {"world": 1}, {"world": 2, "launch": {"sharding": "fsdp2", "reshard": False}}


@pytest.fixture(scope="module")
def expanded(make_model, grow):
    return grow(make_model("bfloat16"))


@pytest.fixture(scope="module")
def runs(expanded, tmp_path_factory):
    """One process, two replicated, two sharded; and a relay of all three, stopped every other step."""
    root = tmp_path_factory.mktemp("runs")
    specs = [{**kind, "directory": name} for name, kind in {"one": ONE, "ddp": DDP, "fsdp": FSDP}.items()]
    told = {"told": "1"}  # a signal may reach one rank alone
    legs = [{**ONE, "stop_after": 2}, {**FSDP, **told, "stop_after": 2}, {**DDP, **told, "stop_after": 2}, ONE]
    ends = run_on_ranks(root, expanded, [*specs, *({**leg, "directory": "relay"} for leg in legs)])
    assert ends[3:] == [[3], [3, 3], [3, 3], [0]], "each leg was stopped after two steps but the last"
    return root


def check_curve(expected, found):
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    for key in ("loss", "grad_norm", "val_loss", "labels"):
        values = [[record[key] for record in one if key in record] for one in (expected, found)]
        assert len(values[0]) > 1 and values[0] == pytest.approx(values[1], rel=1e-5), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp", "relay"])
def test_the_curve_is_that_of_one_process(runs, name):
    metrics = json.loads((runs / name / "metrics.json").read_text())
    assert metrics["num_processes"] == (1 if name == "relay" else 2)
    assert metrics["reload_check_s"] > 0  # what was saved is what was trained, gathered or not
    check_curve(curve(runs / "one"), curve(runs / name))
    assert samples(runs / "one") == samples(runs / name)


@pytest.mark.slow
def test_labels_are_uneven_enough_to_tell(runs):
    """The mean over tokens is far from the mean of ranks' means, or the curve would prove nothing."""
    labels = [record["labels"] for record in curve(runs / "one") if "labels" in record]
    assert len(set(labels)) > 3 and max(labels) > 1.2 * min(labels)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp", "relay"])
def test_the_weights_are_those_of_one_process(runs, expanded, name):
    """Saved in bf16, as the source is: a value that lay on the edge of rounding may differ by one step of bf16."""
    one, other = weights(runs / "one"), weights(runs / name)
    assert one.keys() == other.keys()
    for key in one:
        assert torch.allclose(one[key].float(), other[key].float(), rtol=2**-7, atol=1e-6), key


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["preserve", "adapt"])
def test_a_widened_model_trains_on_two_ranks_as_on_one(make_model, tmp_path, mode):
    """Its blocks and its head hold old and new weights side by side, and its head is tied in part."""
    source, settings = read_source(make_model("bfloat16")), {"init": "svd", "seed": 0}
    widths = {"new_features": 8, "new_key_value_heads": 1, "new_inner_features": 16}
    write_expansion(Scale(mode=mode, **widths, **settings).plan(source, None), source, tmp_path / "wide")
    specs = [{**kind, "directory": name} for name, kind in {"one": ONE, "ddp": DDP, "fsdp": FSDP}.items()]
    assert run_on_ranks(tmp_path, tmp_path / "wide", specs) == [[0], [0, 0], [0, 0]]
    one = weights(tmp_path / "one")
    for name in ("ddp", "fsdp"):
        check_curve(curve(tmp_path / "one"), curve(tmp_path / name))
        other = weights(tmp_path / name)
        assert one.keys() == other.keys() and any(".back." in key and one[key].any() for key in one)
        for key in one:
            assert torch.allclose(one[key].float(), other[key].float(), rtol=2**-7, atol=1e-6), key


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_a_sharding_of_accelerates_own_is_refused(kind):
    with pytest.raises(ValueError, match=f"configured for {kind}.*set launch.sharding=fsdp2"):
        distribute(SimpleNamespace(distributed_type=kind), torch.nn.Linear(1, 1), [], Layout("none", True), dict)
    with pytest.raises(ValueError, match=f"sharding='{kind}' is not known; use one of none, fsdp2"):
        Layout(kind, True)


@pytest.mark.slow
def test_units_that_stay_gathered(expanded, tmp_path):
    run_on_ranks(tmp_path, expanded, [{**ONE, "directory": "one"}, {**KEPT, "directory": "kept"}])
    check_curve(curve(tmp_path / "one"), curve(tmp_path / "kept"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "precision", "tolerance"),
    [("new_blocks", "bf16", 1e-3), ("full", "bf16", 1e-3), ("lora", "bf16", 1e-3), ("lora", "fp32", 1e-5)],
)
def test_mixed_dtypes_in_a_unit(expanded, tmp_path, strategy, precision, tolerance):
    """bf16: frozen parameters are held in bf16 and trained ones in fp32, with LoRA in one block together."""
    changes = {"strategy": strategy, "settings": {"precision": precision, "batch_size": 4}}
    specs = [{"directory": "one", **ONE, **changes}, {"directory": "two", **FSDP, **changes}]
    run_on_ranks(tmp_path, expanded, specs)
    one, two = ([record["loss"] for record in curve(tmp_path / name) if "loss" in record] for name in ("one", "two"))
    assert one == pytest.approx(two, rel=tolerance)  # bf16: gradients are sums of rounded products
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    if precision == "fp32":
        assert all(torch.allclose(one[name].float(), two[name].float(), rtol=2**-7, atol=1e-6) for name in one)
