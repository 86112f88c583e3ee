"""A composed model (CALM) in the training loop: the bridges alone move, packed, resumed, and on two processes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline.models import load
from pipeline.models.save import save_trained
from pipeline.records.expansion import read_expansion
from pipeline.training.kernels.attention import choose_attention
from pipeline.training.kernels.head import head_of
from pipeline.training.methods.strategy import Full
from pipeline.training.packed_loss import PackedLoss
from pipeline.training.runtime import StoppedError
from tests.composed import SMALLER, compose
from tests.training.processes import curve, run_on_ranks, samples, weights
from tests.training.ranks import chats
from tests.training.test_fit import losses, same, train


@pytest.fixture(scope="module")
def composed(make_model, tmp_path_factory):
    """Two families, of which the smaller is read, both 4 blocks deep."""
    anchor, other = make_model("bfloat16"), make_model("bfloat16", seed=1, model_type="qwen3", **SMALLER)
    return compose(anchor, other, tmp_path_factory.mktemp("composed"))


@pytest.fixture(scope="module")
def trained(composed, tmp_path_factory):
    """With bridges that add something."""
    target = tmp_path_factory.mktemp("trained")
    names, generator = read_expansion(composed).new_parameters, torch.Generator().manual_seed(0)
    shapes = {name: p.shape for name, p in load(composed).named_parameters() if name in names}
    save_trained(composed, target, {n: torch.randn(s, generator=generator) * 0.3 for n, s in shapes.items()})
    return target


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_bridges_move_and_both_models_stay(composed, tmp_path, precision):
    metrics = train(composed, tmp_path, chats(40), precision=precision)
    before, after = (load_file(one / "model.safetensors") for one in (composed, tmp_path / "model"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(read_expansion(composed).new_parameters)
    assert metrics["val_loss"] < metrics["val_loss_before"]
    assert metrics["num_trainable"] == 2 * (4 * 32**2 + 24 * 32) and not metrics["one_document_a_row"]


def test_all_of_the_anchor_may_train_and_the_augmenting_model_stays(composed, tmp_path):
    train(composed, tmp_path, chats(40), Full())
    before, after = (load_file(one / "model.safetensors") for one in (composed, tmp_path / "model"))
    stayed = {name for name in before if torch.equal(before[name], after[name])}
    assert stayed == set(read_expansion(composed).fixed_parameters)


@pytest.mark.parametrize("kernel", ["documents", "sdpa", "eager"])
def test_the_packed_loss_is_that_of_the_documents_alone(trained, kernel):
    model = load(trained, dtype=torch.float32)
    choose_attention(model, kernel, torch.device("cpu"))
    loss_of = PackedLoss(model, head_of(model), 16).eval()
    generator, lengths = torch.Generator().manual_seed(0), (9, 1, 14)
    ids = torch.randint(3, 40, (sum(lengths) + 1,), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])
    with torch.no_grad():
        packed = loss_of(ids[None, :-1], ids[None, 1:], positions[None])
        alone, start = torch.zeros(()), 0
        for length in lengths:
            row = slice(start, start + length)
            alone += loss_of(ids[None, :-1][:, row], ids[None, 1:][:, row], torch.arange(length)[None])
            start += length
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=0)


@pytest.mark.parametrize("launch", [{"checkpointing": "selective"}, {"checkpointing": "full"}], ids=lambda x: str(*x))
def test_what_is_kept_in_memory_changes_no_weight(composed, tmp_path, launch):
    train(composed, tmp_path / "plain", chats(40))
    train(composed, tmp_path / "changed", chats(40), launch=launch)
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "changed"))


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_stopped_run_resumes_to_the_same_bits(composed, tmp_path, stop_after):
    train(composed, tmp_path / "whole", chats(40))
    with pytest.raises(StoppedError):
        train(composed, tmp_path / "cut", chats(40), stop_after=stop_after)
    train(composed, tmp_path / "cut", chats(40))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(composed, tmp_path):
    """Replicated, and in parts: the augmenting model is in no block's unit."""
    shapes = {"one": {"world": 1}, "ddp": {"world": 2}, "fsdp": {"world": 2, "launch": {"sharding": "fsdp2"}}}
    run_on_ranks(tmp_path, composed, [{**shape, "directory": name} for name, shape in shapes.items()])
    one = curve(tmp_path / "one")
    for name in ("ddp", "fsdp"):
        assert json.loads((tmp_path / name / "metrics.json").read_text())["num_processes"] == 2
        assert samples(tmp_path / name) == samples(tmp_path / "one")
        for key in ("loss", "grad_norm", "val_loss"):
            found, expected = ([e[key] for e in records if key in e] for records in (curve(tmp_path / name), one))
            assert len(found) > 1 and found == pytest.approx(expected, rel=1e-5), (name, key)
        first, second = weights(tmp_path / "one"), weights(tmp_path / name)
        close = (torch.allclose(first[n].float(), second[n].float(), rtol=2**-7, atol=1e-6) for n in first)
        assert first.keys() == second.keys() and all(close)
