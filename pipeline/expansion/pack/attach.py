"""Domain packs: the trained new blocks of a model alone, put on their base and taken off again.

Only the new blocks of an expansion learn (LLaMA Pro, arXiv 2401.02415, section 3.2), so they are all that a domain adds
to a model. Packs are not the paper's: its blocks stay in the model that they were trained in. Blocks that were trained
apart see, stacked on one base, a stream that the others have changed; that they still do their work is to be measured.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.expansion.architecture_cache import Architecture
from pipeline.expansion.base import Plan
from pipeline.expansion.pack.config import differing
from pipeline.expansion.pack.extract import base_tensors, extract
from pipeline.expansion.pack.format import Pack, open_pack
from pipeline.expansion.pack.gain import gains_of
from pipeline.expansion.pack.stack import Attached, write_stack
from pipeline.expansion.source import Source, find_blocks, read_source
from pipeline.models.directory import CONFIG_FILE, Form, as_copies, begin_model, commit_model, write_weights
from pipeline.models.files.atomic_io import fresh_directory
from pipeline.models.files.reference import is_reference
from pipeline.models.files.safetensors_io import read_index
from pipeline.models.files.tensor_file import ITEM_BITS, Stored, tensors_hash
from pipeline.records.expansion import EXPANSION_FILE, ExpansionMap, PackBase, expansion_text, read_expansion

__all__ = ["attach", "detach", "extract", "inspect"]

SHARD_BYTES = 5 * 10**9


def attach(
    base: Path,
    packs: Sequence[Path],
    target: Path,
    gains: Mapping[str, float] | None = None,
    save: Form = "delta",
    shard_bytes: int = SHARD_BYTES,
    memory: Path | None = None,
) -> Plan:
    """Write the model that `base` is with these packs.

    Args:
        base: the model directory that the packs were extracted against.
        packs: their directories; at one place of the base the first pack's blocks stand lowest.
        target: does not exist yet, or is empty.
        gains: by pack name, 1 where none is given: each sublayer of the pack's blocks adds so much of what it would
            add; see `gain`. 0 gives the base's logits bit for bit. "law.1" is the gain of block 1 of the pack law
            alone, counted from 0 at the bottom within the pack, as `inspect` lists them.
        save: "delta" keeps the blocks alone and refers to the base's files, "full" copies them.
        shard_bytes: the largest shard, bytes.
        memory: where answers about architectures are kept; see `Architecture`.

    Raises:
        ValueError: a pack is of another base or damaged, two have one name, or a gain is not possible.
    """
    if not packs:
        raise ValueError("no pack is given to attach")
    opened = [open_pack(path) for path in packs]
    names = [pack.name for pack in opened]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two packs are called {', '.join(twice)}; extract one of them under another name")
    by_pack = gains_of(gains or {}, {pack.name: len(pack.blocks) for pack in opened})
    source = read_source(base, memory)
    content_hash = tensors_hash(base_tensors(source))
    for pack, path in zip(opened, packs, strict=True):
        _check_base(pack, path, source, content_hash)
    parts = [Attached(pack, *by_pack[pack.name]) for pack in opened]
    with fresh_directory(target) as partial:
        config = (base / CONFIG_FILE).read_bytes().decode()
        pinned = PackBase(content_hash, config, expansion_text(base))
        return write_stack(source, parts, pinned, partial, save, shard_bytes)


def detach(
    directory: Path,
    names: Sequence[str] | None,
    target: Path,
    shard_bytes: int = SHARD_BYTES,
    memory: Path | None = None,
) -> ExpansionMap:
    """Write the model of `directory` without these packs.

    Without any pack it is the base, whole: tensors, config.json and expansion.json are the base's bit for bit.
    With some left it is what attaching only those with the same gains gives, in the form that `directory` has.

    Args:
        directory: what `attach` wrote, also after a training of its packs' blocks.
        names: of packs; all without it.
        target: does not exist yet, or is empty.
        shard_bytes: the largest shard, bytes.
        memory: where answers about architectures are kept; see `Architecture`.

    Returns:
        What the new model records of its expansions.

    Raises:
        ValueError: there is no such pack, or the base's tensors have changed since.
    """
    base, source, parts = _read_attached(directory, memory)
    present = [part.pack.name for part in parts]
    if unknown := sorted(set(names or ()) - set(present)):
        raise ValueError(f"{directory} has no pack {', '.join(unknown)}; it has {', '.join(present)}")
    left = [part for part in parts if names is not None and part.pack.name not in names]
    if (found := tensors_hash(base_tensors(source))) != base.content_hash:
        raise ValueError(
            f"{directory} does not hold its base any more: the old blocks' content hash is {found[:12]}..., it was "
            f"{base.content_hash[:12]}... when the packs were attached (trained since, by full SFT?); the base is not "
            "there to be given back"
        )
    with fresh_directory(target) as partial:
        if left:
            form: Form = "delta" if is_reference(directory) else "full"
            return write_stack(source, left, base, partial, form, shard_bytes)
        source.anatomy.save()
        begin_model(directory, partial, {tensor.file for tensor in source.tensors.values()})
        write_weights(partial, as_copies(source.tensors), shard_bytes)
        commit_model(partial, base.config, base.expansion)
        return read_expansion(partial)


def inspect(pack: Path) -> dict[str, Any]:
    """The facts of a pack: pack.json, `num_parameters`, `dtypes`, and whether `any_gain` beside 0 and 1 is possible.

    Raises:
        ValueError: it is damaged.
    """
    opened = open_pack(pack)
    stored = [tensor for block in opened.tensors for tensor in block.values()]
    return {
        **opened.record(),
        "num_parameters": sum(t.num_bytes * 8 // ITEM_BITS[t.dtype] for t in stored),
        "dtypes": sorted({t.dtype for t in stored}),
        "any_gain": all(block.scales for block in opened.blocks),
    }


def _check_base(pack: Pack, path: Path, source: Source, content_hash: str) -> None:
    if pack.base_hash == content_hash and pack.base_blocks == source.anatomy.num_blocks:
        _check_config(pack, path, source)
        return
    on_top = ", ".join(entry.name for entry in source.expansion.packs)
    hint = (
        f"; it has packs already ({on_top}): detach them, and attach all of them to the base at once" if on_top else ""
    )
    raise ValueError(
        f"pack {pack.name} ({path}) belongs to another base: it was extracted against a {pack.model_type} of "
        f"{pack.base_blocks} blocks with content hash {pack.base_hash[:12]}..., {source.directory} is a "
        f"{source.config.get('model_type')} of {source.anatomy.num_blocks} with {content_hash[:12]}...; give the model "
        f"that was expanded, before training, or expand and train this one anew{hint}"
    )


def _check_config(pack: Pack, path: Path, source: Source) -> None:
    if pack.base_config is None:
        warnings.warn(
            f"pack {pack.name} ({path}) is of before packs kept their base's config: that {source.directory} computes "
            "as the base did (rope_theta, hidden_act, ...) is not checked; extract it anew to have it checked",
            stacklevel=4,
        )
        return
    if found := differing(pack.base_config, source.config, pack.base_blocks):
        listed = "; ".join(f"{name} was {was!r} and is {now!r} here" for name, (was, now) in found.items())
        raise ValueError(
            f"pack {pack.name} ({path}) belongs to a base that computes otherwise than {source.directory}, though "
            f"their weights are the same: {listed}. Give the base with its own config.json"
        )


def _read_attached(directory: Path, memory: Path | None) -> tuple[PackBase, Source, list[Attached]]:
    """The base and the packs that an attached model is made of, as views of its tensors.

    Raises:
        ValueError: it has none, or its record and its tensors do not fit.
    """
    record, stored = read_expansion(directory), read_index(directory)
    if not record.packs or (base := record.base) is None:
        raise ValueError(f"{directory} records no attached packs; `attach` makes such models, `extract` makes packs")
    config = json.loads(base.config)
    anatomy = Architecture(config, memory)
    places = {p: (i, j) for i, entry in enumerate(record.packs) for j, p in enumerate(entry.positions)}
    depth = anatomy.num_blocks + len(places)
    names = find_blocks(stored, depth, anatomy)
    old = {position: index for index, position in enumerate(p for p in range(depth) if p not in places)}
    packs: list[list[dict[str, Stored]]] = [[{} for _ in entry.positions] for entry in record.packs]
    tensors: dict[str, Stored] = {}
    for name, tensor in stored.items():
        position, rest = names.split(name) or (None, name)
        if position in places:
            part, block = places[position]
            packs[part][block][rest] = tensor
        elif behind := names.behind(name):
            tensors[names.join(anatomy.num_blocks + behind[0], behind[1])] = tensor
        else:
            tensors[name if position is None else names.join(old[position], rest)] = tensor
    blocks = find_blocks(tensors, anatomy.num_blocks, anatomy)
    source = Source(directory, tensors, config, ExpansionMap.from_text(base.expansion), anatomy, blocks)
    parts = []
    for entry, own in zip(record.packs, packs, strict=True):
        pack = Pack.of(entry.facts, tuple(own), directory / EXPANSION_FILE)
        parts.append(Attached(pack, entry.gain, entry.block_gains, done=True))
    return base, source, parts
