"""ADEPT's second step: learning rates for each tensor of the copies, by how much it matters for text in general.

arXiv 2510.10071, "adaptive unit-wise decoupled tuning"; details by the authors' code (PuppyKnightUniversity/ADEPT,
`callbacks.py`, ParameterImportanceCallback).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.data.general_text import check_bounds
from pipeline.data.sources.documents import Text
from pipeline.records.expansion import ExpansionMap
from pipeline.training.methods.strategy import NewBlocks

if TYPE_CHECKING:  # a request is checked without
    import torch

    from pipeline.training.parallel.same_rows import Rows, SameRows


@dataclass(frozen=True, kw_only=True)
class Adept(NewBlocks):
    """Train the new blocks; every `every` steps each of their tensors (a "unit") gets a learning rate of its own.

    The importance of a unit is the mean over its numbers of |theta * dL/dtheta|, where L is the loss on text in
    general; |dL/dtheta| is the mean over batches of the text. Its rate is the stage's times 2(1 - I), where I is the
    importance brought to [0, 1] over all units: I = (importance - min) / (max - min). So the unit that matters most
    stands still, and the one that matters least learns at twice the stage's rate; all learn at that rate itself until
    `every` steps are taken. A zeroed residual writer has importance 0 at first.

    Where the authors' code slips, this does what it means: rates are by unit and not by group of the optimizer,
    gradients of the text do not leak into training, padding does not count, and the copies are those that the
    expansion recorded. The loss weighs every token of a batch the same.

    Attributes:
        general: a source of documents that stand for what must not be forgotten.
        window: tokens of one document, at most.
        max_tokens: of all documents together; a forward and a backward pass over them, each time.
        batch_size: documents of a batch of that text; 16 in the authors' code.
        every: optimizer steps; 500 in the paper.
    """

    general: Text
    window: int
    max_tokens: int
    batch_size: int
    every: int

    def check(self, num_blocks: int | None, expanded: bool | None, model_type: str | None = None) -> None:
        """See `Strategy`. Raises ValueError for a value that cannot be run."""
        check_bounds(self)
        for name in ("batch_size", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"strategy.{name}={getattr(self, name)} must be at least 1")

    def lr_scales(self, expansion: ExpansionMap) -> dict[str, float]:
        """None before the first measurement.

        Raises:
            ValueError: the expansion recorded rates itself.
        """
        if super().lr_scales(expansion):
            raise ValueError(
                "the expansion recorded a learning rate for each copy (expand.block_rates=true), and strategy adept "
                "sets them as it trains; use strategy new_blocks, or expand.block_rates=false"
            )
        return {}

    def rates(self, expansion: ExpansionMap, same: SameRows, optimizer: Any, rows: Rows, num_steps: int) -> UnitRates:
        """What sets the rates of a run of `num_steps` steps; `rows`: the text in general as token ids."""
        if num_steps <= self.every:
            warnings.warn(
                f"strategy adept sets learning rates every {self.every} steps and this run has {num_steps}: all new "
                "blocks train at one rate. Lower strategy.every",
                stacklevel=2,
            )
        units = {name: same.trainable[name] for name in expansion.module_parameters if name in same.trainable}
        return UnitRates(self, units, same, optimizer, rows)


class UnitRates:
    """The learning rates of the units of a run.

    Attributes:
        scales: what the rate of each unit is multiplied by, by name; empty before the first measurement.
    """

    def __init__(
        self, settings: Adept, units: Mapping[str, torch.nn.Parameter], same: SameRows, optimizer: Any, rows: Rows
    ) -> None:
        self.scales: dict[str, float] = {}
        self._settings, self._units, self._same, self._optimizer = settings, units, same, optimizer
        size = settings.batch_size
        self._batches = [rows[start : start + size] for start in range(0, len(rows), size)]

    def is_due(self, step: int) -> bool:
        """Whether rates are set after so many steps."""
        return step > 0 and step % self._settings.every == 0

    def measure(self) -> dict[str, dict[str, float]]:
        """Set the rates anew; what was measured and what follows, by unit, for a record of the run."""
        importance = self._importance()
        self.load_state_dict(scales_of(importance))
        return {"importance": importance, "lr_scales": self.scales}

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return self.scales

    def load_state_dict(self, scales: Mapping[str, float]) -> None:
        """Put rates in their place again."""
        from pipeline.training.methods.optim import set_lr_scales

        self.scales = dict(scales)
        set_lr_scales(self._optimizer, {self._units[name]: scale for name, scale in scales.items()})

    def _importance(self) -> dict[str, float]:
        import torch
        import torch.distributed as dist

        from pipeline.training.parallel.distributed import is_sharded, own_part

        sums = {name: torch.zeros_like(own_part(p.detach())) for name, p in self._units.items()}
        for batch in self._batches:
            with self._same.gradient(batch, self._settings.window) as num_tokens:
                for name, parameter in self._units.items():
                    if parameter.grad is not None:
                        sums[name].add_(own_part(parameter.grad).abs(), alpha=1 / num_tokens)
        totals = [(own_part(p.detach()).abs() * sums[name]).sum() for name, p in self._units.items()]
        found = torch.stack(totals)
        if is_sharded(self._units):
            dist.all_reduce(found)
        sizes = (parameter.numel() * len(self._batches) for parameter in self._units.values())
        return {name: total / size for name, total, size in zip(self._units, found.tolist(), sizes, strict=True)}


def scales_of(importance: Mapping[str, float]) -> dict[str, float]:
    """2(1 - I) of each unit, with I the importance brought to [0, 1] over all; 1 where all matter the same."""
    lowest, highest = min(importance.values()), max(importance.values())
    if lowest == highest:
        return dict.fromkeys(importance, 1.0)
    return {name: 2 * (highest - one) / (highest - lowest) for name, one in importance.items()}
