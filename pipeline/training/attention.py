"""Causal attention inside documents of a packed row, without a mask of [T, T].

What a token sees is one number: the first token that it sees (it sees from there up to itself). That says where
documents end, and sliding windows and attention in chunks as well. transformers' mask builder, which every architecture
of the library calls, is asked for that number instead of a matrix, so no architecture has to be known here.

Two kernels read it: `documents`, which is matrix products over blocks of queries (any device; on a CPU faster than
torch's fused kernel, most of all backwards), and `sdpa`, which gives torch's fused kernel one document at a time.

Shapes: B rows, T tokens of a row, H query heads, G key heads, K head dim, V value head dim, S tokens of a block of
queries, N keys that it sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional

BLOCK = 64  # queries; measured on a CPU at 64 to 1,024 tokens a document: larger blocks multiply more that is invisible
KERNELS = ("auto", "documents", "sdpa", "eager", "flex", "flash")
LIBRARY_NAMES = {"eager": "eager", "flex": "flex_attention", "flash": "flash_attention_2"}
OWN_NAMES = {"documents": "llama_pro_documents", "sdpa": "llama_pro_sdpa"}


def choose_attention(model: Any, requested: str, device: torch.device) -> str:
    """Set a model's attention kernel for packed rows, by a name of `KERNELS`, and return the name chosen.

    `auto` is flash-attn on a GPU where it is installed and the weights are half precision, else `sdpa` on a GPU and
    `documents` on a CPU. A model whose attention these cannot compute (a soft cap, sinks, its own attention code) keeps
    what transformers chooses for it, with a mask of [T, T].

    Raises:
        ValueError: an unknown name, or a kernel that cannot serve this model here, with what can.
    """
    if requested not in KERNELS:
        raise ValueError(f"attention={requested!r} is not known; use one of {', '.join(KERNELS)}")
    chosen = _automatic(model, device) if requested == "auto" else requested
    if chosen is None:
        return model.config._attn_implementation
    _refuse_impossible(model, chosen, device)
    _register()
    model.set_attn_implementation(LIBRARY_NAMES.get(chosen) or OWN_NAMES[chosen])
    return chosen


def _automatic(model: Any, device: torch.device) -> str | None:
    if _obstacle(model):
        return None
    if device.type != "cuda":
        return "documents" if not _dropout(model) else "sdpa"
    return "sdpa" if _flash_obstacle(model) else "flash"


def _refuse_impossible(model: Any, chosen: str, device: torch.device) -> None:
    if chosen in OWN_NAMES and (obstacle := _obstacle(model)):
        raise ValueError(f"attention={chosen} cannot serve {type(model).__name__}: {obstacle}; use auto or eager")
    if chosen == "documents" and _dropout(model):
        raise ValueError("attention=documents has no dropout, the model's attention_dropout is not 0; use sdpa or auto")
    if chosen in ("flex", "flash") and device.type != "cuda":
        raise ValueError(f"attention={chosen} trains on a GPU only, this run computes on {device.type}; use auto")
    if chosen == "flash" and (obstacle := _flash_obstacle(model)):
        raise ValueError(f"attention=flash cannot be used: {obstacle}; use auto")


def _flash_obstacle(model: Any) -> str | None:
    from transformers.utils import is_flash_attn_2_available

    if not is_flash_attn_2_available():
        return 'flash-attn is not installed (pip install -e ".[flash]")'
    if model.dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in half precision and the weights are {model.dtype}"
    return None if model._supports_flash_attn else f"transformers has no flash attention for {type(model).__name__}"


def _obstacle(model: Any) -> str | None:
    """Why the kernels of this file cannot compute a model's attention; None if they can."""
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps the attention scores"
    if not (model._supports_sdpa and model._supports_attention_backend):
        return "it computes attention in code of its own"
    return None


def _dropout(model: Any) -> bool:
    return bool(getattr(model.config.get_text_config(), "attention_dropout", 0))


@lru_cache(maxsize=1)
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    for kernel, name in OWN_NAMES.items():
        AttentionInterface.register(name, _interface(KERNEL_FUNCTIONS[kernel]))
        AttentionMaskInterface.register(name, first_visible)


