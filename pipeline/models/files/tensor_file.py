"""One safetensors file, read and written without decoding what is only passed on.

A safetensors file is an 8-byte little-endian header length, a JSON header `{name: {dtype, shape, data_offsets}}` with
offsets relative to the header's end, and the data. Renaming a tensor therefore needs a new header and a copy of its
bytes, no tensor library, and no memory beyond a copy buffer.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipeline.cores import allowed_cores
from pipeline.models.files.atomic_io import WRITE_BACK_BYTES, commit, copy_at, partial_of, write_at, write_back

HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors library itself
ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "F4": 4,
}  # fmt: skip
_PAGE = 4096  # bytes
_READ_BYTES = 2**20
_SAMPLE_BYTES = 4096
_SAMPLE_EVERY = 4 * 2**20


@dataclass(frozen=True)
class Stored:
    """Where one tensor's bytes lie. `start` and `num_bytes` are absolute within `file`, which calls it `name`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int
    name: str = ""


Content = Stored | bytes | memoryview | Callable[[], Iterable[bytes | memoryview]] | None


@dataclass(frozen=True)
class Planned:
    """One tensor of a file to be written.

    `content`: the bytes of a stored tensor, bytes in memory, a function that yields its bytes in pieces when their turn
    comes, or None for zeros, which take no room on the disk.
    """

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    content: Content


def copy_of(stored: Stored) -> Planned:
    """A tensor to be written as it is stored."""
    return Planned(stored.dtype, stored.shape, stored.num_bytes, stored)


def read_header(file: Path) -> dict[str, Stored]:
    """Read the names, types and places of all tensors in one safetensors file.

    Raises:
        ValueError: the file is truncated, or its header is not valid.
    """
    text, size = _header_text(file), file.stat().st_size
    header = _parse(file, text)
    tensors, begin = {}, 8 + len(text)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            first, last = entry["data_offsets"]
            dtype, shape = entry["dtype"], tuple(entry["shape"])
            expected = (ITEM_BITS[dtype] * math.prod(shape) + 7) // 8
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} has a damaged header entry for {name}; download the file again") from error
        if last - first != expected or first < 0 or begin + last > size:
            raise ValueError(
                f"{file} is damaged at {name}: {dtype} {list(shape)} needs {expected} bytes at {begin + first}, "
                f"the file has {size} bytes; download it again"
            )
        tensors[name] = Stored(file, dtype, shape, begin + first, expected, name)
    return tensors


def read_metadata(file: Path) -> dict[str, str]:
    """The `__metadata__` of a safetensors file, with the format "pt" where it does not say one."""
    return {"format": "pt", **(_parse(file, _header_text(file)).get("__metadata__") or {})}


def _header_text(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 0 < length <= min(HEADER_LIMIT, size - 8):
            raise ValueError(f"{file} is not a safetensors file or is truncated: {size} bytes, header length {length}")
        return stream.read(length)


def _parse(file: Path, text: bytes) -> dict:
    try:
        header = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file} has a damaged safetensors header: {error}; download the file again") from error
    if not isinstance(header, dict):
        raise ValueError(f"{file} has a damaged safetensors header: {type(header).__name__}; download the file again")
    return header


def read_pieces(stored: Stored, size: int = _READ_BYTES) -> Iterator[memoryview]:
    """The raw little-endian bytes of one stored tensor, `size` at a time; each piece is valid until the next.

    Raises:
        ValueError: the file is shorter than its header said.
    """
    buffer = memoryview(bytearray(min(size, stored.num_bytes)))
    with stored.file.open("rb") as stream:
        stream.seek(stored.start)
        left = stored.num_bytes
        while left:
            piece = buffer[: min(left, len(buffer))]
            if stream.readinto(piece) < len(piece):
                raise ValueError(f"{stored.file} ended early while it was read; it changed or is damaged")
            yield piece
            left -= len(piece)


def read_bytes(stored: Stored) -> bytes:
    """The raw little-endian bytes of one stored tensor."""
    return b"".join(bytes(piece) for piece in read_pieces(stored))


