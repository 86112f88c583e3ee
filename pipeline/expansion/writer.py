"""Writing a planned expansion: tensors stream from the source's shards to new ones, bytes untouched."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.models.directory import Form, begin_model, commit_model, write_weights
from pipeline.models.files.tensor_file import ITEM_BITS, Planned, Stored, copy_of, read_header, read_pieces, sample_hash

if TYPE_CHECKING:  # torch comes with these; copying does without it
    import torch

    from pipeline.expansion.base import Plan, Recipe
    from pipeline.expansion.source import Source
    from pipeline.records.expansion import NewBlock

_PIECE_ITEMS = 2**20  # how much of a computed tensor is in memory; part of what "random" means, see _drawn


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
    tensors = _planned(plan, source.tensors)
    reads = {stored.file for stored in source.tensors.values()} | ({plan.made} if plan.made else set())
    begin_model(source.directory, target, reads)
    write_weights(target, tensors, shard_bytes, save)
    plan = dataclasses.replace(plan, blocks=tuple(_pinned(plan, source)))
    commit_model(target, json.dumps(plan.config, indent=2) + "\n", plan.to_text())
    return plan


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


def _planned(plan: Plan, stored: Mapping[str, Stored]) -> dict[str, Planned]:
    """The target's tensors, what stays first: each stored tensor is then copied into the place that it had."""
    new = set(plan.new_parameters)
    made = read_header(plan.made) if plan.made else {}
    tensors = {}
    for name in sorted(plan.recipes, key=new.__contains__):
        recipe = plan.recipes[name]
        missing = sorted({recipe.source, *recipe.others} - set(stored))
        if missing or (recipe.kind == "made" and name not in made):
            raise ValueError(
                f"the plan makes {name} ({recipe.kind}) from {', '.join(missing) or plan.made}, which is not there; "
                "plan the expansion again for this model"
            )
        tensors[name] = _tensor(name, recipe, stored, made)
    return tensors


def _tensor(name: str, recipe: Recipe, stored: Mapping[str, Stored], made: Mapping[str, Stored]) -> Planned:
    origin = stored[recipe.source]
    if recipe.kind == "made":  # by a function: the file that it lies in is not one to refer to
        ready = made[name]
        return Planned(ready.dtype, ready.shape, ready.num_bytes, lambda: read_pieces(ready))
    if recipe.kind == "copy":
        return copy_of(origin)
    content = None
    if recipe.kind == "mean":
        content = _encoded(lambda: _mean([stored[other] for other in (recipe.source, *recipe.others)]), origin.dtype)
    elif recipe.kind != "zeros":
        content = _encoded(lambda: _drawn(recipe, name, math.prod(origin.shape)), origin.dtype)
    return Planned(origin.dtype, origin.shape, origin.num_bytes, content)


def _encoded(values: Callable[[], Iterator[torch.Tensor]], dtype: str) -> Callable[[], Iterator[memoryview]]:
    def pieces() -> Iterator[memoryview]:
        from pipeline.models.save import raw_bytes

        for value in values():
            yield raw_bytes(value, dtype)

    return pieces


def _drawn(recipe: Recipe, name: str, num_items: int) -> Iterator[torch.Tensor]:
    """One value everywhere, or normal values.

    These depend on the seed and the tensor's name alone, whatever else is written, in which order.
    """
    import torch

    seed = hashlib.sha256(f"{recipe.seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(seed[:8], "little", signed=True))
    for start in range(0, num_items, _PIECE_ITEMS):
        count = min(_PIECE_ITEMS, num_items - start)
        if recipe.kind == "fill":
            yield torch.full((count,), recipe.value)
        else:
            yield torch.randn(count, generator=generator, dtype=torch.float32) * recipe.value


def _mean(parts: list[Stored]) -> Iterator[torch.Tensor]:
    """The mean of stored tensors of one shape, computed in fp32."""
    import torch

    from pipeline.models.save import DTYPES

    def decoded(stored: Stored) -> Iterator[torch.Tensor]:
        if stored.dtype not in DTYPES:
            raise ValueError(f"{stored.name} in {stored.file} has dtype {stored.dtype}, which cannot be averaged")
        for piece in read_pieces(stored, _PIECE_ITEMS * ITEM_BITS[stored.dtype] // 8):
            yield torch.frombuffer(piece, dtype=DTYPES[stored.dtype]).float()

    for pieces in zip(*(decoded(stored) for stored in parts), strict=True):
        yield torch.stack(pieces).mean(dim=0) if len(pieces) > 1 else pieces[0]
