"""An optimizer carried on: two trainings are one, and what cannot go on is refused."""

import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.packing.mixture import PackedStream
from pipeline.training.fit import fit
from pipeline.training.methods.carried_lora import CarriedLora
from pipeline.training.methods.existing_blocks import ExistingBlocks
from pipeline.training.methods.strategy import Full, NewBlocks
from pipeline.training.parallel.carried import FOLDER, check_carried, trained_facts
from pipeline.training.parallel.checkpoint import load_moments, save_moments
from tests.training.knobs import TRACK, launched
from tests.training.processes import run_on_ranks, weights
from tests.training.test_fit import settings, store, train  # noqa: F401

CONSTANT = {"schedule": "constant", "warmup_ratio": 0.0, "spike_sigmas": None}
KEEP, CARRY = {"keep_optimizer": True}, {"carry_optimizer": True}


@pytest.fixture(scope="module")
def grown_in_fp32(make_model, grow):
    return grow(make_model("float32", seed=3))


def run(source, target, store, strategy, start, num_steps, **changes):  # noqa: F811
    """Steps `start` to `start + num_steps` of the data."""
    runtime, device = launched(target)
    stream, chosen = PackedStream([store], {"a": 1.0}, 64, 0, packing="fill"), settings(num_steps=num_steps, **changes)
    for _ in range(start):
        stream.batch(chosen.batch_size)
    return fit(source, target / "model", strategy, chosen, stream, {}, runtime, device)


@pytest.mark.parametrize("strategy", [NewBlocks(), Full()], ids=lambda one: type(one).__name__)
def test_two_trainings_are_one_of_a_constant_rate(grown_in_fp32, store, tmp_path, strategy):  # noqa: F811
    """To the bit: the model between them is saved in the dtype in which it trains."""
    run(grown_in_fp32, tmp_path / "whole", store, strategy, 0, 5, **CONSTANT)
    run(grown_in_fp32, tmp_path / "first", store, strategy, 0, 3, **CONSTANT, **KEEP)
    first = tmp_path / "first" / "model"
    metrics = run(first, tmp_path / "second", store, strategy, 3, 2, **CONSTANT, **CARRY)
    run(first, tmp_path / "new", store, strategy, 3, 2, **CONSTANT)
    whole, second, new = (load_file(tmp_path / one / "model/model.safetensors") for one in ("whole", "second", "new"))
    assert metrics["optimizer_carried"] and all(torch.equal(whole[name], second[name]) for name in whole)
    assert any(not torch.equal(whole[name], new[name]) for name in whole)
    assert trained_facts(tmp_path / "first") == {"optimizer": True} != trained_facts(tmp_path / "second")
    assert not list((tmp_path / "first").rglob("*.pt")) and not (first / FOLDER).exists()


