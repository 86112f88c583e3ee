"""An expansion as data: from which source tensors each target tensor is made, and which parameters are new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pipeline.expansion.layout import Slot
from pipeline.expansion.source import BlockNames, Source

if TYPE_CHECKING:
    from pipeline.data.corpus import Workspace


@dataclass(frozen=True)
class Recipe:
    """How one target tensor is made.

    "copy": the bytes of `source`. "zeros": zeros of its shape and dtype. "fill": `value` everywhere. "random": normal
    with standard deviation `value`, drawn from `seed` and the target's name. "mean": of `source` and `others`, computed
    in fp32. "made": the tensor of this name in the plan's `made` file.
    """

    kind: Literal["copy", "zeros", "fill", "random", "mean", "made"]
    source: str
    value: float = 0.0
    seed: int = 0
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class NewBlock:
    """One entry of the expansion map.

    Attributes:
        position: the block's index in the new stack.
        origin: the index of the block it was made from, in the stack before this round.
        group: counts the insertion points of its round from 0.
        round: counts expansions from 1.
        source_hash: sha256 over samples of the origin's tensors; see `tensor_file.sample_hash`.
        lr_scale: what the learning rate of its parameters is multiplied by (ADEPT); 1 for every other method.
    """

    position: int
    origin: int
    group: int | None
    round: int
    source_hash: str = ""
    lr_scale: float = 1.0


@dataclass(frozen=True)
class Plan:
    """What an expansion will write.

    Attributes:
        recipes: by the name on disk, in the order of writing.
        config: the whole new config.json.
        blocks: the expansion map: earlier rounds' blocks at their new positions, then this round's.
        new_parameters: this round's tensors, by their names on disk.
        module_parameters: the same by their names in the loaded model, where these differ (experts that transformers
            joins); None: they do not.
        exact: the method claims that the expanded model computes what its source does.
        stack: the new order of blocks.
        rounds: one entry an earlier round: its method, settings and parameters, by their present names.
        made: a safetensors file with tensors that the method computed, for recipes of the kind "made".
        buffers: tensors on disk that make no parameter of the model (masks, tables): nothing counts or trains them.
    """

    recipes: dict[str, Recipe]
    config: dict[str, Any]
    blocks: tuple[NewBlock, ...]
    new_parameters: tuple[str, ...]
    exact: bool
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    stack: tuple[Slot, ...] = ()
    rounds: tuple[dict[str, Any], ...] = ()
    made: Path | None = None
    module_parameters: tuple[str, ...] | None = None
    buffers: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The plain form kept beside the weights; everything later reads it instead of deriving it again."""
        return {
            "method": self.method,
            "settings": self.settings,
            "exact": self.exact,
            "blocks": [asdict(block) for block in self.blocks],
            "new_parameters": list(self.new_parameters),
            "module_parameters": list(
                self.new_parameters if self.module_parameters is None else self.module_parameters
            ),
            "rounds": list(self.rounds),
            **({"buffers": list(self.buffers)} if self.buffers else {}),
            **self.notes,
        }


class Expansion(Protocol):
    """A method that grows a model: a frozen dataclass named by `_target_`."""

    def check(self, num_blocks: int) -> None:
        """Raise ValueError where this method cannot be applied to a model of that depth."""

    def plan(self, source: Source, place: Workspace) -> Plan:
        """Plan the expansion of a saved model.

        Args:
            source: the model.
            place: where the sources of data that the method names lie, whom to tell of progress, and a directory for
                what it computes, which lasts until the plan is written.
        """


def grow_map(
    stack: Sequence[Slot], previous: Mapping[str, Any], blocks: BlockNames, lr_scales: Mapping[int, float] | None = None
) -> tuple[tuple[NewBlock, ...], tuple[dict[str, Any], ...]]:
    """Earlier rounds' blocks and parameters at their new positions, and this round's blocks.

    Args:
        stack: the new order.
        previous: the source's expansion record.
        blocks: how its tensors name blocks.
        lr_scales: by origin.

    Returns:
        The map, and one entry an earlier round with its method, settings and parameters.
    """
    moved = {slot.source: position for position, slot in enumerate(stack) if not slot.new}
    earlier = [NewBlock(**{**entry, "position": moved[entry["position"]]}) for entry in previous.get("blocks", [])]
    rounds = list(previous.get("rounds", []))
    if previous.get("new_parameters"):  # a round may have added parameters and no block
        rounds.append({key: previous.get(key) for key in ("method", "settings", "exact", "new_parameters")})
    added = [
        NewBlock(position, slot.source, slot.group, len(rounds) + 1, lr_scale=(lr_scales or {}).get(slot.source, 1.0))
        for position, slot in enumerate(stack)
        if slot.new
    ]

    def renamed(name: str) -> str:
        parts = blocks.split(name)
        return name if parts is None else blocks.join(moved[parts[0]], parts[1])

    rounds = [{**entry, "new_parameters": [renamed(name) for name in entry["new_parameters"]]} for entry in rounds]
    return (*earlier, *added), tuple({**entry, "round": index + 1} for index, entry in enumerate(rounds))
