"""Which documents share text: clusters of near-duplicates, and exact overlap of word shingles.

Shapes: N documents, P permutations, H entries of the index (one per shingle of every indexed document).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.data.clean.shingles import bands, merged


class Clusters:
    """Disjoint sets of 0 ... N - 1; a set's name is its lowest member."""

    def __init__(self, num: int) -> None:
        self._parent = np.arange(num)

    def find(self, index: int) -> int:
        """The set that holds `index`."""
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = int(self._parent[index])
        return index

    def join(self, a: int, b: int) -> bool:
        """Unite the sets of a and b; whether they were apart."""
        a, b = self.find(a), self.find(b)
        self._parent[max(a, b)] = min(a, b)
        return a != b

    def of(self) -> np.ndarray:
        """int64[N]: every document's set."""
        return np.array([self.find(index) for index in range(len(self._parent))], dtype=np.int64)

    def members(self) -> list[np.ndarray]:
        """The sets, each as ascending indices."""
        of = self.of()
        order = np.argsort(of, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(of[order])) + 1) if len(order) else []


def cluster(signatures: np.ndarray, threshold: float) -> Clusters:
    """Unite documents whose MinHash signatures (uint32[N, P]) agree in at least `threshold` of the entries.

    Locality sensitive hashing: only documents that share a band are compared (Leskovec et al., Mining of Massive
    Datasets, section 3.4), so a pair near the threshold may be missed; `compare` finds those that matter.
    """
    clusters = Clusters(len(signatures))
    if not len(signatures):
        return clusters
    for column in bands(signatures).T:
        order = np.argsort(column, kind="stable")
        same = column[order][1:] == column[order][:-1]
        left, right = order[:-1][same], order[1:][same]
        agree = (signatures[left] == signatures[right]).mean(axis=1) >= threshold if len(left) else np.zeros(0, bool)
        for a, b in zip(left[agree], right[agree], strict=True):
            clusters.join(int(a), int(b))
    return clusters


@dataclass(frozen=True)
class Overlap:
    """edges: (indexed document, other document) at or above the threshold; highest: the largest part of an indexed
    document's shingles that one other document holds; coverage: the part of all indexed shingles that any holds."""

    edges: list[tuple[int, int]]
    highest: float
    coverage: float


def compare(
    shingles: Callable[[int], np.ndarray], indexed: np.ndarray, num: int, sides: np.ndarray, threshold: float
) -> Overlap:
    """Compare the `indexed` documents exactly with each of the `num` documents on another side.

    `sides[i]` names document i's side; documents of one side are not compared. Time and memory are linear in the number
    of shingles.
    """
    lists = [shingles(int(document)) for document in indexed]
    hashes_H, owners_H = merged(lists)
    sizes = np.array([max(1, len(found)) for found in lists])
    seen_H = np.zeros(len(hashes_H), dtype=bool)
    edges, highest = [], 0.0
    for document in range(num if len(indexed) else 0):
        entries = _entries(hashes_H, shingles(document))
        entries = entries[sides[indexed[owners_H[entries]]] != sides[document]]
        if not len(entries):
            continue
        seen_H[entries] = True
        part = np.bincount(owners_H[entries], minlength=len(indexed)) / sizes
        highest = max(highest, float(part.max()))
        edges += [(int(indexed[owner]), document) for owner in np.flatnonzero(part >= threshold)]
    return Overlap(edges, highest, float(seen_H.mean()) if len(seen_H) else 0.0)


def _entries(hashes: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Positions in the sorted index whose hash is among the shingles."""
    first = np.searchsorted(hashes, found, side="left")
    counts = np.searchsorted(hashes, found, side="right") - first
    first, counts = first[counts > 0], counts[counts > 0]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(first, counts) + within
