"""Taking the trained new blocks out of a model: which they are, and the proof that nothing else was trained."""

from __future__ import annotations

import datetime
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.expansion.layout import Slot
from pipeline.expansion.pack.config import pinned_config
from pipeline.expansion.pack.format import (
    FACTS,
    WEIGHTS,
    Pack,
    PackBlock,
    canonical,
    check_name,
    hash_file,
    open_pack,
)
from pipeline.expansion.pack.gain import proportional, writers_of
from pipeline.expansion.source import BlockNames, Source, find_blocks, read_source
from pipeline.models.directory import read_config
from pipeline.models.files.atomic_io import fresh_directory, write_text
from pipeline.models.files.safetensors_io import read_index
from pipeline.models.files.tensor_file import Planned, Stored, read_pieces, tensors_hash, write_file
from pipeline.records.expansion import ExpansionMap, NewBlock, origins, read_expansion


@dataclass(frozen=True)
class Grown:
    """A trained model beside its base.

    Attributes:
        directory: of the trained model.
        tensors: its tensors by their names on disk.
        config: its config.json.
        record: what it says of its expansions.
        names: how its tensors name blocks.
        stack: what each of its blocks is in terms of the base: itself, or a new one like it.
        added: the blocks that the base has not, by position.
    """

    directory: Path
    tensors: Mapping[str, Stored]
    config: Mapping[str, Any]
    record: ExpansionMap
    names: BlockNames
    stack: tuple[Slot, ...]
    added: Mapping[int, NewBlock]

    @property
    def old(self) -> list[int]:
        """The position of each block of the base."""
        return [position for position, slot in enumerate(self.stack) if not slot.new]


def extract(
    trained: Path, base: Path, target: Path, name: str, round: int | None = None, memory: Path | None = None
) -> Pack:
    """Write the blocks that `trained` has and `base` has not to the pack directory `target`.

    Args:
        trained: a model directory with expansion.json, after training.
        base: the model directory that was expanded.
        target: does not exist yet, or is empty.
        name: of the pack.
        round: take the blocks of this round of expansion alone; without it, of every round that the base lacks.
        memory: where answers about architectures are kept; see `Architecture`.

    Returns:
        The pack, opened.

    Raises:
        ValueError: an old tensor differs from the base's, there are no such blocks, or a directory is not what it
            should be.
    """
    check_name(name)
    source = read_source(base, memory)
    grown = read_grown(trained, source)
    chosen = _chosen(grown, round)
    source.anatomy.check_grown(grown.config, grown.stack)
    _check_old(source, grown)
    blocks = _blocks(source, grown, chosen)
    source.anatomy.save()
    tensors = {}
    for index, position in enumerate(chosen):
        for rest, stored in sorted(_block_tensors(source, grown, position).items()):
            # By a function, so that the file does not depend on where in another one the tensors lay.
            pieces = partial(read_pieces, stored)
            tensors[f"{index}.{rest}"] = Planned(stored.dtype, stored.shape, stored.num_bytes, pieces)
    with fresh_directory(target) as unfinished:
        write_file(unfinished / WEIGHTS, tensors, {"format": "pt"})
        num_bytes = sum(planned.num_bytes for planned in tensors.values())
        pack = Pack(
            name=name,
            model_type=str(source.config.get("model_type")),
            base_hash=tensors_hash(base_tensors(source)),
            base_blocks=source.anatomy.num_blocks,
            blocks=blocks,
            provenance=_provenance(grown, {block.round for block in blocks}),
            weights={"sha256": hash_file(unfinished / WEIGHTS), "num_bytes": num_bytes},
            tensors=(),
            base_config=pinned_config(source.config),
        )
        write_text(unfinished / FACTS, canonical(pack.record()) + "\n")
    return open_pack(target)


def base_tensors(source: Source) -> dict[str, Stored]:
    """The tensors that pin a base: all, but those of numbered blocks behind its depth.

    These (DeepSeek-V3's multi-token prediction) transformers does not load: what a pack adds does not depend on them.
    """
    prefix = source.blocks.prefix
    return {n: t for n, t in source.tensors.items() if not n.startswith(prefix) or source.blocks.split(n)}


def read_grown(trained: Path, source: Source) -> Grown:
    """Look at a trained model beside its base.

    Raises:
        ValueError: it records no blocks that the base lacks, or is no expansion of this base.
    """
    record, tensors = read_expansion(trained), read_index(trained)
    added = {block.position: block for block in record.blocks if block.round > source.expansion.round}
    if not added:
        if record.round > source.expansion.round:
            raise ValueError(
                f"{trained} was expanded with {record.method}, which adds to the blocks that {source.directory} has; a "
                "pack holds whole new blocks, as expand=block adds. Expand and train with save=delta instead: what is "
                "new then lies apart from the base's files, which it refers to"
            )
        raise ValueError(f"{trained} records no new blocks that {source.directory} lacks; give an expanded model")
    depth = source.anatomy.num_blocks + len(added)
    wrong_base = (
        f"{trained} was not expanded from {source.directory}: the {source.anatomy.num_blocks} blocks of that and the "
        f"{len(added)} new ones that expansion.json records, up to block {max(added)}, are {depth}, "
    )
    advice = "give the base that it was expanded from"
    try:
        names = find_blocks(tensors, depth, source.anatomy)
    except ValueError as error:
        raise ValueError(f"{wrong_base}and the model has another number ({error}); {advice}") from error
    if names.prefix != source.blocks.prefix or max(added) >= depth:
        raise ValueError(
            f"{wrong_base}and the model's begin at {names.prefix}0, the base's at {source.blocks.prefix}0; {advice}"
        )
    stack = tuple(_stack(added, origins(record.blocks, depth), depth))
    return Grown(trained, tensors, read_config(trained), record, names, stack, added)