def content_hash(stored: Stored) -> str:
    """sha256 of a stored tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{stored.dtype}{list(stored.shape)}".encode())
    for piece in read_pieces(stored):
        digest.update(piece)
    return digest.hexdigest()


def sample_hash(stored: Stored) -> str:
    """sha256 of a stored tensor's dtype, shape and 4 KiB of every 4 MiB.

    Reads a thousandth of what `content_hash` reads. Sees another or a trained tensor, not a single changed value.
    """
    digest = hashlib.sha256(f"{stored.dtype}{list(stored.shape)}".encode())
    with stored.file.open("rb", buffering=0) as stream:
        for first in range(0, stored.num_bytes, _SAMPLE_EVERY):
            size = min(_SAMPLE_BYTES, stored.num_bytes - first)
            digest.update(os.pread(stream.fileno(), size, stored.start + first))
    return digest.hexdigest()


def tensors_hash(tensors: Mapping[str, Stored]) -> str:
    """sha256 over the sorted names, dtypes, shapes and bytes of tensors: equal wherever and however they are stored.

    Reads every byte; tensors are hashed on all cores.
    """
    names = sorted(tensors)
    with ThreadPoolExecutor(allowed_cores()) as pool:
        hashes = pool.map(content_hash, [tensors[name] for name in names])
        lines = [
            f"{name} {tensors[name].dtype} {list(tensors[name].shape)} {content}\n"
            for name, content in zip(names, hashes, strict=True)
        ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def fingerprint(file: Path) -> str:
    """sha256 of a safetensors file's size, header and the first 4 KiB of every tensor.

    Cheap enough to check whenever a file is relied on. Sees another or a trained model under the same name; does not
    see a change further inside a tensor, for which there is `tensors_hash`.

    Raises:
        ValueError: the file is truncated, or its header is not valid.
    """
    digest = hashlib.sha256(f"{file.stat().st_size}\n".encode() + _header_text(file))
    stored = sorted(read_header(file).values(), key=lambda tensor: tensor.start)
    with file.open("rb", buffering=0) as stream:
        for tensor in stored:
            digest.update(os.pread(stream.fileno(), min(tensor.num_bytes, _SAMPLE_BYTES), tensor.start))
    return digest.hexdigest()


def write_file(file: Path, tensors: Mapping[str, Planned], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as one safetensors file, in their order; the file appears when it is on the disk.

    See `begin_partial`.
    """
    for write in begin_partial(file, tensors, metadata):
        write()
    commit(file)


def begin_partial(
    file: Path, tensors: Mapping[str, Planned], metadata: Mapping[str, str] | None = None
) -> list[Callable[[], None]]:
    """Begin a file that is there when all that is returned was called, in any order or at once, and it is committed.

    Neighbours in a source file that stay neighbours are copied together; of all else each call writes one tensor.

    Args:
        file: its `atomic_io.partial_of` is written, with header and size; `atomic_io.commit` gives it its name.
        tensors: by name.
        metadata: by default that of the first file from which a tensor is copied, else the format "pt".

    Raises:
        ValueError: a content does not have the bytes that its tensor needs, or a source file is damaged; the calls too.
    """
    origin = next((p.content.file for p in tensors.values() if isinstance(p.content, Stored)), None)
    if metadata is None:
        metadata = read_metadata(origin) if origin else {"format": "pt"}
    text = _header_of(tensors, metadata)
    position = 8 + len(text)
    writes: list[Callable[[], None]] = []
    for name, content, num_bytes in _runs(tensors):
        writes.append(partial(_write_content, partial_of(file), position, content, num_bytes, f"{name} in {file}"))
        position += num_bytes
    with partial_of(file).open("wb", buffering=0) as out:
        write_at(out.fileno(), struct.pack("<Q", len(text)) + text, 0)
        os.ftruncate(out.fileno(), position)
    return writes


def _header_of(tensors: Mapping[str, Planned], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, planned in tensors.items():
        end = offset + planned.num_bytes
        header[name] = {"dtype": planned.dtype, "shape": list(planned.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * ((_place_of(tensors) - 8 - len(text)) % _PAGE)


def _place_of(tensors: Mapping[str, Planned]) -> int:
    """Where the data begins within a page of the disk: where it does in the file that the first tensor is copied from.

    A mapped file is computed with where it lies, and matrix kernels sum in an order that depends on the address: copies
    at other addresses would give other last bits. And the kernel then copies whole pages. The format asks for multiples
    of 8.
    """
    first = next(iter(tensors.values()), None)
    start = first.content.start if first and isinstance(first.content, Stored) else 0
    return start % _PAGE if start % 8 == 0 else 0


def _runs(tensors: Mapping[str, Planned]) -> Iterator[tuple[str, Content, int]]:
    """Contents in order, copies of adjacent ranges joined: (name of the first, content, bytes)."""
    run: tuple[str, Stored] | None = None
    for name, planned in tensors.items():
        content = planned.content
        if isinstance(content, Stored):
            if content.num_bytes != planned.num_bytes:
                raise ValueError(f"{name} needs {planned.num_bytes} bytes, {content.name} has {content.num_bytes}")
            if run and content.file == run[1].file and content.start == run[1].start + run[1].num_bytes:
                run = (run[0], replace(run[1], num_bytes=run[1].num_bytes + content.num_bytes))
                continue
        if run:
            yield (*run, run[1].num_bytes)
        run = (name, content) if isinstance(content, Stored) else None
        if not run:
            yield name, content, planned.num_bytes
    if run:
        yield (*run, run[1].num_bytes)


def _write_content(file: Path, position: int, content: Content, num_bytes: int, what: str) -> None:
    if content is None:  # a hole reads as zeros
        return
    with file.open("r+b", buffering=0) as out:
        if isinstance(content, Stored):
            copy_at(content.file, content.start, num_bytes, out.fileno(), position)
            return
        done = behind = 0
        for piece in content() if callable(content) else (content,):
            write_at(out.fileno(), piece, position + done)
            done += memoryview(piece).nbytes
            if done - behind >= WRITE_BACK_BYTES:  # the rest is left to the sync: small writes share pages
                write_back(out.fileno(), position + behind, done - behind)
                behind = done
    if done != num_bytes:
        raise ValueError(f"{what} needs {num_bytes} bytes, found {done}")
