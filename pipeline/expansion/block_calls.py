"""How a model calls its blocks, seen by running it without weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from pipeline.expansion.zero_propagation import Valueless

_TOKENS = 6  # enough to be told apart from any other dimension of a tiny model, few enough to be fast


def watch_calls(model: nn.Module, lists: list[tuple[str, nn.ModuleList]]) -> dict[str, list[Any]]:
    """Run the model on meta tokens; per list of blocks, how each of its members was called."""
    calls: dict[tuple[str, int], Any] = {}
    handles = []

    def note(key: tuple[str, int], _: nn.Module, args: Any, kwargs: Any) -> None:
        calls.setdefault(key, (args, kwargs))

    for name, blocks in lists:
        for index, block in enumerate(blocks):
            handles.append(block.register_forward_pre_hook(partial(note, (name, index)), with_kwargs=True))
    ids = torch.zeros((1, _TOKENS), dtype=torch.int64, device="meta")
    try:
        with torch.no_grad(), Valueless():
            model(input_ids=ids, use_cache=False)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{type(model).__name__} does not run without weights: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, blocks in lists:
        own = [calls.get((name, index)) for index in range(len(blocks))]
        if all(call is not None and stream_of(*call) is not None for call in own):
            found[name] = own
    return found


def stream_of(args: Any, kwargs: Any) -> Any:
    """The hidden states [B, T, D] that a block was called with, or None."""
    value = args[0] if args else kwargs.get("hidden_states")
    return value if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() == 3 else None


def call_block(block: nn.Module, args: Any, kwargs: Any, stream: torch.Tensor) -> Any:
    """Call a block as the model did, on another stream."""
    if args:
        return block(stream, *args[1:], **kwargs)
    return block(**{**kwargs, "hidden_states": stream})
