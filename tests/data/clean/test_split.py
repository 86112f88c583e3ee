from __future__ import annotations

import re

import numpy as np
import pytest

from pipeline.data.clean.overlap import Clusters, cluster, compare
from pipeline.data.clean.shingles import shingles, signature, word_hashes
from pipeline.data.clean.split import HeldOut, split_documents

WORDS = np.array([f"word{number}" for number in range(2000)])


def _text(draw, length=200):
    return " ".join(draw.choice(WORDS, length))


def _nearly(draw, text, changed=0.03):
    words = text.split()
    for place in draw.choice(len(words), max(1, int(changed * len(words))), replace=False):
        words[place] = "changed"
    return " ".join(words)


def _held(**changes):
    return HeldOut(**{"bytes": 20_000, "fraction": None, "threshold": 0.5, "seed": 1, **changes})


def _corpus(num=150, copies=2):
    draw = np.random.default_rng(0)
    texts = [_text(draw) for _ in range(num)]
    return texts + [_nearly(draw, text) for _ in range(copies) for text in texts[: num // 3]]


def test_words_do_not_see_case_punctuation_or_layout():
    same = [word_hashes(text) for text in ("Hello, World_1\n", "(hello) world_1", "hello\tWORLD_1")]
    assert len(same[0]) == 2
    assert all(np.array_equal(same[0], other) for other in same)
    assert len(set(word_hashes("ab ba a b aab aba " + "x" * 200 + " " + "x" * 201).tolist())) == 8
    assert len(word_hashes("... !?")) == 0
    assert np.array_equal(word_hashes("naïve 漢字"), word_hashes("naïve, 漢字!"))


def test_shingles_are_runs_of_five_words_in_order():
    assert len(shingles("a b c d e f")) == 2
    assert len(shingles("a b a b a b a b a b")) == 2
    assert len(shingles("a b")) == 1
    assert not np.array_equal(shingles("a b c d e"), shingles("e d c b a"))
    assert set(shingles("b c d e f")) < set(shingles("a b c d e f"))


def test_signatures_estimate_the_jaccard_similarity():
    draw = np.random.default_rng(3)
    pool = draw.integers(0, 1 << 63, 4000, dtype=np.uint64)
    one, two = np.sort(pool[:3000]), np.sort(pool[1000:])
    estimate = (signature(one) == signature(two)).mean()
    assert abs(estimate - 0.5) < 0.2
    assert (signature(one) == signature(one.copy())).all()
    assert len(set(signature(np.zeros(0, dtype=np.uint64)).tolist())) == 1


def test_clusters_unite_copies_and_nothing_else():
    texts = _corpus()
    found = cluster(np.array([signature(shingles(text)) for text in texts]), 0.5).of()
    assert (found[150:200] == np.arange(50)).mean() > 0.9
    assert len(np.unique(found[:150])) == 150
    assert cluster(np.zeros((0, 64), dtype=np.uint32), 0.5).members() == []


def test_union_is_named_by_its_lowest_member():
    clusters = Clusters(5)
    assert clusters.join(4, 2)
    assert clusters.join(2, 3)
    assert not clusters.join(3, 4)
    assert clusters.of().tolist() == [0, 1, 2, 2, 2]
    assert [part.tolist() for part in clusters.members()] == [[0], [1], [2, 3, 4]]


def test_overlap_is_exact_against_sets():
    draw = np.random.default_rng(1)
    texts = [_text(draw, 60) for _ in range(6)]
    texts += [texts[0] + " " + texts[1], " ".join(texts[2].split()[:40])]
    sides = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    found = compare(lambda i: shingles(texts[i]), np.array([0, 1, 2]), len(texts), sides, 0.5)
    sets = [set(shingles(text).tolist()) for text in texts]
    part = {(a, b): len(sets[a] & sets[b]) / len(sets[a]) for a in range(3) for b in range(3, 8)}
    assert set(found.edges) == {pair for pair, value in part.items() if value >= 0.5} == {(0, 6), (1, 6), (2, 7)}
    assert found.highest == pytest.approx(max(part.values()))
    covered = [sets[a] & set.union(*sets[3:]) for a in range(3)]
    assert found.coverage == pytest.approx(sum(map(len, covered)) / sum(len(sets[a]) for a in range(3)))


def test_no_near_duplicate_crosses_and_the_measure_agrees():
    texts = _corpus()
    split = split_documents(texts, np.zeros(len(texts), dtype=int), ["s"], _held())
    sets = [set(shingles(text).tolist()) for text in texts]
    held, train = np.flatnonzero(split.held_out), np.flatnonzero(~split.held_out)
    highest = max(len(sets[a] & sets[b]) / len(sets[a]) for a in held for b in train)
    assert split.highest_similarity == pytest.approx(highest)
    assert highest < 0.5
    assert split.num_clusters + split.num_near_duplicates == len(texts)
    assert 95 <= split.num_near_duplicates <= 100
    for members in Clusters(0).members() + [np.flatnonzero(split.cluster == c) for c in np.unique(split.cluster)]:
        assert len(set(split.held_out[members])) == 1


def test_an_extract_that_minhash_cannot_see_is_kept_together():
    """A short text inside long ones has a low Jaccard similarity; only the exact comparison finds it."""
    draw = np.random.default_rng(5)
    short = [_text(draw, 80) for _ in range(30)]
    texts = [*short, *(text + " " + _text(draw, 900) for text in short)]
    split = split_documents(texts, np.zeros(60, dtype=int), ["s"], _held(bytes=40_000))
    assert split.held_out.any()
    assert split.highest_similarity < 0.1
    assert not (split.held_out[:30] & ~split.held_out[30:]).any()


def test_the_budget_is_reached_and_one_long_text_is_not_the_measure():
    draw = np.random.default_rng(2)
    texts = [_text(draw) for _ in range(200)] + [_text(draw, 5000) for _ in range(3)]
    sizes = np.array([len(text) for text in texts])
    split = split_documents(texts, np.zeros(len(texts), dtype=int), ["s"], _held(bytes=30_000))
    assert 30_000 <= sizes[split.held_out].sum() < 30_000 + 30_000 / 8
    assert not split.held_out[200:].any()
    half = split_documents(texts, np.zeros(len(texts), dtype=int), ["s"], _held(bytes=None, fraction=0.1))
    assert 0.1 <= sizes[half.held_out].sum() / sizes.sum() < 0.12


def test_the_choice_follows_content_and_seed_not_order():
    texts = _corpus(60)
    sources = np.zeros(len(texts), dtype=int)
    first = split_documents(texts, sources, ["s"], _held(bytes=9000))
    order = np.random.default_rng(9).permutation(len(texts))
    shuffled = split_documents([texts[i] for i in order], sources, ["s"], _held(bytes=9000))
    assert np.array_equal(first.held_out[order], shuffled.held_out)
    other = split_documents(texts, sources, ["s"], _held(bytes=9000, seed=2))
    assert not np.array_equal(first.held_out, other.held_out)


def test_every_source_has_its_own_budget_and_nothing_crosses_between_them():
    draw = np.random.default_rng(4)
    texts = [_text(draw) for _ in range(80)]
    texts += [_nearly(draw, text) for text in texts[:40]] + [_text(draw) for _ in range(40)]
    sources = np.repeat([0, 1], 80)
    split = split_documents(texts, sources, ["one", "two"], _held(bytes=12_000))
    assert all(split.held_out[sources == source].sum() >= 5 for source in (0, 1))
    assert np.array_equal(split.held_out[:40], split.held_out[80:120])


def test_nothing_is_held_out_when_asked_so():
    split = split_documents(["a b", "c d"], [0, 0], ["s"], _held(bytes=0))
    assert not split.held_out.any()
    assert split.highest_similarity == 0.0


@pytest.mark.parametrize("texts", [["only one document here"], ["the same words again"] * 6])
def test_a_source_that_cannot_be_split_is_named(texts):
    with pytest.raises(ValueError, match=r"source 'mine': nothing can be held out of its \d documents"):
        split_documents(texts, [0] * len(texts), ["mine"], _held(bytes=10))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fraction": 0.1}, "held_out needs one of bytes and fraction"),
        ({"bytes": None}, "held_out needs one of bytes and fraction"),
        ({"bytes": -1}, "bytes=-1 must be at least 0"),
        ({"bytes": None, "fraction": 0.6}, "fraction=0.6 must be at least 0 and at most 0.5"),
        ({"threshold": 0.0}, "threshold=0.0 must be more than 0"),
    ],
)
def test_impossible_requests(changes, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        _held(**changes)
