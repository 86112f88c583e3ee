"""Hold documents out for measuring, by content, so that no near-duplicate of theirs is trained on.

Shapes: N documents, P permutations of a MinHash signature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.clean.overlap import Clusters, Overlap, cluster, compare
from pipeline.data.clean.shingles import shingles, signature
from pipeline.ranges import NOT_NEGATIVE, Range, check_ranges

_CACHED_SHINGLES = 1 << 27
"""Shingles kept in memory (1 GiB) before they are computed again when needed."""
_MOST_OF_A_SOURCE = 0.5
_SHARE_OF_ONE_CLUSTER = 1 / 8

_RANGES = {
    "bytes": NOT_NEGATIVE,
    "fraction": Range(0, _MOST_OF_A_SOURCE),
    "threshold": Range(0, 1, least_open=True),
    "seed": NOT_NEGATIVE,
}


@dataclass(frozen=True)
class HeldOut:
    """How much of every source is kept from training, and what counts as nearly the same.

    bytes: UTF-8 bytes per source, reached by whole clusters; or fraction: of the source's bytes. Exactly one is given;
    `bytes: 0` holds nothing out. threshold: two documents belong to one cluster when their MinHash similarity, or the
    part of one's word shingles that the other holds, is at least this. seed: which documents.
    """

    bytes: int | None
    fraction: float | None
    threshold: float
    seed: int

    def __post_init__(self) -> None:
        if (self.bytes is None) == (self.fraction is None):
            raise ValueError(f"held_out needs one of bytes and fraction; found {self.bytes} and {self.fraction}")
        check_ranges(vars(self), _RANGES)


@dataclass(frozen=True)
class Split:
    """`held_out` bool[N], `cluster` int64[N] (the lowest index of its members), and what was measured.

    highest_similarity: over all pairs of a held-out and a trained document, the largest part of the held-out one's
    shingles found in the trained one. coverage: the part of all held-out shingles that occur anywhere in training.
    """

    held_out: np.ndarray
    cluster: np.ndarray
    num_clusters: int
    num_near_duplicates: int
    highest_similarity: float
    coverage: float


@dataclass(frozen=True)
class _Documents:
    sizes: np.ndarray
    keys: np.ndarray
    signatures: np.ndarray
    shingles: Callable[[int], np.ndarray]


def split_documents(
    texts: Sequence[str], sources: Sequence[int] | np.ndarray, names: Sequence[str], held_out: HeldOut
) -> Split:
    """Split documents of several sources at once, so that nothing crosses between sources either.

    `sources[i]` is the index into `names` of text i's source. Clusters are taken in the order of a hash of their
    content and the seed until every source's budget is reached; what is chosen is compared exactly with everything
    else, and clusters found to overlap are merged before choosing again. Raises ValueError if a source cannot be split
    (one document, or near-duplicates only).
    """
    groups = np.asarray(sources)
    documents = _examine(texts, held_out.seed)
    clusters = cluster(documents.signatures, held_out.threshold)
    budgets = _budgets(documents.sizes, groups, len(names), held_out)
    checked = np.zeros(len(texts), dtype=bool)
    while True:
        chosen = _choose(documents, clusters, groups, budgets)
        fresh = np.flatnonzero(chosen & ~checked)
        found = compare(documents.shingles, fresh, len(texts), clusters.of(), held_out.threshold)
        checked[fresh] = True
        if not sum(clusters.join(a, b) for a, b in found.edges):
            break
    _require(chosen, documents.sizes, groups, budgets, names)
    return _measured(documents, chosen, clusters)


def _examine(texts: Sequence[str], seed: int) -> _Documents:
    sizes, keys, signatures = [], [], []
    cache: dict[int, np.ndarray] = {}
    cached = 0
    for index, text in enumerate(texts):
        data = text.encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(data, digest_size=8, key=seed.to_bytes(8, "little", signed=True)).digest()
        found = shingles(text)
        cached += len(found)
        if cached <= _CACHED_SHINGLES:
            cache[index] = found
        sizes.append(len(data))
        keys.append(int.from_bytes(digest, "little"))
        signatures.append(signature(found))
    return _Documents(
        np.array(sizes, dtype=np.int64),
        np.array(keys, dtype=np.uint64),
        np.array(signatures, dtype=np.uint32),
        lambda index: cache[index] if index in cache else shingles(texts[index]),
    )


def _budgets(sizes: np.ndarray, groups: np.ndarray, num: int, held_out: HeldOut) -> np.ndarray:
    totals = np.bincount(groups, weights=sizes, minlength=num)
    if held_out.fraction is not None:
        return totals * held_out.fraction
    return np.minimum(float(held_out.bytes or 0), totals * _MOST_OF_A_SOURCE)


def _choose(documents: _Documents, clusters: Clusters, groups: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """bool[N]: whole clusters by ascending key. Small ones first, so that no long text is the whole measure."""
    chosen = np.zeros(len(groups), dtype=bool)
    held = np.zeros(len(budgets))
    limit = np.bincount(groups, weights=documents.sizes, minlength=len(budgets)) * _MOST_OF_A_SOURCE
    order = sorted(clusters.members(), key=lambda members: int(documents.keys[members].min()))
    for share in (_SHARE_OF_ONE_CLUSTER, 1.0):
        for members in order:
            if chosen[members[0]]:
                continue
            weight = np.bincount(groups[members], weights=documents.sizes[members], minlength=len(budgets))
            touched = weight > 0
            wanted = (held[touched] < budgets[touched]).any()
            if wanted and (weight <= budgets * share).all() and (held + weight <= limit)[touched].all():
                chosen[members] = True
                held += weight
        if (held >= budgets / 2).all():
            break
    return chosen


def _require(
    chosen: np.ndarray, sizes: np.ndarray, groups: np.ndarray, budgets: np.ndarray, names: Sequence[str]
) -> None:
    for index, name in enumerate(names):
        of_source = groups == index
        if budgets[index] > 0 and not (chosen & of_source).any():
            raise ValueError(
                f"source {name!r}: nothing can be held out of its {int(of_source.sum())} documents "
                f"({int(sizes[of_source].sum()):,} bytes): they are too few, too alike or too long; "
                "give more documents, cut long files with `boundary`, or set held_out.bytes to 0"
            )


def _measured(documents: _Documents, chosen: np.ndarray, clusters: Clusters) -> Split:
    sides = np.where(chosen, 0, 1)
    found: Overlap = compare(documents.shingles, np.flatnonzero(chosen), len(chosen), sides, 2.0)
    of = clusters.of()
    num = len(np.unique(of))
    return Split(chosen, of, num, len(of) - num, found.highest, found.coverage)
