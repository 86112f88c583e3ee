"""Some of the model's own blocks, trained in place: the rival of new blocks that adds no parameter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.training.cost.flops import Trains
from pipeline.training.methods.copied_blocks import copied_blocks
from pipeline.training.methods.strategy import Full, with_extra

if TYPE_CHECKING:
    from torch import nn

PLACES = ("top", "bottom", "spread")


@dataclass(frozen=True, kw_only=True)
class ExistingBlocks(Full):
    """Train a few blocks of an unexpanded model and freeze the rest: as many as an expansion would add.

    Attributes:
        blocks: their numbers, from 0 at the bottom; None: those that the new blocks of `expansion` would be copies of;
            or where they are: the "top" or "bottom" `num_blocks`, or "spread": the top one of each of `num_blocks`
            groups, as equal as possible.
        num_blocks: how many a place has; None: as many as `expansion` would add.
        expansion: the expansion that is followed, as an object.
    """

    blocks: Sequence[int] | Literal["top", "bottom", "spread"] | None = None
    num_blocks: int | None = None
    expansion: Any = None

    def footprint(self) -> Trains | None:
        """See `Strategy.footprint`."""
        return None if self.extra_modules else Trains("blocks", blocks=self._chosen)

    def check(self, num_blocks: int | None, expanded: bool | None, model_type: str | None = None) -> None:
        """See `Strategy`. Raises ValueError: there are no such blocks, or it cannot be told which of them are old."""
        if self.blocks is not None and not isinstance(self.blocks, str) and self.num_blocks is not None:
            raise ValueError(
                f"strategy.blocks={list(self.blocks)} counts its own blocks; set strategy.num_blocks={self.num_blocks} "
                f"to null, or strategy.blocks to one of {', '.join(PLACES)}"
            )
        if self.num_blocks is not None and self.blocks is None:
            raise ValueError(
                f"strategy.num_blocks={self.num_blocks} needs to know where; set strategy.blocks to one of "
                f"{', '.join(PLACES)}, or to the blocks' numbers"
            )
        if self._follows and expanded:
            raise ValueError(
                "strategy existing_blocks trains blocks of a model that was not expanded, but its model was; use "
                "expand=none and give strategy.blocks=[...] (or top, bottom, spread with strategy.num_blocks), or "
                "leave the expanded model out of the lineage, as experiment=existing_blocks does"
            )
        self._chosen(num_blocks)

    def apply(self, model: nn.Module, new_parameters: Sequence[str]) -> nn.Module:
        """Freeze everything but the parameters of these blocks and of the extra modules.

        Raises:
            ValueError: as `check`.
        """
        from pipeline.models.architecture.blocks import decoder_blocks

        blocks = decoder_blocks(model)
        self.check(len(blocks), bool(new_parameters))
        model.requires_grad_(False)
        for number in self._chosen(len(blocks)):
            blocks[number].requires_grad_(True)
        return with_extra(model, self.extra_modules)

    @property
    def _follows(self) -> bool:
        """Whether the expansion decides which blocks these are, or how many."""
        return self.blocks is None or (isinstance(self.blocks, str) and self.num_blocks is None)

    def _chosen(self, num_blocks: int | None) -> list[int]:
        """The numbers of the blocks that train in a model of that depth."""
        copied = self._copied(num_blocks) if self._follows else []
        if self.blocks is None:
            found = copied
        elif isinstance(self.blocks, str):
            count = len(copied) if self.num_blocks is None else self.num_blocks
            found = [] if num_blocks is None else _at(self.blocks, count, num_blocks)
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

    def _copied(self, num_blocks: int | None) -> list[int]:
        instead = "strategy.blocks, such as [4, 9], or top with strategy.num_blocks=2"
        try:
            return copied_blocks(self.expansion, num_blocks, instead)
        except ValueError as error:
            raise ValueError(f"strategy existing_blocks: {error}") from error


def _at(place: str, count: int, num_blocks: int) -> list[int]:
    """The numbers of `count` blocks at a place. Raises ValueError: there are no such."""
    if place not in PLACES:
        raise ValueError(f"strategy.blocks={place!r} is not known; use {', '.join(PLACES)}, a list of numbers, or null")
    if not 1 <= count <= num_blocks:
        raise ValueError(f"strategy.num_blocks={count} must be from 1 to the model's {num_blocks} blocks")
    if place == "spread":
        size, longer = divmod(num_blocks, count)
        return [(group + 1) * size + min(group + 1, longer) - 1 for group in range(count)]
    return list(range(count)) if place == "bottom" else list(range(num_blocks - count, num_blocks))
