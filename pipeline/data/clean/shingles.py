"""Word shingles of a text as 64-bit hashes, and their MinHash signatures.

Shapes: B bytes, W words, S distinct shingles, P permutations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

SHINGLE_WORDS = 5
NUM_PERMUTATIONS = 64
NUM_BANDS = 16
"""Bands of 4 rows: two texts with Jaccard similarity s are compared with probability 1 - (1 - s^4)^16 (0.5: 64 %,
0.7: 99 %)."""

_U64 = np.uint64
_PRIME = 0x9E3779B97F4A7C15


def _word_bytes() -> np.ndarray:
    """Byte -> its lower-case code if it belongs to a word (letters, digits, `_`, any non-ASCII byte), else 0."""
    table = np.zeros(256, dtype=np.uint8)
    for code in range(256):
        if code >= 128 or chr(code).isalnum() or chr(code) == "_":
            table[code] = ord(chr(code).lower()) if code < 128 else code
    return table


_TABLE = _word_bytes()
_LONGEST_WORD = 64
_POWERS = np.array([pow(_PRIME, i + 1, 1 << 64) for i in range(_LONGEST_WORD)], dtype=_U64)
_ORDER_PRIME = 0xC2B2AE3D27D4EB4F
_BLOCK_BYTES = 1 << 22


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser."""
    values = (values ^ (values >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> _U64(27))) * _U64(0x94D049BB133111EB)
    return values ^ (values >> _U64(31))


def word_hashes(text: str) -> np.ndarray:
    """uint64[W]: one hash per word in order; case, punctuation and white space do not matter."""
    codes_B = _TABLE[np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)]
    return np.concatenate([_hashes(part) for part in _blocks(codes_B)])


def _blocks(codes_B: np.ndarray) -> Iterator[np.ndarray]:
    """Parts of bounded size that cut no word: hashing takes some thirty times the memory of the text."""
    start = 0
    while len(codes_B) - start > _BLOCK_BYTES:
        stop = start + _BLOCK_BYTES
        between = np.flatnonzero(codes_B[start:stop] == 0)
        if len(between):
            stop = start + int(between[-1]) + 1
        else:
            after = np.flatnonzero(codes_B[stop:] == 0)
            stop = stop + int(after[0]) if len(after) else len(codes_B)
        yield codes_B[start:stop]
        start = stop
    yield codes_B[start:]


def _hashes(codes_B: np.ndarray) -> np.ndarray:
    inside_B = codes_B > 0
    edges = np.flatnonzero(np.diff(inside_B, prepend=False, append=False))
    starts_W, stops_W = edges[0::2], edges[1::2]
    if not len(starts_W):
        return np.zeros(0, dtype=_U64)
    letters = codes_B[inside_B]
    firsts_W = np.concatenate([[0], np.cumsum(stops_W - starts_W)[:-1]])
    place = np.arange(len(letters)) - np.repeat(firsts_W, stops_W - starts_W)
    weighted = letters.astype(_U64) * _POWERS[place % _LONGEST_WORD]
    return _mix(np.add.reduceat(weighted, firsts_W))


def ngram_hashes(words_W: np.ndarray, size: int) -> np.ndarray:
    """uint64[W - size + 1]: a hash for every `size` consecutive word hashes, in order; empty if there are fewer."""
    total = np.zeros(max(0, len(words_W) - size + 1) if size else 0, dtype=_U64)
    for offset in range(size):
        total += words_W[offset : offset + len(total)] * _U64(pow(_ORDER_PRIME, offset + 1, 1 << 64))
    return _mix(total)


def merged(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of all lists, sorted, and for each the index of the list that it is from."""
    hashes = np.concatenate(lists) if lists else np.zeros(0, dtype=_U64)
    owners = np.repeat(np.arange(len(lists)), [len(found) for found in lists])
    order = np.argsort(hashes, kind="stable")
    return hashes[order], owners[order]


def shingles(text: str) -> np.ndarray:
    """uint64[S]: the distinct hashes of every SHINGLE_WORDS consecutive words, sorted.

    A text with fewer words is one shingle; a text without words is none.
    """
    words_W = word_hashes(text)
    return np.unique(ngram_hashes(words_W, min(SHINGLE_WORDS, len(words_W))))


def _permutations() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(20240104)
    odd = draw.integers(0, 1 << 63, size=NUM_PERMUTATIONS, dtype=_U64) * _U64(2) + _U64(1)
    return odd, draw.integers(0, 1 << 63, size=NUM_PERMUTATIONS, dtype=_U64)


_FACTORS, _OFFSETS = _permutations()


def signature(found: np.ndarray) -> np.ndarray:
    """uint32[P]: MinHash (Broder 1997); equal entries of two signatures estimate the sets' Jaccard similarity.

    An empty set has all entries at the maximum.
    """
    signature_P = np.full(NUM_PERMUTATIONS, np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(found), 1 << 15):
        part = found[start : start + (1 << 15)]
        for index in range(NUM_PERMUTATIONS):
            lowest = (part * _FACTORS[index] + _OFFSETS[index]).min() >> _U64(32)
            signature_P[index] = min(signature_P[index], lowest)
    return signature_P


def bands(signatures: np.ndarray) -> np.ndarray:
    """uint64[N, NUM_BANDS] from uint32[N, P]: texts that share an entry of a column are worth comparing."""
    rows = NUM_PERMUTATIONS // NUM_BANDS
    blocks = signatures.reshape(len(signatures), NUM_BANDS, rows).astype(_U64)
    total = np.zeros((len(signatures), NUM_BANDS), dtype=_U64)
    for row in range(rows):
        total = _mix(total ^ (blocks[:, :, row] + _U64(_PRIME)))
    return total
