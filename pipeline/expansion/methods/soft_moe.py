"""The paper's width baseline: a second output matrix and two learned scalars in every FFN; no block is added."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.expansion.base import Plan, Recipe, facts_of_type, grow_map
from pipeline.expansion.layout import Slot
from pipeline.expansion.source import Source
from pipeline.models.files.tensor_file import Planned, write_file

if TYPE_CHECKING:
    from pipeline.data.corpus import Workspace

MODES = ("exact", "faithful")


@dataclass(frozen=True)
class SoftMoe:
    """Widen every FFN of a model to a dense soft mixture; equations: `pipeline.models.architecture.soft_moe`.

    The base's tensors are copied. New are, per block, Ŵ3 (`mlp.second_down_proj.weight`, zeros, in W3's dtype) and the
    two scalars (`mlp.mixing`, [1, 0], fp32): L * (D * F + 2) parameters, 1,442,840,640 for LLaMA2-7B. The result is of
    a model type of our own, which `pipeline.models.load` knows, and stock transformers after
    `import pipeline.models.architecture.soft_moe`.

    Attributes:
        mode: "exact" (the model begins as its source, bit for bit) or "faithful" (as the authors describe it; every
            FFN's output begins scaled by 0.731).
    """

    mode: Literal["exact", "faithful"]

    def check(self, num_blocks: int) -> None:
        """Raise ValueError if the mode is not known; any depth will do."""
        if self.mode not in MODES:
            raise ValueError(f"expand.mode={self.mode!r} is not known; use one of {', '.join(MODES)}")

    def facts_of(self, facts: Callable[[str, str], Any]) -> dict[str, Any]:
        """See `facts_of_type`."""
        return facts_of_type(facts, "soft_moe")

    def plan(self, source: Source, place: Workspace) -> Plan:
        """See `Expansion.plan`.

        The scalars' starting values, of which no source tensor has the shape, go to a file of a few KB in
        `place.directory`, which must last until the plan is written.

        Raises:
            ValueError: the architecture has no soft mixture here, or a block's output matrix is not in the weights.
        """
        from pipeline.models.architecture.soft_moe import INITIAL_MIXING, widened_config

        self.check(source.anatomy.num_blocks)
        config = widened_config(source.config, self.mode)
        recipes = _recipes(source)
        scalars = [name for name, recipe in recipes.items() if recipe.kind == "made"]
        new_parameters = tuple(name for name in recipes if name not in source.tensors)
        stack = tuple(Slot(block) for block in range(source.blocks.num_blocks))
        blocks, rounds = grow_map(stack, source.expansion, source.blocks)
        return Plan(
            recipes=recipes,
            config=config,
            blocks=blocks,
            new_parameters=new_parameters,
            exact=self.mode == "exact",
            method="soft_moe",
            settings={"mode": self.mode},
            stack=stack,
            rounds=rounds,
            made=_write_vectors(place.directory / "made.safetensors", scalars, INITIAL_MIXING),
        )


def _recipes(source: Source) -> dict[str, Recipe]:
    """The source's tensors, and each block's second output matrix and scalars."""
    from pipeline.models.architecture.soft_moe import MIXING, OUTPUT, SECOND_OUTPUT

    recipes = {name: Recipe("copy", name) for name in source.tensors}
    for block in range(source.blocks.num_blocks):
        output, second, mixing = (source.blocks.join(block, rest) for rest in (OUTPUT, SECOND_OUTPUT, MIXING))
        if output not in source.tensors:
            raise ValueError(f"{source.directory} has no tensor {output}; soft_moe needs unquantised FFN weights")
        recipes[second] = Recipe("zeros", output)
        recipes[mixing] = Recipe("made", output)
    return recipes


def _write_vectors(file: Path, names: Iterable[str], values: tuple[float, ...]) -> Path:
    """A safetensors file with the same fp32 vector under each name."""
    content = struct.pack(f"<{len(values)}f", *values)
    vector = Planned("F32", (len(values),), len(content), content)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, {name: vector for name in names})
    return file
