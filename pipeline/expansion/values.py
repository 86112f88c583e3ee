"""Values of stored tensors and values that are drawn, a piece at a time: what operations of recipes are made from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch

from pipeline.models.files.tensor_file import ITEM_BITS, Stored, read_bytes, read_pieces
from pipeline.models.save import DTYPES

PIECE_ITEMS = 2**20
"""How much of a computed tensor is in memory; part of what "random" means, see `drawn`."""


def pieces_of(stored: Stored, num_items: int | None = None) -> Iterator[torch.Tensor]:
    """A stored tensor's values in fp32, flat, `PIECE_ITEMS` or fewer at a time.

    Each piece is the caller's until the next, which takes its memory.

    Raises:
        ValueError: it holds no values that can be computed with.
    """
    dtype, most = _dtype(stored), min(num_items or PIECE_ITEMS, PIECE_ITEMS)
    values = torch.empty(min(most, math.prod(stored.shape)))
    for piece in read_pieces(stored, most * ITEM_BITS[stored.dtype] // 8):
        read = torch.frombuffer(piece, dtype=dtype)
        yield values[: len(read)].copy_(read)


def tensor_of(stored: Stored) -> torch.Tensor:
    """A stored tensor, whole, in its dtype.

    Raises:
        ValueError: it holds no values that can be computed with.
    """
    return torch.frombuffer(bytearray(read_bytes(stored)), dtype=_dtype(stored)).reshape(stored.shape)


def columns_of(stored: Stored, first: int, count: int) -> Iterator[torch.Tensor]:
    """Some columns of a stored matrix in fp32, flat, row by row; the bytes of the others are not read.

    They come in the pieces in which `pieces_of` gives the whole matrix, so that what is drawn a piece at a time is the
    same for all of its columns as without a choice of them.

    Raises:
        ValueError: as for `pieces_of`.
    """
    dtype, item, (num_rows, width) = _dtype(stored), ITEM_BITS[stored.dtype] // 8, stored.shape
    with stored.file.open("rb", buffering=0) as stream:

        def read(start: int, stop: int) -> bytes:
            stream.seek(stored.start + start * item)
            if len(data := stream.read((stop - start) * item)) < (stop - start) * item:
                raise ValueError(f"{stored.file} ended early while it was read; it changed or is damaged")
            return data

        for begin in range(0, num_rows * width, PIECE_ITEMS):
            end = min(begin + PIECE_ITEMS, num_rows * width)
            starts = range(begin // width * width + first, end, width)
            spans = [(max(begin, start), min(end, start + count)) for start in starts]
            if data := b"".join(read(*span) for span in spans if span[0] < span[1]):
                yield torch.frombuffer(bytearray(data), dtype=dtype).to(torch.float32, copy=True)


def pieces_together(inputs: Sequence[Stored], num_items: int | None = None) -> Iterator[tuple[torch.Tensor, ...]]:
    """The same piece of each of several stored tensors of one shape, see `pieces_of`."""
    return zip(*(pieces_of(one, num_items) for one in inputs), strict=True)


def mean_of(inputs: Sequence[Stored]) -> Iterator[torch.Tensor]:
    """The mean of stored tensors of one shape, computed in fp32."""
    for pieces in pieces_together(inputs):
        yield torch.stack(pieces).mean(dim=0) if len(pieces) > 1 else pieces[0]


def drawn(name: str, seed: int, value: float, num_items: int, constant: bool = False) -> Iterator[torch.Tensor]:
    """`value` everywhere, or normal values of that standard deviation.

    These depend on the seed and the tensor's name alone, whatever else is written, in which order.
    """
    generator = generator_of(name, seed)
    for start in range(0, num_items, PIECE_ITEMS):
        count = min(PIECE_ITEMS, num_items - start)
        if constant:
            yield torch.full((count,), value)
        else:
            yield torch.randn(count, generator=generator, dtype=torch.float32) * value


def generator_of(name: str, seed: int) -> torch.Generator:
    """A generator for what is drawn for the tensor of this name."""
    return torch.Generator().manual_seed(int.from_bytes(seed_of(name, seed), "little", signed=True))


def seed_of(name: str, seed: int) -> bytes:
    """64 bits for what is drawn for the tensor of this name."""
    return hashlib.sha256(f"{seed} {name}".encode()).digest()[:8]


def _dtype(stored: Stored) -> torch.dtype:
    if stored.dtype not in DTYPES:
        raise ValueError(f"{stored.name} in {stored.file} has dtype {stored.dtype}, which cannot be computed with")
    return DTYPES[stored.dtype]
