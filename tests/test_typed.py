"""Values of a section are compared with the annotations of its class, before the class sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from pipeline.typed import check_fields, checked


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Section:
    count: int
    rate: float
    name: str
    on: bool
    limit: int | None
    betas: Sequence[float]
    pair: tuple[int, str]
    kind: Literal["a", "b"]
    weights: Mapping[str, float]
    inner: Inner | None
    free: Any


GOOD = {
    "count": 1, "rate": 2, "name": "x", "on": False, "limit": None, "betas": [0.9, 1], "pair": [1, "a"], "kind": "a",
    "weights": {"a": 1}, "inner": {"_target_": f"{__name__}.Inner", "size": 3}, "free": object,
}  # fmt: skip


def test_what_fits_is_left_alone():
    check_fields(Section, GOOD)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("count", "many", "a whole number"),
        ("count", 0.5, "a whole number"),
        ("count", True, "a whole number"),
        ("rate", "fast", "a number"),
        ("rate", False, "a number"),
        ("name", 3, "text"),
        ("on", 1, "true or false"),
        ("limit", "all", "a whole number or null"),
        ("betas", 0.9, "a list, each a number"),
        ("betas", "0.9", "a list, each a number"),
        ("betas", [0.9, None], "a list, each a number"),
        ("pair", [1], "a list, each a whole number"),
        ("kind", "c", "one of 'a', 'b'"),
        ("weights", {"a": "heavy"}, "a mapping"),
        ("weights", [1], "a mapping"),
    ],
)
def test_what_does_not_fit_is_named(key, value, wanted):
    with pytest.raises(ValueError, match=f"^{key}=.* must be {wanted}"):
        check_fields(Section, {**GOOD, key: value})


def test_sections_within_are_looked_at():
    target = "pipeline.expansion.methods.block.BlockExpansion"
    section = {"sources": [{"_target_": target, "num_groups": "two"}]}
    with pytest.raises(ValueError, match=r"^sources\.0\.num_groups='two' must be a whole number"):
        checked(section)
    assert checked({"_target_": target, "num_groups": 2}) == {"_target_": target, "num_groups": 2}
