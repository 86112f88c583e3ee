"""Penalties on how far what trains has moved from where training started, as a run holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.training.methods.penalty import ParameterPenalty
from pipeline.training.parallel.checkpoint import has_weights, load_weights, save_weights
from pipeline.training.parallel.distributed import is_sharded, own_part
from pipeline.training.parallel.same_rows import SameRows

FOLDER = "importance"


class StartDistance:
    """sum_i F_i (theta_i - theta*_i)^2 / 2 of this process's part of what trains; each process adds its own gradient.

    Made before the first step and before a checkpoint is read: theta* are the parameters as they stand.

    Args:
        importance: F, by name; None: 1 everywhere.
    """

    def __init__(
        self, weight: float, trainable: Mapping[str, torch.nn.Parameter], importance: Mapping[str, torch.Tensor] | None
    ) -> None:
        self.weight, self._trainable = weight, trainable
        self._start = {name: own_part(p.detach()).clone() for name, p in trainable.items()}
        self._importance = importance and {name: own_part(one) for name, one in importance.items()}
        self.is_sharded = is_sharded(trainable)

    @torch.no_grad()
    def add(self) -> torch.Tensor:
        """Add weight F (theta - theta*) to the gradient, and return the sum over this process's part."""
        total = torch.zeros((), device=next(iter(self._start.values())).device)
        for name, parameter in self._trainable.items():
            moved = own_part(parameter) - self._start[name]
            pull = moved if self._importance is None else moved * self._importance[name]
            total += (moved * pull).sum() / 2
            if self.weight:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                own_part(parameter.grad).add_(pull, alpha=self.weight)
        return total


def hold(
    penalties: Mapping[str, Any],
    same: SameRows,
    directory: Path,
    rows_of: Callable[[Any], Sequence[Sequence[int]]],
    progress: Callable[..., None],
) -> dict[str, Any]:
    """The penalties, those on parameters as `StartDistance`; every process takes part.

    F is kept in `directory`, so that a run that goes on, on other processes perhaps, goes on with the same numbers.

    Args:
        rows_of: reads the text that a penalty names.
    """
    return {
        name: _held(name, penalty, same, directory / FOLDER / name, rows_of, progress)
        if isinstance(penalty, ParameterPenalty)
        else penalty
        for name, penalty in penalties.items()
    }


def _held(
    name: str,
    penalty: ParameterPenalty,
    same: SameRows,
    folder: Path,
    rows_of: Callable[[Any], Sequence[Sequence[int]]],
    progress: Callable[..., None],
) -> StartDistance:
    if has_weights(folder, 0):
        kept: Any = {one: torch.zeros_like(p) for one, p in same.trainable.items()}
        load_weights(folder, 0, kept, None)
    else:
        progress(note=f"{name}: how much each parameter matters")
        kept = penalty.importance(same.trainable, same, lambda: rows_of(penalty))
        if kept is not None:
            save_weights(folder, 0, kept, None)
    return StartDistance(penalty.weight, same.trainable, kept)
