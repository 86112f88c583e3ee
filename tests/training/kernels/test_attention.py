"""A packed row is its documents alone, in each kernel, for each kind of mask, and without a matrix of [T, T]."""

import pytest
import torch

from pipeline.models import load
from pipeline.training.kernels.attention import choose_attention, first_visible
from pipeline.training.kernels.document_attention import document_attention
from pipeline.training.kernels.document_separation import mixes_documents
from pipeline.training.kernels.head import PLAIN, head_of
from pipeline.training.packed_loss import PackedLoss

CPU = torch.device("cpu")
FAMILIES = {
    "llama": {},
    "windows": {"model_type": "mistral", "sliding_window": 12},
    "windows_in_some_blocks": {
        "model_type": "qwen3", "head_dim": 8, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2,
    },
    "learned_positions": {
        "model_type": "gpt2", "n_inner": 64, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
    },
}  # fmt: skip

CAPPED = {
    "model_type": "gemma2", "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 12,
    "attn_logit_softcapping": 0.02,
}  # fmt: skip


def packed(rows, vocab=300, seed=0):
    """Rows of documents of these lengths: their tokens, and input_ids, labels and position_ids [B, T]."""
    generator = torch.Generator().manual_seed(seed)
    documents = [[torch.randint(3, vocab, (n,), generator=generator) for n in lengths] for lengths in rows]
    ids = torch.stack([torch.cat(row) for row in documents])
    return [d for row in documents for d in row], ids, torch.stack([shifted(*row) for row in documents]), restarts(rows)


def shifted(*documents):
    return torch.cat([torch.cat([d[1:], torch.tensor([-100])]) for d in documents])


def restarts(rows):
    return torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in rows])


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_near(found, expected, precision):
    """Each gradient within a share of its own largest element; one that is zero but for rounding within 1e-12."""
    assert found.keys() == expected.keys()
    for name in found:
        error, scale = (found[name] - expected[name]).abs().max(), expected[name].abs().max()
        assert error <= precision * scale + 1e-12, f"{name}: {error} of {scale}"


def model_with(directory, kernel, dtype=torch.float64, device=CPU):
    model = load(directory).to(device, dtype)
    assert choose_attention(model, kernel, device) == kernel
    return model.train()


