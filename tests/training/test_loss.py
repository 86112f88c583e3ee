"""The chunked loss is the plain loss, and a packed row is its documents alone."""

import pytest
import torch
from torch.nn import functional

from pipeline.models import load
from pipeline.training.loss import PackedLoss, chunked_cross_entropy, head_is_plain


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("bias", [False, True])
def test_chunked_loss_and_gradients_equal_the_plain_ones(chunk, bias):
    torch.manual_seed(0)
    hidden = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(99, 16, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(99, dtype=torch.float64, requires_grad=True) if bias else None
    labels = torch.randint(0, 99, (50,))
    leaves = [hidden, weight] + ([offset] if bias else [])
    expected = functional.cross_entropy(functional.linear(hidden, weight, offset), labels, reduction="sum")
    wanted = torch.autograd.grad(expected * 0.5, leaves)
    found = chunked_cross_entropy(hidden, weight, offset, labels, chunk)
    got = torch.autograd.grad(found * 0.5, leaves)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_frozen_head_gets_no_gradient():
    hidden = torch.randn(5, 4, requires_grad=True)
    weight = torch.randn(9, 4)
    chunked_cross_entropy(hidden, weight, None, torch.randint(0, 9, (5,))).backward()
    assert hidden.grad is not None and weight.grad is None


def packed(lengths, vocab=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    documents = [torch.randint(3, vocab, (n,), generator=generator) for n in lengths]
    ids = torch.cat(documents)[None]
    labels = torch.cat([torch.cat([d[1:], torch.tensor([-100])]) for d in documents])[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    return documents, ids, labels, positions


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lengths", [[30], [5, 20, 7], [1, 1, 30, 2]])
def test_packed_loss_and_gradients_equal_separate_documents(make_model, attention, lengths):
    model = load(make_model(), attention=attention).double()
    loss = PackedLoss(model, head_is_plain(model))
    documents, ids, labels, positions = packed(lengths)
    together = loss(ids, labels, positions)
    together.backward()
    got = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    alone = sum(
        loss(d[None], torch.cat([d[1:], torch.tensor([-100])])[None], torch.arange(len(d))[None]) for d in documents
    )
    alone.backward()
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-6, atol=1e-7)


def test_no_document_sees_another(make_model):
    model = load(make_model())
    _, ids, _, positions = packed([10, 12, 8])
    changed = ids.clone()
    changed[0, :10] = (changed[0, :10] + 5) % 300
    with torch.no_grad():
        before = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        after = model(input_ids=changed, position_ids=positions, use_cache=False).logits
    assert torch.equal(before[:, 10:], after[:, 10:]) and not torch.equal(before[:, :10], after[:, :10])


def test_the_loss_is_the_models_own(make_model):
    model = load(make_model())
    ids = torch.arange(3, 40)[None]
    own = model(input_ids=ids, labels=ids).loss
    labels = torch.cat([ids[0, 1:], torch.tensor([-100])])[None]
    ours = PackedLoss(model, True)(ids, labels, torch.arange(37)[None]) / 36
    torch.testing.assert_close(own, ours)


def test_a_scaled_head_is_noticed_and_still_right(make_model):
    source = make_model("float32", model_type="granite", logits_scaling=4.0)
    model = load(source)
    assert not head_is_plain(model) and head_is_plain(load(make_model()))
    ids = torch.arange(3, 40)[None]
    labels = torch.cat([ids[0, 1:], torch.tensor([-100])])[None]
    ours = PackedLoss(model, False)(ids, labels, torch.arange(37)[None]) / 36
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, ours)
