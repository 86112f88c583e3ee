"""An expansion as data: from which source tensors each target tensor is made, and which parameters are new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pipeline.expansion.layout import Slot
from pipeline.expansion.source import BlockNames, Source
from pipeline.records.expansion import ExpansionMap, NewBlock, Round

if TYPE_CHECKING:
    from pipeline.data.corpus import Workspace


@dataclass(frozen=True)
class Recipe:
    """How one target tensor is made.

    "copy": the bytes of `source`. "zeros": zeros of its shape and dtype. "fill": `value` everywhere. "random": normal
    with standard deviation `value`, drawn from `seed` and the target's name. "mean": of `source` and `others`, computed
    in fp32. "made": the tensor of this name in the plan's `made` file.
    """

    kind: Literal["copy", "zeros", "fill", "random", "mean", "made"]
    source: str
    value: float = 0.0
    seed: int = 0
    others: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan(ExpansionMap):
    """What an expansion will write: its map, and how each tensor is made.

    Attributes:
        recipes: by the name on disk, in the order of writing.
        config: the whole new config.json.
        stack: the new order of blocks.
        made: a safetensors file with tensors that the method computed, for recipes of the kind "made".
    """

    method: str
    exact: bool
    recipes: dict[str, Recipe]
    config: dict[str, Any]
    stack: tuple[Slot, ...] = ()
    made: Path | None = None


class Expansion(Protocol):
    """A method that grows a model: a frozen dataclass named by `_target_`."""

    def check(self, num_blocks: int) -> None:
        """Raise ValueError where this method cannot be applied to a model of that depth."""

    def plan(self, source: Source, place: Workspace) -> Plan:
        """Plan the expansion of a saved model.

        Args:
            source: the model.
            place: where the sources of data that the method names lie, whom to tell of progress, and a directory for
                what it computes, which lasts until the plan is written.
        """


def grow_map(
    stack: Sequence[Slot], previous: ExpansionMap, names: BlockNames, lr_scales: Mapping[int, float] | None = None
) -> tuple[tuple[NewBlock, ...], tuple[Round, ...]]:
    """Earlier rounds' blocks and parameters at their new positions, and this round's blocks.

    Args:
        stack: the new order.
        previous: the source's map.
        names: how its tensors name blocks.
        lr_scales: by origin.

    Returns:
        The blocks, and the earlier rounds.
    """
    moved = {slot.source: position for position, slot in enumerate(stack) if not slot.new}

    def renamed(name: str) -> str:
        parts = names.split(name)
        return name if parts is None else names.join(moved[parts[0]], parts[1])

    earlier = [replace(block, position=moved[block.position]) for block in previous.blocks]
    rounds = tuple(
        replace(one, new_parameters=tuple(map(renamed, one.new_parameters)), round=number)
        for number, one in enumerate(previous.history, start=1)
    )
    added = [
        NewBlock(position, slot.source, slot.group, len(rounds) + 1, lr_scale=(lr_scales or {}).get(slot.source, 1.0))
        for position, slot in enumerate(stack)
        if slot.new
    ]
    return (*earlier, *added), rounds
