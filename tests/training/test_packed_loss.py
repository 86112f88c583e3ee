"""The chunked loss is the plain loss, and a packed row is its documents alone."""

import pytest
import torch
from torch.nn import functional

from pipeline.models import load
from pipeline.training.kernels.chunked import States, chunked_cross_entropy, chunked_kl
from pipeline.training.kernels.head import PLAIN, Head, head_of
from pipeline.training.packed_loss import PackedLoss


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
    found = chunked_cross_entropy(States(hidden, weight, offset), labels, chunk)
    got = torch.autograd.grad(found * 0.5, leaves)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("head", [PLAIN, Head(2.0, 0.5, 0.3), None], ids=["plain", "capped", "logits"])
def test_chunked_divergence_and_gradients_equal_the_plain_ones(chunk, temperature, head):
    """None: the states are the logits themselves."""
    torch.manual_seed(0)
    hidden, other = (torch.randn(50, 16, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((99, 16), (99,)))
    if head is None:
        states, base, leaves, logits = States(hidden, None, None), States(other, None, None), [hidden], [hidden, other]
    else:
        states, base = (States(one, weight, bias, head) for one in (hidden, other))
        products = [functional.linear(one, weight, bias) * head.factor / head.divisor for one in (hidden, other)]
        logits = [one if head.cap is None else head.cap * torch.tanh(one / head.cap) for one in products]
        leaves = [hidden, weight, bias]
    log_q, log_p = ((one / temperature).log_softmax(-1) for one in logits)
    expected = functional.kl_div(log_q, log_p.detach(), reduction="sum", log_target=True) * temperature**2
    wanted = torch.autograd.grad(expected * 0.5, leaves)
    found = chunked_kl(states, base, temperature, chunk)
    got = torch.autograd.grad(found * 0.5, leaves)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_a_frozen_head_gets_no_gradient():
    hidden = torch.randn(5, 4, requires_grad=True)
    weight = torch.randn(9, 4)
    chunked_cross_entropy(States(hidden, weight, None), torch.randint(0, 9, (5,))).backward()
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
    loss = PackedLoss(model, head_of(model))
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
    ours = PackedLoss(model, PLAIN)(ids, labels, torch.arange(37)[None]) / 36
    torch.testing.assert_close(own, ours)


HEADS = {
    "granite": ({"model_type": "granite", "logits_scaling": 4.0}, Head(divisor=4.0)),
    "granite_moe": (
        {"model_type": "granitemoe", "logits_scaling": 3.0, "num_local_experts": 4, "num_experts_per_tok": 2},
        Head(divisor=3.0),
    ),
    "cohere2": ({"model_type": "cohere2", "logit_scale": 0.25, "sliding_window": 8}, Head(factor=0.25)),
    "gemma2": (
        {"model_type": "gemma2", "head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 0.5},
        Head(cap=0.5),
    ),
    "gemma3": ({"model_type": "gemma3_text", "head_dim": 8, "final_logit_softcapping": 0.5}, Head(cap=0.5)),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", HEADS)
def test_a_head_that_scales_or_caps_gives_the_models_own_loss_and_gradients_in_chunks(make_model, family, tied):
    config, head = HEADS[family]
    model = load(make_model(tie_word_embeddings=tied, **config))
    if family != "granite_moe":  # torch multiplies experts in fp32 at most
        model.double()
    assert head_of(model) == head
    _, ids, labels, positions = packed([30, 9, 1])
    grads = []
    for each in (head, None):
        model.zero_grad()
        loss = PackedLoss(model, each, chunk=7)(ids, labels, positions)
        loss.backward()
        grads.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (ours, got), (own, wanted) = grads
    torch.testing.assert_close(
        ours.double(), own.double(), rtol=1e-6, atol=0
    )  # the model's own way takes logits in fp32
    assert got.keys() == wanted.keys()
    for name in got:
        assert (got[name] - wanted[name]).abs().max() <= 1e-5 * wanted[name].abs().max() + 1e-12, name


def test_the_slope_of_a_head_is_that_of_its_logits():
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    head = Head(2.0, 0.5, 0.3)
    logits = head.finish_(x * 1)
    (grad,) = torch.autograd.grad(0.3 * torch.tanh(x / 2.0 * 0.5 / 0.3), x, torch.ones_like(x))
    torch.testing.assert_close(head.slope(logits.detach()), grad, rtol=1e-12, atol=0)


def test_logits_of_a_capped_head_never_stand_whole(make_model):
    """Nor do those of tokens without a label."""
    model = load(make_model(**HEADS["gemma2"][0], max_position_embeddings=512))
    ids = torch.arange(512)[None] % 300
    labels = torch.where(ids % 2 == 0, ids, -100)
    sizes = []
    for head in (head_of(model), None):
        seen: list[int] = []
        hook = model.get_output_embeddings().register_forward_hook(
            lambda m, a, out, seen=seen: seen.append(len(out[0]))
        )
        PackedLoss(model, head, chunk=64)(ids, labels, torch.arange(512)[None])
        hook.remove()
        sizes.append(seen)
    assert sizes == [[], [512]]


def test_a_head_of_another_kind_is_noticed_and_the_models_own_logits_are_taken(make_model, monkeypatch):
    model = load(make_model())
    assert head_of(model) == PLAIN
    last = model.get_output_embeddings()
    forward = type(model).forward

    def twisted(self, **inputs):
        out = forward(self, **inputs)
        out.logits = out.logits + out.logits.sin()
        return out

    monkeypatch.setattr(type(model), "forward", twisted)
    assert head_of(model) is None and isinstance(last, torch.nn.Linear)
    _, ids, labels, positions = packed([30])
    kept = labels[0] != -100
    wanted = functional.cross_entropy(model(input_ids=ids).logits[0, kept], labels[0, kept], reduction="sum")
    torch.testing.assert_close(PackedLoss(model, None)(ids, labels, positions), wanted)
