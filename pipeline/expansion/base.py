"""An expansion as data: from which source tensor each target tensor is made, and which parameters are new."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from pipeline.expansion.layout import Slot


@dataclass(frozen=True)
class Recipe:
    """How one target tensor is made: the bytes of tensor `source`, or zeros of its shape and dtype."""

    kind: Literal["copy", "zeros"]
    source: str


@dataclass(frozen=True)
class NewBlock:
    """One entry of the expansion map.

    `position` is the block's index in the new stack, `origin` the index of the block it was copied from in the stack
    before this round, `round` counts expansions from 1, `source_hash` is the sha256 over the origin's tensors.
    """

    position: int
    origin: int
    group: int | None
    round: int
    source_hash: str = ""


@dataclass(frozen=True)
class Plan:
    """What an expansion will write. `recipes` are in the order of writing; `config` is the whole new config.json."""

    recipes: dict[str, Recipe]
    config: dict[str, Any]
    blocks: tuple[NewBlock, ...]
    new_parameters: tuple[str, ...]
    exact: bool
    method: str
    settings: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The plain form kept beside the weights; everything later reads it instead of deriving it again."""
        return {
            "method": self.method,
            "settings": self.settings,
            "exact": self.exact,
            "blocks": [asdict(block) for block in self.blocks],
            "new_parameters": list(self.new_parameters),
        }


class Expansion(Protocol):
    """A method that grows a model: a frozen dataclass named by `_target_`."""

    def check(self, num_blocks: int) -> None:
        """Raise ValueError where this method cannot be applied to a model of that depth."""

    def plan(self, names: Iterable[str], config: Mapping[str, Any], previous: Mapping[str, Any]) -> Plan:
        """Plan the expansion of a model with these tensor names, this config.json and this earlier expansion record."""


@dataclass(frozen=True)
class BlockNames:
    """How a checkpoint names the tensors of its blocks: `<prefix><index>.<rest>`, e.g. model.layers.3.mlp.up_proj."""

    prefix: str
    num_blocks: int

    def split(self, name: str) -> tuple[int, str] | None:
        """(block index, rest of the name), or None for a tensor outside the blocks."""
        if not name.startswith(self.prefix):
            return None
        index, _, rest = name[len(self.prefix) :].partition(".")
        return (int(index), rest) if index.isdigit() else None

    def join(self, index: int, rest: str) -> str:
        """The name of tensor `rest` in block `index`."""
        return f"{self.prefix}{index}.{rest}"


def find_blocks(names: Iterable[str], num_blocks: int) -> BlockNames:
    """Find the one prefix under which the checkpoint numbers exactly `num_blocks` blocks from 0.

    Raises:
        ValueError: none or several are found.
    """
    indices: dict[str, set[int]] = {}
    for name in names:
        for match in re.finditer(r"(?:^|\.)(\d+)\.", name):
            indices.setdefault(name[: match.start(1)], set()).add(int(match.group(1)))
    found = [prefix for prefix, seen in indices.items() if seen == set(range(num_blocks))]
    outer = [p for p in found if not any(p != q and p.startswith(q) for q in found)]
    if len(outer) != 1:
        raise ValueError(
            f"expected one numbered list of {num_blocks} blocks among the tensor names, found {sorted(outer) or 'none'}"
        )
    return BlockNames(outer[0], num_blocks)


# The modules of one block whose output is added to the residual stream, for the families with Llama's block: two
# sublayers, each `x + f(norm(x))`, with no norm after the writer.
LLAMA_WRITERS = ("self_attn.o_proj", "mlp.down_proj")
LLAMA_FAMILY = ("llama", "mistral", "qwen2", "qwen3")


def residual_writers(model_type: str, tensors: Iterable[str]) -> tuple[str, ...]:
    """The residual writers' tensors of one block, weights and biases, by the rest of their names.

    Raises:
        ValueError: the architecture is not one whose writers are known, or the block lacks one.
    """
    if model_type not in LLAMA_FAMILY:
        raise ValueError(
            f"the residual writers of model_type={model_type!r} are not known, so that an identity block cannot be "
            f"made; supported: {', '.join(LLAMA_FAMILY)}"
        )
    rests = set(tensors)
    missing = [module for module in LLAMA_WRITERS if f"{module}.weight" not in rests]
    if missing:
        raise ValueError(f"a block of this {model_type} has no {', '.join(missing)}; found {', '.join(sorted(rests))}")
    return tuple(sorted(rest for rest in rests if rest.rpartition(".")[0] in LLAMA_WRITERS))


def grow_config(config: Mapping[str, Any], stack: list[Slot], num_blocks: int) -> dict[str, Any]:
    """The source's config.json for the new stack: the depth, and every list with one entry per block.

    A new block inherits its origin's entry (transformers refuses a `layer_types` of another length).
    """
    grown = dict(config)
    for key, value in config.items():
        if isinstance(value, list) and len(value) == num_blocks:
            grown[key] = [value[slot.source] for slot in stack]
    grown["num_hidden_layers"] = len(stack)
    return grown
