"""Writing a planned expansion: tensors stream from the source's shards to new ones, bytes untouched."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from pipeline.expansion.base import Plan, find_blocks
from pipeline.models.directory import EXPANSION_FILE, copy_side_files
from pipeline.models.safetensors_io import Planned, Stored, content_hash, read_index, write_shards


def write_expansion(plan: Plan, source: Path, target: Path, shard_bytes: int = 5 * 10**9) -> Plan:
    """Write the expanded model to `target` as a plain `save_pretrained` directory with `expansion.json` beside it.

    Args:
        plan: made from the tensors and the config of `source`.
        source: a `save_pretrained` directory with safetensors weights.
        target: is created.
        shard_bytes: the largest shard, bytes.

    Returns:
        The plan with the hashes of the blocks that were copied.

    Raises:
        ValueError: a source shard is missing or damaged.
    """
    stored = read_index(source)
    copy_side_files(source, target)
    tensors = {}
    for name, recipe in plan.recipes.items():
        origin = stored[recipe.source]
        content = origin if recipe.kind == "copy" else None
        tensors[name] = Planned(origin.dtype, origin.shape, origin.num_bytes, content)
    write_shards(target, tensors, shard_bytes)
    (target / "config.json").write_text(json.dumps(plan.config, indent=2) + "\n")
    plan = _with_hashes(plan, stored)
    (target / EXPANSION_FILE).write_text(json.dumps(plan.record(), indent=2) + "\n")
    return plan


def _with_hashes(plan: Plan, stored: dict[str, Stored]) -> Plan:
    """Pin each new block to the content of the block it was copied from."""
    num_blocks = plan.config["num_hidden_layers"] - len({b.position for b in plan.blocks if not b.source_hash})
    names = find_blocks(stored, num_blocks)
    blocks = []
    for block in plan.blocks:
        if not block.source_hash:
            own = [name for name in sorted(stored) if (parts := names.split(name)) and parts[0] == block.origin]
            digest = hashlib.sha256()
            for name in own:
                digest.update(f"{name} {content_hash(stored[name])}\n".encode())
            block = dataclasses.replace(block, source_hash=digest.hexdigest())
        blocks.append(block)
    return dataclasses.replace(plan, blocks=tuple(blocks))
