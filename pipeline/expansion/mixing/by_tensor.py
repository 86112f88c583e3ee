"""A number that may differ by depth and by tensor name, as mergekit's recipes write it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Setting = float | Sequence[float] | Sequence[Mapping[str, Any]]
"""A number; several, spread over the depth; or a list of {filter: text, value: a number or several}."""
_ANY = "*"


def value_at(setting: Setting, name: str, place: float) -> float:
    """The number for a tensor.

    Args:
        setting: checked by `check_setting`.
        name: of the tensor; the first entry whose filter is part of it counts.
        place: of its block, from 0 (the first block, and whatever is outside the blocks) to 1 (the last); between two
            numbers of a list it is interpolated.
    """
    if isinstance(setting, int | float):
        return float(setting)
    if isinstance(setting[0], Mapping):
        return value_at(next(value for part, value in _filters(setting) if part in name), name, place)
    values = [float(value) for value in setting]  # type: ignore[arg-type]
    below = int(place * (len(values) - 1))
    above, share = min(below + 1, len(values) - 1), place * (len(values) - 1) - below
    return (1 - share) * values[below] + share * values[above]


def place_of(block: int | None, num_blocks: int) -> float:
    """Where a block is in the depth, see `value_at`; None: outside the blocks."""
    if block is None:
        return 0.0
    return block / (num_blocks - 1) if num_blocks > 1 else 1.0


def numbers_of(setting: Setting) -> Iterator[float]:
    """Every number of a setting."""
    if isinstance(setting, int | float):
        yield float(setting)
    else:
        for one in setting:
            yield from numbers_of(one["value"] if isinstance(one, Mapping) else one)


def check_setting(setting: Any, key: str, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise ValueError for what is no setting, or has a number that is not finite or not from `low` to `high`."""
    if isinstance(setting, int | float) and not isinstance(setting, bool):
        if not (math.isfinite(setting) and low <= setting <= high):
            raise ValueError(f"{key}={setting!r} must be a finite number" + _range(low, high))
        return
    if not isinstance(setting, Sequence) or isinstance(setting, str) or not setting:
        raise ValueError(
            f"{key}={setting!r} must be a number, a list of numbers over the depth ([0, 0.5, 1]), or a list of "
            "{filter: TEXT, value: ...} whose last entry has no filter"
        )
    filtered = [isinstance(one, Mapping) for one in setting]
    if any(filtered):
        _check_filters(setting, key, all(filtered))
    for one in setting:
        inner = one["value"] if isinstance(one, Mapping) else one
        if not filtered[0] and not isinstance(inner, int | float):
            raise ValueError(f"{key} has {inner!r} in a list of numbers over the depth")
        check_setting(inner, key, low, high)


def check_filters_used(setting: Setting, key: str, names: Iterable[str]) -> None:
    """Raise ValueError for a filter that is part of no tensor's name: what it was meant for gets another number."""
    if isinstance(setting, Sequence) and isinstance(setting[0], Mapping):
        names = list(names)
        for part, _ in _filters(setting):
            if not any(part in name for name in names):
                raise ValueError(
                    f"{key} has the filter {part!r}, which is part of no tensor's name, such as {names[0]}"
                )


def _filters(setting: Sequence[Any]) -> list[tuple[str, Setting]]:
    """The entries' filters, "" for all tensors, and values."""
    return [("" if one.get("filter") in (None, _ANY) else one["filter"], one["value"]) for one in setting]


def _check_filters(setting: Sequence[Any], key: str, all_filtered: bool) -> None:
    known = {"filter", "value"}
    if not all_filtered or any(set(one) - known or "value" not in one for one in setting):
        raise ValueError(f"{key}={list(setting)!r}: each entry must be {{filter: TEXT, value: ...}}, and no other")
    if wrong := [one for one in setting if not isinstance(one.get("filter"), str | None) or one.get("filter") == ""]:
        raise ValueError(f"{key} has the entry {wrong[0]!r}; a filter is a part of tensors' names, such as self_attn")
    if _filters(setting)[-1][0]:
        raise ValueError(
            f"{key}={list(setting)!r} leaves tensors without a value; end it with {{value: ...}}, no filter"
        )


def _range(low: float, high: float) -> str:
    return "" if (low, high) == (-math.inf, math.inf) else f" from {low:g} to {high:g}"
