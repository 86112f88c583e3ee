"""The order of blocks in an expanded stack, as integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

ORIGINS = ("top", "bottom", "last")
POSITIONS = ("interleaved", "prefix", "suffix", "top_half", "explicit")

Origin = Literal["top", "bottom", "last"]


@dataclass(frozen=True)
class Slot:
    """One block of the new stack: block `source` of the old one, or, if it is `new`, a block made from it.

    `group` counts the insertion points from 0.
    """

    source: int
    new: bool = False
    group: int | None = None


@dataclass(frozen=True)
class Layout:
    """Where new blocks go.

    Attributes:
        num_groups: N, the number of insertion points; None: for `top_half` all that it has, else by the depth, see
            `num_groups_for`. With `prefix` and `suffix` N x P blocks are added at one end.
        per_group: P, new blocks at each insertion point.
        position: "interleaved" (after each group, the paper's), "prefix" (all below the first block), "suffix" (all
            above the last), "top_half" (between the blocks of the top half, see `in_top_half`) or "explicit".
        positions: for "explicit", pairs (after, count): `count` new blocks directly above block `after` of the source;
            after=-1 is below the first block.
        origin: which blocks of the group are copied: its "top" P in their order (the paper's), its "bottom" P, or its
            "last" block P times. A prefix takes the bottom of the stack for its group.
        strict: refuse num_groups that does not divide the depth, instead of making groups as equal as possible.
    """

    num_groups: int | None = 1
    per_group: int = 1
    position: Literal["interleaved", "prefix", "suffix", "top_half", "explicit"] = "interleaved"
    positions: Sequence[Sequence[int]] | None = None
    origin: Origin = "top"
    strict: bool = True

    @classmethod
    def settings_for(cls, settings: Mapping[str, Any], total: int, num_blocks: int | None) -> dict[str, Any]:
        """The settings by which `total` new blocks come in, one a group, spread evenly.

        Where the total does not divide the depth, groups are as equal as possible, also for a depth that is not known.

        Args:
            num_blocks: of the source; None where it is not known yet.

        Raises:
            ValueError: there are not as many blocks, or the places are given one by one.
        """
        if settings["position"] == "explicit":
            raise ValueError(f"num_blocks={total} is not read with position=explicit, whose positions count their own")
        if num_blocks is not None and total > num_blocks:
            raise ValueError(
                f"num_blocks={total} is more than the model's {num_blocks} blocks; use at most {num_blocks}, or "
                "num_groups and per_group with origin=last"
            )
        is_even = num_blocks is not None and num_blocks % total == 0
        return {**settings, "num_groups": total, "per_group": 1, "strict": settings["strict"] and is_even}

    def facts_of(self, facts: Callable[[str, str], Any]) -> dict[str, Any]:
        """See `facts_of_stack`."""
        return facts_of_stack(facts, self.slots)

    def slots(self, num_blocks: int) -> list[Slot]:
        """The expanded stack of a model with that many blocks.

        Raises:
            ValueError: a setting that cannot be met, and what would be.
        """
        if self.origin not in ORIGINS:
            raise ValueError(f"origin={self.origin!r} is not known; use one of {', '.join(ORIGINS)}")
        if self.position not in POSITIONS:
            raise ValueError(f"position={self.position!r} is not known; use one of {', '.join(POSITIONS)}")
        if self.position == "explicit":
            return explicit(num_blocks, self.positions, self.origin)
        if self.positions is not None:
            raise ValueError(
                f"positions={list(self.positions)} is read only with position=explicit, found {self.position}"
            )
        if self.position == "top_half":
            return in_top_half(num_blocks, self.num_groups, self.per_group, self.origin)
        num_groups = num_groups_for(num_blocks) if self.num_groups is None else self.num_groups
        if num_groups < 1 or self.per_group < 1:
            raise ValueError(
                f"num_groups={num_groups} and per_group={self.per_group} must be at least 1; use expand=none to "
                "add none"
            )
        if self.position == "interleaved":
            return interleaved(num_blocks, num_groups, self.per_group, self.origin, self.strict)
        return at_end(num_blocks, num_groups * self.per_group, self.position, self.origin)


def facts_of_stack(facts: Callable[[str, str], Any], slots: Callable[[int], Sequence[Slot]]) -> dict[str, Any]:
    """What is known beforehand of a model with another stack: depth, shape and type, where the source's are known.

    Args:
        facts: about the source, see `Expansion`.
        slots: gives the stack by the source's depth.
    """
    num_blocks, shape = facts("model", "num_blocks"), facts("model", "shape")
    if num_blocks is None:
        return {}
    stack = slots(num_blocks)
    grown = None if shape is None else shape.grown([(slot.source, slot.new) for slot in stack])
    return {"num_blocks": len(stack), "shape": grown, "model_type": facts("model", "model_type")}


@dataclass(frozen=True)
class Between(Layout):
    """Where new blocks go that are made from two of the model's, the one below and the one above: one at a place.

    What `interleaved` would put above the last block is put below it.
    """

    def slots(self, num_blocks: int) -> list[Slot]:
        """See `Layout.slots`."""
        stack = super().slots(num_blocks)
        if self.position == "interleaved" and stack[-1].new:
            stack[-2:] = [stack[-1], stack[-2]]
        return stack

    def neighbours(self, num_blocks: int) -> dict[int, tuple[int, int]]:
        """Position of each new block in the expanded stack -> the source's blocks below and above it.

        Raises:
            ValueError: see `slots`; or a new block has none on a side, or another new block.
        """
        found, stack = {}, self.slots(num_blocks)
        for position in (p for p, slot in enumerate(stack) if slot.new):
            beside = [stack[p] for p in (position - 1, position + 1) if 0 <= p < len(stack) and not stack[p].new]
            if len(beside) != 2:
                raise ValueError(
                    f"{type(self).__name__} makes one block between two of the model's; position {position} of the "
                    "expanded stack is at an end or beside another new block. Use expand.position=top_half, "
                    "expand.per_group=1 with fewer groups than blocks, or expand.position=explicit with places below "
                    "the last block, such as [[3, 1], [7, 1]]"
                )
            found[position] = (beside[0].source, beside[1].source)
        return found


def num_groups_for(num_blocks: int) -> int:
    """Groups of 4 blocks, the paper's size, or of the nearest size that divides the depth: 5, 3 or 6.

    Raises:
        ValueError: none of them divides it.
    """
    if size := next((size for size in (4, 5, 3, 6) if num_blocks % size == 0), None):
        return num_blocks // size
    raise ValueError(
        f"num_groups is not given, and the model's {num_blocks} blocks form no equal groups of 3 to 6; set "
        f"expand.num_blocks to the number of new blocks, such as {max(1, round(num_blocks / 4))}, for groups as equal "
        "as possible"
    )


def interleaved(
    num_blocks: int, num_groups: int, per_group: int, origin: Origin = "top", strict: bool = True
) -> list[Slot]:
    """Split L blocks into N groups of M = L / N and put P new blocks directly after each group.

    LLaMA Pro, section 3.2. For L=32, N=8, P=1 the new blocks stand at 4, 9, 14, ..., 39.

    Args:
        num_blocks: L, the depth of the source.
        num_groups: N, at most L; where it does not divide L the first L mod N groups have one block more.
        per_group: P, at most the size of the smallest group unless `origin` is "last".
        origin: see `Layout`.
        strict: refuse N that does not divide L.

    Raises:
        ValueError: a count that cannot be met.
    """
    if num_groups > num_blocks and not strict:
        raise ValueError(
            f"num_groups={num_groups} is more than the model's {num_blocks} blocks, and a group has at least one; use "
            f"at most {num_blocks}"
        )
    if num_groups > num_blocks or (strict and num_blocks % num_groups):
        fitting = ", ".join(str(n) for n in range(1, num_blocks + 1) if num_blocks % n == 0)
        uneven = f", expand.strict=false for uneven groups (at most {num_blocks})," if num_groups < num_blocks else ""
        raise ValueError(
            f"num_groups={num_groups} does not divide the model's {num_blocks} blocks; use one of {fitting}{uneven} "
            "or expand.position=explicit with expand.positions"
        )
    size, longer = divmod(num_blocks, num_groups)
    if per_group > size and origin != "last":
        raise ValueError(
            f"per_group={per_group} is more than the {size} blocks of a group "
            f"({num_blocks} blocks in {num_groups} groups); use at most {size}, fewer groups, or expand.origin=last"
        )
    sizes = [size + (group < longer) for group in range(num_groups)]
    return _stack(num_blocks, [(end, per_group) for end in accumulate(sizes)], origin)


def at_end(num_blocks: int, count: int, position: str, origin: Origin = "top") -> list[Slot]:
    """All `count` new blocks below the first block ("prefix") or above the last ("suffix"); Table 5 of LLaMA Pro.

    The paper does not say which blocks it copies there. Ours: those next to the place, the bottom `count` blocks for a
    prefix and the top `count` for a suffix, in their order; with origin="last" the single nearest block each time.

    Raises:
        ValueError: more blocks than the model has.
    """
    if count > num_blocks and origin != "last":
        raise ValueError(
            f"a {position} of {count} blocks needs as many to copy, the model has {num_blocks}; use at most "
            f"{num_blocks}, or expand.origin=last"
        )
    return _stack(num_blocks, [(0 if position == "prefix" else num_blocks, count)], origin)


def in_top_half(num_blocks: int, num_places: int | None, per_group: int, origin: Origin = "top") -> list[Slot]:
    """P new blocks in gaps between neighbours of the top half: blocks 15 to 31 of 32 have 16 such gaps.

    LESA (arXiv 2502.13794) and OpT-DeUS (2508.08011) fill every one. No gradient goes below the lowest new block.

    Args:
        num_places: how many gaps, spread evenly, the topmost always; None: all.

    Raises:
        ValueError: there are not as many.
    """
    gaps = range(max(0, num_blocks // 2 - 1), num_blocks - 1)
    num_places = len(gaps) if num_places is None else num_places
    if not 1 <= num_places <= len(gaps) or per_group < 1:
        raise ValueError(
            f"num_groups={num_places} and per_group={per_group}: position=top_half has {len(gaps)} gaps in a model of "
            f"{num_blocks} blocks; use num_groups from 1 to {len(gaps)} or null, and per_group of at least 1"
        )
    chosen = [gaps[(place + 1) * len(gaps) // num_places - 1] for place in range(num_places)]
    return explicit(num_blocks, [(after, per_group) for after in chosen], origin)


def explicit(num_blocks: int, positions: Sequence[Sequence[int]] | None, origin: Origin = "top") -> list[Slot]:
    """`count` new blocks directly above block `after` for each pair; their group is the blocks since the place before.

    Raises:
        ValueError: a malformed pair, a place outside the model or given twice, more copies than blocks to copy.
    """
    counts: dict[int, int] = {}
    for pair in positions or ():
        if isinstance(pair, str | int) or len(pair) != 2:
            raise ValueError(f"positions holds {pair!r}; each entry is [after, count], such as [[3, 1], [7, 2]]")
        after, count = pair
        if after in counts or not -1 <= after < num_blocks or count < 1:
            raise ValueError(
                f"positions holds [{after}, {count}]: `after` must be a block from -1 (below the first) to "
                f"{num_blocks - 1}, named once, and the count at least 1"
            )
        counts[after] = count
    if not counts:
        raise ValueError("position=explicit needs expand.positions, such as [[3, 1], [7, 2]]")
    return _stack(num_blocks, [(after + 1, counts[after]) for after in sorted(counts)], origin)


def _stack(num_blocks: int, places: Iterable[tuple[int, int]], origin: Origin) -> list[Slot]:
    """The stack with, for each of the ascending (end, count), `count` new blocks below block `end` of the source."""
    stack: list[Slot] = []
    start = 0
    for group, (end, count) in enumerate(places):
        stack += [Slot(i) for i in range(start, end)]
        # Below the first block there is no group; its blocks are copied as a prefix's are.
        available = range(start, end) if end else range(num_blocks)
        if count > len(available) and origin != "last":
            raise ValueError(
                f"positions asks for {count} new blocks above block {end - 1}, where a group of {len(available)} ends; "
                "use fewer, or expand.origin=last"
            )
        way = origin if end else ("first" if origin == "last" else "bottom")
        stack += _new(list(available), count, way, group)
        start = end
    return stack + [Slot(i) for i in range(start, num_blocks)]


def _new(blocks: list[int], count: int, origin: str, index: int) -> list[Slot]:
    chosen = {
        "top": blocks[-count:],
        "bottom": blocks[:count],
        "last": blocks[-1:] * count,
        "first": blocks[:1] * count,
    }[origin]
    return [Slot(i, new=True, group=index) for i in chosen]
