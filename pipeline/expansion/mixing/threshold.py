"""The value from which a difference of two stored tensors is kept, found without holding or sorting all of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.expansion.values import pieces_together
from pipeline.models.files.tensor_file import ITEM_BITS, Stored

PART_ITEMS = 2**18
"""What is computed with at a time: small enough to stay in a core's cache, large enough that threads seldom wait for
the interpreter's lock."""
_SAMPLE_ITEMS = 2**12  # of each part, at most
_MOST_SAMPLED = 2**18  # of all parts: a rank in it then has a standard deviation of 0.001 of all values
_MARGIN = 0.005  # of all values, to each side of where the sample has the rank
_MOST_INSIDE = 0.2  # of all values are held, at most
_LOW_BITS = 15


@dataclass(frozen=True)
class Limit:
    """Where the largest values of a difference end, of equal ones the first being counted.

    Attributes:
        smallest: the smallest magnitude among them.
        part: in which part, of `PART_ITEMS` each, the last equal value that is counted lies.
        num_equal: how many of the equal ones of that part are counted; of those in earlier parts all are.
    """

    smallest: float
    part: int
    num_equal: int


def smallest_kept(base: Stored, other: Stored, rank: int) -> Limit:
    """Where the `rank` largest magnitudes of a difference end.

    A sample tells between which two values the smallest must be; those between them are looked through. Where the
    sample was not like the whole, or too many are equal, the values are counted by their bits instead.

    Raises:
        ValueError: so many are not numbers that one of these would be the smallest.
    """
    bounds = _bounds(base, other, rank)
    found = _between(base, other, rank, *bounds) or _by_bits(base, other, rank)
    if found is None:
        raise ValueError(
            f"the difference of {base.name} between {base.file} and {other.file} has so many values that are no "
            "numbers (NaN) that its largest cannot be told; mix models without NaN, or by another method"
        )
    return found


def _bounds(base: Stored, other: Stored, rank: int) -> tuple[float, float]:
    sample = np.concatenate([(theirs - own).abs_().numpy() for own, theirs in _sampled(base, other)])
    at, margin, last = (1 - rank / math.prod(base.shape)) * len(sample), _MARGIN * len(sample), len(sample) - 1
    places = [min(max(0, round(place)), last) for place in (at - margin, at + margin)]
    low, high = np.partition(sample, places)[places]
    # A sample of mostly numbers may have none of them as its upper bound: then everything is below it.
    return float(low) if at > margin else 0.0, float(np.fmin(high, np.inf)) if at + margin < last else math.inf


def _between(base: Stored, other: Stored, rank: int, low: float, high: float) -> Limit | None:
    lowest, highest = (int(np.float32(bound).view(np.int32)) for bound in (low, high))
    inside: list[np.ndarray] = []
    most, held = _MOST_INSIDE * math.prod(base.shape) + PART_ITEMS, 0
    for values in _magnitudes(base, other):
        bits = values.view(np.int32)  # of floats from 0 on they sort as these do, NaN last, and compare faster
        above, at_least = bits > highest, bits >= lowest
        rank -= int(np.count_nonzero(above))
        inside.append(values[np.flatnonzero(at_least ^ above)])  # at least the lowest and not above
        held += len(inside[-1])
        if rank < 1 or held > most:
            return None
    if rank > held:
        return None
    found = np.concatenate(inside)
    smallest = np.partition(found, held - rank)[held - rank]
    return _limit(smallest, rank - int(np.count_nonzero(found > smallest)), inside)


def _by_bits(base: Stored, other: Stored, rank: int) -> Limit | None:
    """Counted first by the upper bits, then by the lower bits of those that share them."""
    all_bits = (values.view(np.int32) for values in _magnitudes(base, other))
    high, rank = _bin_of(rank, (bits >> _LOW_BITS for bits in all_bits), 1 << (31 - _LOW_BITS))
    again = (values.view(np.int32) for values in _magnitudes(base, other))
    within = (bits[bits >> _LOW_BITS == high] & ((1 << _LOW_BITS) - 1) for bits in again)
    low, num_equal = _bin_of(rank, within, 1 << _LOW_BITS)
    return _limit(np.int32((high << _LOW_BITS) + low).view(np.float32), num_equal, _magnitudes(base, other))


def _limit(smallest: np.float32, num_equal: int, parts: Iterable[np.ndarray]) -> Limit | None:
    """Find the part in which the `num_equal`-th of the equal values lies."""
    for part, values in enumerate(parts):
        equal = int(np.count_nonzero(values == smallest))
        if equal >= num_equal:
            return Limit(float(smallest), part, num_equal)
        num_equal -= equal
    return None  # it is no number, which equals nothing


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
    starts = range(0, math.prod(base.shape), PART_ITEMS)
    count = min(_SAMPLE_ITEMS, math.ceil(_MOST_SAMPLED / len(starts)))
    for first in starts:
        yield next(pieces_together([_cut(one, first, count) for one in (base, other)]))


def _cut(stored: Stored, first: int, count: int) -> Stored:
    count, item = min(count, math.prod(stored.shape) - first), ITEM_BITS[stored.dtype] // 8
    return replace(stored, shape=(count,), start=stored.start + first * item, num_bytes=count * item)
