"""The lines of CALM's experiment: true, of the keys that are meant, and the same every time."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from pipeline.data.sources.key_arithmetic import KeyArithmetic

DEFAULTS = {"form": "sums", "keys": "all", "num_keys": 20, "share": 0.2, "count": 7, "lines": 3, "seed": 0}


def source(**changes):
    return KeyArithmetic(**{**DEFAULTS, **changes})


def fields(**changes):
    return [row.fields for row in source(**changes).rows(None, None)]


def test_known_and_new_keys_are_all_of_them():
    every, known, new = (source(keys=keys).digits() for keys in ("all", "known", "new"))
    assert len(known) == 4 and not known.keys() & new.keys() and known | new == every
    assert Counter(every.values()) == dict.fromkeys(range(10), 2)
    assert source(seed=1).digits() != every


@pytest.mark.parametrize("keys", ["all", "known", "new"])
def test_sums_are_true(keys):
    digits, documents = source(keys=keys).digits(), fields(keys=keys)
    lines = [line for one in documents for line in one["text"].split("\n")]
    assert len(documents) == 7 and len(lines) == 21
    for line in lines:
        first, second, value = re.fullmatch(r"(\w\w) \+ (\w\w) = (\d+)\.", line).groups()
        assert digits[first] + digits[second] == int(value)


def test_digits_are_added_and_keys_are_followed_by_theirs():
    for one in fields(form="digits"):
        for line in one["text"].split("\n"):
            first, second, value = map(int, re.fullmatch(r"(\d) \+ (\d) = (\d+)\.", line).groups())
            assert first + second == value
    digits, found = source().digits(), Counter()
    for one in fields(form="keys", count=40):
        for line in one["text"].split("\n"):
            assert re.fullmatch(r"\w\w( \d)? \+ \w\w( \d)?\.", line)
            for name, digit in re.findall(r"([a-z]{2})(?: (\d))?", line):
                assert not digit or int(digit) == digits[name]
                found[bool(digit)] += 1
    assert found[True] > 80 and found[False] > 80


def test_questions_come_once():
    digits, questions = source(keys="new").digits(), fields(keys="new", lines=None, count=1000)
    assert len(questions) == len({one["question"] for one in questions}) == 16**2
    for one in questions:
        first, second = re.fullmatch(r"(\w\w) \+ (\w\w) =", one["question"]).groups()
        assert one["answer"] == f"{digits[first] + digits[second]}."
    assert len(fields(form="digits", lines=None, count=1000)) == 100
    values = {one["question"]: int(one["answer"]) for one in fields(form="values", lines=None, count=1000)}
    assert values == source().digits()
    assert all(one["options"] == [*"0123456789"] for one in fields(form="values", lines=None))


def test_the_same_every_time():
    assert fields() == fields() and fields() != fields(seed=1)
    assert fields(lines=None, count=5) == fields(lines=None, count=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "products"}, "use one of digits, keys, values, sums"),
        ({"keys": "some"}, "and of all, known, new"),
        ({"num_keys": 1000}, r"must lie in \[2, 676\]"),
        ({"share": 1.0}, "share=1.0 in"),
        ({"form": "keys", "lines": None}, "keys are lines without a question"),
        ({"form": "values"}, "values questions alone"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        source(**changes)
