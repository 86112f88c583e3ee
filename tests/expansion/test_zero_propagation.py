"""Facts about tensors without data: each claim is checked on small functions whose answer is plain."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from pipeline.expansion.zero_propagation import (
    PLUS,
    SCALED,
    STREAM,
    TANGLED,
    UNKNOWN,
    ZERO,
    Fact,
    interpret,
    order_of_use,
)

D = 4


def meta(*shape):
    return torch.empty(shape, device="meta")


W, V, BIAS, NORM = meta(D, D), meta(D, D), meta(D), meta(D)


def rms(x, weight):
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def sublayer(x):
    return x + F.linear(F.silu(F.linear(x, V)), W)


def gated(x):
    return x + F.linear(F.silu(F.linear(x, V)) * F.linear(x, V), W)


def biased(x):
    return x + F.linear(x, W, BIAS)


def normed_after(x):
    return x + rms(F.linear(x, W), NORM)


def parallel(x):
    return F.linear(x, W) + F.linear(F.gelu(x), W) + x


def two_sublayers(x):
    x = x + F.linear(rms(x, NORM), W)
    return x + F.linear(rms(x, NORM), W)


def normed_stream(x):
    return rms(x + F.linear(x, W), NORM)


def doubled_stream(x):
    return x + F.linear(x, W) + x


def scaled_branch(x):
    return x + 0.22 * F.linear(x, W)


def cast_and_back(x):
    return (x.float() + F.linear(x, W).float()).to(x.dtype)


def attention(x):
    q = x.view(1, -1, 2, 2).transpose(1, 2)
    weights = F.softmax(q @ q.transpose(-1, -2), dim=-1)
    return x + F.linear((weights @ q).transpose(1, 2).reshape(x.shape), W)


def routed(x):
    """Experts of a block added into a buffer of zeros by index, as the mixture-of-experts blocks do."""
    out = torch.zeros_like(x).view(-1, D)
    hit = torch.nonzero(x[0, :, 0] > 0)[:, 0]
    out.index_add_(0, hit, F.linear(x.view(-1, D)[hit], W))
    return x + out.view(x.shape)


def clipped(x):
    branch = F.linear(x, W)
    return x + torch.where(branch > 1, torch.zeros_like(branch), branch)


def gemma(x):
    return x + F.linear(rms(x, 1.0 + NORM), V)


@pytest.mark.parametrize(
    ("block", "zero", "expected"),
    [
        (sublayer, [W], STREAM), (sublayer, [V], STREAM), (gated, [W], STREAM), (gated, [V], STREAM),
        (biased, [W], UNKNOWN), (biased, [W, BIAS], STREAM), (normed_after, [W], STREAM),
        (normed_after, [NORM], STREAM),
        (parallel, [W], STREAM), (two_sublayers, [W], STREAM), (normed_stream, [W], UNKNOWN),
        (normed_stream, [NORM], ZERO), (doubled_stream, [W], UNKNOWN), (scaled_branch, [W], STREAM),
        (cast_and_back, [W], STREAM), (attention, [W], STREAM), (routed, [W], STREAM), (clipped, [W], STREAM),
        (gemma, [NORM], UNKNOWN),
    ],
)  # fmt: skip
def test_what_is_left_with_zeros(block, zero, expected):
    assert interpret(block, meta(1, 6, D), [(tensor, ZERO) for tensor in zero]) is expected


def test_one_plus_minus_one_is_nothing():
    assert interpret(gemma, meta(1, 6, D), [(NORM, Fact.MINUS_ONE)]) is STREAM


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (sublayer, PLUS), (gated, PLUS), (parallel, PLUS), (two_sublayers, PLUS), (scaled_branch, PLUS),
        (attention, PLUS), (cast_and_back, PLUS), (biased, UNKNOWN), (normed_after, TANGLED), (routed, UNKNOWN),
        (clipped, TANGLED),
    ],
)  # fmt: skip
def test_what_is_proportional_to_the_writers(block, expected):
    """A norm behind the writer, or a bound on what it gives, undoes a factor; sums into a view are not followed."""
    found = interpret(block, meta(1, 6, D), [(W, SCALED)])
    assert (found is PLUS) == (expected is PLUS)


def test_proportional_with_its_bias_and_behind_a_norm():
    assert interpret(biased, meta(1, 6, D), [(W, SCALED), (BIAS, SCALED)]) is PLUS
    assert interpret(normed_after, meta(1, 6, D), [(NORM, SCALED)]) is PLUS


def test_writing_into_a_view_spoils_what_was_known_of_the_whole():
    def block(x):
        buffer = torch.zeros_like(x)
        buffer[:, :2].add_(x[:, :2])
        return x + buffer

    assert interpret(block, meta(1, 6, D), []) is UNKNOWN


def test_an_operation_without_a_rule_proves_nothing():
    assert interpret(lambda x: x + torch.erfc(F.linear(x, W)), meta(1, 6, D), [(W, ZERO)]) is UNKNOWN


INDEX, MASK = (
    torch.zeros(1, 6, D, dtype=torch.int64, device="meta"),
    torch.ones(1, 6, D, dtype=torch.bool, device="meta"),
)
ROW = torch.zeros(1, dtype=torch.int64, device="meta")
NOTHING = {
    "scatter a number": lambda x, v: torch.zeros_like(x).scatter_(1, INDEX, v),
    "scatter a number, anew": lambda x, v: torch.scatter(torch.zeros_like(x), 1, INDEX, v),
    "scatter by a keyword": lambda x, v: torch.zeros_like(x).scatter(1, INDEX, value=v),
    "scatter and add": lambda x, v: torch.zeros_like(x).scatter_(1, INDEX, v, reduce="add"),
    "masked_fill": lambda x, v: torch.zeros_like(x).masked_fill(MASK, v),
    "index_fill": lambda x, v: torch.zeros_like(x).index_fill(1, ROW, v),
    "fill": lambda x, v: torch.zeros_like(x).fill_(v),
    "full": lambda x, v: torch.full((1, 6, D), v, device="meta") * 1,
    "full_like": lambda x, v: torch.full_like(x, v),
    "new_full": lambda x, v: x.new_full((1, 6, D), v),
    "where, above": lambda x, v: torch.where(MASK, v, torch.zeros_like(x)),
    "where, below": lambda x, v: torch.where(MASK, torch.zeros_like(x), v),
    "where, of whole numbers": lambda x, v: torch.where(MASK, torch.full_like(INDEX, int(v)), torch.zeros_like(x)),
    "cat": lambda x, v: torch.cat([torch.zeros_like(x), torch.full_like(x, v)]),
    "add": lambda x, v: torch.zeros_like(x) + v,
    "subtract": lambda x, v: v - torch.zeros_like(x),
    "pad": lambda x, v: F.pad(torch.zeros_like(x), (0, 1), value=v),
    "index_put": lambda x, v: torch.zeros_like(x).index_put((ROW,), torch.full((1, 6, D), v, device="meta")),
}


@pytest.mark.parametrize("way", NOTHING)
def test_a_number_put_among_zeros_is_no_zero(way):
    assert interpret(lambda x: NOTHING[way](x, 1.0), meta(1, 6, D), []) is UNKNOWN
    assert interpret(lambda x: NOTHING[way](x, 0.0), meta(1, 6, D), []) in (ZERO, UNKNOWN)
    if way not in ("subtract", "scatter and add"):
        assert interpret(lambda x: NOTHING[way](x, 0.0), meta(1, 6, D), []) is ZERO


def test_a_bound_above_zero_is_no_zero():
    assert interpret(lambda x: torch.zeros_like(x).clamp(min=0.5), meta(1, 6, D), []) is UNKNOWN
    assert interpret(lambda x: torch.zeros_like(x).clamp_min(0.5), meta(1, 6, D), []) is UNKNOWN


@pytest.mark.parametrize(
    "block",
    [
        lambda x: x.long().float(),
        lambda x: x + F.linear(x, W).long(),
        lambda x: x + F.linear(x, W).div(3, rounding_mode="floor"),
        lambda x: torch.addmm(x[0], F.linear(x, W)[0], V, beta=2)[None],
        lambda x: F.group_norm(x.transpose(1, 2), 2, NORM, torch.zeros_like(NORM)),
    ],
    ids=["rounded stream", "rounded branch", "floor", "beta", "group norm"],
)
def test_what_is_no_longer_what_it_was(block):
    assert interpret(block, meta(1, 6, D), [(W, SCALED)]) in (UNKNOWN, TANGLED)


def test_order_of_use():
    names = {"late": W, "early": V, "never": BIAS}
    assert order_of_use(sublayer, meta(1, 6, D), names) == ["early", "late"]
