"""The FLOPs of a model as it stands, counted by running it on tensors without data: any family, any strategy.

What autograd would do for the parameters that require a gradient is counted by PyTorch's own counter, operator by
operator, so a frozen matrix has no weight gradient in it and a frozen prefix no backward pass at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.training.cost.flops import Cost, Window

SHORT = 128
"""Tokens of the shorter of two rows: a multiple of the chunks in which linear attention computes."""


def count_cost(causal: Any) -> Cost | None:
    """The cost of a causal language model whose `requires_grad` are final; None where it cannot run without data.

    A row's FLOPs are a + b T a token: rows of two lengths tell a, the matrices, from b, a query and a key. Attention
    runs in its plain form for this, with every pair of tokens; `Cost` then counts the pairs that are looked at.

    Args:
        causal: a transformers causal language model, adapters in place; its weights are neither read nor copied.
    """
    if not hasattr(causal.config.get_text_config(), "num_attention_heads"):
        return None  # Mamba: without its kernels it runs token by token, which takes minutes to follow
    kernel = getattr(causal.config, "_attn_implementation", None)
    try:
        causal.config._attn_implementation = "eager"
        short, long = (_count(causal.get_decoder(), length) for length in (SHORT, 2 * SHORT))
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError):
        return None  # a control flow that depends on data, such as a loop over the experts that were chosen
    finally:
        causal.config._attn_implementation = kernel
    head = causal.get_output_embeddings()
    if head is None:
        return None
    once = 2.0 * head.weight.numel()
    (forward, pair_forward), (backward, pair_backward) = map(_split, short, long)
    return Cost(
        forward=forward,
        backward=backward,
        head_forward=once,
        head_backward=once * (2 if head.weight.requires_grad else 1),
        windows=_windows(causal.config.get_text_config(), pair_forward, pair_backward),
    )


def _split(short: int, long: int) -> tuple[float, float]:
    """FLOPs a token and a pair, from those of a row of `SHORT` tokens and of one twice as long."""
    pair = (long - 2 * short) / (2 * SHORT**2)
    return short / SHORT - pair * SHORT, pair


def _count(decoder: torch.nn.Module, length: int) -> tuple[int, int]:
    """FLOPs of the matrix products of one row: forward, and backward."""
    with FakeTensorMode(), FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        tensors = {name: _empty(p) for name, p in [*decoder.named_parameters(), *decoder.named_buffers()]}
        ids = torch.zeros(1, length, dtype=torch.long)
        inputs = {"input_ids": ids, "use_cache": False}
        hidden = torch.func.functional_call(decoder, tensors, (), inputs, tie_weights=False).last_hidden_state
        forward = counter.get_total_flops()
        if hidden.requires_grad:
            hidden.sum().backward()
        return forward, counter.get_total_flops() - forward


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of this shape that has no memory; all floats of one dtype, as autocast makes them."""
    dtype = torch.bfloat16 if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=dtype).requires_grad_(tensor.requires_grad)


def _grouped_mm_flops(left: Any, right: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Rows are shared among the experts, so each meets one matrix: two FLOPs for every product of an element.

    [N, I] x [E, I, O] gives [N, O]; the weights' gradient is [I, N] x [N, O], in [E, I, O].
    """
    rows, inner = left[-2], left[-1]
    return 2 * rows * inner * right[-1]


FORMULAS = {torch.ops.aten._grouped_mm: _grouped_mm_flops}
"""Of operators that PyTorch's counter does not know: products with a matrix for each expert."""


def _windows(config: Any, forward: float, backward: float) -> tuple[Window, ...]:
    """Attention's cost shared evenly among the blocks that have any, by their windows."""
    kinds, size = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if not kinds:
        kinds = ["sliding_attention" if size and getattr(config, "use_sliding_window", True) else "full_attention"]
    attending = [kind for kind in kinds if "attention" in kind and "linear" not in kind] or ["full_attention"]
    sizes = [size if kind == "sliding_attention" else None for kind in attending]
    return tuple(
        Window(one, forward * sizes.count(one) / len(sizes), backward * sizes.count(one) / len(sizes))
        for one in dict.fromkeys(sizes)
    )
