"""Reading and writing of safetensors shards without decoding what is only passed on.

A safetensors file is an 8-byte little-endian header length, a JSON header `{name: {dtype, shape, data_offsets}}` with
offsets relative to the header's end, and the data. Renaming a tensor therefore needs a new header and a copy of its
bytes, no tensor library, and no memory beyond a copy buffer.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors library itself
COPY_BYTES = 16 * 2**20
ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """Where one tensor's bytes lie. `start` and `num_bytes` are absolute within `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


@dataclass(frozen=True)
class Planned:
    """One tensor of a file to be written: bytes of a stored tensor, bytes in memory, or zeros (`content=None`)."""

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    content: Stored | bytes | memoryview | None


def read_header(file: Path) -> dict[str, Stored]:
    """Read the names, types and places of all tensors in one safetensors file.

    Raises:
        ValueError: the file is truncated, or its header is not valid.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 0 < length <= min(HEADER_LIMIT, size - 8):
            raise ValueError(f"{file} is not a safetensors file or is truncated: {size} bytes, header length {length}")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ValueError(f"{file} has a damaged safetensors header: {error}; download the file again") from error
    tensors, begin = {}, 8 + length
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            first, last = entry["data_offsets"]
            dtype, shape = entry["dtype"], tuple(entry["shape"])
            expected = (ITEM_BITS[dtype] * _product(shape) + 7) // 8
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} has a damaged header entry for {name}; download the file again") from error
        if last - first != expected or first < 0 or begin + last > size:
            raise ValueError(
                f"{file} is damaged at {name}: {dtype} {list(shape)} needs {expected} bytes at {begin + first}, "
                f"the file has {size} bytes; download it again"
            )
        tensors[name] = Stored(file, dtype, shape, begin + first, expected)
    return tensors


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a `save_pretrained` directory, by its index where it has one.

    Raises:
        ValueError: there are none, or the index names a file that is missing.
    """
    index = directory / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{index} is damaged ({error}); download it again") from error
        files = [directory / name for name in names]
    else:
        files = [directory / "model.safetensors"]
    missing = [f.name for f in files if not f.is_file()]
    if missing:
        raise ValueError(f"{directory} has no {', '.join(missing)}; a model directory needs its safetensors weights")
    return files


def read_index(directory: Path) -> dict[str, Stored]:
    """All tensors of a `save_pretrained` directory by name, in the order of its files.

    Raises:
        ValueError: a file is missing or damaged, or the index names a tensor that no file holds.
    """
    tensors: dict[str, Stored] = {}
    for file in weight_files(directory):
        tensors.update(read_header(file))
    index = directory / "model.safetensors.index.json"
    if index.exists():
        lost = sorted(set(json.loads(index.read_text())["weight_map"]) - set(tensors))
        if lost:
            raise ValueError(f"{index} names tensors that no file holds: {', '.join(lost[:4])} ({len(lost)})")
    return tensors


def read_bytes(stored: Stored) -> bytes:
    """The raw little-endian bytes of one stored tensor."""
    with stored.file.open("rb") as stream:
        stream.seek(stored.start)
        return stream.read(stored.num_bytes)


def content_hash(stored: Stored) -> str:
    """sha256 of a stored tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{stored.dtype}{list(stored.shape)}".encode())
    with stored.file.open("rb") as stream:
        stream.seek(stored.start)
        left = stored.num_bytes
        while left and (piece := stream.read(min(left, COPY_BYTES))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()


def write_shards(directory: Path, tensors: Mapping[str, Planned], shard_bytes: int = 5 * 10**9) -> list[Path]:
    """Write tensors as one `model.safetensors` or as numbered shards with an index, one tensor at a time, fsynced.

    Args:
        directory: exists; files of these names in it are replaced.
        tensors: by name, in the order of writing.
        shard_bytes: a shard ends before it would exceed this many data bytes (one larger tensor makes one shard).
    """
    shards = list(_split(tensors, shard_bytes))
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(planned.num_bytes for planned in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for name, shard in zip(names, shards, strict=True):
        _write_file(directory / name, shard)
    return [directory / name for name in names]


def _split(tensors: Mapping[str, Planned], shard_bytes: int) -> Iterator[dict[str, Planned]]:
    shard: dict[str, Planned] = {}
    size = 0
    for name, planned in tensors.items():
        if shard and size + planned.num_bytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = planned
        size += planned.num_bytes
    yield shard


def _write_file(file: Path, tensors: Mapping[str, Planned]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, planned in tensors.items():
        header[name] = {
            "dtype": planned.dtype,
            "shape": list(planned.shape),
            "data_offsets": [offset, offset + planned.num_bytes],
        }
        offset += planned.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8, as the format asks
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for planned in tensors.values():
            _write_content(out, planned)
        out.flush()
        os.fsync(out.fileno())


def _write_content(out: BinaryIO, planned: Planned) -> None:
    if isinstance(planned.content, Stored):
        _copy_range(out, planned.content)
    elif planned.content is None:
        for size in _pieces(planned.num_bytes):
            out.write(bytes(size))
    else:
        out.write(planned.content)


def _copy_range(out: BinaryIO, stored: Stored) -> None:
    with stored.file.open("rb") as source:
        source.seek(stored.start)
        for size in _pieces(stored.num_bytes):
            piece = source.read(size)
            if len(piece) != size:
                raise ValueError(f"{stored.file} ended early while it was copied; it changed or is damaged")
            out.write(piece)


def _pieces(num_bytes: int) -> Iterable[int]:
    while num_bytes > 0:
        yield min(num_bytes, COPY_BYTES)
        num_bytes -= COPY_BYTES


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
