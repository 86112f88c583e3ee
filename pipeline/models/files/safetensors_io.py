"""The weights of a model directory: which files hold them, by which names, and writing them in shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.cores import allowed_cores
from pipeline.file_io import sync
from pipeline.models.files.atomic_io import commit, write_text
from pipeline.models.files.reference import is_reference, read_reference
from pipeline.models.files.tensor_file import Planned, Stored, begin_partial, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_WRITERS = 4  # runs of tensors copied at once: more than cores, as most wait for the disk


def has_only_pickles(directory: Path) -> bool:
    """Whether the weights of a model directory are all in torch's old files, which `bin` converts."""
    return any(directory.glob("pytorch_model*.bin")) and not any(directory.glob("*.safetensors"))


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, by its index or its references where it has them.

    As transformers has it, one whole file is taken before an index, which then is of another model.

    Raises:
        ValueError: there are none, the index names a file that is missing, or a referred one changed.
    """
    if is_reference(directory):
        return list(dict.fromkeys(stored.file for stored in read_index(directory).values()))
    index = directory / INDEX_FILE
    files = [directory / SINGLE_FILE]
    if index.exists() and not files[0].is_file():
        files = [directory / name for name in sorted(set(read_weight_map(index).values()))]
    missing = [f.name for f in files if not f.is_file()]
    if missing and has_only_pickles(directory):
        raise ValueError(
            f"{directory} has its weights only as pickles (pytorch_model.bin), which are not loaded; convert them "
            f"once: python -m pipeline.models.bin {directory} NEW_DIRECTORY"
        )
    if missing:
        named = f", which its {INDEX_FILE} names" if index.exists() else ""
        raise ValueError(
            f"{directory} has no {', '.join(missing[:4])} ({len(missing)} of {len(files)} files of weights{named}); "
            "a model directory needs its safetensors weights: download what is missing"
        )
    return files


def ignored_index(directory: Path) -> bool:
    """Whether a model directory has an index beside one whole file, which is what is loaded."""
    return (directory / SINGLE_FILE).is_file() and (directory / INDEX_FILE).is_file()


def read_index(directory: Path) -> dict[str, Stored]:
    """All tensors of a model directory by name, whole or by reference, in the order of its files.

    Raises:
        ValueError: a file is missing or damaged, or the index names a tensor that no file holds.
    """
    index = directory / INDEX_FILE
    if is_reference(directory):
        if index.exists() or (directory / SINGLE_FILE).exists():
            raise ValueError(f"{directory} holds a whole model and one by reference; remove one of the two")
        return read_reference(directory)
    tensors: dict[str, Stored] = {}
    for file in weight_files(directory):
        tensors.update(read_header(file))
    if index.exists() and not (directory / SINGLE_FILE).is_file():
        lost = sorted(set(read_weight_map(index)) - set(tensors))
        if lost:
            raise ValueError(f"{index} names tensors that no file holds: {', '.join(lost[:4])} ({len(lost)})")
    return tensors


def read_weight_map(index: Path) -> dict[str, str]:
    """Which file of a sharded checkpoint holds which tensor. Raises ValueError if the index is damaged."""
    try:
        return dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is damaged ({error!r}); download it again") from error


def write_shards(directory: Path, tensors: Mapping[str, Planned], shard_bytes: int = 5 * 10**9) -> list[Path]:
    """Write tensors as one `model.safetensors` or as numbered shards with an index, fsynced.

    Some tensors are written at once, as copying on a fast disk waits for a core.
    The first copy of each stored tensor goes with its neighbours: one shard a source file, in that file's order, so
    that whole data regions are copied verbatim. All else follows in further shards, in the order given. What fits
    into one shard is one file.

    Args:
        directory: exists; files of these names in it are replaced.
        tensors: by name.
        shard_bytes: a shard ends before it would exceed this many data bytes (one larger tensor makes one shard).
    """
    shards = list(_shards(tensors, shard_bytes))
    names = shard_names(len(shards))
    _write_partials([directory / name for name in names], shards)
    for name in names:
        commit(directory / name)
    if len(shards) > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        write_index(directory, weight_map, sum(planned.num_bytes for planned in tensors.values()))
    sync(directory)
    return [directory / name for name in names]


def shard_names(count: int) -> list[str]:
    """File names of a model that is saved in `count` shards."""
    return [SINGLE_FILE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def _write_partials(files: Sequence[Path], shards: Sequence[Mapping[str, Planned]]) -> None:
    writes = [write for file, shard in zip(files, shards, strict=True) for write in begin_partial(file, shard)]
    pool = ThreadPoolExecutor(_num_writers(shards))
    try:
        for written in [pool.submit(write) for write in writes]:
            written.result()
    finally:  # of an error or an interrupt: what has not begun never does
        pool.shutdown(cancel_futures=True)


def _num_writers(shards: Sequence[Mapping[str, Planned]]) -> int:
    """Fewer where tensors are computed: more threads than cores wait for each other between any two operations."""
    computed = any(callable(planned.content) for shard in shards for planned in shard.values())
    return min(_WRITERS, allowed_cores()) if computed else _WRITERS


def write_index(directory: Path, weight_map: Mapping[str, str], total_size: int) -> None:
    """Write which shard holds which tensor; `total_size` is that of all tensors, bytes."""
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(weight_map)}
    write_text(directory / INDEX_FILE, json.dumps(index, indent=2) + "\n")


def _shards(tensors: Mapping[str, Planned], shard_bytes: int) -> Iterator[dict[str, Planned]]:
    groups = _by_source(tensors)
    if sum(planned.num_bytes for planned in tensors.values()) <= shard_bytes:
        yield {name: planned for group in groups for name, planned in group.items()}
        return
    for group in groups:
        yield from _split(group, shard_bytes)


def _by_source(tensors: Mapping[str, Planned]) -> list[dict[str, Planned]]:
    """One group a source file with the first copy of each of its tensors, then one with all else."""
    copies: dict[Path, dict[tuple[int, int, str], str]] = {}
    rest = {}
    for name, planned in tensors.items():
        stored = planned.content
        place = (stored.start, stored.num_bytes, stored.name) if isinstance(stored, Stored) else None
        if isinstance(stored, Stored) and place and place not in copies.get(stored.file, {}):
            copies.setdefault(stored.file, {})[place] = name
        else:
            rest[name] = planned
    groups = [{name: tensors[name] for _, name in sorted(copies[file].items())} for file in sorted(copies)]
    return [*groups, rest]


def _split(tensors: Mapping[str, Planned], shard_bytes: int) -> Iterator[dict[str, Planned]]:
    shard: dict[str, Planned] = {}
    size = 0
    for name, planned in tensors.items():
        if shard and size + planned.num_bytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = planned
        size += planned.num_bytes
    if shard:
        yield shard
