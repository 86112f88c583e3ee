"""Whether two blocks of a model are built alike, whatever weights they hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

_OWN_INDEX = re.compile(r"^(layer|block|decoder|attn|attention|self_attn)?_?(idx|id|index|number)$")


@dataclass(frozen=True)
class BlockSignature:
    """A block without its weights: what must be equal if two blocks are to compute the same with the same weights.

    Attributes:
        parts: (path, class, plain attributes) of each module, without the block's own index.
        shapes: shape of each parameter and buffer by name.
    """

    parts: tuple[tuple[str, str, tuple[tuple[str, Any], ...]], ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    def difference(self, other: BlockSignature) -> str:
        """The first thing in which two signatures differ, in words; empty if they are equal."""
        for (path, kind, mine), (_, other_kind, theirs) in zip(self.parts, other.parts, strict=False):
            where = path or "the block"
            if kind != other_kind:
                return f"{where} is {kind} in one and {other_kind} in the other"
            changed = sorted(set(mine) ^ set(theirs), key=str)
            if changed:
                name = changed[0][0]
                return f"{where}.{name} is {dict(mine).get(name)!r} in one and {dict(theirs).get(name)!r} in the other"
        if len(self.parts) != len(other.parts) or self.shapes != other.shapes:
            return "their modules or the shapes of their parameters differ"
        return ""


def signature_of(block: nn.Module) -> BlockSignature:
    """The signature of one block."""
    parts = []
    for path, module in block.named_modules():
        plain: list[tuple[str, Any]] = []
        for name, value in vars(module).items():
            if name.startswith("_") or name == "training" or _OWN_INDEX.match(name):
                continue
            if isinstance(value, bool | int | float | str | type(None)):
                plain.append((name, value))
            elif isinstance(value, list | tuple) and all(isinstance(v, bool | int | float | str) for v in value):
                plain.append((name, tuple(value)))
        parts.append((path, type(module).__name__, tuple(sorted(plain))))
    tensors = [*block.named_parameters(), *block.named_buffers()]
    return BlockSignature(tuple(parts), tuple((name, tuple(tensor.shape)) for name, tensor in tensors))
