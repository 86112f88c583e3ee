"""Where params name a source: mappings with a `kind`, at any depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def sources(params: Any, kind: str, where: str = "params") -> Iterator[tuple[str, dict[str, Any]]]:
    """The path and the mapping of every source of one kind inside `params`, in order."""
    if isinstance(params, dict):
        if params.get("kind") == kind:
            yield where, params
        for key, value in params.items():
            yield from sources(value, kind, f"{where}.{key}")
    elif isinstance(params, (list, tuple)):
        for index, value in enumerate(params):
            yield from sources(value, kind, f"{where}[{index}]")


def replaced(params: Any, change: Callable[[dict[str, Any], str], dict[str, Any]], kind: str, where: str = "") -> Any:
    """A copy of `params` in which `change(mapping, path)` stands for every source of one kind."""
    if isinstance(params, dict):
        own = change(params, where) if params.get("kind") == kind else params
        return {key: replaced(value, change, kind, f"{where}.{key}".lstrip(".")) for key, value in own.items()}
    if isinstance(params, (list, tuple)):
        return [replaced(value, change, kind, f"{where}[{index}]") for index, value in enumerate(params)]
    return params
