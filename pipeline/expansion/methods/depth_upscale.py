"""Depth up-scaling: SOLAR 10.7B, arXiv 2312.15166, section 2. Two overlapping copies of the stack, one on the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.expansion.base import Plan
from pipeline.expansion.layout import Slot, explicit, facts_of_stack
from pipeline.expansion.methods.block import copied_of, plan_stack
from pipeline.expansion.source import Source

if TYPE_CHECKING:
    from pipeline.data.corpus import Workspace


@dataclass(frozen=True)
class DepthUpscale:
    """Join two copies of n blocks, the lower without its last m and the upper without its first m: 2(n - m) blocks.

    The new stack is 0 .. n-m-1, m .. n-1. Recorded as new are the n-2m copies of blocks m .. n-m-1 at the positions
    n-m .. 2n-3m-1, where the upper copy begins; every other block stays. Nothing is zeroed: the grown model does not
    compute what its source does, and the paper trains all of it.

    Attributes:
        num_dropped: m; None: a quarter of the depth, the paper's share (8 of 32), to the nearest block. At 0 the whole
            stack is repeated (Gong et al. 2019).
    """

    num_dropped: int | None

    def check(self, num_blocks: int) -> None:
        """Raise ValueError where m blocks cannot be dropped from both copies of a model of that depth."""
        self.slots(num_blocks)

    def facts_of(self, facts: Callable[[str, str], Any]) -> dict[str, Any]:
        """See `facts_of_stack`."""
        return facts_of_stack(facts, self.slots)

    def slots(self, num_blocks: int) -> Sequence[Slot]:
        """The new stack.

        Raises:
            ValueError: m is negative, or so large that the copies do not overlap: nothing would be added.
        """
        dropped = (num_blocks + 2) // 4 if self.num_dropped is None else self.num_dropped
        if not 0 <= 2 * dropped < num_blocks:
            raise ValueError(
                f"num_dropped={dropped} of the model's {num_blocks} blocks leaves {2 * (num_blocks - dropped)} in the "
                f"two copies; a model grows with 0 to {(num_blocks - 1) // 2}"
            )
        return explicit(num_blocks, [(num_blocks - dropped - 1, num_blocks - 2 * dropped)], origin="top")

    def plan(self, source: Source, place: Workspace | None = None) -> Plan:
        """See `Expansion.plan`; needs no place.

        Raises:
            ValueError: see `slots`, or the config cannot follow.
        """
        return plan_stack(
            source,
            self.slots(source.anatomy.num_blocks),
            lambda slot, position, rest: copied_of(source, slot, rest),
            exact=False,
            method="depth_upscale",
            settings=vars(self),
        )
