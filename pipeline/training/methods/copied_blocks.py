"""Which blocks an expansion would copy, asked of a model that it does not grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class CopiesBlocks(Protocol):
    """An expansion whose new blocks are copies of blocks that depend on the model's depth alone."""

    def slots(self, num_blocks: int) -> Sequence[Any]:
        """The expanded stack; a slot has `new`, and `source`: the block it is made from."""


def copied_blocks(expansion: Any, num_blocks: int | None, instead: str) -> list[int]:
    """The block that each new block would be a copy of, from the bottom; nothing where the depth is not known.

    Args:
        expansion: the section `expand` as an object; None: it adds nothing.
        instead: what to give in its place, for messages.

    Raises:
        ValueError: it adds no copies, or does not fit the depth.
    """
    if expansion is None:
        raise ValueError(
            "follows the new blocks that `expand` would add, and expand=none adds none; choose one that does, such as "
            f"expand=block (what is expanded, the lineage says: experiment=lora expands nothing), or give {instead}"
        )
    if not isinstance(expansion, CopiesBlocks):
        raise ValueError(
            f"follows the blocks that `expand` would copy, which cannot be told of {type(expansion).__name__} "
            f"beforehand; use expand=block, or give {instead}"
        )
    return [] if num_blocks is None else [slot.source for slot in expansion.slots(num_blocks) if slot.new]
