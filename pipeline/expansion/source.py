"""A saved model as an expansion sees it: its tensors by name, its config, and its blocks without weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.expansion.architecture_cache import Architecture
from pipeline.models.directory import read_config
from pipeline.models.files.safetensors_io import read_index
from pipeline.models.files.tensor_file import Stored
from pipeline.records.expansion import ExpansionMap, read_expansion

_FLOATS = ("F64", "F32", "F16", "BF16")
_DEQUANTISE = (
    f"An expansion needs float weights ({', '.join(_FLOATS)}): dequantise the model first (load it, save it in bf16 "
    "without a quantization_config), or take the checkpoint that it was made from"
)


@dataclass(frozen=True)
class Source:
    """A saved model as an expansion sees it.

    Attributes:
        directory: a `save_pretrained` directory.
        tensors: by their names on disk.
        config: its config.json.
        expansion: what earlier rounds added.
        anatomy: its blocks, without weights.
        blocks: how its tensors name them.
        others: further models of the expansion, by role.
    """

    directory: Path
    tensors: Mapping[str, Stored]
    config: Mapping[str, Any]
    expansion: ExpansionMap
    anatomy: Architecture
    blocks: BlockNames
    others: Mapping[str, Source] = field(default_factory=dict)

    def stored(self) -> dict[str, Stored]:
        """The tensors of all models by the names that recipes have for them: those of others are `role:name`."""
        named = {f"{role}:{name}": t for role, other in self.others.items() for name, t in other.tensors.items()}
        return {**self.tensors, **named}

    def by_block(self) -> list[list[str]]:
        """The rest of the name of each tensor, per block."""
        found: list[list[str]] = [[] for _ in range(self.blocks.num_blocks)]
        for name in self.tensors:
            if parts := self.blocks.split(name):
                found[parts[0]].append(parts[1])
        return found

    def parameters_made(self, block: int, rest: str) -> tuple[str, ...]:
        """The parameters of the model that a tensor of a block makes; none of a mask, a table or a statistic.

        Checkpoints hold such beside the weights (`rotary_emb.inv_freq` of old Llamas, `attn.bias` of GPT-2): they are
        copied with their block, and nothing trains them.
        """
        return self.anatomy.parameters_from(self.blocks.join(block, rest))

    def stored_for(self, block: int, parameters: Iterable[str]) -> tuple[str, ...]:
        """The tensors on disk, by the rest of their names, that make these parameters of a block.

        Raises:
            ValueError: one of them also makes a parameter that is not among these.
        """
        wanted = {f"{self.anatomy.prefix}{block}.{name}" for name in parameters}
        rests = []
        reached: set[str] = set()
        for rest in self.by_block()[block]:
            makes = set(self.anatomy.targets(self.blocks.join(block, rest)))
            if makes & wanted:
                if makes - wanted:
                    raise ValueError(
                        f"{self.blocks.join(block, rest)} holds {', '.join(sorted(makes & wanted))} together with "
                        f"{', '.join(sorted(makes - wanted))}; they cannot be treated apart"
                    )
                rests.append(rest)
                reached |= makes
        if wanted - reached:
            raise ValueError(
                f"{self.directory} has no tensor for {', '.join(sorted(wanted - reached))}; "
                f"found in block {block}: {', '.join(sorted(self.by_block()[block]))}"
            )
        return tuple(rests)


@dataclass(frozen=True)
class BlockNames:
    """How a checkpoint names the tensors of its blocks: `<prefix><index>.<rest>`, e.g. model.layers.3.mlp.up_proj."""

    prefix: str
    num_blocks: int

    def split(self, name: str) -> tuple[int, str] | None:
        """(block index, rest of the name), or None for a tensor outside the blocks."""
        found = self._numbered(name)
        return found if found and found[0] < self.num_blocks else None

    def behind(self, name: str) -> tuple[int, str] | None:
        """(how far above the last block, from 0, rest of the name) of a tensor in a numbered block behind the depth.

        Multi-token prediction stands there (DeepSeek-V3, GLM-4.5), in the blocks from `num_hidden_layers` on.
        """
        found = self._numbered(name)
        return (found[0] - self.num_blocks, found[1]) if found and found[0] >= self.num_blocks else None

    def _numbered(self, name: str) -> tuple[int, str] | None:
        index, _, rest = name.removeprefix(self.prefix).partition(".")
        return (int(index), rest) if name.startswith(self.prefix) and index.isdigit() else None

    def join(self, index: int, rest: str) -> str:
        """The name of tensor `rest` in block `index`."""
        return f"{self.prefix}{index}.{rest}"


def find_blocks(names: Iterable[str], num_blocks: int, anatomy: Architecture | None = None) -> BlockNames:
    """Find the one prefix under which the checkpoint numbers `num_blocks` blocks from 0.

    Args:
        names: of all tensors.
        num_blocks: the depth.
        anatomy: where the blocks are in the module, which tells them from other numbered lists (experts, the blocks of
            a vision tower); a checkpoint may name them otherwise ("h." for "transformer.h.").

    Raises:
        ValueError: none or several are found.
    """
    indices: dict[str, set[int]] = {}
    names = list(names)
    for name in names:
        for match in re.finditer(r"(?:^|\.)(\d+)\.", name):
            indices.setdefault(name[: match.start(1)], set()).add(int(match.group(1)))
    # DeepSeek-V3 keeps blocks for multi-token prediction behind its last one, which transformers leaves out.
    found = [prefix for prefix, seen in indices.items() if seen >= set(range(num_blocks))]
    outer = [p for p in found if not any(p != q and p.startswith(q) for q in found)]
    if len(outer) > 1 and anatomy:
        outer = [p for p in outer if anatomy.prefix.endswith(p)] or [p for p in outer if _leads(p, names, anatomy)]
    if len(outer) != 1:
        raise ValueError(
            f"expected one numbered list of {num_blocks} blocks among the tensor names, found {sorted(outer) or 'none'}"
        )
    return BlockNames(outer[0], num_blocks)


def _leads(prefix: str, names: Sequence[str], anatomy: Architecture) -> bool:
    """Whether transformers reads what is stored under this prefix into the model's blocks."""
    first = next(name for name in names if name.startswith(f"{prefix}0."))
    return any(target.startswith(f"{anatomy.prefix}0.") for target in anatomy.targets(first))