def test_a_carried_training_that_was_stopped_goes_on_with_its_own(grown_in_fp32, store, tmp_path):  # noqa: F811
    from pipeline.training.runtime import StoppedError

    train(grown_in_fp32, tmp_path / "first", store, **KEEP)
    source = tmp_path / "first" / "model"
    train(source, tmp_path / "whole", store, **CARRY)
    with pytest.raises(StoppedError):
        train(source, tmp_path / "cut", store, stop_after=2, **CARRY)
    train(source, tmp_path / "cut", store, **CARRY)
    whole, cut = (load_file(tmp_path / one / "model/model.safetensors") for one in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_one_adapter_goes_on_with_its_moments(make_model, store, tmp_path):  # noqa: F811
    lora = CarriedLora(2, 4, 0.0, "all-linear")
    assert not train(make_model("float32"), tmp_path / "first", store, lora, **KEEP, **CARRY)["optimizer_carried"]
    metrics = train(tmp_path / "first" / "model", tmp_path / "second", store, lora, **CARRY)
    assert metrics["optimizer_carried"]


@pytest.mark.slow
@pytest.mark.parametrize("launch", [{}, {"sharding": "fsdp2"}], ids=["ddp", "fsdp2"])
def test_it_goes_on_over_two_processes_and_over_another_number(grown_in_fp32, tmp_path, launch):
    """Two trainings are one, to the bit, and what two processes kept one process goes on with."""
    two, first = {"world": 2, "launch": launch}, str(tmp_path / "first" / "model")
    rest = {"source": first, "first_step": 3, "settings": {**CONSTANT, **CARRY, "num_steps": 2}}
    specs = [
        {**two, "directory": "whole", "settings": {**CONSTANT, "num_steps": 5}},
        {**two, "directory": "first", "settings": {**CONSTANT, **KEEP, "num_steps": 3}},
        {**two, "directory": "second", **rest},
        {"world": 1, "directory": "alone", **rest},
        {**two, "directory": "new", **rest, "settings": {**CONSTANT, "num_steps": 2}},
    ]
    run_on_ranks(tmp_path, grown_in_fp32, specs)
    whole, second, alone, new = (weights(tmp_path / one) for one in ("whole", "second", "alone", "new"))
    assert all(torch.equal(whole[name], second[name]) for name in whole)
    for name in whole:
        torch.testing.assert_close(alone[name], whole[name], rtol=0, atol=1e-5)
    assert max((new[name] - whole[name]).abs().max() for name in whole) > 1e-3


def test_what_no_gradient_reached_goes_on_without_a_state(tmp_path):
    used, idle = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    trainable = {"used": used, "idle": idle}
    optimizer = torch.optim.AdamW([used, idle])
    used.grad = torch.ones(3)
    optimizer.step()
    save_moments(tmp_path / FOLDER, 1, trainable, optimizer)
    fresh = torch.optim.AdamW([used, idle])
    load_moments(tmp_path / FOLDER, trainable, fresh)
    assert fresh.state.keys() == {used}
    assert all(torch.equal(fresh.state[used][part], value) for part, value in optimizer.state[used].items())
    for other in ({"used": used}, {**trainable, "more": idle}):
        with pytest.raises(ValueError, match="holds other parameters than those that train"):
            load_moments(tmp_path / FOLDER, other, torch.optim.AdamW([used]))
    with pytest.raises(ValueError, match=r"holds used of shape \[3\], and here it has \[4\]"):
        load_moments(tmp_path / FOLDER, {**trainable, "used": torch.nn.Parameter(torch.ones(4))}, fresh)


def test_what_cannot_go_on_is_refused(grown_in_fp32, store, tmp_path):  # noqa: F811
    train(grown_in_fp32, tmp_path / "kept", store, num_steps=1, **KEEP)
    train(grown_in_fp32, tmp_path / "not", store, num_steps=1)
    with pytest.raises(ValueError, match=r"carry_optimizer=true cannot.*holds other parameters.*: model\.layers\."):
        train(tmp_path / "kept" / "model", tmp_path / "other", store, ExistingBlocks(blocks=[0]), **CARRY)
    with pytest.raises(ValueError, match="did not keep it; set keep_optimizer=true there"):
        train(tmp_path / "not" / "model", tmp_path / "another", store, **CARRY)


@pytest.mark.parametrize(
    ("changes", "begins_anew", "kept", "told"),
    [
        (CARRY, False, False, "did not keep it; set keep_optimizer=true there"),
        (CARRY, True, True, "begins with a new adapter in each training"),
        ({**KEEP, "track": {**TRACK, "keep_best": "domain"}}, False, None, "the weights of another"),
    ],
)
def test_it_is_refused_before_work(changes, begins_anew, kept, told):
    with pytest.raises(ValueError, match=told):
        check_carried({**vars(settings()), **changes}, begins_anew, kept)


def test_it_is_told_before_work():
    told = [check_carried({**vars(settings()), **CARRY}, False, kept) for kept in (True, None)]
    assert told == [["optimizer   carried on"], ["optimizer   new: no training made its model"]]
    assert check_carried(vars(settings()), False, False) == []
