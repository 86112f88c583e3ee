"""OpT-DeUS: new blocks made of their two neighbours, aligned by optimal transport. arXiv 2508.08011."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from pipeline.expansion.base import Plan, Recipe
from pipeline.expansion.layout import Between, Slot
from pipeline.expansion.methods.block import copied_of, plan_stack, zeroed_writers
from pipeline.expansion.source import Source
from pipeline.expansion.values import pieces_of, tensor_of
from pipeline.models.files.tensor_file import Stored

if TYPE_CHECKING:
    from pipeline.data.corpus import Workspace

ALIGNMENTS = ("transport", "rescaled", "neighbour_mean", "half_upper")
OUTPUT, INNER_NORM = "self_attn.o_proj.weight", "post_attention_layernorm.weight"
_ATTENTION = [f"self_attn.{name}_proj" for name in "qkv"]
_BEHIND_OUTPUT = ["mlp.gate_proj", "mlp.up_proj"]
_WRITERS = ["self_attn.o_proj", "mlp.down_proj"]
_MEANS = ("input_layernorm.weight", "self_attn.q_norm.weight", "self_attn.k_norm.weight")
STOP_AT = 1e-9
"""The norm of what is missing from the marginals at which Sinkhorn's iterations end: POT's."""


@dataclass(frozen=True, kw_only=True)
class OptDeus(Between):
    """Insert one block between neighbours, fused from the two, with zeroed residual writers: it starts as the identity.

    With W_l, W_u a matrix of the block below and of the one above, and T(A, B) the plan that moves the rows of A onto
    those of B at the least cost (Euclidean distances, uniform marginals 1/n, entropic regularisation; [n, n], its
    entries sum to 1), a new block has

        q, k, v:         (T(W_l, W_u)^T W_l + W_u) / 2
        gate, up:        the same of W_l T_o in the place of W_l,     T_o = T(o_l, o_u) of the output matrices
        norm of the FFN: (w_l (T_o + 1) / 2 + w_u) / 2
        other norms:     (w_l + w_u) / 2
        o, down:         0

    which is the authors' code (voalmciaf/OpT-DeUS), and why the expanded model computes what its source does to the
    bit. The rows of T sum to 1/n, not to 1: as released T^T W_l has the size of W_l / n, and what is fused is nearly
    half the upper block. `alignment` therefore has, beside "transport" (the released one), "rescaled" (ours: n T, each
    row of T^T W_l then a mean of rows of W_l) and two controls with the same zeroed writers and no transport:
    "neighbour_mean" (T = 1: the mean of the two) and "half_upper" (T = 0: W_u / 2; norm of the FFN w_l / 4 + w_u / 2).

    Ours as well: fp64 throughout; biases of q, k, v, gate and up move as the rows of their matrix; any `position` but
    "top_half", and fewer places. Rows move singly: nothing keeps those of a head, or of a query and its key, together.

    The plan of a matrix of n rows needs about three [n, n] of fp64 in memory (n = 14,336: 5 GB) while it is written.

    Attributes: see `Layout`.
        alignment: what T is.
        regularisation: of the plan's entropy, in units of the distances.
        num_iterations: of Sinkhorn's at most; one that ends earlier ends at `STOP_AT`.
    """

    alignment: Literal["transport", "rescaled", "neighbour_mean", "half_upper"]
    regularisation: float
    num_iterations: int

    def check(self, num_blocks: int) -> None:
        """Raise ValueError where these settings do not fit a model of that depth."""
        if self.alignment not in ALIGNMENTS:
            raise ValueError(f"alignment={self.alignment!r} is not known; use one of {', '.join(ALIGNMENTS)}")
        for name in ("regularisation", "num_iterations"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be more than 0")
        self.neighbours(num_blocks)

    def plan(self, source: Source, place: Workspace) -> Plan:
        """See `Expansion.plan`; needs no place. Transport is computed when the plan is written.

        Raises:
            ValueError: the settings do not fit, or blocks are not of Llama's anatomy, or two neighbours are not alike.
        """
        self.check(source.anatomy.num_blocks)
        stack, neighbours = self.slots(source.anatomy.num_blocks), self.neighbours(source.anatomy.num_blocks)
        for pair in neighbours.values():
            _check_alike(source, *pair)
        zeroed = zeroed_writers(source)

        def recipe(slot: Slot, position: int, rest: str) -> Recipe:
            if not source.parameters_made(slot.source, rest):
                return copied_of(source, slot, rest)
            written = zeroed(slot, position, rest)
            return written if written.kind == "zeros" else self._fused(source, neighbours[position], rest)

        return plan_stack(source, stack, recipe, exact=True, method="opt_deus", settings=vars(self))

    def _fused(self, source: Source, pair: tuple[int, int], rest: str) -> Recipe:
        """Of tensor `rest`, which is no residual writer."""
        lower, upper = (source.blocks.join(block, rest) for block in pair)
        if rest in _MEANS or self.alignment == "neighbour_mean":
            return Recipe("mean", lower, others=(upper,))
        if self.alignment == "half_upper":
            weights = (0.25, 0.5) if rest == INNER_NORM else (0.0, 0.5)
            return Recipe("computed", lower, others=(upper,), operation=Weighted(weights))
        module, _, kind = rest.rpartition(".")
        needed = [rest]
        needed += [f"{module}.weight"] if kind == "bias" else []
        needed += [OUTPUT] if module in _BEHIND_OUTPUT or rest == INNER_NORM else []
        _, *others = (source.blocks.join(block, name) for name in needed for block in pair)
        transport = Transport(self.regularisation, self.num_iterations, self.alignment == "rescaled")
        operation = Aligned(transport, "norm" if rest == INNER_NORM else kind)
        return Recipe("computed", lower, others=tuple(others), operation=operation)


def _check_alike(source: Source, lower: int, upper: int) -> None:
    """Raise ValueError unless the two blocks are of Llama's anatomy and of one shape."""
    matrices = [f"{name}.weight" for name in (*_ATTENTION, *_BEHIND_OUTPUT, *_WRITERS)]
    needed = {*matrices, INNER_NORM, _MEANS[0]}
    known = needed | {name.replace("weight", "bias") for name in matrices} | set(_MEANS)
    shapes = [
        {rest: source.tensors[source.blocks.join(block, rest)].shape for rest in rests}
        for block, rests in enumerate(source.by_block())
        if block in (lower, upper)
    ]
    for block, found in zip((lower, upper), shapes, strict=True):
        own = {rest for rest in found if source.parameters_made(block, rest)}
        if odd := sorted(needed - own | own - known):
            raise ValueError(
                f"OpT-DeUS aligns blocks of Llama's anatomy (q, k, v, o, gate, up, down, two norms); block {block} "
                f"differs in {', '.join(odd[:4])} ({len(odd)}). Use expand=block"
            )
    if odd := sorted(rest for rest in shapes[0] if shapes[0][rest] != shapes[1].get(rest)):
        raise ValueError(
            f"OpT-DeUS fuses neighbours of one shape; blocks {lower} and {upper} differ in {', '.join(odd[:4])} "
            f"({len(odd)}). Give places between like blocks (expand.position=explicit), or use expand=block"
        )


