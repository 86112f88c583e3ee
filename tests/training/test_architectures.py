"""Every architecture that can be grown can be trained, and packed rows are their documents alone in each."""

import warnings
from itertools import pairwise

import pytest
import torch

from pipeline.models import load
from pipeline.records.expansion import read_expansion
from pipeline.training.kernels.document_separation import documents_apart, mixes_documents
from pipeline.training.kernels.head import head_of
from pipeline.training.packed_loss import PackedLoss
from tests.expansion.architectures import EXACT
from tests.expansion.test_architectures import saved
from tests.training.kernels.test_attention import packed, shifted
from tests.training.processes import curve, run_on_ranks
from tests.training.test_fit import same, train, weights
from tests.training.test_fit import store as store

APART = {"GPT-OSS", "OPT", "BLOOM", "MPT", "Mamba", "Falcon", "Falcon, new", "LFM2", "Qwen3-Next"}
SINGLE = {"GPT-OSS", "Mamba", "Qwen3-Next"}  # experts and scans are computed in fp32 at most
QUICK = ("Mamba", "Cohere 2", "Llama 4")


def some(names):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", some(EXACT))
def test_a_step_of_an_architecture_moves_its_new_blocks_alone(name, grow, store, tmp_path):
    source = grow(saved(EXACT[name], tmp_path / "source"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        metrics = train(source, tmp_path / "run", store, num_steps=1, warmup_ratio=0.0)
    assert metrics["one_document_a_row"] == (name in APART)
    assert any("it is trained on one document a row" in str(one.message) for one in told) == (name in APART)
    before, after = weights_in(source), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved and moved <= set(read_expansion(source).new_parameters)


def weights_in(directory):
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("name", some(sorted(APART)))
def test_documents_that_would_be_mixed_have_the_loss_and_gradients_of_separate_ones(name, tmp_path):
    model = load(saved(EXACT[name], tmp_path))
    if name not in SINGLE:
        model.double()
    assert mixes_documents(model)
    loss = PackedLoss(model, head_of(model), chunk=5, apart=True)
    documents, ids, labels, positions = packed([[1, 20, 3, 1, 8], [33]], vocab=64)
    labels[0, 21:24] = -100  # a document without labels, which bears on nothing
    together = loss(ids, labels, positions)
    got = gradients(together, model)
    alone = [model(input_ids=d[None], use_cache=False).logits[0] for d in documents if len(d) not in (1, 3)]
    wanted = [shifted(d) for d in documents if len(d) not in (1, 3)]
    expected = torch.nn.functional.cross_entropy(torch.cat(alone), torch.cat(wanted), reduction="sum")
    precision = 1e-5 if name in SINGLE else 1e-9
    torch.testing.assert_close(together, expected, rtol=precision, atol=0)
    for key, value in gradients(expected, model).items():
        assert (got[key] - value).abs().max() <= precision * value.abs().max() + 1e-12, key


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_rows_are_taken_apart_without_much_padding():
    lengths = [40, 1, 3, 17, 2, 30, 7, 22, 6]
    _, ids, labels, positions = packed([lengths])
    found = list(documents_apart(ids, labels, positions))
    rows = [part[row][part_labels[row] != -100] for part, part_labels in found for row in range(len(part))]
    assert sorted(map(len, rows), reverse=True) == sorted((n - 1 for n in lengths if n > 1), reverse=True)
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    documents = {tuple(ids[0, a : b - 1].tolist()) for a, b in pairwise(starts) if b > a + 1}
    assert {tuple(row.tolist()) for row in rows} == documents
    assert sum(part.numel() for part, _ in found) <= sum(lengths) * 4 / 3


def test_rows_without_a_label_still_give_something_to_compute():
    ids = torch.arange(6)[None]
    ((part, labels),) = documents_apart(ids, torch.full_like(ids, -100), torch.tensor([[0, 1, 2, 0, 1, 2]]))
    assert part.tolist() == [[0, 1, 2]] and (labels == -100).all()


def test_micro_batches_of_documents_apart_change_the_order_of_sums_only(grow, store, tmp_path):
    """The mean is over the labels of the global batch, however many documents a row has."""
    source = grow(saved(EXACT["Mamba"], tmp_path / "source"))
    losses = [
        train(source, tmp_path / str(size), store, launch={"micro_batch": size}, num_steps=1)["train_loss"]
        for size in (1, 4)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    again = tmp_path / "again"
    train(source, again, store, launch={"micro_batch": 4}, num_steps=1)
    assert same(weights(again), weights(tmp_path / "4"))


def test_documents_apart_and_parts_over_processes_exclude_each_other(grow, store, tmp_path):
    source = grow(saved(EXACT["Mamba"], tmp_path / "source"))
    with pytest.raises(ValueError, match=r"launch\.sharding=fsdp2 cannot do; use launch\.sharding=none"):
        train(source, tmp_path / "run", store, launch={"sharding": "fsdp2"})


@pytest.mark.slow
def test_documents_apart_over_two_processes_have_the_curve_of_one(grow, tmp_path):
    """Each process computes on groups of its own, in number too."""
    source = grow(saved(EXACT["BLOOM"], tmp_path / "source"))
    run_on_ranks(tmp_path, source, [{"directory": "one", "world": 1}, {"directory": "two", "world": 2}])
    one, two = ([r["loss"] for r in curve(tmp_path / name) if "loss" in r] for name in ("one", "two"))
    assert len(one) == 8 and one == pytest.approx(two, rel=1e-5)
