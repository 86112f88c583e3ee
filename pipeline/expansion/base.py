"""An expansion as data: from which source tensors each target tensor is made, and which parameters are new."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pipeline.expansion.layout import Slot
from pipeline.expansion.source import BlockNames, Source
from pipeline.models.files.tensor_file import Stored
from pipeline.records.expansion import ExpansionMap, NewBlock, Round

if TYPE_CHECKING:
    import torch

    from pipeline.data.corpus import Workspace


class Operation(Protocol):
    """Makes a target tensor's values out of stored tensors: a frozen dataclass that a method brings.

    It is called when the tensor is written, beside other tensors, and may be called again.
    """

    def __call__(self, name: str, inputs: Sequence[Stored]) -> Iterator[torch.Tensor]:
        """The values in order, in pieces of any shape and float dtype; the writer casts them to the target's dtype.

        A piece is read before the next is made, which may take its memory.

        Args:
            name: of the target, from which what is drawn may be seeded.
            inputs: the recipe's `source` and `others`; see `pipeline.expansion.values` for ways to read them.
        """


@dataclass(frozen=True)
class Recipe:
    """How one target tensor is made.

    "copy": the bytes of `source`. "zeros": zeros of its shape and dtype. "fill": `value` everywhere. "random": normal
    with standard deviation `value`, drawn from `seed` and the target's name. "mean": of `source` and `others`, computed
    in fp32. "made": the tensor of this name in the plan's `made` file. "computed": by `operation` from `source` and
    `others`.

    A tensor of another model of the expansion is named `role:name`.

    Attributes:
        shape, dtype: of the target, where they are not those of `source`; dtype as in safetensors ("BF16").
    """

    kind: Literal["copy", "zeros", "fill", "random", "mean", "made", "computed"]
    source: str
    value: float = 0.0
    seed: int = 0
    others: tuple[str, ...] = ()
    operation: Operation | None = None
    shape: tuple[int, ...] | None = None
    dtype: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan(ExpansionMap):
    """What an expansion will write: its map, and how each tensor is made.

    Attributes:
        recipes: by the name on disk, in the order of writing.
        config: the whole new config.json.
        stack: the new order of blocks.
        made: a safetensors file with tensors that the method computed, for recipes of the kind "made".
        tolerance: of a method that keeps the function up to rounding: the largest difference of a logit that it allows,
            compared in fp32, or what the source's own logits are rounded by there, if that is more. None: it claims
            nothing but `exact`.
        is_carried_over: the map, and with it `exact`, is that of the models that this one is mixed from: it says what
            their expansion claimed, and nothing about this model.
    """

    method: str
    exact: bool
    recipes: dict[str, Recipe]
    config: dict[str, Any]
    stack: tuple[Slot, ...] = ()
    made: Path | None = None
    tolerance: float | None = None
    is_carried_over: bool = False


class Expansion(Protocol):
    """A method that grows a model: a frozen dataclass named by `_target_`.

    One that takes several models also has `roles: ClassVar[tuple[str, ...]]`, the roles of those beside "model" in the
    lineage's `from` ("*": any), and may have `check_models(facts)`, which raises ValueError for models that do not go
    together; `facts(role, key)` is what is known of one before any work, or None, and `facts.roles` are those of the
    models beside "model". The fact "derived" is whether the lineage made that model from the first one. One whose
    result's facts can be told beforehand has `facts_of(facts)`, which gives them.
    """

    def check(self, num_blocks: int) -> None:
        """Raise ValueError where this method cannot be applied to a model of that depth."""

    def plan(self, source: Source, place: Workspace) -> Plan:
        """Plan the expansion of a saved model.

        Args:
            source: the model.
            place: where the sources of data that the method names lie, whom to tell of progress, and a directory for
                what it computes, which lasts until the plan is written.
        """


def facts_of_type(facts: Callable[[str, str], Any], prefix: str) -> dict[str, Any]:
    """What is known beforehand of a model of a type of our own: its depth is the model's, whose type it has in its own.

    Args:
        facts: see `Expansion`.
        prefix: of the type, before the model's.
    """
    kind, depth = facts("model", "model_type"), {"num_blocks": facts("model", "num_blocks")}
    return depth if kind is None else {**depth, "model_type": f"{prefix}_{kind}"}


def grow_map(
    stack: Sequence[Slot], previous: ExpansionMap, names: BlockNames, lr_scales: Mapping[int, float] | None = None
) -> tuple[tuple[NewBlock, ...], tuple[Round, ...]]:
    """Earlier rounds' blocks and parameters at their new positions, and this round's blocks.

    Args:
        stack: the new order.
        previous: the source's map.
        names: how its tensors name blocks.
        lr_scales: by origin.

    Returns:
        The blocks, and the earlier rounds.
    """
    moved = {slot.source: position for position, slot in enumerate(stack) if not slot.new}

    def renamed(name: str) -> str:
        parts = names.split(name)
        return name if parts is None else names.join(moved[parts[0]], parts[1])

    earlier = [replace(block, position=moved[block.position]) for block in previous.blocks]
    rounds = tuple(
        replace(one, new_parameters=tuple(map(renamed, one.new_parameters)), round=number)
        for number, one in enumerate(previous.history, start=1)
    )
    added = [
        NewBlock(position, slot.source, slot.group, len(rounds) + 1, lr_scale=(lr_scales or {}).get(slot.source, 1.0))
        for position, slot in enumerate(stack)
        if slot.new
    ]
    return (*earlier, *added), rounds
