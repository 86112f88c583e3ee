"""Short names for the variants of a sweep, and the number that a sweep varies."""

from __future__ import annotations

from collections.abc import Sequence

MAX_LABEL = 28


def variant_labels(names: Sequence[str]) -> dict[str, str]:
    """A short label for each variant's override string.

    Overrides that all variants share are left out, then option paths are cut to their last part; a step is taken only
    if the labels stay different. What is still too long becomes a letter; reports list labels with their full strings.
    """
    split = {name: split_overrides(name) for name in names}
    shared = set.intersection(*(set(parts) for parts in split.values())) if len(names) > 1 else set()
    own = {name: [part for part in parts if part not in shared] for name, parts in split.items()}
    labels = {name: ", ".join(parts) or "default" for name, parts in own.items()}
    short = {name: ", ".join(map(_last_part, parts)) or "default" for name, parts in own.items()}
    for candidate in (short, labels):
        if len(set(candidate.values())) == len(names) and all(len(label) <= MAX_LABEL for label in candidate.values()):
            return candidate
    return {name: _letter(i) for i, name in enumerate(names)}


def swept_number(names: Sequence[str]) -> tuple[str, list[float]] | None:
    """The one override that differs between variants, with its value in each, if all values are numbers; else None."""
    settings = [dict(part.partition("=")[::2] for part in split_overrides(name)) for name in names]
    keys = set.union(*(set(setting) for setting in settings))
    differing = [key for key in keys if len({setting.get(key) for setting in settings}) > 1]
    if len(differing) != 1:
        return None
    try:
        return differing[0], [float(setting[differing[0]]) for setting in settings]
    except (KeyError, ValueError):
        return None


def split_overrides(name: str) -> list[str]:
    """Split at commas and spaces that are not inside brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in name:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        depth += (character in "[{(") - (character in ")}]") if not quote else 0
        if character in ", " and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part and part != "default"]


def _last_part(override: str) -> str:
    key, equals, value = override.partition("=")
    return value if key == "experiment" else key.rpartition(".")[2] + equals + value


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"{chr(ord('A') + index % 26)}{index // 26}"
