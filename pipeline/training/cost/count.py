"""The FLOPs of a model as it stands, counted by running it on tensors without data: any family, any strategy.

What autograd would do for the parameters that require a gradient is counted by PyTorch's own counter, operator by
operator, so a frozen matrix has no weight gradient in it and a frozen prefix no backward pass at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.architecture.custom_models import empty_model
from pipeline.records.expansion import read_expansion
from pipeline.training.cost.flops import Cost, Window, cost_of
from pipeline.training.cost.forecast import known_shape
from pipeline.training.kernels.routers import num_experts_of
from pipeline.training.methods.penalty import with_penalties
from pipeline.training.methods.strategy import Strategy, apply_strategy

SHORT = 128
"""Tokens of the shortest of three rows: a multiple of the chunks in which linear attention computes."""


def count_cost(causal: Any) -> Cost | None:
    """The cost of a causal language model whose `requires_grad` are final; None where it cannot run without data.

    A row's FLOPs are a T + b T^2 + c: rows of three lengths tell a, the matrices, b, a query and a key, and c, weights
    that are multiplied with weights (peft adds adapters of stacked experts to them before a token comes). Attention
    runs in its plain form for this, with every pair of tokens; `Cost` then counts the pairs that are looked at. The
    model runs as in training: visual experts then compute for every token, and an image is adapted in each row.

    Args:
        causal: a transformers causal language model, adapters in place; its weights are neither read nor copied.
    """
    if not hasattr(causal.config.get_text_config(), "num_attention_heads"):
        return None  # Mamba: without its kernels it runs token by token, which takes minutes to follow
    kernel, head = getattr(causal.config, "_attn_implementation", None), causal.get_output_embeddings()
    if head is None:
        return None
    was_training = causal.training
    try:
        causal.train().config._attn_implementation = "eager"
        rows = [_count(causal.get_decoder(), head, times * SHORT) for times in (1, 2, 3)]
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError):
        return None  # a control flow that depends on data, such as a loop over the experts that were chosen
    finally:
        causal.train(was_training).config._attn_implementation = kernel
    (forward, pair_forward, row_forward), (backward, pair_backward, row_backward) = map(_split, *(r[:2] for r in rows))
    return Cost(
        forward=forward,
        backward=backward,
        head_forward=float(rows[0][2]),
        head_backward=float(rows[0][3]),
        windows=_windows(causal.config.get_text_config(), pair_forward, pair_backward),
        row_forward=row_forward,
        row_backward=row_backward,
    )


def cost_of_saved(source: Path, strategy: Strategy) -> Cost:
    """The cost of training the model saved in `source`, before its weights are read.

    Raises:
        ValueError: it cannot be counted.
    """
    if known := known_shape(source, strategy):
        cost = cost_of(*known)
    else:
        model = empty_model(source)
        apply_strategy(strategy, model, read_expansion(source))
        if (counted := count_cost(model)) is None:
            raise ValueError(
                f"num_flops cannot be used with {type(model).__name__}, whose FLOPs cannot be counted beforehand; use "
                "num_tokens"
            )
        cost = counted
    return with_penalties(cost, strategy.penalties)


def num_active(causal: Any) -> int:
    """Parameters that a token meets, lookup tables included: all but the experts that are not chosen for it."""
    config = causal.config.get_text_config()
    top_k, num_experts = getattr(config, "num_experts_per_tok", None), num_experts_of(config)
    total = sum(parameter.numel() for parameter in causal.parameters())
    if not isinstance(top_k, int) or num_experts is None:
        return total
    experts = [p for p in causal.parameters() if p.dim() == 3 and len(p) == num_experts]  # as transformers stacks them
    return total - sum(p.numel() // num_experts * (num_experts - min(top_k, num_experts)) for p in experts)


def _split(once: int, twice: int, thrice: int) -> tuple[float, float, float]:
    """FLOPs a token, a pair and a row, from those of rows of `SHORT` tokens and of twice and thrice as many."""
    pair = (thrice - 2 * twice + once) / (2 * SHORT**2)
    return (twice - once) / SHORT - 3 * SHORT * pair, pair, float(3 * once - 3 * twice + thrice)


def _count(decoder: torch.nn.Module, head: torch.nn.Module, length: int) -> tuple[int, ...]:
    """FLOPs of the matrix products of one row, forward and backward, and of the head for one token of it likewise."""
    with FakeTensorMode(), FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        ids = torch.zeros(1, length, dtype=torch.long)
        hidden = _call(decoder, (), {"input_ids": ids, "use_cache": False}).last_hidden_state
        forward, both = _backward(hidden, counter)
        token = hidden[:, :1].detach().requires_grad_(hidden.requires_grad)
        head_forward, all_ = _backward(_call(head, (token,), {}), counter)
        return forward, both - forward, head_forward - both, all_ - head_forward


def _call(module: torch.nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> Any:
    tensors = {name: _empty(p) for name, p in [*module.named_parameters(), *module.named_buffers()]}
    return torch.func.functional_call(module, tensors, args, inputs, tie_weights=False)


def _backward(output: torch.Tensor, counter: Any) -> tuple[int, int]:
    """FLOPs counted until there was this output, and until its backward pass, if there is one, was over."""
    before = counter.get_total_flops()
    if output.requires_grad:
        output.sum().backward()
    return before, counter.get_total_flops()


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
