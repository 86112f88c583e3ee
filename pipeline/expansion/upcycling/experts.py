"""The matrices of experts, cut out of a dense FFN's, and the routers': operations of recipes, a piece at a time.

A hidden unit of an FFN is a row of gate and up [F, D] and a column of down [D, F]. Shapes: F hidden units, D model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.expansion.base import Recipe
from pipeline.expansion.upcycling.dense import Changes
from pipeline.expansion.values import columns_of, drawn, generator_of, pieces_of
from pipeline.models.files.tensor_file import ITEM_BITS, Stored


@dataclass(frozen=True)
class Cut:
    """Hidden units of a dense matrix as a matrix of an expert: `count` from `first` on, times `scale`, then changed.

    Attributes:
        axis: along which hidden units lie: 0 in gate and up, 1 in down.
        changes: None: nothing else.
        expert: names it, for the units that are drawn anew.
    """

    axis: int
    first: int
    count: int
    scale: float = 1.0
    changes: Changes | None = None
    expert: str = ""

    def __call__(self, name: str, inputs: Sequence[Stored]) -> Iterator[torch.Tensor]:
        """See `Operation`."""
        stored = inputs[0]
        generator = generator_of(name, self.changes.seed) if self.changes else None
        redrawn = self._redrawn(stored) if self.changes and self.changes.drop_ratio else None
        mean, deviation = _moments(self._part(stored), redrawn) if redrawn is not None else (0.0, 0.0)
        noise = self.changes.noise * _moments(self._part(stored))[1] if self.changes and self.changes.noise else 0.0
        start = 0
        for piece in self._part(stored):
            if redrawn is not None:
                chosen = redrawn(start, piece.numel())
                piece[chosen] = torch.randn(piece.numel(), generator=generator)[chosen] * deviation + mean
            if noise:
                piece += torch.randn(piece.numel(), generator=generator) * noise
            start += piece.numel()
            yield piece.mul_(self.scale)

    def shape(self, stored: Stored) -> tuple[int, ...]:
        """Of the expert's matrix."""
        return tuple(self.count if axis == self.axis else size for axis, size in enumerate(stored.shape))

    def _part(self, stored: Stored) -> Iterator[torch.Tensor]:
        """The values of these units, row by row."""
        if self.axis == 1:
            return columns_of(stored, self.first, self.count)
        width, item = stored.shape[1], ITEM_BITS[stored.dtype] // 8
        begin, size = stored.start + self.first * width * item, self.count * width * item
        return pieces_of(replace(stored, shape=(self.count, width), start=begin, num_bytes=size))

    def _redrawn(self, stored: Stored) -> _Chosen:
        assert self.changes is not None
        number = round(self.changes.drop_ratio * self.count)
        units = torch.randperm(self.count, generator=generator_of(self.expert, self.changes.seed))[:number]
        chosen = torch.zeros(self.count, dtype=torch.bool)
        chosen[units] = True
        return _Chosen(chosen, self.axis, stored.shape[1])


@dataclass(frozen=True)
class _Chosen:
    """Which values are of units that are drawn anew, by their place in the expert's matrix."""

    units: torch.Tensor
    axis: int
    width: int

    def __call__(self, start: int, number: int) -> torch.Tensor:
        places = torch.arange(start, start + number)
        return self.units[places // self.width if self.axis == 0 else places % len(self.units)]


def _moments(pieces: Iterator[torch.Tensor], chosen: _Chosen | None = None) -> tuple[float, float]:
    """Mean and standard deviation of all values, or of those chosen."""
    number, total, squares, start = 0, 0.0, 0.0, 0
    for piece in pieces:
        values = (piece if chosen is None else piece[chosen(start, piece.numel())]).double()
        start += piece.numel()
        number, total = number + values.numel(), total + values.sum().item()
        squares += values.square().sum().item()
    mean = total / max(1, number)
    return mean, max(0.0, squares / max(1, number) - mean**2) ** 0.5


@dataclass(frozen=True)
class GroupedRouter:
    """A router [E G, D] whose rows come in groups of G alike, each drawn once: "virtual groups", arXiv 2410.07524."""

    num_experts: int
    group: int
    width: int
    deviation: float
    seed: int

    def __call__(self, name: str, inputs: Sequence[Stored]) -> Iterator[torch.Tensor]:
        """See `Operation`."""
        num_rows = -(-self.num_experts // self.group)
        rows = torch.cat(list(drawn(name, self.seed, self.deviation, num_rows * self.width)))
        yield rows.view(num_rows, self.width).repeat_interleave(self.group, dim=0)[: self.num_experts]


def cut_of(name: str, stored: Stored, cut: Cut) -> Recipe:
    """The recipe of a matrix of an expert: the bytes of the dense one where nothing changes."""
    if not cut.changes and cut.scale == 1.0 and cut.count == stored.shape[cut.axis]:
        return Recipe("copy", name)
    return Recipe("computed", name, operation=cut, shape=cut.shape(stored))
