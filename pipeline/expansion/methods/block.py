"""Block expansion: LLaMA Pro, arXiv 2401.02415, section 3.2, with the initialisations it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from pipeline.expansion.base import Plan, Recipe, grow_map
from pipeline.expansion.layout import Layout, Slot
from pipeline.expansion.source import BlockNames, Source

if TYPE_CHECKING:
    from pipeline.data.corpus import Workspace

INITIALISATIONS = ("zero_writers", "copy", "zero_norms", "random", "average")
EXACT = ("zero_writers", "zero_norms")


@dataclass(frozen=True)
class BlockExpansion(Layout):
    """Insert new blocks made from old ones; see `Layout` for where, and `init` for how.

    Attributes:
        init: "zero_writers" (the paper's: all tensors are copies except the residual writers, W^O and W3 in the paper,
            `o_proj` and `down_proj` in Llama, with their biases, which are zero, so that both sublayers add exactly
            nothing), "copy" (nothing zeroed; the authors found it somewhat worse), "zero_norms" (the norms' scales are
            nothing: Shen et al. 2022, arXiv 2203.06211; the FFN of a gated block then never learns), "random" (matrices
            drawn with the model's initializer_range, vectors copied) or "average" (the mean of the old blocks below and
            above).
        seed: of "random".
    """

    init: Literal["zero_writers", "copy", "zero_norms", "random", "average"] = "zero_writers"
    seed: int = 0

    def check(self, num_blocks: int) -> None:
        """Raise ValueError where these settings do not fit a model of that depth."""
        if self.init not in INITIALISATIONS:
            raise ValueError(f"init={self.init!r} is not known; use one of {', '.join(INITIALISATIONS)}")
        self.slots(num_blocks)

    def plan(self, source: Source, place: Workspace | None = None) -> Plan:
        """See `Expansion.plan`; needs no place.

        Raises:
            ValueError: the settings do not fit, or the architecture has no exact form of `init`.
        """
        self.check(source.anatomy.num_blocks)
        stack = self.slots(source.anatomy.num_blocks)
        recipe_of = _of_parameters(source, self._recipe_of(source, stack))
        return plan_stack(source, stack, recipe_of, self.init in EXACT, "block", vars(self))

    def _recipe_of(self, source: Source, stack: Sequence[Slot]) -> RecipeOf:
        if self.init == "copy":
            return lambda slot, position, rest: copied_of(source, slot, rest)
        if self.init == "zero_writers":
            return zeroed_writers(source)
        if self.init == "zero_norms":
            return _zeroed_norms(source)
        if self.init == "random":
            named = source.anatomy.named("initializer_range")
            deviation = float(source.anatomy.text_config.get(named) or 0.02)
            return lambda slot, position, rest: _random(source, slot, rest, deviation, self.seed)
        return _average(source, stack)


RecipeOf = Callable[[Slot, int, str], Recipe]
"""How tensor `rest` of the new block of a slot at a position is made."""


def plan_stack(
    source: Source,
    stack: Sequence[Slot],
    recipe_of: RecipeOf,
    exact: bool,
    method: str,
    settings: Mapping[str, Any],
    lr_scales: Mapping[int, float] | None = None,
) -> Plan:
    """Plan a new order of blocks: old ones are copied, new ones are made by `recipe_of`.

    Only what makes a parameter of the model is recorded as a new parameter.

    Blocks behind the depth of the config (multi-token prediction, which transformers does not load, and other engines
    look for from `num_hidden_layers` on) are copied to behind the new depth.

    Raises:
        ValueError: the config cannot follow; see `grow_config` and `Architecture.check_grown`.
    """
    from pipeline.expansion.surgery import grow_config

    config = grow_config(source.config, stack, source.anatomy)
    source.anatomy.check_grown(config, stack)
    by_block, blocks = source.by_block(), source.blocks
    # What stands outside the blocks goes first: shards of a base and of its expansion then begin alike.
    recipes = {name: Recipe("copy", name) for name in source.tensors if not name.startswith(blocks.prefix)}
    buffers = [name for name in recipes if not source.anatomy.parameters_from(name)]
    new_parameters: list[str] = []
    module_parameters: dict[str, None] = {}
    for position, slot in enumerate(stack):
        for rest in by_block[slot.source]:
            target = blocks.join(position, rest)
            recipes[target] = recipe_of(slot, position, rest) if slot.new else copied_of(source, slot, rest)
            parameters = source.parameters_made(slot.source, rest)
            if not parameters:
                buffers.append(target)
            elif slot.new:
                new_parameters.append(target)
                own = f"{source.anatomy.prefix}{slot.source}."
                for made in parameters:
                    module_parameters[f"{source.anatomy.prefix}{position}.{made.removeprefix(own)}"] = None
    for name in source.tensors:
        if behind := blocks.behind(name):
            recipes[blocks.join(len(stack) + behind[0], behind[1])] = Recipe("copy", name)
            buffers.append(blocks.join(len(stack) + behind[0], behind[1]))
    expansion_map, rounds = grow_map(stack, source.expansion, blocks, lr_scales)
    return Plan(
        recipes=recipes,
        config=config,
        blocks=expansion_map,
        new_parameters=tuple(new_parameters),
        exact=exact,
        method=method,
        settings=dict(settings),
        stack=tuple(stack),
        rounds=rounds,
        module_parameters=tuple(module_parameters),
        fixed_parameters=tuple(_fixed_after(source, stack)),
        buffers=tuple(buffers),
    )


def _fixed_after(source: Source, stack: Sequence[Slot]) -> Iterator[str]:
    """What no strategy trains in the source, and the same of the copies of its blocks."""
    named = BlockNames(source.anatomy.prefix, source.anatomy.num_blocks)
    for name in source.expansion.fixed_parameters:
        if (place := named.split(name)) is None:
            yield name
        else:
            yield from (named.join(at, place[1]) for at, slot in enumerate(stack) if slot.source == place[0])


def copied_of(source: Source, slot: Slot, rest: str) -> Recipe:
    """The bytes of the tensor that the slot's source has."""
    return Recipe("copy", source.blocks.join(slot.source, rest))


