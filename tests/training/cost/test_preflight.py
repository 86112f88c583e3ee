"""Before the first step: labels, memory, and answers that name a knob; and not one bit of the result moved."""

import types

import numpy as np
import pytest
import torch

from pipeline.data.packing.mixture import PackedStream
from pipeline.training import fit as fit_module
from pipeline.training.cost import preflight
from pipeline.training.cost.memory import Knobs, Memory
from pipeline.training.methods.strategy import Full, Lora, NewBlocks
from tests.training.test_fit import expanded as expanded
from tests.training.test_fit import losses, same, settings, train, weights
from tests.training.test_fit import store as store

KNOBS = Knobs(micro_batch=4, checkpointing="off", loss_chunk=512)


@pytest.mark.parametrize(
    ("strategy", "precision"),
    [
        (NewBlocks(), "fp32"),
        pytest.param(NewBlocks(), "bf16", marks=pytest.mark.slow),
        pytest.param(Full(), "fp32", marks=pytest.mark.slow),
        pytest.param(Lora(4, 8, 0.1, "all-linear"), "fp32", marks=pytest.mark.slow),
    ],
    ids=["new_blocks", "new_blocks-bf16", "full", "lora-dropout"],
)
def test_the_probe_does_not_move_a_bit(expanded, store, tmp_path, strategy, precision):
    for on in (True, False):
        run = tmp_path / str(on)
        metrics = train(expanded, run, store, strategy, launch={"preflight": on}, precision=precision, num_steps=3)
        assert ("preflight" in metrics) == on
    assert same(weights(tmp_path / "True"), weights(tmp_path / "False"))
    assert losses(tmp_path / "True") == losses(tmp_path / "False")


def test_a_run_tells_its_utilisation(expanded, store, tmp_path):
    metrics = train(expanded, tmp_path, store, launch={"preflight": True}, num_steps=2)
    assert 0 < metrics["mfu"] < 1 and metrics["peak_source"] == "measured"
    # Of four old and two new blocks those from the first new one up have a backward pass: less than 6ND.
    assert metrics["flops_per_token"] < metrics["flops_per_token_6nd"]
    assert metrics["mfu"] / metrics["mfu_6nd"] == pytest.approx(
        metrics["flops_per_token"] / metrics["flops_per_token_6nd"], rel=0.05
    )
    found = metrics["preflight"]
    assert 0 < found["peak_bytes"] < found["expected_bytes"] < found["limit_bytes"]
    assert found["expected_bytes"] - found["peak_bytes"] == 8 * metrics["num_trainable"]


class Unlabelled(PackedStream):
    def read(self, row):
        found = super().read(row)
        return {**found, "labels": np.full_like(found["labels"], -100)}


def test_a_first_batch_without_labels_is_refused(store):
    with pytest.raises(ValueError, match=r"first batch \(4 rows\) has no labelled token.*assistant turns"):
        preflight.check_labels(Unlabelled([store], {"a": 1.0}, 64, 0), 4)


def test_looking_for_labels_leaves_the_stream_where_it_stood(store):
    looked, fresh = (PackedStream([store], {"a": 1.0}, 64, 0, packing="fill") for _ in range(2))
    preflight.check_labels(looked, 4)
    assert looked.state_dict() == fresh.state_dict()
    assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b, _ in zip(looked, fresh, range(9), strict=False))