def _stack(added: Collection[int], origin_of: Mapping[int, int], depth: int) -> list[Slot]:
    """What each block is in terms of the base; a block made from a new one counts as made from that one's origin."""
    old = {p: index for index, p in enumerate(p for p in range(depth) if p not in added)}
    stack = []
    for position in range(depth):
        at = position
        while at in added:
            at = origin_of[at]
        stack.append(Slot(old[at], new=position in added))
    return stack


def _chosen(grown: Grown, round: int | None) -> list[int]:
    """Positions of the blocks to take."""
    chosen = sorted(p for p, block in grown.added.items() if round in (None, block.round))
    if not chosen:
        rounds = sorted({block.round for block in grown.added.values()})
        raise ValueError(f"{grown.directory} has no new blocks of round {round}; it has those of {rounds}")
    return chosen


def _check_old(source: Source, grown: Grown) -> None:
    """Every old tensor is the base's, byte for byte, and there is none that belongs to neither."""
    expected = {}
    for name, stored in base_tensors(source).items():
        parts = source.blocks.split(name)
        expected[name if parts is None else grown.names.join(grown.old[parts[0]], parts[1])] = (name, stored)
    for name, stored in source.tensors.items():
        if behind := source.blocks.behind(name):
            target = grown.names.join(grown.names.num_blocks + behind[0], behind[1])
            if target in grown.tensors:  # expansions of before these were carried along left them out
                expected[target] = (name, stored)
    for target, (name, stored) in expected.items():
        if target not in grown.tensors:
            raise ValueError(f"{grown.directory} has no {target}, which {source.directory} has as {name}")
        if not same_bytes(stored, grown.tensors[target]):
            raise ValueError(
                "this model's old blocks were trained too (e.g. by full SFT); a pack holds only new blocks: "
                f"{target} of {grown.directory} differs from {name} of {source.directory}. Extract from a model that "
                "trained with strategy=new_blocks, such as the pretrain artifact, and give the base that was expanded"
            )
    split = grown.names.split
    foreign = [n for n in grown.tensors if n not in expected and not ((at := split(n)) and at[0] in grown.added)]
    if foreign:
        raise ValueError(
            f"{grown.directory} has tensors that are neither the base's nor in a new block, which a pack cannot hold: "
            f"{', '.join(foreign[:4])} ({len(foreign)})"
        )


def same_bytes(a: Stored, b: Stored) -> bool:
    """Whether two stored tensors are equal in type, shape and every byte; 2 MiB are in memory at a time."""
    if (a.dtype, a.shape, a.num_bytes) != (b.dtype, b.shape, b.num_bytes):
        return False
    if a.start == b.start and os.path.samefile(a.file, b.file):
        return True
    return all(one == other for one, other in zip(read_pieces(a), read_pieces(b), strict=True))


def _block_tensors(source: Source, grown: Grown, position: int) -> dict[str, Stored]:
    """The tensors of one new block by the rest of their names: as many and as large as its origin's.

    Raises:
        ValueError: they are not.
    """
    origin, prefix = grown.stack[position].source, f"{grown.names.prefix}{position}."
    found = {name.removeprefix(prefix): t for name, t in grown.tensors.items() if name.startswith(prefix)}
    check_like(source, origin, found, f"block {position} of {grown.directory}")
    return found


def check_like(source: Source, origin: int, found: Mapping[str, Stored], what: str) -> None:
    """Raise ValueError unless a block's tensors have the names, types and shapes of those of a block of the base."""
    expected = {rest: source.tensors[source.blocks.join(origin, rest)] for rest in source.by_block()[origin]}
    for rest in sorted(set(expected) | set(found)):
        sizes = [f"{t.dtype} {list(t.shape)}" if t else "missing" for t in (found.get(rest), expected.get(rest))]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{what} is not like block {origin} of {source.directory}, its origin: {rest} is {sizes[0]} here and "
                f"{sizes[1]} there"
            )


def _blocks(source: Source, grown: Grown, chosen: Sequence[int]) -> tuple[PackBlock, ...]:
    blocks: list[PackBlock] = []
    for position in chosen:
        added, origin = grown.added[position], grown.stack[position].source
        after = sum(not slot.new for slot in grown.stack[:position]) - 1
        try:
            writers = writers_of(source, origin)
        except ValueError:  # not every initialisation needs any; `gain` then refuses, and says what was found
            writers = ()
        blocks.append(
            PackBlock(
                after=after,
                order=sum(block.after == after for block in blocks),
                origin=origin,
                group=added.group,
                round=added.round,
                lr_scale=float(added.lr_scale),
                config=per_block_config(grown.config, source, position),
                writers=writers,
                scales=proportional(source, origin) if writers else (),
            )
        )
    return tuple(blocks)


def per_block_config(config: Mapping[str, Any], source: Source, position: int) -> dict[str, Any]:
    """What an expanded model's config says of one block, by name: its entries in the lists that grew with the depth."""
    section = config["text_config"] if "num_hidden_layers" in config.get("text_config", {}) else config
    read = source.anatomy.text_config
    depth = source.anatomy.num_blocks
    lists = [n for n, v in section.items() if isinstance(v, list) and len(v) > max(depth, position)]
    return {n: section[n][position] for n in sorted(lists) if isinstance(read.get(n), list) and len(read[n]) == depth}


def _provenance(grown: Grown, rounds: set[int]) -> dict[str, Any]:
    """How the blocks were made, by the model's record, and when they were taken out of it."""
    keys = ("round", "method", "settings", "exact")
    made = [{key: getattr(one, key) for key in keys} for one in grown.record.history if one.round in rounds]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"expansions": made, "extracted": now}
