"""LESA: new blocks whose matrices a network predicts from those of the blocks beside them. arXiv 2502.13794."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.data.corpus import Workspace
from pipeline.expansion.base import Plan, Recipe
from pipeline.expansion.layout import Between, Slot
from pipeline.expansion.methods.block import RecipeOf, copied_of, plan_stack
from pipeline.expansion.methods.fitting import SAMPLES, Fitting
from pipeline.expansion.source import Source
from pipeline.models.files.tensor_file import Planned, Stored, read_header, write_file

if TYPE_CHECKING:  # a request is checked without
    import torch

VECTORS = ("first_block", "mean")
Neighbours = dict[int, tuple[int, int]]
"""Position of a new block in the new stack -> the source's blocks below and above it."""


@dataclass(frozen=True)
class Lesa(Fitting, Between):
    """Insert blocks between neighbours, one at a place, with predicted weights. The model's output changes.

    For each kind of matrix (`q_proj`, ..., `down_proj`) the SVD of all blocks' matrices side by side gives each block's
    V_l (equation 1 of the paper), and a network learns to give V_l from V_{l-1} and V_{l+1}. A new block's V is what it
    gives for the two blocks beside it, and its matrix U S V. Nothing is zeroed.

    As published (`samples=rows`, `vectors=first_block`, `position=top_half`): one new block in every gap between blocks
    of the top half, 15 to 31 of 32; rows of V are the samples; norms and biases are those of block 0, which the
    authors' code copies and puts the predicted matrices into. Deviations that remain: the SVD comes from the Gram
    matrix, directions whose singular value is below fp32's digits are left out, and the order of samples is ours.

    Ours, by name: `samples=columns` (whitened, the norm term per column: predictions come out small where neighbours
    say little of a block, a tenth of the neighbours' norm on SmolLM2-135M, and the model hardly changes: its loss on
    Wikipedia rises from 3.361 to 3.362 nats a token with six new blocks; with copies in their places it is 7.15, with
    the means of the neighbours 3.64), `vectors=mean` (norms and biases are the mean of the neighbours'), and any other
    `position`. What `interleaved` would put above the last block is put below it: a block is predicted between two.

    It needs, for one kind of matrix [O, I] at a time, about three times O x O fp64 numbers and a few matrices in
    memory, and the coefficients of all blocks (their O x I in fp32) and what is predicted on disk.

    Attributes: see `Layout` and `Fitting`.
        vectors: whose norms and biases a new block gets: "first_block" or "mean".
    """

    vectors: Literal["first_block", "mean"] = "first_block"

    def check(self, num_blocks: int) -> None:
        """Raise ValueError where these settings do not fit a model of that depth."""
        if num_blocks < 3:
            raise ValueError(f"LESA learns from blocks with two neighbours; the model has {num_blocks} blocks, not 3")
        for name in ("hidden", "num_epochs", "batch_size", "lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be more than 0")
        for name, known in (("samples", SAMPLES), ("vectors", VECTORS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is not known; use one of {', '.join(known)}")
        self.neighbours(num_blocks)

    def plan(self, source: Source, place: Workspace) -> Plan:
        """See `Expansion.plan`. What is predicted is written below `place.directory`, which must last until it is read.

        Raises:
            ValueError: the settings do not fit, the blocks are not all alike, or have experts.
        """
        self.check(source.anatomy.num_blocks)
        stack, kinds = self.slots(source.anatomy.num_blocks), matrix_kinds(source)
        neighbours = self.neighbours(source.anatomy.num_blocks)
        recipe_of = _recipe_of(source, kinds, neighbours, self.vectors)
        plan = plan_stack(source, stack, recipe_of, False, "lesa", vars(self))
        return dataclasses.replace(plan, made=self._make(source, kinds, neighbours, place))

    def _make(self, source: Source, kinds: Sequence[str], neighbours: Neighbours, place: Workspace) -> Path:
        """Predict kind by kind into a file that has room for all."""
        file = _reserve(source, kinds, neighbours, place.directory)
        room = read_header(file)
        for index, rest in enumerate(kinds):
            place.progress(step=index, total=len(kinds), note=f"predicting {rest}")
            for position, matrix_OI in _predict(source, rest, neighbours, self, place.directory):
                _fill(room[source.blocks.join(position, rest)], matrix_OI)
        return file


def matrix_kinds(source: Source) -> list[str]:
    """The rest of the names of the tensors that are predicted: the matrices, alike in all blocks.

    Raises:
        ValueError: blocks differ, hold experts (which have no order that lasts from block to block) or other tensors of
            more than two dimensions, or are stored in a quantised type.
    """
    first: dict[str, tuple[str, tuple[int, ...]]] = {}
    for index, rests in enumerate(source.by_block()):
        weights = {r: source.tensors[source.blocks.join(index, r)] for r in rests if source.parameters_made(index, r)}
        form = {rest: (stored.dtype, stored.shape) for rest, stored in weights.items()}
        first = first or form
        if form != first:
            odd = sorted({rest for rest, _ in set(form.items()) ^ set(first.items())})
            raise ValueError(
                f"LESA learns from blocks that are all alike; blocks 0 and {index} differ in {', '.join(odd[:4])} "
                f"({len(odd)}). Use expand=block"
            )
    for rest, (dtype, shape) in first.items():
        if len(shape) > 2 or re.search(r"(^|\.)\d+\.", rest):
            raise ValueError(f"LESA is for dense blocks; found {rest} of shape {list(shape)}. Use expand=block")
        if dtype not in ("F64", "F32", "F16", "BF16"):
            raise ValueError(f"LESA computes with float weights; {rest} is stored as {dtype}. Use expand=block")
    return [rest for rest, (_, shape) in first.items() if len(shape) == 2]


def _recipe_of(source: Source, kinds: Sequence[str], neighbours: Neighbours, vectors: str) -> RecipeOf:
    predicted = set(kinds)

    def recipe(slot: Slot, position: int, rest: str) -> Recipe:
        if rest in predicted:
            return Recipe("made", source.blocks.join(slot.source, rest))
        if not source.parameters_made(slot.source, rest):
            return copied_of(source, slot, rest)
        if vectors == "first_block":
            return Recipe("copy", source.blocks.join(0, rest))
        below, above = (source.blocks.join(block, rest) for block in neighbours[position])
        return Recipe("mean", below, others=(above,))

    return recipe


def _reserve(source: Source, kinds: Sequence[str], neighbours: Neighbours, directory: Path) -> Path:
    """A safetensors file of zeros in the place of every tensor that will be predicted."""
    room = {}
    for rest in kinds:
        stored = source.tensors[source.blocks.join(0, rest)]
        for position in neighbours:
            name = source.blocks.join(position, rest)
            room[name] = Planned(stored.dtype, stored.shape, stored.num_bytes, None)
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "made.safetensors"
    write_file(file, room)
    return file


def _predict(
    source: Source, rest: str, neighbours: Neighbours, fitting: Fitting, directory: Path
) -> Iterator[tuple[int, torch.Tensor]]:
    """The matrices [O, I] in fp32 that the new blocks get, by position."""
    from pipeline.expansion.methods.latent import between, find_basis, fit, project
    from pipeline.expansion.values import tensor_of

    def read(block: int) -> torch.Tensor:
        return tensor_of(source.tensors[source.blocks.join(block, rest)]).float()

    num_blocks = source.anatomy.num_blocks
    basis = find_basis(read, num_blocks, fitting.samples)
    file = directory / "coefficients.bin"
    try:
        coefficients_LNX = project(basis, read, num_blocks, file)
        network = fit(coefficients_LNX, fitting)
        for position, (below, above) in neighbours.items():
            yield position, basis.matrix(between(network, coefficients_LNX[below], coefficients_LNX[above]))
    finally:
        file.unlink(missing_ok=True)


def _fill(room: Stored, matrix_OI: torch.Tensor) -> None:
    from pipeline.models.save import raw_bytes

    with room.file.open("r+b") as out:
        out.seek(room.start)
        out.write(raw_bytes(matrix_OI, room.dtype))
