"""Some of the model's own blocks, trained in place: the rival of new blocks that adds no parameter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.training.cost.flops import Trains
from pipeline.training.methods.copied_blocks import copied_blocks
from pipeline.training.methods.strategy import Full

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class ExistingBlocks(Full):
    """Train a few blocks of an unexpanded model and freeze the rest: as many as an expansion would add.

    Attributes:
        blocks: their numbers, from 0 at the bottom; None: those that the new blocks of `expansion` would be copies of.
        expansion: the expansion that is followed, as an object.
    """

    blocks: Sequence[int] | None = None
    expansion: Any = None

    def footprint(self) -> Trains:
        """See `Strategy.footprint`."""
        return Trains("blocks", blocks=self._chosen)

    def check(self, num_blocks: int | None, expanded: bool | None) -> None:
        """See `Strategy`. Raises ValueError: there are no such blocks, or it cannot be told which of them are old."""
        if self.blocks is None and expanded:
            raise ValueError(
                "strategy existing_blocks trains blocks of a model that was not expanded, but its model was; use "
                "expand=none and give strategy.blocks=[...], or leave the expanded model out of the lineage, as "
                "experiment=existing_blocks does"
            )
        self._chosen(num_blocks)

    def apply(self, model: nn.Module, new_parameters: Sequence[str]) -> nn.Module:
        """Freeze everything but the parameters of these blocks.

        Raises:
            ValueError: as `check`.
        """
        from pipeline.models.architecture.blocks import decoder_blocks

        blocks = decoder_blocks(model)
        self.check(len(blocks), bool(new_parameters))
        model.requires_grad_(False)
        for number in self._chosen(len(blocks)):
            blocks[number].requires_grad_(True)
        return model

    def _chosen(self, num_blocks: int | None) -> list[int]:
        """The numbers of the blocks that train in a model of that depth."""
        if self.blocks is None:
            try:
                found = copied_blocks(self.expansion, num_blocks, "strategy.blocks, such as [4, 9]")
            except ValueError as error:
                raise ValueError(f"strategy existing_blocks: {error}") from error
        else:
            found = list(self.blocks)
            if not found:
                raise ValueError("strategy.blocks=[] trains nothing; give numbers of blocks, or null")
        if twice := [number for number, count in Counter(found).items() if count > 1]:
            raise ValueError(
                f"strategy existing_blocks would train block {twice[0]} more than once over; name different blocks in "
                "strategy.blocks, or use expand.origin=top"
            )
        if num_blocks is not None and (outside := [number for number in found if not 0 <= number < num_blocks]):
            raise ValueError(
                f"strategy.blocks={found}: the model has no block {outside[0]}; its blocks are 0 to {num_blocks - 1}"
            )
        return sorted(found)
