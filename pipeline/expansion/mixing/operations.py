"""Mixes of one tensor of several models, in fp32, a piece at a time: mergekit's formulas in mergekit's order.

The bits are those of mergekit 0.1.5 on one thread (tests/bench/mix.py). What an operation has to know of a
whole tensor, norms, a threshold, sums, it reads it for once more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from pipeline.expansion.mixing.threshold import PART_ITEMS, smallest_kept
from pipeline.expansion.values import pieces_of, pieces_together, seed_of
from pipeline.models.files.tensor_file import Stored

NORM_FLOOR = 1e-8
"""A tensor of a smaller norm has no direction: it is not divided by its norm."""
PARALLEL = 0.9995
"""Tensors whose |cosine| is larger are interpolated on a line: there is no arc to speak of."""
_RANDOM = 2**31
_SUM_FLOOR = 1e-7

Thinned = Callable[[torch.Tensor], torch.Tensor]
"""Makes of each part of a difference, of `PART_ITEMS` and from the first on, what is kept of it."""


@dataclass(frozen=True)
class Linear:
    """sum_i w_i x_i, divided by sum_i w_i where it is to be normalised."""

    weights: tuple[float, ...]
    normalise: bool

    def __call__(self, name: str, inputs: Sequence[Stored]) -> Iterator[torch.Tensor]:
        """See `Operation`."""
        weights = torch.tensor(self.weights)
        for first, *others in pieces_together(inputs, PART_ITEMS):
            result = first.mul_(weights[0])
            for piece, weight in zip(others, weights[1:], strict=True):
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
        for first, second in pieces_together(inputs, PART_ITEMS):
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
        """Find where what is kept ends; see `smallest_kept`."""
        limit = smallest_kept(base, other, max(1, int(self.density * math.prod(base.shape))))
        below = float(np.nextafter(np.float32(limit.smallest), np.float32(0)))
        parts = itertools.count()

        def thinned(difference: torch.Tensor) -> torch.Tensor:
            part = next(parts)
            if part == limit.part:
                equal = np.flatnonzero(difference.abs().numpy() == limit.smallest)
                difference[torch.from_numpy(equal[limit.num_equal :])] = 0
            return torch.nn.functional.hardshrink(difference, below if part <= limit.part else limit.smallest)

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
        factor, masks = self._factor(name, base, other), self._masks(name)

        def thinned(difference: torch.Tensor) -> torch.Tensor:
            kept = self._masked(difference, masks)
            return kept.div_(self.density) if self.rescale == "density" else kept.mul_(factor)

        return thinned

    def _masks(self, name: str) -> np.random.SFC64:
        return np.random.SFC64(int.from_bytes(seed_of(f"{self.role}:{name}", self.seed), "little"))

    def _masked(self, values: torch.Tensor, masks: np.random.SFC64) -> torch.Tensor:
        """Zero in place what is not kept: by 31 random bits a value, all ones or none of them after the shift."""
        drawn = masks.random_raw((len(values) + 1) // 2).view(np.int32)[: len(values)]
        kept = torch.from_numpy(drawn).bitwise_and_(_RANDOM - 1).add_(-round(self.density * _RANDOM))
        values.view(torch.int32).bitwise_and_(kept.bitwise_right_shift_(31))
        return values

    def _factor(self, name: str, base: Stored, other: Stored) -> torch.Tensor:
        if self.rescale != "l1":
            return torch.tensor(1.0)
        masks = self._masks(name)
        before, after = torch.tensor(0.0), torch.tensor(0.0)
        for own, piece in pieces_together([base, other], PART_ITEMS):
            difference = piece.sub_(own).abs_()
            before += difference.sum()
            after += self._masked(difference, masks).sum()
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
        for own, *pieces in pieces_together(inputs, PART_ITEMS):
            thinned = [keep_of(piece.sub_(own)) for keep_of, piece in zip(keep, pieces, strict=True)]
            mixed = self._sole(thinned[0]) if len(thinned) == 1 else self._mixed(thinned, weights)
            yield own.add_(mixed.mul_(self.scale) if self.scale != 1 else mixed)

    def _sole(self, difference: torch.Tensor) -> torch.Tensor:
        """As `_mixed`, where an election has one candidate."""
        (weight,) = self.weights
        if weight == 1:
            return difference
        mixed = difference.mul_(weight)
        has_part = weight != 0 if self.elect else abs(weight) >= NORM_FLOOR
        return mixed.div_(weight) if self.normalise and has_part else mixed

    def _mixed(self, thinned: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        differences = torch.stack(list(thinned)).mul_(weights)
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


def _all(difference: torch.Tensor) -> torch.Tensor:
    return difference


def _cosine(first: Stored, second: Stored) -> torch.Tensor:
    """Of the angle between two tensors; each is divided by its norm before the product, which cannot overflow then."""
    norms = [_norm(one) for one in (first, second)]
    parts = [
        a.div_(norms[0]).mul_(b.div_(norms[1])).sum().item() for a, b in pieces_together([first, second], PART_ITEMS)
    ]
    return torch.tensor(parts).sum(dim=0).clamp(-1, 1)


def _norm(stored: Stored) -> torch.Tensor:
    # As numbers: small tensors that are kept between large ones that are not would leave holes in the heap.
    parts = [torch.linalg.vector_norm(piece).item() for piece in pieces_of(stored, PART_ITEMS)]
    norm = torch.linalg.vector_norm(torch.tensor(parts), dim=0)
    return norm if norm > NORM_FLOOR else torch.tensor(1.0)
