"""Really two processes: the curve of one, whatever way parameters lie, and a run that changes its number midway."""

import json

import pytest
import torch

from tests.training.processes import curve, run_on_ranks, samples, weights

DDP, FSDP = {"launch": {}}, {"launch": {"sharding": "fsdp2"}}


@pytest.fixture(scope="module")
def expanded(make_model, grow):
    return grow(make_model("bfloat16"))


@pytest.fixture(scope="module")
def runs(expanded, tmp_path_factory):
    """One process; two replicated; two sharded, with and without resharding; and relays 1 -> 2 -> 1 of both kinds."""
    root = tmp_path_factory.mktemp("runs")
    kinds = {"ddp": DDP, "fsdp": FSDP, "fsdp-kept": {"launch": {"sharding": "fsdp2", "reshard": False}}}
    specs = [{"directory": "one", "world": 1}]
    specs += [{"directory": name, "world": 2, **kind} for name, kind in kinds.items()]
    for name in ("ddp", "fsdp"):
        relay = {"directory": f"relay-{name}", **kinds[name]}
        specs += [{**relay, "world": 1, "stop_after": 2}]
        specs += [{**relay, "world": 2, "stop_after": 2, "told": "1"}]  # a signal may reach one rank alone
        specs += [{**relay, "world": 1}]
    ends = run_on_ranks(root, expanded, specs)
    assert ends[4:] == [[3], [3, 3], [0]] * 2, "each leg of a relay was stopped after two steps but the last"
    return root


@pytest.mark.parametrize("name", ["ddp", "fsdp", "fsdp-kept", "relay-ddp", "relay-fsdp"])
def test_the_curve_is_that_of_one_process(runs, name):
    assert json.loads((runs / name / "metrics.json").read_text())["num_processes"] == (1 if "relay" in name else 2)
    expected, found = curve(runs / "one"), curve(runs / name)
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    for key in ("loss", "grad_norm", "val_loss", "labels"):
        values = [[record[key] for record in one if key in record] for one in (expected, found)]
        assert values[0] == pytest.approx(values[1], rel=1e-5), key
    assert samples(runs / "one") == samples(runs / name)


@pytest.mark.parametrize("name", ["ddp", "fsdp", "relay-fsdp"])
def test_the_weights_are_those_of_one_process(runs, expanded, name):
    """Saved in bf16, as the source is: a value that lay on the edge of rounding may differ by one step of bf16."""
    one, other = weights(runs / "one"), weights(runs / name)
    assert one.keys() == other.keys()
    for key in one:
        assert torch.allclose(one[key].float(), other[key].float(), rtol=2**-7, atol=1e-6), key


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["new_blocks", "full", "lora"])
def test_mixed_dtypes_in_a_unit(expanded, tmp_path, strategy):
    """bf16: frozen parameters are held in bf16 and trained ones in fp32, with LoRA in one block together."""
    changes = {"strategy": strategy, "settings": {"precision": "bf16", "batch_size": 4}}
    specs = [{"directory": "one", "world": 1, **changes}, {"directory": "two", "world": 2, **changes, **FSDP}]
    run_on_ranks(tmp_path, expanded, specs)
    one, two = ([record["loss"] for record in curve(tmp_path / name) if "loss" in record] for name in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-3)  # gradients are sums of bf16 products
