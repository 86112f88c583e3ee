"""Attention inside documents as matrix products over blocks of queries: an operator with a backward pass of its own.

The probabilities of a block are computed again in the backward pass (as in FlashAttention, arXiv 2205.14135), so that
what is kept is q, k and v alone, and never more than a block of them stands in memory. Heads that share a key are one
product. torch.compile and activation checkpointing see one operator.

What a token sees is one number: the first token that it sees (it sees from there up to itself).

Shapes: B rows, T tokens of a row, H query heads, G key heads, K head dim, V value head dim, S tokens of a block of
queries, N keys that it sees.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from pipeline.training.kernels.fp32_matmul import multiplies_bf16

BLOCK = 64  # queries; measured on a CPU at 64 to 1,024 tokens a document: larger blocks multiply more that is invisible


def document_bounds(first_T: np.ndarray) -> Iterator[tuple[int, int]]:
    """[start, stop) of each document: it starts where a token sees nothing before itself."""
    starts = np.flatnonzero(first_T == np.arange(len(first_T)))
    return zip(starts.tolist(), [*starts[1:].tolist(), len(first_T)], strict=True)


def _blocks(first_T: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(start, stop, first key) of each block of queries; documents of one token need none: they see their own value."""
    for start, stop in document_bounds(first_T):
        if stop - start > 1:
            for begin in range(start, stop, BLOCK):
                yield begin, min(stop, begin + BLOCK), int(first_T[begin])


def _lone(first_T: np.ndarray) -> list[int]:
    return [start for start, stop in document_bounds(first_T) if stop - start == 1]


