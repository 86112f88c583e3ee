"""Equal data has one fingerprint, in every process and for ever; what has no stable form is refused by its path."""

import enum
import hashlib
import math
import re

import pytest

from pipeline.engine.fingerprint import canonical, digest, plain


def test_text_is_sorted_compact_and_ascii():
    assert canonical({"b": [1, 2.0, None, True], "a": "é"}) == '{"a":"\\u00e9","b":[1,2.0,null,true]}'


def test_digest_is_pinned():
    params = {"lr": 2e-4, "steps": 100, "mix": [{"name": "code", "weight": 0.1}], "skip": False, "note": None}
    text = b'{"lr":0.0002,"mix":[{"name":"code","weight":0.1}],"note":null,"skip":false,"steps":100}'
    assert digest(params) == hashlib.sha256(text).hexdigest()
    assert digest(params) == "d3a964bd4a16b3db1de38ecbefacec8c84e10f459a0c25560bcfb6f4d604dc2b"


def test_order_of_keys_and_kind_of_sequence_do_not_matter():
    assert digest({"a": (1, 2), "b": 1}) == digest({"b": 1, "a": [1, 2]})


@pytest.mark.parametrize("pair", [(1, 1.0), (1, True), (0, False), (0, None), ("1", 1), ([], {}), ([1, 2], [2, 1])])
def test_what_code_can_tell_apart_differs(pair):
    assert digest({"x": pair[0]}) != digest({"x": pair[1]})


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value, where",
    [
        ({"a": [0, {"b": math.nan}]}, "params.a[1].b"),
        ({"a": math.inf}, "params.a"),
        ({"a": {1, 2}}, "params.a"),
        ({"a": object()}, "params.a"),
        ({"a": Colour.RED}, "params.a"),
        ({"a": b"x"}, "params.a"),
        ({"a": {"b": {3: 1}}}, "params.a.b"),
    ],
)
def test_refusal_names_the_path(value, where):
    with pytest.raises(ValueError, match=re.escape(where) + " "):
        digest(value, "params")


def test_plain_is_a_copy():
    inner = [1]
    copy = plain({"a": inner})
    inner.append(2)
    assert copy == {"a": [1]}
