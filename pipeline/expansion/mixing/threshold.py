"""The value from which a difference of two stored tensors is kept, found without holding or sorting all of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from pipeline.expansion.values import pieces_together
from pipeline.models.files.tensor_file import ITEM_BITS, Stored

PART_ITEMS = 2**17
"""What is computed with at a time: small enough for what is made of it to stay in a core's cache."""
_SAMPLE_ITEMS = 2**11  # of each part
_MARGIN = 0.005  # of all values, to each side of where the sample has the rank
_MOST_INSIDE = 0.2  # of all values are held, at most
_LOW_BITS = 15


def smallest_kept(base: Stored, other: Stored, rank: int) -> tuple[float, int]:
    """The `rank`-th largest magnitude of a difference, and how many of its equals are among the `rank` largest.

    A sample tells between which two values it must be; those between them are looked through. Where the sample was not
    like the whole, or too many are equal, the values are counted by their bits instead.
    """
    bounds = _bounds(base, other, rank)
    return _between(base, other, rank, *bounds) or _by_bits(base, other, rank)


def _bounds(base: Stored, other: Stored, rank: int) -> tuple[float, float]:
    sample = np.concatenate([(theirs - own).abs_().numpy() for own, theirs in _sampled(base, other)])
    at, margin, last = (1 - rank / math.prod(base.shape)) * len(sample), _MARGIN * len(sample), len(sample) - 1
    places = [min(max(0, round(place)), last) for place in (at - margin, at + margin)]
    low, high = np.partition(sample, places)[places]
    return float(low) if at > margin else 0.0, float(high) if at + margin < last else math.inf


def _between(base: Stored, other: Stored, rank: int, low: float, high: float) -> tuple[float, int] | None:
    inside: list[np.ndarray] = []
    most, held = _MOST_INSIDE * math.prod(base.shape) + PART_ITEMS, 0
    for values in _magnitudes(base, other):
        rank -= int(np.count_nonzero(values > high))
        inside.append(values[(values >= low) & (values <= high)])
        held += len(inside[-1])
        if rank < 1 or held > most:
            return None
    if rank > held:
        return None
    found = np.concatenate(inside)
    smallest = np.partition(found, held - rank)[held - rank]
    return float(smallest), rank - int(np.count_nonzero(found > smallest))


def _by_bits(base: Stored, other: Stored, rank: int) -> tuple[float, int]:
    """Those of positive floats are ordered as the values are: first the upper bits, then the lower ones of the rest."""
    all_bits = (values.view(np.int32) for values in _magnitudes(base, other))
    high, rank = _bin_of(rank, (bits >> _LOW_BITS for bits in all_bits), 1 << (31 - _LOW_BITS))
    again = (values.view(np.int32) for values in _magnitudes(base, other))
    within = (bits[bits >> _LOW_BITS == high] & ((1 << _LOW_BITS) - 1) for bits in again)
    low, num_equal = _bin_of(rank, within, 1 << _LOW_BITS)
    return float(np.int32((high << _LOW_BITS) + low).view(np.float32)), num_equal


def _bin_of(rank: int, values: Iterator[np.ndarray], num_bins: int) -> tuple[int, int]:
    """Which value the `rank`-th largest is, and its rank among those that are equal."""
    counts = np.zeros(num_bins, dtype=np.int64)
    for piece in values:
        counts += np.bincount(piece, minlength=num_bins)
    at_least = counts[::-1].cumsum()
    place = int(np.searchsorted(at_least, rank))
    return num_bins - 1 - place, rank - int(at_least[place] - counts[num_bins - 1 - place])


def _magnitudes(base: Stored, other: Stored) -> Iterator[np.ndarray]:
    for own, theirs in pieces_together([base, other], PART_ITEMS):
        yield theirs.sub_(own).abs_().numpy()


def _sampled(base: Stored, other: Stored) -> Iterator[tuple[torch.Tensor, ...]]:
    for first in range(0, math.prod(base.shape), PART_ITEMS):
        yield next(pieces_together([_cut(one, first) for one in (base, other)]))


def _cut(stored: Stored, first: int) -> Stored:
    count, item = min(_SAMPLE_ITEMS, math.prod(stored.shape) - first), ITEM_BITS[stored.dtype] // 8
    return replace(stored, shape=(count,), start=stored.start + first * item, num_bytes=count * item)
