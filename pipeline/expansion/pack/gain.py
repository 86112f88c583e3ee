"""The gain of a pack: how much of what its blocks add to the residual stream is added.

A block computes x + A(x) + F(x + A(x)). Where A and F are proportional to the residual writers, multiplying these by g
gives x + g A(x) + g F(x + g A(x)): each sublayer adds g times what it would add to the stream that it sees. The blocks
above see another stream, so the model's output as a whole is no straight line in g; only its ends are known, 0 the base
and 1 the pack.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pipeline.expansion.source import Source
from pipeline.models.files.tensor_file import Planned, Stored, read_pieces

if TYPE_CHECKING:
    from pipeline.expansion.structure import MetaModel

_SCALABLE = ("F64", "F32", "F16", "BF16")


def writers_of(source: Source, block: int) -> tuple[str, ...]:
    """The residual writers of one block on disk; zero, they make a block built like it add nothing.

    Raises:
        ValueError: there are none.
    """
    return source.stored_for(block, source.anatomy.writers(block))


def proportional(source: Source, block: int) -> tuple[str, ...]:
    """The tensors on disk that what a block adds to the stream is proven proportional to, or none.

    The residual writers, or, where norms stand behind those, the scales of these norms (OLMo 2, GLM-4). A norm that
    multiplies by 1 + weight (Gemma) is proportional to nothing that is stored.
    """
    names = source.anatomy.remembered(f"proportional {block}", lambda: _proportional(source.anatomy.structure, block))
    return source.stored_for(block, names) if names else ()


def _proportional(structure: MetaModel, block: int) -> list[str]:
    for find in (structure.writers, lambda block: _last_norms(structure, block)):
        names = find(block)
        if names and structure.scales(block, names):
            return list(names)
    return []


def _last_norms(structure: MetaModel, block: int) -> tuple[str, ...]:
    """The smallest set of vectors, as late in the block as can be, with which at zero it is the identity; or none."""
    from pipeline.expansion.structure import least
    from pipeline.expansion.zero_propagation import order_of_use

    vectors = {name: value for name, value in structure.parameters(block).items() if value.dim() == 1}
    used = order_of_use(structure.calls[block], structure.streams[block], vectors)
    if not structure.is_identity(block, used):
        return ()
    return tuple(least(used, lambda names: structure.is_identity(block, names)))


def gains_of(gains: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, tuple[float, dict[int, float]]]:
    """Per pack its gain, 1 where none is given, and those of single blocks of it.

    Args:
        gains: by NAME of a pack, or by NAME.BLOCK, the index of a block within it.
        sizes: how many blocks each pack has, by name.

    Raises:
        ValueError: a gain is of no such pack or block, or no finite number.
    """
    found: dict[str, tuple[float, dict[int, float]]] = {name: (float(gains.get(name, 1)), {}) for name in sizes}
    for key, gain in gains.items():
        if isinstance(gain, bool) or not isinstance(gain, int | float) or not math.isfinite(gain):
            raise ValueError(f"gain {key}={gain!r} is not a finite number; 0 is the base, 1 the pack as it was trained")
        if key in sizes:  # a pack may itself be called law.1
            continue
        name, _, index = key.rpartition(".")
        if name not in sizes or not index.isdecimal():
            raise ValueError(f"gain {key}={gain} names no pack here; the packs are {', '.join(sizes)}")
        if int(index) >= sizes[name]:
            raise ValueError(f"gain {key}={gain}: pack {name} has the blocks 0 to {sizes[name] - 1}")
        found[name][1][int(index)] = float(gain)
    return found


def scaled_tensors(source: Source, block: int, name: str, gain: float) -> tuple[str, ...]:
    """Which tensors of a pack's block, built like `block` of the base, are multiplied by the gain.

    Raises:
        ValueError: it is not shown that this scales what the block adds.
    """
    if gain == 1:
        return ()
    if gain == 0:
        return writers_of(source, block)
    if found := proportional(source, block):
        return found
    kind = type(source.anatomy.structure.blocks[block]).__name__
    raise ValueError(
        f"gain {name}={gain} is refused: what a {kind} like the base's block {block} adds to the stream is not "
        f"shown to be proportional to its residual writers ({', '.join(writers_of(source, block))}) or to norms behind "
        "them, as where such a norm multiplies by 1 + weight; gains 0 and 1 are possible"
    )


def scaled(stored: Stored, gain: float) -> Planned:
    """A tensor of a file to be written: a stored one times the gain, by pieces, in fp32 (fp64 for F64) and cast back.

    Raises:
        ValueError: the tensor is quantised.
    """
    if stored.dtype not in _SCALABLE:
        raise ValueError(
            f"a tensor of dtype {stored.dtype} in {stored.file} cannot be scaled; gains other than 0 and 1 need "
            f"{', '.join(_SCALABLE)}"
        )

    def pieces() -> Iterator[memoryview]:
        import torch

        from pipeline.models.save import DTYPES, raw_bytes

        dtype = DTYPES[stored.dtype]
        for piece in read_pieces(stored):
            wide = torch.frombuffer(piece, dtype=dtype).to(torch.promote_types(dtype, torch.float32))
            yield raw_bytes(wide * gain, stored.dtype)

    return Planned(stored.dtype, stored.shape, stored.num_bytes, pieces)
