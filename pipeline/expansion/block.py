"""Block expansion by identity blocks: LLaMA Pro, arXiv 2401.02415, section 3.2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.expansion.base import BlockNames, NewBlock, Plan, Recipe, find_blocks, grow_config, residual_writers
from pipeline.expansion.layout import Slot, interleaved


@dataclass(frozen=True)
class BlockExpansion:
    """Copy the top `per_group` blocks (P) of each of `num_groups` groups (N) after the group, as identity blocks.

    All tensors of a new block are copies except its residual writers (W^O and W3 in the paper, `o_proj` and `down_proj`
    in Llama, with their biases), which are zero: both sublayers then add exactly nothing to the stream.
    """

    num_groups: int
    per_group: int

    def check(self, num_blocks: int) -> None:
        """Raise ValueError where these groups do not fit a model of that depth."""
        interleaved(num_blocks, self.num_groups, self.per_group)

    def plan(self, names: Iterable[str], config: Mapping[str, Any], previous: Mapping[str, Any]) -> Plan:
        """See `Expansion.plan`."""
        names = list(names)
        num_blocks = config["num_hidden_layers"]
        stack = interleaved(num_blocks, self.num_groups, self.per_group)
        blocks = find_blocks(names, num_blocks)
        recipes, new_parameters = _recipes(names, stack, blocks, str(config.get("model_type")))
        return Plan(
            recipes=recipes,
            config=grow_config(config, stack, num_blocks),
            blocks=_map(stack, previous),
            new_parameters=tuple(new_parameters),
            exact=True,
            method="block",
            settings=asdict(self),
        )


def _recipes(
    names: list[str], stack: list[Slot], blocks: BlockNames, model_type: str
) -> tuple[dict[str, Recipe], list[str]]:
    by_block: dict[int, list[str]] = {}
    for name in names:
        if parts := blocks.split(name):
            by_block.setdefault(parts[0], []).append(parts[1])
    # What stands outside the blocks goes first: shards of a base and of its expansion then begin alike.
    recipes = {name: Recipe("copy", name) for name in names if blocks.split(name) is None}
    new_parameters = []
    for position, slot in enumerate(stack):
        writers = residual_writers(model_type, by_block[slot.source]) if slot.new else ()
        for rest in by_block[slot.source]:
            target = blocks.join(position, rest)
            recipes[target] = Recipe("zeros" if rest in writers else "copy", blocks.join(slot.source, rest))
            if slot.new:
                new_parameters.append(target)
    return recipes, new_parameters


def _map(stack: list[Slot], previous: Mapping[str, Any]) -> tuple[NewBlock, ...]:
    """Earlier rounds' blocks at their new positions, then this round's."""
    moved = {slot.source: position for position, slot in enumerate(stack) if not slot.new}
    earlier = [NewBlock(**{**entry, "position": moved[entry["position"]]}) for entry in previous.get("blocks", [])]
    this_round = 1 + max((block.round for block in earlier), default=0)
    added = [NewBlock(position, slot.source, slot.group, this_round) for position, slot in enumerate(stack) if slot.new]
    return (*earlier, *added)
