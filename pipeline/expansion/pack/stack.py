"""Packs put on a base: the order of blocks, what must fit, and the writing of the model that they make together."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pipeline.expansion.base import Plan, Recipe
from pipeline.expansion.layout import Slot
from pipeline.expansion.methods.block import plan_stack
from pipeline.expansion.pack.extract import check_like, per_block_config
from pipeline.expansion.pack.format import Pack, PackBlock
from pipeline.expansion.pack.gain import scaled, scaled_tensors
from pipeline.expansion.source import Source
from pipeline.expansion.writer import write_expansion
from pipeline.models.directory import Form
from pipeline.models.files.tensor_file import Planned, copy_of, write_file
from pipeline.records.expansion import AttachedPack, PackBase


@dataclass(frozen=True)
class Attached:
    """A pack on a base: its gain, those of single blocks, and whether its tensors are multiplied by them already."""

    pack: Pack
    gain: float = 1.0
    of_blocks: Mapping[int, float] = field(default_factory=dict)
    done: bool = False

    @property
    def gains(self) -> list[float]:
        """One a block."""
        return [self.of_blocks.get(index, self.gain) for index in range(len(self.pack.blocks))]

    def named(self) -> dict[str, float]:
        """As they are asked for: the pack's by its name, and those of single blocks."""
        own = {f"{self.pack.name}.{index}": gain for index, gain in sorted(self.of_blocks.items())}
        return {self.pack.name: self.gain, **own}


@dataclass(frozen=True)
class Placed:
    """A block of a pack in the stack: which of the packs, which of its blocks, and that block's facts."""

    part: int
    index: int
    block: PackBlock