@lru_cache(maxsize=8)
def _future(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.full((size, size), -math.inf, dtype=dtype, device=device).triu_(1)


def _product_dtype(q: torch.Tensor) -> torch.dtype:
    """fp32 on a CPU that has no bf16 products: what it does instead is several times slower and no more exact."""
    return torch.float32 if q.dtype == torch.bfloat16 and not multiplies_bf16(q.device) else q.dtype


def _probabilities(
    q_GXK, k_GNK, first_S: np.ndarray, first_key: int, cap: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """softmax(q k^T) of a block: [G, H/G * S, N], a query's groups in X = H/G * S; and the slope of a cap, if any."""
    scores_GXN, slope_GXN = torch.bmm(q_GXK, k_GNK.transpose(1, 2)), None
    if cap:
        scores_GXN.div_(cap).tanh_()
        slope_GXN = 1 - scores_GXN.square()
        scores_GXN.mul_(cap)
    groups, num_keys, size = scores_GXN.shape[0], scores_GXN.shape[-1], len(first_S)
    scores_GRSN = scores_GXN.view(groups, -1, size, num_keys)
    scores_GRSN[..., num_keys - size :] += _future(BLOCK, scores_GXN.dtype, scores_GXN.device)[:size, :size]
    if (cut := int(first_S[-1]) - first_key) > 0:  # a window ends inside the block
        key_C = torch.arange(first_key, first_key + cut)
        hidden_SC = key_C < torch.from_numpy(first_S.astype(np.int64))[:, None]
        scores_GRSN[..., :cut].masked_fill_(hidden_SC.to(scores_GXN.device), -math.inf)
    weights_GXN = torch.softmax(scores_GXN, -1, dtype=torch.promote_types(scores_GXN.dtype, torch.float32))
    return weights_GXN, slope_GXN


def _grouped(x_HSK: torch.Tensor, num_groups: int) -> torch.Tensor:
    """[H, S, K] as [G, H/G * S, K]."""
    return x_HSK.reshape(num_groups, -1, x_HSK.shape[-1])


@torch.library.custom_op("llama_pro::document_attention", mutates_args=())
def document_attention(
    q_BHTK: torch.Tensor,
    k_BGTK: torch.Tensor,
    v_BGTV: torch.Tensor,
    first_BT: torch.Tensor,
    scale: float,
    cap: float = 0.0,
) -> torch.Tensor:
    """[B, T, H, V]: softmax(scale q k^T) v over the keys from `first_BT` up to the query.

    Args:
        q_BHTK, k_BGTK, v_BGTV: of one float dtype; H is a multiple of G.
        first_BT: see `first_visible`.
        scale: of the scores.
        cap: that the scaled scores approach, cap tanh(scores / cap), as in Gemma 2; 0: none.
    """
    dtype, (num_rows, num_heads, num_tokens, _), groups = _product_dtype(q_BHTK), q_BHTK.shape, k_BGTK.shape[1]
    out_BTHV = q_BHTK.new_empty(num_rows, num_tokens, num_heads, v_BGTV.shape[-1])
    for row, first_T in enumerate(first_BT.numpy()):
        q, k, v = q_BHTK[row].to(dtype) * scale, k_BGTK[row].to(dtype), v_BGTV[row].to(dtype)
        out_HTV = out_BTHV[row].transpose(0, 1)
        if lone := _lone(first_T):
            out_HTV[:, lone] = v[:, lone].repeat_interleave(num_heads // groups, 0).to(out_HTV.dtype)
        for start, stop, first_key in _blocks(first_T):
            weights, _ = _probabilities(
                _grouped(q[:, start:stop], groups), k[:, first_key:stop], first_T[start:stop], first_key, cap
            )
            mixed = torch.bmm(weights.to(dtype), v[:, first_key:stop])
            out_HTV[:, start:stop] = mixed.view(num_heads, stop - start, -1)
    return out_BTHV


@document_attention.register_fake
def _(q_BHTK, k_BGTK, v_BGTV, first_BT, scale, cap=0.0):
    num_rows, num_heads, num_tokens, _ = q_BHTK.shape
    return q_BHTK.new_empty(num_rows, num_tokens, num_heads, v_BGTV.shape[-1])


@torch.library.custom_op("llama_pro::document_attention_backward", mutates_args=())
def document_attention_backward(
    grad_BTHV: torch.Tensor,
    q_BHTK: torch.Tensor,
    k_BGTK: torch.Tensor,
    v_BGTV: torch.Tensor,
    first_BT: torch.Tensor,
    scale: float,
    cap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of `document_attention` by q, k and v, in their shapes and dtypes."""
    dtype, num_heads, groups = _product_dtype(q_BHTK), q_BHTK.shape[1], k_BGTK.shape[1]
    # As the values lie in memory behind [B, T, H, K] projections: what follows then copies nothing.
    dq_BHTK, dk_BGTK, dv_BGTV = (_like_projection(x) for x in (q_BHTK, k_BGTK, v_BGTV))
    for row, first_T in enumerate(first_BT.numpy()):
        q, k, v = q_BHTK[row].to(dtype) * scale, k_BGTK[row].to(dtype), v_BGTV[row].to(dtype)
        grad_HTV = grad_BTHV[row].transpose(0, 1).to(dtype)
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        if lone := _lone(first_T):
            dv[:, lone] = grad_HTV[:, lone].unflatten(0, (groups, -1)).sum(1)
            dq_BHTK[row, :, lone] = 0
        for start, stop, first_key in _blocks(first_T):
            queries, grads = _grouped(q[:, start:stop], groups), _grouped(grad_HTV[:, start:stop], groups)
            keys = slice(first_key, stop)
            weights, slope = _probabilities(queries, k[:, keys], first_T[start:stop], first_key, cap)
            dv[:, keys].baddbmm_(weights.to(dtype).transpose(1, 2), grads)
            dweights = torch.bmm(grads, v[:, keys].transpose(1, 2)).to(weights.dtype)
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            dscores = (dscores if slope is None else dscores.mul_(slope)).to(dtype)
            dq_BHTK[row, :, start:stop] = torch.bmm(dscores, k[:, keys]).mul_(scale).view(num_heads, stop - start, -1)
            dk[:, keys].baddbmm_(dscores.transpose(1, 2), queries)
        dk_BGTK[row], dv_BGTV[row] = dk, dv
    return dq_BHTK, dk_BGTK, dv_BGTV


def _like_projection(x_BHTK: torch.Tensor) -> torch.Tensor:
    num_rows, num_heads, num_tokens, size = x_BHTK.shape
    return x_BHTK.new_empty(num_rows, num_tokens, num_heads, size).transpose(1, 2)


@document_attention_backward.register_fake
def _(grad_BTHV, q_BHTK, k_BGTK, v_BGTV, first_BT, scale, cap=0.0):
    return tuple(_like_projection(x) for x in (q_BHTK, k_BGTK, v_BGTV))


def _save_inputs(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    *tensors, ctx.scale, ctx.cap = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad_BTHV: torch.Tensor) -> tuple:
    return (*document_attention_backward(grad_BTHV, *ctx.saved_tensors, ctx.scale, ctx.cap), None, None, None)


document_attention.register_autograd(_differentiate, setup_context=_save_inputs)