def first_visible(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: Any,
) -> torch.Tensor:
    """int32[B, T] on the CPU: the first token that each token sees. In the form of a transformers mask builder.

    Costs O(B T): the rule is asked about neighbours for the bounds of documents, and about the ends of what these and
    the window imply, so that a rule of another kind is noticed.

    Raises:
        ValueError: padding, a cache, or a rule that is not "causal from some token on".
    """
    if attention_mask is not None or use_vmap or q_length != kv_length:
        raise ValueError("attention inside documents is for packed training rows: no padding mask, no cache")
    row_B1 = torch.arange(batch_size, device=device)[:, None]
    token_BT = torch.arange(q_length, device=device).expand(batch_size, -1)
    zero = torch.zeros((), dtype=torch.long, device=device)

    def sees(key_BT: torch.Tensor) -> torch.Tensor:
        inside = (key_BT >= 0) & (key_BT < q_length)
        return inside & mask_function(row_B1, zero, token_BT, key_BT.clamp(0, q_length - 1))

    start_BT = torch.where(sees(token_BT - 1), 0, token_BT).cummax(-1).values
    candidates = [start_BT] + ([torch.maximum(start_BT, token_BT - local_size + 1)] if local_size else [])
    for first_BT in candidates:
        fits = sees(first_BT) & ~sees(first_BT - 1) & ~sees(token_BT + 1)
        if fits.all():
            return first_BT.to("cpu", torch.int32)
    raise ValueError("this model's attention is not causal from some token on; use attention=eager")


def _interface(kernel: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, None]]:
    """A kernel in the form that transformers' attention modules call."""

    def forward(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **others):
        extra = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
        if extra or attention_mask is None:
            raise ValueError(
                f"{type(module).__name__} asks for {', '.join(extra) or 'attention without a causal rule'}, which the "
                "attention kernels for documents do not compute; use attention=eager"
            )
        if torch.is_autocast_enabled(query.device.type):
            dtype = torch.get_autocast_dtype(query.device.type)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        return kernel(query, key, value, attention_mask, scale, dropout), None

    return forward


# Torch's fused kernel, one document at a time


@torch.compiler.disable
def _sdpa(q_BHTK, k_BGTK, v_BGTV, first_BT, scale: float, dropout: float) -> torch.Tensor:
    rows = []
    for row, first_T in enumerate(first_BT.numpy()):
        pieces = [
            _sdpa_document(
                q_BHTK[row, :, start:stop], k_BGTK[row, :, start:stop], v_BGTV[row, :, start:stop],
                first_T[start:stop] - start, scale, dropout,
            )
            for start, stop in _documents(first_T)
        ]  # fmt: skip
        rows.append(torch.cat(pieces, 1).transpose(0, 1))
    return torch.stack(rows)


def _sdpa_document(q_HSK, k_GSK, v_GSV, first_S: np.ndarray, scale: float, dropout: float) -> torch.Tensor:
    options: dict[str, Any] = {"is_causal": True}
    if first_S.any():  # a window that the document is longer than
        key_S = torch.arange(len(first_S), device=q_HSK.device)
        visible_SS = (key_S <= key_S[:, None]) & (key_S >= torch.from_numpy(first_S).to(q_HSK.device)[:, None])
        options = {"attn_mask": visible_SS}
    grouped = k_GSK.shape[0] != q_HSK.shape[0]
    return functional.scaled_dot_product_attention(
        q_HSK[None], k_GSK[None], v_GSV[None], dropout_p=dropout, scale=scale, enable_gqa=grouped, **options
    )[0]


def _documents(first_T: np.ndarray) -> Iterator[tuple[int, int]]:
    """[start, stop) of each document: it starts where a token sees nothing before itself."""
    starts = np.flatnonzero(first_T == np.arange(len(first_T)))
    return zip(starts.tolist(), [*starts[1:].tolist(), len(first_T)], strict=True)


# Matrix products over blocks of queries. The probabilities of a block are computed again in the backward pass (as in
# FlashAttention, arXiv 2205.14135), so that what is kept is q, k and v alone; heads that share a key are one product.