def read_source(directory: Path, memory: Path | None = None, others: Mapping[str, Path] | None = None) -> Source:
    """Look at a saved model without loading its weights.

    Args:
        directory: a `save_pretrained` directory.
        memory: where answers about architectures are kept; see `Architecture`.
        others: the directories of further models of the expansion, by role.

    Raises:
        ValueError: it is damaged, quantised, or of an architecture that transformers cannot build.
    """
    config, tensors = read_config(directory), read_index(directory)
    _check_says_unquantised(directory, config)
    anatomy = Architecture(config, memory)
    _check_unquantised(directory, tensors, anatomy)
    blocks = find_blocks(tensors, anatomy.num_blocks, anatomy)
    further = {role: read_source(other, memory) for role, other in (others or {}).items()}
    return Source(directory, tensors, config, read_expansion(directory), anatomy, blocks, further)


def _check_says_unquantised(directory: Path, config: Mapping[str, Any]) -> None:
    sections = {"": config, "text_config.": config.get("text_config") or {}}
    for where, section in sections.items():
        if said := section.get("quantization_config"):
            method = said.get("quant_method") if isinstance(said, Mapping) else said
            raise ValueError(
                f"{directory} is quantised: its config.json has {where}quantization_config with quant_method="
                f"{method!r}. {_DEQUANTISE}"
            )


def _check_unquantised(directory: Path, tensors: Mapping[str, Stored], anatomy: Architecture) -> None:
    """Codes are no values: zeros of them are another number, and they neither add up nor train."""
    for name, stored in tensors.items():
        if stored.dtype not in _FLOATS and anatomy.parameters_from(name):
            raise ValueError(f"{directory} is quantised: {name} is stored as {stored.dtype}. {_DEQUANTISE}")