def test_a_step_that_does_not_fit_is_refused_before_the_run(expanded, store, tmp_path, monkeypatch):
    real = preflight.limit_bytes(torch.device("cpu"))
    held = preflight._held_bytes(torch.device("cpu"))
    assert held < real
    monkeypatch.setattr(preflight, "limit_bytes", lambda *_: held // 2)
    with pytest.raises(ValueError, match=r"a step needs .* may use .*launch\.micro_batch=1 \(now 2\)"):
        train(expanded, tmp_path, store, launch={"preflight": True})
    assert not (tmp_path / "checkpoints").exists()


def test_state_alone_that_is_too_much_is_refused_before_the_probe():
    model = torch.nn.Linear(100, 100, bias=False)
    trainable = dict(model.named_parameters())
    preflight.check_state(trainable, model, 40_000 * 4, KNOBS)
    with pytest.raises(ValueError, match=r"39\.1 KiB of weights and 117 KiB of gradients.*fsdp2.*train less"):
        preflight.check_state(trainable, model, 40_000 * 4 - 1, KNOBS)


def test_state_that_will_not_fit_is_refused_before_anything_is_loaded(expanded, store, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "limit_bytes", lambda *_: 1000)
    monkeypatch.setattr(fit_module, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=r"is expected to hold .* may use 1000 B|may use 0\.977 KiB") as caught:
        train(expanded, tmp_path, store, launch={"preflight": True})
    text = str(caught.value)
    assert all(way in text for way in ("launch=fsdp2", "frozen_dtype=bf16/int8/nf4", "fewer new blocks"))
    assert "micro_batch" not in text and "checkpointing" not in text


@pytest.mark.parametrize(
    ("changes", "forms"),
    [
        ({}, "frozen_dtype=bf16/int8/nf4"),
        ({"precision": "bf16"}, "frozen_dtype=int8/nf4"),
        ({"frozen_dtype": "bf16"}, "frozen_dtype=int8/nf4"),
    ],
)
def test_running_out_while_loading_names_what_makes_a_model_smaller(
    expanded,
    store,
    tmp_path,
    monkeypatch,
    changes,
    forms,
):
    def full(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(fit_module, "load", full)
    with pytest.raises(ValueError, match=r"out of memory while the model was loaded \(.*can't allocate") as caught:
        train(expanded, tmp_path, store, **changes)
    assert forms in str(caught.value) and "micro_batch" not in str(caught.value)


def test_state_with_nothing_frozen_is_not_said_to_be_held_in_fewer_bits():
    expected = Memory(frozen=0, master=100, gradients=100, optimizer=200, activations=0, loss=0)
    preflight.check_before_loading(expected, 400, settings(), KNOBS)
    with pytest.raises(ValueError, match="train less") as caught:
        preflight.check_before_loading(expected, 399, settings(), KNOBS)
    assert "frozen_dtype" not in str(caught.value)


def test_activations_that_are_far_too_much_are_refused_without_trying():
    """On a CPU the attempt itself would end the process."""
    expected = Memory(frozen=100, master=0, gradients=0, optimizer=0, activations=1000, loss=0)
    preflight.check_activations(expected, 600, 128, KNOBS)
    with pytest.raises(ValueError, match=r"expected to need 1\.07 KiB.*launch\.micro_batch=2"):
        preflight.check_activations(expected, 599, 128, KNOBS)


def test_a_model_without_an_estimate_is_tried_all_the_same(make_model, expanded):
    assert preflight.expected_memory(expanded, NewBlocks(), settings(), KNOBS).total > 0
    other = make_model(model_type="gpt2", n_embd=32, n_layer=4, n_head=4, n_positions=64)
    assert preflight.expected_memory(other, Full(), settings(), KNOBS) is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_running_out_of_memory_names_the_knobs(error):
    with pytest.raises(ValueError, match=r"launch\.micro_batch=2") as caught, preflight.shortage_explained(128, KNOBS):
        raise error
    text = str(caught.value)
    assert caught.value.__cause__ is error
    assert all(knob in text for knob in ("launch.checkpointing=full", "launch.loss_chunk=128", "seq_len=128"))


def test_a_real_allocation_that_fails_is_explained():
    needed = pytest.raises(ValueError, match=r"out of memory with launch\.micro_batch=4")
    with needed, preflight.shortage_explained(128, KNOBS):
        torch.empty(1 << 60)


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="shape"), preflight.shortage_explained(128, KNOBS):
        raise RuntimeError("shape '[2, 3]' is invalid")


def test_nothing_is_named_that_is_done_already():
    smallest = Knobs(micro_batch=1, checkpointing="full", loss_chunk=128, shards=2)
    assert preflight.remedy(smallest, 4096) == "lower seq_len=4096, which changes the result"
    assert "fsdp2" not in preflight.remedy(Knobs(2, "full", 128, shards=2), 4096)


def test_a_control_groups_limit_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000000\n")
    monkeypatch.setattr(preflight, "CGROUP_LIMITS", (str(tmp_path / "memory.max"),))
    assert preflight.limit_bytes(torch.device("cpu")) == 1_000_000
    assert preflight.limit_bytes(torch.device("cpu"), 4) == 250_000
    (tmp_path / "memory.max").write_text("max\n")
    assert preflight.limit_bytes(torch.device("cpu")) > 1_000_000


def test_the_probe_restores_the_generator():
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.ones(3))
    model.config = types.SimpleNamespace(vocab_size=7)
    seen = []

    def forward(input_ids, labels, position_ids):
        seen.append((input_ids.shape, int(input_ids.max()), bool((labels == input_ids).all())))
        return (model.weight * torch.rand(3)).sum()

    model.forward = forward
    from accelerate import Accelerator

    before = torch.get_rng_state()
    optimizer = torch.optim.AdamW([model.weight])
    preflight.probe(Accelerator(cpu=True), model, optimizer, {"weight": model.weight}, settings(), KNOBS)
    assert torch.equal(before, torch.get_rng_state()) and model.weight.grad is None and not optimizer.state
    assert seen == [((4, 64), 6, True)]
