"""The order of blocks in an expanded stack, as integers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """One block of the new stack: a copy of block `source` of the old one; `group` counts from 0 if it is `new`."""

    source: int
    new: bool = False
    group: int | None = None


def interleaved(num_blocks: int, num_groups: int, per_group: int) -> list[Slot]:
    """Split L blocks into N groups of M = L / N and copy the top P blocks of each group directly after it.

    LLaMA Pro, section 3.2. For L=32, N=8, P=1 the new blocks stand at 4, 9, 14, ..., 39.

    Args:
        num_blocks: L, the depth of the source.
        num_groups: N; it divides L.
        per_group: P, at most M.

    Raises:
        ValueError: a count that cannot be met.
    """
    if num_groups < 1 or per_group < 1:
        raise ValueError(
            f"num_groups={num_groups} and per_group={per_group} must be at least 1; use expand=none to add none"
        )
    if num_blocks % num_groups:
        fitting = ", ".join(str(n) for n in range(1, num_blocks + 1) if num_blocks % n == 0)
        raise ValueError(
            f"num_groups={num_groups} does not divide the model's {num_blocks} blocks; use one of {fitting}"
        )
    size = num_blocks // num_groups
    if per_group > size:
        raise ValueError(
            f"per_group={per_group} is more than the {size} blocks of a group "
            f"({num_blocks} blocks in {num_groups} groups); use at most {size}, or fewer groups"
        )
    stack = []
    for group in range(num_groups):
        end = (group + 1) * size
        stack += [Slot(i) for i in range(end - size, end)]
        stack += [Slot(i, new=True, group=group) for i in range(end - per_group, end)]
    return stack
