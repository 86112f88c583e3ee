"""The blocks of a loaded model, found, watched and left out through forward hooks: nothing is rebuilt or copied.

Shapes: B rows, T tokens of a row, D model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    import torch


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The list of decoder blocks: the outermost `nn.ModuleList` that is as long as the config says the model is deep.

    Raises:
        ValueError: there is none, or there are several.
    """
    depth = model.config.get_text_config().num_hidden_layers
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth}
    outer = own_lists(model, found)
    if len(outer) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(outer)} lists of {depth} modules ({', '.join(outer) or 'none'}); one is "
            "required to tell its blocks, so leave this benchmark out for it"
        )
    return found[outer[0]]


def own_lists(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Of lists of modules those that may be the decoder's own blocks.

    A block may itself hold a list of that length (8 experts in a model of 8 blocks), and a decoder may hold another
    model (CALM): what is directly in the decoder is its own.
    """
    names = list(names)
    outer = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    if len(outer) < 2 or not hasattr(model, "get_decoder"):
        return outer
    decoder = model.get_decoder()
    places = {name for name, module in model.named_modules() if module is decoder}
    return [name for name in outer if name.rpartition(".")[0] in places] or outer


@contextmanager
def bypassed(blocks: Sequence[nn.Module], positions: Iterable[int]) -> Iterator[None]:
    """Inside, the output of each of these blocks is its input. They still run, so that caches keep their shape."""
    with hooked((blocks[position], _pass_through) for position in positions):
        yield


def _pass_through(_: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> Any:
    stream_BTD = stream_of(args, kwargs)
    return (stream_BTD, *output[1:]) if isinstance(output, tuple) else stream_BTD


def stream_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """The stream that a block was called with: transformers gives it first, or under this name."""
    return args[0] if args else kwargs["hidden_states"]


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Any]]) -> Iterator[None]:
    """While active, these forward hooks (with keyword arguments) are on these modules."""
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
