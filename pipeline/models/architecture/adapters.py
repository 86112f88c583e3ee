"""Where peft put low-rank adapters in a model, and what they change of it once they are merged."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.models.architecture.aliases import aliases

if TYPE_CHECKING:  # a request is checked without
    from torch import nn

_MODEL, _MODULE = "base_model.model.", ".base_layer"  # how peft names what it wraps
_WEIGHT = f"{_MODULE}.weight"


def adapted(model: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """The modules that carry an adapter, by name, each with the name of the parameter that it adapts.

    transformers stacks the experts of a block in parameters without modules of their own: peft then wraps what has
    them, once for each parameter.
    """
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            yield name, module, getattr(module, "parameter_name", "weight")


def original_name(name: str) -> str:
    """A parameter's name before the model was wrapped."""
    return name.removeprefix(_MODEL).replace(f"{_MODULE}.", ".")


def adapted_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that adapters are merged into, by their names before the model was wrapped."""
    return {original_name(f"{name}.{part}"): getattr(m.get_base_layer(), part) for name, m, part in adapted(model)}


def refuse_shared(model: Any) -> None:
    """Raise ValueError where an adapter's weight is another module's too: merged, its update would change both."""
    for name, names in aliases(model).items():
        if name.endswith(_WEIGHT):
            module = name.removesuffix(_WEIGHT)
            raise ValueError(
                f"strategy lora adapts {module}, whose weight is also {', '.join({*names} - {name})}: merged, its "
                f"update would change both. Leave {module.rpartition('.')[2]} out of target_modules (all-linear does), "
                "or use strategy full"
            )


def refuse_adapted(model: nn.Module, extra: Mapping[str, Any]) -> None:
    """Raise ValueError where an extra module's own weights have an adapter."""
    now = {id(parameter): name for name, parameter in model.named_parameters()}
    if both := [name for name, parameter in extra.items() if f"{_MODULE}." in now[id(parameter)]]:
        raise ValueError(
            f"strategy lora adapts {both[0]}, which extra_modules would train in full ({len(both)} such); leave it out "
            "of extra_modules, or out of target_modules"
        )


def tell_left_out(model: Any) -> None:
    """Warn of linear layers and stacked experts that "all-linear" gave no adapter to.

    peft knows the stacked experts of some architectures only. Of those it forgets linear layers named as an expert's:
    of blocks without experts, and of experts that all tokens share.
    """
    have, head = {id(parameter) for parameter in adapted_parameters(model).values()}, model.get_output_embeddings()
    modules = ((name, module) for name, module in model.named_modules() if "lora_" not in name and module is not head)
    left = [
        original_name(f"{name}.{part}")
        for name, module in modules
        for part, parameter in module.named_parameters(recurse=False)
        if id(parameter) not in have and _is_matrix(module, part, parameter)
    ]
    if left:
        warnings.warn(
            f"strategy lora with target_modules=all-linear: peft has no adapter for {', '.join(left[:3])} "
            f"({len(left)} such) in a {model.config.model_type} model; they stay as they are. strategy=full trains all",
            stacklevel=4,
        )


def _is_matrix(module: nn.Module, part: str, parameter: nn.Parameter) -> bool:
    """Whether a token is multiplied with it: the weight of a linear layer, or experts stacked in one parameter."""
    from torch.nn import Linear

    is_layer = type(module).__module__.startswith("torch.nn.")
    return (isinstance(module, Linear) and part == "weight") or (not is_layer and parameter.dim() == 3)
