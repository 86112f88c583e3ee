import math

import numpy as np
import pytest
from lm_eval.api.metrics import mean_stderr

from pipeline.evaluation.base import Item, content_hash, cut, score


def items(numerators, denominators):
    pairs = zip(numerators, denominators, strict=True)
    return tuple(Item(str(i), "h", float(n), float(d)) for i, (n, d) in enumerate(pairs))


def test_an_accuracy_has_the_harness_own_standard_error():
    values = [1, 0, 0, 1, 1, 0, 1]
    found = score(items(values, [1] * 7))
    assert found.value == pytest.approx(4 / 7, abs=1e-15)
    assert found.stderr == pytest.approx(mean_stderr(values), rel=1e-12)
    assert found.n == 7


def test_the_standard_error_of_a_ratio_is_that_of_repeated_draws():
    rng = np.random.default_rng(0)
    denominators = rng.integers(50, 500, size=(4000, 40))
    numerators = denominators * 2.5 + rng.normal(0, 30, size=denominators.shape)
    values = numerators.sum(1) / denominators.sum(1)
    errors = [score(items(n, d)).stderr for n, d in zip(numerators[:200], denominators[:200], strict=True)]
    assert np.mean(errors) == pytest.approx(values.std(), rel=0.05)


def test_one_item_has_no_standard_error():
    assert math.isnan(score(items([3], [2])).stderr)


def test_a_score_needs_a_denominator():
    with pytest.raises(ValueError, match="positive sum"):
        score(items([1], [0]))


def test_hashes_tell_contents_apart():
    assert content_hash("a", ["b"]) == content_hash("a", ["b"])
    assert len({content_hash("a", "b"), content_hash("ab"), content_hash("a", ["b"]), content_hash("b", "a")}) == 4
    assert len(content_hash("a")) == 16


def test_an_answer_ends_where_the_first_stop_begins():
    assert cut("ab\nclass\ndef", ["\ndef", "\nclass"]) == "ab"
    assert cut("abcd", ["cd", "bc"]) == "a"
    assert cut("abc", ["x"]) == "abc" and cut("abc", []) == "abc" and cut("abc", ["", "c"]) == "ab"
