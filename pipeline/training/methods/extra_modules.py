"""Modules that train beside what a strategy trains, by name: embeddings, the head, norms."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.globs import matches
from pipeline.models.architecture.aliases import aliases

if TYPE_CHECKING:  # a request is checked without
    from torch import nn


def extra_parameters(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters, by name, of all modules that patterns name, and parameters that they name themselves.

    A pattern is a module's name in full, its last parts, or a glob of these in which `*` stays within one part:
    `lm_head`, `embed_tokens`, `model.norm`, `*layernorm`, `layers.31.self_attn`. A part matches whole: `layers.4` is
    not `layers.40`.

    Raises:
        ValueError: a pattern matches nothing, or only what has no parameters.
    """
    if isinstance(patterns, str):
        raise ValueError(f"extra_modules={patterns!r} must be a list of names, such as [{patterns}]")
    found: dict[str, nn.Parameter] = {}
    for pattern in patterns:
        found |= _of_pattern(model, pattern)
    _say_what_is_tied(model, found)
    return found


def _of_pattern(model: nn.Module, pattern: str) -> dict[str, nn.Parameter]:
    glob = pattern.replace(".", "/")
    wanted = [glob, f"**/{glob}"]
    modules = [name for name, _ in model.named_modules() if name and matches(name.replace(".", "/"), wanted)]
    own = dict(model.named_parameters(remove_duplicate=False))
    found = {
        name: parameter
        for name, parameter in own.items()
        if matches(name.replace(".", "/"), wanted) or any(name.startswith(f"{module}.") for module in modules)
    }
    if not found:
        raise ValueError(_no_match(model, pattern, modules))
    return found


def _no_match(model: nn.Module, pattern: str, modules: Sequence[str]) -> str:
    if modules:
        return f"extra_modules names {pattern}, and {modules[0]} has no parameters; name another module"
    parts = dict.fromkeys(part for name, _ in model.named_parameters() for part in name.split(".")[:-1])
    names = [part for part in parts if not part.isdigit()]
    near = difflib.get_close_matches(pattern.rpartition(".")[2], names, 3, 0.5)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return f"extra_modules names {pattern}, which matches no module of the model; {meant}it has {', '.join(names)}"


def _say_what_is_tied(model: nn.Module, found: dict[str, nn.Parameter]) -> None:
    tied = aliases(model)
    for names in dict.fromkeys(tied.get(name, ()) for name in found):
        if names and not set(names) <= set(found):
            warnings.warn(f"extra_modules: {' and '.join(names)} are one tensor: both train", stacklevel=4)