ROWS = {
    "one": [[90]],
    "one_token_each": [[1, 1, 1]],
    "several": [[1, 30, 70, 1, 1, 20], [123]],
    "longer_than_a_block": [[65, 128, 64], [1, 200, 56]],
    "longer_than_a_block_of_windows": [[600]],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kernel", ["documents", "sdpa", "eager"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_packed_loss_and_gradients_equal_those_of_the_separate_documents(make_model, family, kernel, rows):
    model = model_with(make_model(max_position_embeddings=600, **FAMILIES[family]), kernel)
    loss = PackedLoss(model, head_of(model))
    documents, *batch = packed(rows)
    together = loss(*batch)
    got = gradients(together, model)
    alone = sum(loss(d[None], shifted(d)[None], torch.arange(len(d))[None]) for d in documents)
    precision = 1e-6 if kernel == "eager" else 1e-12  # transformers takes the eager softmax in fp32
    torch.testing.assert_close(together, alone, rtol=precision, atol=1e-12)
    assert_near(got, gradients(alone, model), precision)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kernel", ["documents", "sdpa"])
def test_a_kernel_computes_what_the_plain_one_does(make_model, family, kernel):
    directory = make_model(max_position_embeddings=256, **FAMILIES[family])
    _, *batch = packed(ROWS["several"])
    losses, grads = [], []
    for name in (kernel, "eager"):
        model = model_with(directory, name)
        losses.append(PackedLoss(model, PLAIN)(*batch))
        grads.append(gradients(losses[-1], model))
    torch.testing.assert_close(*losses, rtol=1e-7, atol=0)
    assert_near(*grads, 1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["flex", "flash"])
def test_kernels_of_a_gpu_compute_what_the_plain_one_does(make_model, kernel):
    """In the precision that they have; rows of a batch and documents of a row do not see each other."""
    dtype = torch.float32 if kernel == "flex" else torch.bfloat16
    cuda, directory = torch.device("cuda"), make_model(hidden_size=128, num_key_value_heads=4)
    _, *batch = packed(ROWS["several"])
    batch = [x.cuda() for x in batch]
    found = {}
    for name in (kernel, "eager"):
        model = model_with(directory, name, dtype, cuda)
        found[name] = gradients(PackedLoss(model, PLAIN, one_row=name == "flash")(*batch), model)
    tolerance = 1e-5 if kernel == "flex" else 5e-2
    assert_near(found[kernel], found["eager"], tolerance)


def test_rows_given_as_one_are_the_same_rows(make_model):
    """What flash attention is given."""
    model = model_with(make_model(), "documents")
    _, *batch = packed(ROWS["several"])
    apart, joined = (PackedLoss(model, PLAIN, one_row=one)(*batch) for one in (False, True))
    torch.testing.assert_close(apart, joined, rtol=1e-12, atol=0)


def test_gradients_of_the_kernel_are_those_of_its_forward_pass():
    torch.manual_seed(0)
    first = torch.tensor([[0, 0, 0, 3, 4, 4, 4, 5, 6, 9]], dtype=torch.int32)  # documents, one alone, a window of 3
    q, k, v = (torch.randn(1, h, 10, 3, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2))
    assert torch.autograd.gradcheck(lambda *x: document_attention(*x, first, 0.7), (q, k, v))
    torch.library.opcheck(document_attention, (q, k, v, first, 0.7))
    assert torch.autograd.gradcheck(lambda *x: document_attention(*x, first, 0.7, 0.5), (q, k, v))
    torch.library.opcheck(document_attention, (q, k, v, first, 0.7, 0.5))


@pytest.mark.parametrize("seed", range(4))
def test_bf16_attention_errs_by_the_rounding_of_scores_probabilities_and_output(seed):
    """Each is rounded to 8 bits once, on any machine; the error of a score moves two probabilities."""
    torch.manual_seed(seed)
    first = torch.zeros(1, 96, dtype=torch.int32)
    half = [torch.randn(1, h, 96, 16).bfloat16() for h in (4, 2, 2)]
    q, k, v = (x.float() for x in half)
    exact, sizes = document_attention(q, k, v, first, 0.25), document_attention(q, k, v.abs(), first, 0.25)
    largest = 0.25 * (q @ k.repeat_interleave(2, 1).transpose(-1, -2)).tril().abs().max()
    ours = document_attention(*half, first, 0.25)
    assert ours.dtype == torch.bfloat16
    assert ((ours - exact).abs() <= 2**-9 * (exact.abs() + sizes * (1 + 2 * largest))).all()


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Elements of the largest tensor that any operator gives."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return out


@pytest.mark.parametrize("family", ["llama", "windows", "windows_in_some_blocks"])
@pytest.mark.parametrize("kernel", ["documents", "sdpa", "eager"])
def test_no_matrix_of_all_pairs_of_tokens(make_model, kernel, family):
    """The eager kernel stands for the control: it has one."""
    tokens = 2048
    model = model_with(make_model(max_position_embeddings=tokens, **FAMILIES[family]), kernel, torch.float32)
    _, *batch = packed([[tokens // 2, tokens // 2]])
    with LargestTensor() as largest:
        PackedLoss(model, PLAIN)(*batch).backward()
    assert (largest.elements < tokens * tokens // 8) == (kernel != "eager")


def test_no_matrix_of_all_pairs_of_tokens_under_a_soft_cap(make_model):
    tokens = 2048
    model = model_with(make_model(max_position_embeddings=tokens, **CAPPED), "documents", torch.float32)
    _, *batch = packed([[tokens // 2, tokens // 2]])
    with LargestTensor() as largest:
        PackedLoss(model, head_of(model), chunk=128)(*batch).backward()
    assert largest.elements < tokens * tokens // 8


def test_what_a_token_sees_is_read_from_the_rule():
    from transformers.masking_utils import causal_mask_function, chunked_causal_mask_function

    first = first_visible(1, 5, 5, chunked_causal_mask_function(2, torch.zeros(1, dtype=torch.long)), local_size=2)
    assert first.tolist() == [[0, 0, 2, 2, 4]]
    assert first_visible(2, 3, 3, causal_mask_function).tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda b, h, q, k: q >= 0, "not causal"),  # sees the future
        (lambda b, h, q, k: (k == q) | (k == 0), "not causal"),  # sees the first token from anywhere
        (lambda b, h, q, k: (k <= q) & (q - k != 2), "not causal"),  # leaves one out
    ],
)
def test_a_rule_of_another_kind_is_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        first_visible(1, 6, 6, rule)


def test_padding_and_caches_are_refused():
    with pytest.raises(ValueError, match="no padding mask, no cache"):
        first_visible(1, 4, 8, lambda b, h, q, k: k <= q)


def test_auto_is_the_kernel_for_documents_on_a_cpu(make_model):
    assert choose_attention(load(make_model()), "auto", CPU) == "documents"
    assert choose_attention(load(make_model(attention_dropout=0.1)), "auto", CPU) == "sdpa"


def test_auto_leaves_a_model_alone_whose_attention_is_another(make_model):
    own_code = load(make_model(model_type="bloom", n_layer=4, n_head=4))
    assert choose_attention(own_code, "auto", CPU) == own_code.config._attn_implementation
    with pytest.raises(ValueError, match="attention in code of its own; use auto or eager"):
        choose_attention(own_code, "documents", CPU)


def test_a_soft_cap_is_for_one_kernel_alone(make_model):
    capped = load(make_model(**CAPPED))
    assert choose_attention(capped, "auto", CPU) == "documents"
    assert choose_attention(capped, "auto", torch.device("cuda")) == capped.config._attn_implementation
    with pytest.raises(ValueError, match="caps the attention scores; use auto or eager"):
        choose_attention(capped, "sdpa", CPU)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_softly_capped_attention_is_that_of_the_plain_kernel(make_model, rows):
    """A cap of 0.02 bends the scores of a tiny model; windows in every other block."""
    directory = make_model(max_position_embeddings=600, **CAPPED)
    _, *batch = packed(rows)
    losses, grads = [], []
    for name in ("documents", "eager"):
        model = model_with(directory, name)
        losses.append(PackedLoss(model, head_of(model))(*batch))
        grads.append(gradients(losses[-1], model))
    torch.testing.assert_close(*losses, rtol=1e-7, atol=0)
    assert_near(*grads, 1e-6)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [("fast", "use one of auto, documents"), ("flash", "on a GPU only"), ("flex", "on a GPU only")],
)
def test_kernels_that_cannot_be_had(make_model, kernel, message):
    with pytest.raises(ValueError, match=message):
        choose_attention(load(make_model()), kernel, CPU)


def test_an_architecture_that_mixes_documents_is_noticed(make_model, monkeypatch):
    model = load(make_model())
    assert not mixes_documents(model)
    decoder = model.get_decoder()
    forward = decoder.forward

    def mixing(**inputs):
        out = forward(**inputs)
        out.last_hidden_state = out.last_hidden_state.cumsum(1)
        return out

    monkeypatch.setattr(decoder, "forward", mixing)
    assert mixes_documents(model)
