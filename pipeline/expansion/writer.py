"""Writing a planned expansion: tensors stream from the source's shards to new ones, bytes untouched."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.models.directory import Form, begin_model, commit_model, write_weights
from pipeline.models.files.read_ahead import ReadAhead
from pipeline.models.files.tensor_file import ITEM_BITS, Planned, Stored, copy_of, read_header, read_pieces, sample_hash

if TYPE_CHECKING:  # torch comes with these; copying does without it
    import torch

    from pipeline.expansion.base import Plan, Recipe
    from pipeline.expansion.source import Source
    from pipeline.records.expansion import NewBlock

_COMPUTED = ("mean", "computed")  # from stored values


def write_expansion(
    plan: Plan, source: Source, target: Path, shard_bytes: int = 5 * 10**9, save: Form = "full"
) -> Plan:
    """Write the expanded model to `target`, with `expansion.json` beside it.

    Old blocks are copied a data region at a time and never decoded; a computed tensor is in memory a piece at a time;
    zeros are holes in the file. The config is written last, so that a directory in which this was killed does not load.

    Args:
        plan: made from `source`.
        source: a model, whole or by reference.
        target: is created; a model in it is replaced.
        shard_bytes: the largest shard, bytes.
        save: "full" writes a plain `save_pretrained` directory. "delta" writes only the tensors that are not
            copies, and where in the source's files the others are; our own loader makes one model of it.

    Returns:
        The plan with the hashes of the blocks that were copied.

    Raises:
        ValueError: a source file is missing or damaged, or the plan asks for what it does not hold.
    """
    stored = source.stored()
    inputs = _inputs(plan, stored)
    ahead = ReadAhead([inputs[name] for name in inputs if plan.recipes[name].kind in _COMPUTED])
    tensors = _planned(plan, inputs, ahead)
    reads = {one.file for one in stored.values()} | ({plan.made} if plan.made else set())
    begin_model(source.directory, target, reads)
    with ahead, _one_core_a_tensor(plan):
        write_weights(target, tensors, shard_bytes, save)
    plan = dataclasses.replace(plan, blocks=tuple(_pinned(plan, source)))
    commit_model(target, json.dumps(plan.config, indent=2) + "\n", plan.to_text())
    return plan


@contextlib.contextmanager
def _one_core_a_tensor(plan: Plan) -> Iterator[None]:
    """Several tensors are computed at once: by one core each, which sums in one order on every machine."""
    if all(recipe.kind in ("copy", "made", "zeros") for recipe in plan.recipes.values()):
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pinned(plan: Plan, source: Source) -> Iterator[NewBlock]:
    """The map with, for each block of this round, what the block that it was made from looked like."""
    origins = {block.origin for block in plan.blocks if not block.source_hash}
    digests = {origin: hashlib.sha256() for origin in origins}
    for name in sorted(source.tensors):
        parts = source.blocks.split(name)
        if parts and parts[0] in digests:
            digests[parts[0]].update(f"{name} {sample_hash(source.tensors[name])}\n".encode())
    for block in plan.blocks:
        yield block if block.source_hash else dataclasses.replace(block, source_hash=digests[block.origin].hexdigest())


def _inputs(plan: Plan, stored: Mapping[str, Stored]) -> dict[str, list[Stored]]:
    """What each of the target's tensors is made from. What stays comes first: it is copied to the place it had."""
    new = set(plan.new_parameters)
    made = read_header(plan.made) if plan.made else {}
    inputs = {}
    for name in sorted(plan.recipes, key=new.__contains__):
        recipe = plan.recipes[name]
        missing = sorted({recipe.source, *recipe.others} - set(stored))
        if missing or (recipe.kind == "made" and name not in made):
            raise ValueError(
                f"the plan makes {name} ({recipe.kind}) from {', '.join(missing) or plan.made}, which is not there; "
                "plan the expansion again for this model"
            )
        named = [stored[one] for one in (recipe.source, *recipe.others)]
        inputs[name] = [made[name]] if recipe.kind == "made" else named
    return inputs


def _planned(plan: Plan, inputs: Mapping[str, Sequence[Stored]], ahead: ReadAhead) -> dict[str, Planned]:
    return {name: _tensor(name, plan.recipes[name], inputs[name], ahead) for name in inputs}


def _tensor(name: str, recipe: Recipe, inputs: Sequence[Stored], ahead: ReadAhead) -> Planned:
    origin = inputs[0]
    if recipe.kind == "made":  # by a function: the file that it lies in is not one to refer to
        return Planned(origin.dtype, origin.shape, origin.num_bytes, lambda: read_pieces(origin))
    if recipe.kind == "copy":
        return copy_of(origin)
    dtype = recipe.dtype or origin.dtype
    shape = origin.shape if recipe.shape is None else recipe.shape

    def content() -> Iterator[memoryview]:
        from pipeline.models.save import raw_bytes

        for value in _values(name, recipe, inputs, math.prod(shape)):
            yield raw_bytes(value, dtype)
        ahead.done(inputs)

    num_bytes = math.prod(shape) * ITEM_BITS[dtype] // 8
    return Planned(dtype, shape, num_bytes, None if recipe.kind == "zeros" else content)


def _values(name: str, recipe: Recipe, inputs: Sequence[Stored], num_items: int) -> Iterator[torch.Tensor]:
    from pipeline.expansion.values import drawn, mean_of

    if recipe.kind == "mean":
        return mean_of(inputs)
    if recipe.kind == "computed":
        assert recipe.operation is not None
        return recipe.operation(name, inputs)
    return drawn(name, recipe.seed, recipe.value, num_items, constant=recipe.kind == "fill")