def _of_parameters(source: Source, recipe_of: RecipeOf) -> RecipeOf:
    """A mask or a table that is stored with the weights has nothing to draw or average: it is copied."""
    return lambda slot, position, rest: (
        recipe_of(slot, position, rest) if source.parameters_made(slot.source, rest) else copied_of(source, slot, rest)
    )


def zeroed_writers(source: Source) -> RecipeOf:
    """Copies with zeroed residual writers: the block is an identity block (LLaMA Pro, equations 3 and 4)."""
    writers_of = cache(lambda block: source.stored_for(block, source.anatomy.writers(block)))

    def recipe(slot: Slot, position: int, rest: str) -> Recipe:
        return Recipe("zeros" if rest in writers_of(slot.source) else "copy", source.blocks.join(slot.source, rest))

    return recipe


def _zeroed_norms(source: Source) -> RecipeOf:
    @cache
    def norms_of(block: int) -> tuple[tuple[str, ...], bool]:
        norms = source.anatomy.norms(block)
        return source.stored_for(block, norms), source.anatomy.zero_centred(block, norms[0])

    def recipe(slot: Slot, position: int, rest: str) -> Recipe:
        norms, centred = norms_of(slot.source)
        name = source.blocks.join(slot.source, rest)
        if rest not in norms:
            return Recipe("copy", name)
        return Recipe("fill", name, -1.0) if centred and rest.endswith("weight") else Recipe("zeros", name)

    return recipe


def _random(source: Source, slot: Slot, rest: str, deviation: float, seed: int) -> Recipe:
    name = source.blocks.join(slot.source, rest)
    if len(source.tensors[name].shape) < 2:
        return Recipe("copy", name)
    return Recipe("random", name, deviation, seed)


def _average(source: Source, stack: Sequence[Slot]) -> RecipeOf:
    """The mean of the nearest old blocks below and above; at an end, of the one there is."""

    def recipe(slot: Slot, position: int, rest: str) -> Recipe:
        below = next((s.source for s in reversed(stack[:position]) if not s.new), None)
        above = next((s.source for s in stack[position + 1 :] if not s.new), None)
        names = [source.blocks.join(block, rest) for block in (below, above) if block is not None]
        shapes = {source.tensors[name].shape for name in names if name in source.tensors}
        if len(shapes) != 1 or not all(name in source.tensors for name in names):
            raise ValueError(
                f"expand.init=average cannot average {' and '.join(names)}: the neighbours of block {position} are "
                "not alike; choose positions between like blocks, or another expand.init"
            )
        origin = source.blocks.join(slot.source, rest)
        return Recipe("mean", names[0], others=tuple(names[1:])) if len(names) > 1 else Recipe("copy", origin)

    return recipe
