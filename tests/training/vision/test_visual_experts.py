"""A model with visual experts in the training loop: it learns from images, resumes, and runs on two processes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline.expansion.verify import verify_identity
from pipeline.models import load
from pipeline.models.directory import read_config
from pipeline.records.expansion import read_expansion
from pipeline.training.fit import fit
from pipeline.training.kernels.attention import choose_attention
from pipeline.training.kernels.head import head_of
from pipeline.training.methods.strategy import Full, NewBlocks
from pipeline.training.micro_batches import MicroBatches
from pipeline.training.packed_loss import PackedLoss
from pipeline.training.runtime import StoppedError
from pipeline.training.settings import Settings
from tests.training.knobs import SETTINGS, launched
from tests.training.processes import curve, run_on_ranks, samples, weights
from tests.training.ranks import chats
from tests.training.test_fit import losses, same
from tests.training.test_fit import train as train_on_text
from tests.visual import give_sight, image_stream


@pytest.fixture(scope="module")
def seeing(make_model, tmp_path_factory):
    return give_sight(make_model("bfloat16"), tmp_path_factory.mktemp("seeing"))


def token_of(model):
    return read_config(model)["image_token_id"]


def train(source, run, strategy=None, stop_after=None, launch=None, **changes):
    runtime, device = launched(run, stop_after, launch)
    validation = {"a": image_stream(40, token_of(source), seed=9).batch(2)}
    stream, settings = image_stream(40, token_of(source)), Settings(**{**SETTINGS, **changes})
    return fit(source, run / "model", strategy or NewBlocks(), settings, stream, validation, runtime, device)


@pytest.mark.parametrize(("strategy", "precision"), [(NewBlocks, "fp32"), (Full, "bf16")])
def test_it_learns_what_images_show_and_text_stays(make_model, seeing, tmp_path, strategy, precision):
    """To the bit, with what trains alone in another place than before."""
    metrics = train(seeing, tmp_path, strategy(), precision=precision, num_steps=40)
    before, after = (load_file(one / "model.safetensors") for one in (seeing, tmp_path / "model"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    new = set(read_expansion(seeing).new_parameters)
    assert moved <= new and {name for name in new if "layers.0" in name} <= moved
    assert verify_identity(make_model("bfloat16"), tmp_path / "model", num_tokens=24).exact
    assert metrics["val_loss"] < metrics["val_loss_before"] - 0.3 and not metrics["one_document_a_row"]
    blind = dict.fromkeys(("pixel_values",), torch.zeros(1, 1, 4, 4))
    shown = {"pixel_values": torch.cat([torch.ones(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)], 2)}
    model, ids_BT = load(tmp_path / "model"), torch.tensor([[61, *[token_of(seeing)] * 6, 40]])
    with torch.no_grad():
        logits = [model(input_ids=ids_BT, **one).logits[0, -1].float() for one in (blind, shown)]
    assert (logits[0][51] - logits[0][50]) < (logits[1][51] - logits[1][50])


@pytest.mark.parametrize("kernel", ["documents", "sdpa", "eager"])
def test_the_packed_loss_is_that_of_the_images_alone_also_with_one_row_for_all(seeing, kernel):
    model = load(seeing, dtype=torch.float32)
    choose_attention(model, kernel, torch.device("cpu"))
    rows = image_stream(40, token_of(seeing)).batch(2)
    alone = image_stream(40, token_of(seeing), seq_len=13)  # one document a row
    alone = {(row["spans"][0][1]): row for row in (next(alone) for _ in range(40))}

    class Here:
        device, process_index, num_processes = torch.device("cpu"), 0, 1

    def loss(rows, **options):
        packed = PackedLoss(model, head_of(model), 16, **options).eval()
        return MicroBatches(Here, packed, "fp32", 2, {}).loss_sum(rows)

    assert any(len(row["pixel_values"]) > 2 for row in rows)
    expected = loss([alone[span[1]] for row in rows for span in row["spans"]])
    torch.testing.assert_close(loss(rows), expected, rtol=1e-5, atol=0)
    if kernel != "sdpa":
        torch.testing.assert_close(loss(rows, one_row=True), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("launch", [{"checkpointing": "selective"}, {"checkpointing": "full"}], ids=lambda x: str(*x))
def test_what_is_kept_in_memory_changes_no_weight(seeing, tmp_path, launch):
    train(seeing, tmp_path / "plain")
    train(seeing, tmp_path / "changed", launch=launch)
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "changed"))


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_stopped_run_resumes_to_the_same_bits(seeing, tmp_path, stop_after):
    train(seeing, tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(seeing, tmp_path / "cut", stop_after=stop_after)
    train(seeing, tmp_path / "cut")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


def test_text_alone_moves_nothing_but_by_decay(seeing, tmp_path):
    train_on_text(seeing, tmp_path, chats(40), weight_decay=0.0)
    assert same(load_file(seeing / "model.safetensors"), weights(tmp_path))


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(seeing, tmp_path):
    """Replicated, and in parts; of text without an image too, where what is new has gradients of 0."""
    shapes = {"one": {"world": 1}, "ddp": {"world": 2}, "fsdp": {"world": 2, "launch": {"sharding": "fsdp2"}}}
    token = token_of(seeing)
    run_on_ranks(
        tmp_path,
        seeing,
        [{**shape, "directory": name, "image_token": token} for name, shape in shapes.items()]
        + [{"world": 2, "directory": "text"}],
    )
    one = curve(tmp_path / "one")
    for name in ("ddp", "fsdp"):
        assert json.loads((tmp_path / name / "metrics.json").read_text())["num_processes"] == 2
        assert samples(tmp_path / name) == samples(tmp_path / "one")
        for key in ("loss", "grad_norm"):
            found, expected = ([e[key] for e in records if key in e] for records in (curve(tmp_path / name), one))
            assert len(found) > 1 and found == pytest.approx(expected, rel=1e-5), (name, key)
        first, second = weights(tmp_path / "one"), weights(tmp_path / name)
        close = (torch.allclose(first[n].float(), second[n].float(), rtol=2**-7, atol=1e-6) for n in first)
        assert first.keys() == second.keys() and all(close)
    assert all(step["grad_norm"] == 0 for step in curve(tmp_path / "text") if "grad_norm" in step)
