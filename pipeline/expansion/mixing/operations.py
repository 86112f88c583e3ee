"""Mixes of one tensor of several models, in fp32, a piece at a time: mergekit's formulas in mergekit's order.

With the same number of threads the bits are mergekit 0.1.5's (tests/bench/mix.py). What an operation has to know of a
whole tensor, norms, a threshold, sums, it reads it for once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.expansion.values import generator_of, pieces_of
from pipeline.models.files.tensor_file import Stored

NORM_FLOOR = 1e-8
"""A tensor of a smaller norm has no direction: it is not divided by its norm."""
PARALLEL = 0.9995
"""Tensors whose |cosine| is larger are interpolated on a line: there is no arc to speak of."""
_PART_ITEMS = 2**17
_LOW_BITS = 15
_SUM_FLOOR = 1e-7

Thinned = Callable[[torch.Tensor], torch.Tensor]
"""Makes of each piece of a difference, in order, what is kept of it."""


@dataclass(frozen=True)
class Linear:
    """sum_i w_i x_i, divided by sum_i w_i where it is to be normalised."""

    weights: tuple[float, ...]
    normalise: bool

    def __call__(self, name: str, inputs: Sequence[Stored]) -> Iterator[torch.Tensor]:
        """See `Operation`."""
        weights = torch.tensor(self.weights)
        for pieces in _together(inputs):
            result = torch.zeros_like(pieces[0])
            for piece, weight in zip(pieces, weights, strict=True):
                result.addcmul_(piece, weight)
            yield result.div_(weights.sum()) if self.normalise else result


@dataclass(frozen=True)
class Slerp:
    """sin((1 - t) a) / sin(a) x + sin(t a) / sin(a) y, with a the angle between the tensors, each taken as one vector.

    Shoemake 1985, as mergekit applies it: the vectors themselves are not normalised.
    """

    t: float

    def __call__(self, name: str, inputs: Sequence[Stored]) -> Iterator[torch.Tensor]:
        """See `Operation`."""
        of_first, of_second = self._factors(_cosine(*inputs))
        for first, second in _together(inputs):
            yield first.mul_(of_first).add_(second.mul_(of_second))

    def _factors(self, cosine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        t = torch.tensor(self.t)
        if cosine.abs() > PARALLEL:
            return 1 - t, t
        angle = torch.acos(cosine)
        return torch.sin((1 - t) * angle) / torch.sin(angle), torch.sin(t * angle) / torch.sin(angle)


@dataclass(frozen=True)
class Trim:
    """TIES: of a difference the max(1, int(density n)) largest values are kept, of equal ones the first."""

    density: float

    def __call__(self, name: str, base: Stored, other: Stored) -> Thinned:
        """Find the smallest value that is kept, by its bits: those of positive floats are ordered as the values are."""
        rank, num_low = max(1, int(self.density * math.prod(base.shape))), 1 << _LOW_BITS
        high, rank = _bin_of(rank, (bits >> _LOW_BITS for bits in _bits_of(base, other)), 1 << (31 - _LOW_BITS))
        within = (bits[bits >> _LOW_BITS == high] & (num_low - 1) for bits in _bits_of(base, other))
        low, num_equal = _bin_of(rank, within, num_low)
        smallest = high * num_low + low

        def thinned(difference: torch.Tensor) -> torch.Tensor:
            nonlocal num_equal
            bits = difference.abs().view(torch.int32)
            kept = bits > smallest
            if num_equal:
                equal = (bits == smallest).nonzero()[:num_equal, 0]
                kept[equal] = True
                num_equal -= len(equal)
            return difference.mul_(kept.to(difference.dtype))

        return thinned


@dataclass(frozen=True)
class Drop:
    """DARE: each value of a difference is kept with probability `density`; what is kept is made larger.

    Attributes:
        rescale: "density" (divided by it, the paper's), "l1" (to the sum of magnitudes of before, mergekit's), "none".
        role: of the other model, whose masks are its own.
    """

    density: float
    rescale: Literal["density", "l1", "none"]
    seed: int
    role: str

    def __call__(self, name: str, base: Stored, other: Stored) -> Thinned:
        """Masks depend on the seed, the role and the tensor's name alone."""
        factor = self._factor(name, base, other)
        generator = generator_of(f"{self.role}:{name}", self.seed)

        def thinned(difference: torch.Tensor) -> torch.Tensor:
            kept = difference * self._mask(difference, generator)
            return kept.div_(self.density) if self.rescale == "density" else kept.mul_(factor)

        return thinned

    def _mask(self, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return (torch.rand(like.shape, generator=generator) < self.density).to(like.dtype)

    def _factor(self, name: str, base: Stored, other: Stored) -> torch.Tensor:
        if self.rescale != "l1":
            return torch.tensor(1.0)
        generator = generator_of(f"{self.role}:{name}", self.seed)
        before, after = torch.tensor(0.0), torch.tensor(0.0)
        for own, piece in _together([base, other]):
            difference = piece.sub_(own).abs_()
            before += difference.sum()
            after += difference.mul_(self._mask(difference, generator)).sum()
        return torch.tensor(1.0) if min(before, after) < _SUM_FLOOR else before / after


@dataclass(frozen=True)
class Differences:
    """b + scale sum_i w_i d_i, with b the first tensor and d_i what is kept of the difference of each other one to it.

    Attributes:
        thinning: of each difference; None keeps all of it.
        elect: count only those values whose sign is that of the weighted sum, + where that is 0 (TIES).
        normalise: divide by the weights, or with `elect` by the weights of the values that count.
    """

    weights: tuple[float, ...]
    thinning: tuple[Trim | Drop | None, ...]
    elect: bool
    normalise: bool
    scale: float

    def __call__(self, name: str, inputs: Sequence[Stored]) -> Iterator[torch.Tensor]:
        """See `Operation`."""
        base, *others = inputs
        keep = [thin(name, base, other) if thin else _all for thin, other in zip(self.thinning, others, strict=True)]
        weights = torch.tensor(self.weights)[:, None]
        for own, *pieces in _together(inputs):
            thinned = [keep_of(piece.sub_(own)) for keep_of, piece in zip(keep, pieces, strict=True)]
            mixed = self._mixed(torch.stack(thinned).mul_(weights), weights)
            yield own.add_(mixed.mul_(self.scale) if self.scale != 1 else mixed)

    def _mixed(self, differences: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        if not self.elect:
            mixed, total = differences.sum(dim=0), weights.sum(dim=0)
            return mixed.div_(total) if self.normalise and total.abs() >= NORM_FLOOR else mixed
        majority = (differences.sum(dim=0) >= 0).to(differences.dtype).mul_(2).sub_(1)
        agrees = (differences * majority > 0).to(differences.dtype)
        mixed = differences.mul_(agrees).sum(dim=0)
        if not self.normalise:
            return mixed
        total = agrees.mul_(weights).sum(dim=0)
        return mixed.div_(total.masked_fill_(total == 0, 1))


def _whole(inputs: Sequence[Stored]) -> Iterator[tuple[torch.Tensor, ...]]:
    """The same piece of each tensor; sums over these are added in mergekit's order."""
    yield from zip(*map(pieces_of, inputs), strict=True)


def _together(inputs: Sequence[Stored]) -> Iterator[tuple[torch.Tensor, ...]]:
    """The same part of each tensor, small enough for what is made of it to stay in a core's cache."""
    yield from zip(*(pieces_of(one, _PART_ITEMS) for one in inputs), strict=True)


def _all(difference: torch.Tensor) -> torch.Tensor:
    return difference


def _bits_of(base: Stored, other: Stored) -> Iterator[torch.Tensor]:
    for own, piece in _together([base, other]):
        yield piece.sub_(own).abs_().view(torch.int32)


def _bin_of(rank: int, values: Iterator[torch.Tensor], num_bins: int) -> tuple[int, int]:
    """Which value the `rank`-th largest is, and its rank among those that are equal."""
    counts = torch.zeros(num_bins, dtype=torch.int64)
    for piece in values:
        counts += torch.bincount(piece, minlength=num_bins)
    at_least = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(at_least, rank))
    return num_bins - 1 - place, rank - int(at_least[place] - counts[num_bins - 1 - place])


def _cosine(first: Stored, second: Stored) -> torch.Tensor:
    """Of the angle between two tensors; each is divided by its norm before the product, which cannot overflow then."""
    norms = [_norm(one) for one in (first, second)]
    parts = [a.div_(norms[0]).mul_(b.div_(norms[1])).sum().item() for a, b in _whole([first, second])]
    return torch.tensor(parts).sum(dim=0).clamp(-1, 1)


def _norm(stored: Stored) -> torch.Tensor:
    # As numbers: small tensors that are kept between large ones that are not would leave holes in the heap.
    parts = [torch.linalg.vector_norm(piece).item() for piece in pieces_of(stored)]
    norm = torch.linalg.vector_norm(torch.tensor(parts), dim=0)
    return norm if norm > NORM_FLOOR else torch.tensor(1.0)