@dataclass(frozen=True)
class Weighted:
    """The sum of stored tensors of one shape, each times its weight, in fp32."""

    weights: tuple[float, ...]

    def __call__(self, name: str, inputs: Sequence[Stored]) -> Iterator[torch.Tensor]:
        """See `Operation`."""
        for pieces in zip(*map(pieces_of, inputs), strict=True):
            yield sum((w * piece for w, piece in zip(self.weights, pieces, strict=True)), torch.zeros_like(pieces[0]))


@dataclass(frozen=True)
class Transport:
    """T(A, B), [N, N]: how the rows of A are moved onto those of B.

    Sinkhorn's algorithm in fp64. `rescaled`: N T. See `OptDeus` for the rest.
    """

    regularisation: float
    num_iterations: int
    rescaled: bool = False

    def __call__(self, rows_ND: torch.Tensor, others_ND: torch.Tensor) -> torch.Tensor:
        """The plan.

        Warns if it is not found in as many iterations.

        Raises:
            ValueError: it is not finite.
        """
        kernel_NN = torch.cdist(rows_ND, others_ND)
        # Rows and columns times constants have the same plan; with a 1 in each none is rounded to nothing.
        kernel_NN -= kernel_NN.amin(dim=1, keepdim=True)
        kernel_NN -= kernel_NN.amin(dim=0)
        kernel_NN.div_(-self.regularisation).exp_()
        num_rows = len(kernel_NN)
        share = 1 / num_rows
        left_N = torch.full((num_rows,), share, dtype=kernel_NN.dtype)
        for step in range(self.num_iterations):
            right_N = share / (kernel_NN.T @ left_N)
            left_N = share / (kernel_NN @ right_N)
            if step % 10 == 0 and (missing := self._missing(kernel_NN, left_N, right_N)) <= STOP_AT:
                break
        else:
            if (missing := self._missing(kernel_NN, left_N, right_N)) > STOP_AT:
                warnings.warn(
                    f"the transport plan of {num_rows} rows still misses its marginals by {missing:.2g} after "
                    f"num_iterations={self.num_iterations}; raise it or expand.regularisation",
                    stacklevel=2,
                )
        kernel_NN *= left_N[:, None] * (num_rows if self.rescaled else 1)
        kernel_NN *= right_N
        if not kernel_NN.isfinite().all():
            raise ValueError(
                f"there is no finite transport plan of {num_rows} rows at regularisation={self.regularisation}; use a "
                "larger expand.regularisation, or expand.alignment=neighbour_mean"
            )
        return kernel_NN

    @staticmethod
    def _missing(kernel_NN: torch.Tensor, left_N: torch.Tensor, right_N: torch.Tensor) -> float:
        """Of the columns' marginals; those of the rows are met after each iteration."""
        return (right_N * (kernel_NN.T @ left_N) - 1 / len(left_N)).norm().item()


@dataclass(frozen=True)
class Aligned:
    """A tensor of the lower block aligned to the upper block's, and the mean of the two; equations: `OptDeus`.

    Its inputs, of the lower and the upper block in turn: the tensor; for a bias its matrix; for what reads the
    attention's output the output matrix. `kind`: "weight", "bias" or "norm".
    """

    transport: Transport
    kind: str

    def __call__(self, name: str, inputs: Sequence[Stored]) -> Iterator[torch.Tensor]:
        """See `Operation`."""
        lower, upper, *others = (tensor_of(one).double() for one in inputs)
        if self.kind == "norm":
            yield ((lower @ self.transport(*others) + lower) / 2 + upper) / 2
            return
        matrix, target, *outputs = others if self.kind == "bias" else (lower, upper, *others)
        if outputs:
            matrix = matrix @ self.transport(*outputs)
        moved = lower if self.kind == "bias" else matrix
        yield (self.transport(matrix, target).T @ moved + upper) / 2
