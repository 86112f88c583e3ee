"""Where params name a source: mappings with a `kind`, at any depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def sources(params: Any, kind: str) -> list[tuple[str, dict[str, Any]]]:
    """The path and the mapping of every source of one kind inside `params`, in order."""
    found = []

    def note(source: dict[str, Any], where: str) -> dict[str, Any]:
        found.append((where, source))
        return source

    replaced(params, note, kind, "params")
    return found


def replaced(params: Any, change: Callable[[dict[str, Any], str], dict[str, Any]], kind: str, where: str = "") -> Any:
    """A copy of `params` in which `change(mapping, path)` stands for every source of one kind."""
    if isinstance(params, dict):
        own = change(params, where) if params.get("kind") == kind else params
        return {key: replaced(value, change, kind, f"{where}.{key}".lstrip(".")) for key, value in own.items()}
    if isinstance(params, (list, tuple)):
        return [replaced(value, change, kind, f"{where}[{index}]") for index, value in enumerate(params)]
    return params
