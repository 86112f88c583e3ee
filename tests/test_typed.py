"""Values of a section are compared with the annotations of its class, before the class sees them; numbers with their
ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from pipeline.data.chat.docstrings import DocstringPairs
from pipeline.data.clean.split import HeldOut
from pipeline.data.sources.documents import HubDataset, Text
from pipeline.evaluation.text.base_samples import BaseSamples
from pipeline.ranges import BELOW_ONE, POSITIVE, SHARE, Range, check_ranges
from pipeline.training.settings import RANGES
from pipeline.typed import check_fields, checked
from tests.training.test_fit import settings


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


NUMBERS = [key for key in RANGES if key not in ("num_tokens", "num_epochs", "num_flops", "num_steps", "betas")]


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "words"),
    [
        (POSITIVE, [1e-9, 5], [0, -3, math.inf, math.nan], "more than 0 and finite"),
        (SHARE, [0, 1], [-1e-9, 1.01, math.nan], "at least 0 and at most 1"),
        (BELOW_ONE, [0, 0.99], [1, -1], "at least 0 and less than 1"),
        (Range(2, hint="or null"), [2], [1, -math.inf], "at least 2 and finite, or null"),
    ],
)
def test_a_range_says_what_it_holds(allowed, inside, outside, words):
    assert all(value in allowed for value in inside) and not any(value in allowed for value in outside)
    with pytest.raises(ValueError, match=f"^x.key={outside[0]} must be {words}$"):
        check_ranges({"key": outside[0], "other": -1}, {"key": allowed, "absent": allowed}, "x.")
    check_ranges({"key": None}, {"key": allowed})


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_of_a_training_has_a_range(key):
    with pytest.raises(ValueError, match=f"^{key}=-3 must be "):
        settings(**{key: -3})


@pytest.mark.parametrize(
    "wrong", [{"min_lr_ratio": 5}, {"validate_every": 0}, {"lr": math.nan}, {"eps": math.inf}, {"betas": [0.9, -1]}]
)
def test_settings_out_of_range(wrong):
    (key,) = wrong
    with pytest.raises(ValueError, match=f"^{key}=.* must be "):
        settings(**wrong)


def test_numbers_of_data_and_samples():
    held = {"bytes": None, "fraction": 0.1, "threshold": 0.5, "seed": 0}
    samples = {"num_free": 1, "prompts": [], "num_tokens": 2, "seed": 0, "date": None, "template_options": {}}
    text = {"origin": None, "weight": 1.0, "text_field": "text", "boundary": None, "max_symbol_fraction": None}
    pairs = {
        "origin": None, "weight": 1.0, "min_description_chars": 1, "max_description_chars": 9, "min_code_chars": 1,
        "max_code_chars": 9,
    }  # fmt: skip
    hub = {"source": {}, "name": None, "split": "train", "files": None, "streaming": False, "limit": 1}
    for kind, good, wrong in [
        (HeldOut, held, {"seed": -3}),
        (HeldOut, held, {"fraction": 0.7}),
        (BaseSamples, samples, {"seed": -3}),
        (Text, text, {"max_symbol_fraction": -3}),
        (Text, text, {"weight": 0}),
        (DocstringPairs, pairs, {"min_code_chars": -3}),
        (DocstringPairs, pairs, {"max_description_chars": 0}),
        (HubDataset, hub, {"limit": -1}),
    ]:
        (key,) = wrong
        kind(**good)
        with pytest.raises(ValueError, match=f"{key}=.* must be "):
            kind(**{**good, **wrong})