def _blocks(first_T: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(start, stop, first key) of each block of queries; documents of one token need none: they see their own value."""
    for start, stop in _documents(first_T):
        if stop - start > 1:
            for begin in range(start, stop, BLOCK):
                yield begin, min(stop, begin + BLOCK), int(first_T[begin])


def _lone(first_T: np.ndarray) -> list[int]:
    return [start for start, stop in _documents(first_T) if stop - start == 1]


@lru_cache(maxsize=8)
def _future(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.full((size, size), -math.inf, dtype=dtype, device=device).triu_(1)


def _product_dtype(q: torch.Tensor) -> torch.dtype:
    """fp32 on a CPU that has no bf16 products: what it does instead is several times slower and no more exact."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        able = torch.cpu.get_capabilities()
        return q.dtype if able.get("amx_bf16") or able.get("avx512_bf16") else torch.float32
    return q.dtype


def _probabilities(q_GXK, k_GNK, first_S: np.ndarray, first_key: int) -> torch.Tensor:
    """softmax(q k^T) of a block: [G, H/G * S, N], a query's groups in X = H/G * S."""
    scores_GXN = torch.bmm(q_GXK, k_GNK.transpose(1, 2))
    groups, num_keys, size = scores_GXN.shape[0], scores_GXN.shape[-1], len(first_S)
    scores_GRSN = scores_GXN.view(groups, -1, size, num_keys)
    scores_GRSN[..., num_keys - size :] += _future(BLOCK, scores_GXN.dtype, scores_GXN.device)[:size, :size]
    if (cut := int(first_S[-1]) - first_key) > 0:  # a window ends inside the block
        key_C = torch.arange(first_key, first_key + cut)
        hidden_SC = key_C < torch.from_numpy(first_S.astype(np.int64))[:, None]
        scores_GRSN[..., :cut].masked_fill_(hidden_SC.to(scores_GXN.device), -math.inf)
    return torch.softmax(scores_GXN, -1, dtype=torch.promote_types(scores_GXN.dtype, torch.float32))


def _grouped(x_HSK: torch.Tensor, num_groups: int) -> torch.Tensor:
    """[H, S, K] as [G, H/G * S, K]."""
    return x_HSK.reshape(num_groups, -1, x_HSK.shape[-1])


@torch.library.custom_op("llama_pro::document_attention", mutates_args=())
def document_attention(
    q_BHTK: torch.Tensor, k_BGTK: torch.Tensor, v_BGTV: torch.Tensor, first_BT: torch.Tensor, scale: float
) -> torch.Tensor:
    """[B, T, H, V]: softmax(scale q k^T) v over the keys from `first_BT` up to the query.

    Args:
        q_BHTK, k_BGTK, v_BGTV: of one float dtype; H is a multiple of G.
        first_BT: see `first_visible`.
        scale: of the scores.
    """
    dtype, (num_rows, num_heads, num_tokens, _), groups = _product_dtype(q_BHTK), q_BHTK.shape, k_BGTK.shape[1]
    out_BTHV = q_BHTK.new_empty(num_rows, num_tokens, num_heads, v_BGTV.shape[-1])
    for row, first_T in enumerate(first_BT.numpy()):
        q, k, v = q_BHTK[row].to(dtype) * scale, k_BGTK[row].to(dtype), v_BGTV[row].to(dtype)
        out_HTV = out_BTHV[row].transpose(0, 1)
        if lone := _lone(first_T):
            out_HTV[:, lone] = v[:, lone].repeat_interleave(num_heads // groups, 0).to(out_HTV.dtype)
        for start, stop, first_key in _blocks(first_T):
            weights = _probabilities(
                _grouped(q[:, start:stop], groups), k[:, first_key:stop], first_T[start:stop], first_key
            )
            mixed = torch.bmm(weights.to(dtype), v[:, first_key:stop])
            out_HTV[:, start:stop] = mixed.view(num_heads, stop - start, -1)
    return out_BTHV


@document_attention.register_fake
def _(q_BHTK, k_BGTK, v_BGTV, first_BT, scale):
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
            weights = _probabilities(queries, k[:, keys], first_T[start:stop], first_key)
            dv[:, keys].baddbmm_(weights.to(dtype).transpose(1, 2), grads)
            dweights = torch.bmm(grads, v[:, keys].transpose(1, 2)).to(weights.dtype)
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype).to(dtype)
            dq_BHTK[row, :, start:stop] = torch.bmm(dscores, k[:, keys]).mul_(scale).view(num_heads, stop - start, -1)
            dk[:, keys].baddbmm_(dscores.transpose(1, 2), queries)
        dk_BGTK[row], dv_BGTV[row] = dk, dv
    return dq_BHTK, dk_BGTK, dv_BGTV


def _like_projection(x_BHTK: torch.Tensor) -> torch.Tensor:
    num_rows, num_heads, num_tokens, size = x_BHTK.shape
    return x_BHTK.new_empty(num_rows, num_tokens, num_heads, size).transpose(1, 2)


@document_attention_backward.register_fake
def _(grad_BTHV, q_BHTK, k_BGTK, v_BGTV, first_BT, scale):
    return tuple(_like_projection(x) for x in (q_BHTK, k_BGTK, v_BGTV))


def _save_inputs(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad_BTHV: torch.Tensor) -> tuple:
    return (*document_attention_backward(grad_BTHV, *ctx.saved_tensors, ctx.scale), None, None)


document_attention.register_autograd(_differentiate, setup_context=_save_inputs)


def _products(q_BHTK, k_BGTK, v_BGTV, first_BT, scale: float, dropout: float) -> torch.Tensor:
    return document_attention(q_BHTK, k_BGTK, v_BGTV, first_BT, scale)


KERNEL_FUNCTIONS = {"documents": _products, "sdpa": _sdpa}
