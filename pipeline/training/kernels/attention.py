"""Causal attention inside documents of a packed row, without a mask of [T, T].

What a token sees is one number: the first token that it sees (it sees from there up to itself). That says where
documents end, and sliding windows and attention in chunks as well. transformers' mask builder, which every architecture
of the library calls, is asked for that number instead of a matrix, so no architecture has to be known here.

Two kernels read it: `documents` (`document_attention` beside this file: any device; on a CPU faster than torch's fused
kernel, most of all backwards), and `sdpa`, which gives torch's fused kernel one document at a time.

Shapes: B rows, T tokens of a row, H query heads, G key heads, K head dim, V value head dim, S tokens of a document,
X queries of a block, N keys that it sees.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from pipeline.training.kernels.document_attention import document_attention, document_bounds

KERNELS = ("auto", "documents", "sdpa", "eager", "flex", "flash")
LIBRARY_NAMES = {"eager": "eager", "flex": "flex_attention", "flash": "flash_attention_2"}
OWN_NAMES = {"documents": "llama_pro_documents", "sdpa": "llama_pro_sdpa"}
WINDOW_BLOCK = 256
"""Queries whose window is one mask in `sdpa`: [256, 256 + window], whatever the length of the document."""


def choose_attention(model: Any, requested: str, device: torch.device) -> str:
    """Set a model's attention kernel for packed rows, by a name of `KERNELS`, and return the name chosen.

    `auto` is flash-attn on a GPU where it is installed and the weights are half precision, else `sdpa` on a GPU and
    `documents` on a CPU. A model whose attention these cannot compute (sinks, its own attention code; on a GPU a soft
    cap) keeps what transformers chooses for it, with a mask of [T, T].

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
    if _cap(model) and device.type != "cuda" and not (_obstacle(model, capped=True) or _dropout(model)):
        return "documents"
    if _obstacle(model):
        return None
    if device.type != "cuda":
        return "documents" if not _dropout(model) else "sdpa"
    return "sdpa" if _flash_obstacle(model) else "flash"


def _refuse_impossible(model: Any, chosen: str, device: torch.device) -> None:
    if chosen in OWN_NAMES and (obstacle := _obstacle(model, capped=chosen == "documents")):
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


def _cap(model: Any) -> float | None:
    return getattr(model.config.get_text_config(), "attn_logit_softcapping", None)


def _obstacle(model: Any, capped: bool = False) -> str | None:
    """Why the kernels of this file cannot compute a model's attention; None if they can.

    `capped`: asked of a kernel that can cap the scores. transformers then says that sdpa is not supported.
    """
    if _cap(model) and not capped:
        return "it caps the attention scores"
    if not ((model._supports_sdpa or _cap(model)) and model._supports_attention_backend):
        return "it computes attention in code of its own"
    return None


def _dropout(model: Any) -> bool:
    return bool(getattr(model.config.get_text_config(), "attention_dropout", 0))


@lru_cache(maxsize=1)
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    for kernel, name in OWN_NAMES.items():
        AttentionInterface.register(name, _interface(KERNEL_FUNCTIONS[kernel], caps=kernel == "documents"))
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
    the window imply and about the row's first token, so that rules of another kind are noticed.

    Raises:
        ValueError: padding, a cache, or a rule that is not "causal from some token on".
    """
    if local_size == 0:  # Qwen2-MoE makes this mask beside the one that its blocks use: it shows no token anything
        return torch.arange(1, q_length + 1, dtype=torch.int32).expand(batch_size, -1)
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
        fits &= sees(torch.zeros_like(token_BT)) == (first_BT == 0)
        if fits.all():
            return first_BT.to("cpu", torch.int32)
    raise ValueError("this model's attention is not causal from some token on; use attention=eager")


def _interface(kernel: Callable[..., torch.Tensor], caps: bool) -> Callable[..., tuple[torch.Tensor, None]]:
    """A kernel in the form that transformers' attention modules call."""

    def forward(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **others):
        options = {"cap": others.pop("softcap", None) or 0.0} if caps else {"dropout": dropout}
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
        return kernel(query, key, value, attention_mask, scale, **options), None

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
            for start, stop in document_bounds(first_T)
        ]  # fmt: skip
        rows.append(torch.cat(pieces, 1).transpose(0, 1))
    return torch.stack(rows)


def _sdpa_document(q_HSK, k_GSK, v_GSV, first_S: np.ndarray, scale: float, dropout: float) -> torch.Tensor:
    if not first_S.any():
        return _fused(q_HSK, k_GSK, v_GSV, scale, dropout, is_causal=True)
    # A window that the document is longer than: of what a block of queries sees, a mask of its own.
    pieces = []
    for start in range(0, len(first_S), WINDOW_BLOCK):
        stop = min(start + WINDOW_BLOCK, len(first_S))
        keys = slice(int(first_S[start]), stop)
        key_N = torch.arange(keys.start, keys.stop, device=q_HSK.device)
        first_X1 = torch.from_numpy(first_S[start:stop]).to(q_HSK.device)[:, None]
        last_X1 = torch.arange(start, stop, device=q_HSK.device)[:, None]
        visible_XN = (key_N <= last_X1) & (key_N >= first_X1)
        query = q_HSK[:, start:stop]
        pieces.append(_fused(query, k_GSK[:, keys], v_GSV[:, keys], scale, dropout, attn_mask=visible_XN))
    return torch.cat(pieces, 1)


def _fused(q_HSK, k_GSK, v_GSV, scale: float, dropout: float, **options: Any) -> torch.Tensor:
    grouped = k_GSK.shape[0] != q_HSK.shape[0]
    return functional.scaled_dot_product_attention(
        q_HSK[None], k_GSK[None], v_GSV[None], dropout_p=dropout, scale=scale, enable_gqa=grouped, **options
    )[0]


KERNEL_FUNCTIONS = {"documents": document_attention, "sdpa": _sdpa}