@dataclass(frozen=True)
class Stack:
    """A base with packs on it.

    Attributes:
        source: the base, or a view of one.
        parts: at one place of the base the first of them stands lowest.
    """

    source: Source
    parts: tuple[Attached, ...]

    @cached_property
    def places(self) -> tuple[int | Placed, ...]:
        """The new order: blocks of the base by their indices, and blocks of packs."""
        found = [
            Placed(part, index, block)
            for part, attached in enumerate(self.parts)
            for index, block in enumerate(attached.pack.blocks)
        ]
        found.sort(key=lambda place: (place.block.after, place.part, place.block.order))
        depth = self.source.anatomy.num_blocks
        return tuple(
            place
            for after in range(-1, depth)
            for place in ([after] if after >= 0 else []) + [at for at in found if at.block.after == after]
        )

    @cached_property
    def added(self) -> dict[int, Placed]:
        """The blocks of packs by their positions in the new order."""
        return {position: place for position, place in enumerate(self.places) if isinstance(place, Placed)}

    @cached_property
    def scales(self) -> list[list[tuple[str, ...]]]:
        """Per pack and block, the tensors to multiply by the gain.

        Raises:
            ValueError: a gain is not possible.
        """
        return [
            [
                scaled_tensors(self.source, block.origin, part.pack.name, 1.0 if part.done else gain)
                for block, gain in zip(part.pack.blocks, part.gains, strict=True)
            ]
            for part in self.parts
        ]

    def slots(self) -> list[Slot]:
        """The new order as an expansion's."""
        groups = sorted({block.after for part in self.parts for block in part.pack.blocks})
        return [
            Slot(place) if isinstance(place, int) else Slot(place.block.origin, True, groups.index(place.block.after))
            for place in self.places
        ]

    def check(self) -> None:
        """Raise ValueError where a pack does not fit: facts that something else wrote, or a damaged file."""
        depth = self.source.anatomy.num_blocks
        for part in self.parts:
            for index, (block, tensors) in enumerate(zip(part.pack.blocks, part.pack.tensors, strict=True)):
                what = f"block {index} of pack {part.pack.name}"
                if not (-1 <= block.after < depth and 0 <= block.origin < depth):
                    raise ValueError(
                        f"{what} stands above block {block.after} and is like block {block.origin}; the base has the "
                        f"blocks 0 to {depth - 1}; extract the pack anew"
                    )
                check_like(self.source, block.origin, tensors, what)

    def plan(self, base: PackBase, made: Path) -> Plan:
        """What to write; `made` will hold the packs' tensors.

        Raises:
            ValueError: the packs do not fit.
        """
        self.check()

        def recipe(slot: Slot, position: int, rest: str) -> Recipe:
            donor = self.source.blocks.join(slot.source, rest)
            return Recipe("zeros" if self._is_zeroed(self.added[position], rest) else "made", donor)

        # With every gain 0 it computes what the base does; otherwise nothing is claimed.
        exact = all(gain == 0 for part in self.parts for gain in part.gains)
        settings = {"gains": {name: gain for part in self.parts for name, gain in part.named().items()}}
        plan = plan_stack(self.source, self.slots(), recipe, exact, "packs", settings)
        self._check_config(plan)
        first = len(plan.blocks) - len(self.added)
        scaled = [(block, self.added[block.position].block.lr_scale) for block in plan.blocks[first:]]
        new = [dataclasses.replace(block, lr_scale=scale) for block, scale in scaled]
        blocks = (*plan.blocks[:first], *new)
        return dataclasses.replace(plan, blocks=blocks, base=base, packs=self._records(), made=made)

    def made(self) -> dict[str, Planned]:
        """The packs' tensors by their names in the new model, scaled as they are written, but for zeroed ones."""
        tensors = {}
        for position, place in self.added.items():
            part = self.parts[place.part]
            for rest, stored in part.pack.tensors[place.index].items():
                if not self._is_zeroed(place, rest):
                    multiply = rest in self.scales[place.part][place.index]
                    content = scaled(stored, part.gains[place.index]) if multiply else copy_of(stored)
                    tensors[self.source.blocks.join(position, rest)] = content
        return tensors

    def _is_zeroed(self, place: Placed, rest: str) -> bool:
        return self.parts[place.part].gains[place.index] == 0 and rest in self.scales[place.part][place.index]

    def _check_config(self, plan: Plan) -> None:
        """The config says of each block of a pack what it said where that was trained.

        The base's content hash covers its tensors alone: its config may have been edited since.
        """
        for position, place in self.added.items():
            trained, now = place.block.config, per_block_config(plan.config, self.source, position)
            for name in sorted(set(trained) & set(now)):
                if trained[name] != now[name]:
                    raise ValueError(
                        f"block {place.index} of pack {self.parts[place.part].pack.name} was trained with {name}="
                        f"{trained[name]!r}, the config.json of {self.source.directory} makes it {now[name]!r}; give "
                        "the base with its own config.json"
                    )

    def _records(self) -> tuple[AttachedPack, ...]:
        """What `detach` reads: each pack's facts, its gains, and where its blocks are."""
        positions: list[dict[int, int]] = [{} for _ in self.parts]
        for position, place in self.added.items():
            positions[place.part][place.index] = position
        return tuple(
            AttachedPack(part.pack.record(), part.gain, tuple(where[i] for i in sorted(where)), part.of_blocks)
            for part, where in zip(self.parts, positions, strict=True)
        )


def write_stack(
    source: Source, parts: Sequence[Attached], base: PackBase, target: Path, save: Form, shard_bytes: int
) -> Plan:
    """Write `source` with these packs to a directory that is not committed yet.

    Raises:
        ValueError: the packs do not fit, or a gain is not possible.
    """
    stack = Stack(source, tuple(parts))
    scratch = target / ".made"
    plan = stack.plan(base, scratch / "blocks.safetensors")
    scratch.mkdir()
    write_file(scratch / "blocks.safetensors", stack.made())
    source.anatomy.save()
    plan = write_expansion(plan, source, target, shard_bytes, save)
    shutil.rmtree(scratch)
    return dataclasses.replace(plan, made=None)
