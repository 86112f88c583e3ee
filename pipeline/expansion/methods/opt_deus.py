"""OpT-DeUS: new blocks made of their two neighbours, aligned by optimal transport. arXiv 2508.08011."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.expansion.base import Plan, Recipe
from pipeline.expansion.layout import Between, Slot
from pipeline.expansion.methods.block import copied_of, plan_stack, zeroed_writers
from pipeline.expansion.source import Source

if TYPE_CHECKING:
    from pipeline.data.corpus import Workspace

ALIGNMENTS = ("transport", "rescaled", "neighbour_mean", "half_upper")
OUTPUT, INNER_NORM = "self_attn.o_proj.weight", "post_attention_layernorm.weight"
_ATTENTION = [f"self_attn.{name}_proj" for name in "qkv"]
_BEHIND_OUTPUT = ["mlp.gate_proj", "mlp.up_proj"]
_WRITERS = ["self_attn.o_proj", "mlp.down_proj"]
_MEANS = ("input_layernorm.weight", "self_attn.q_norm.weight", "self_attn.k_norm.weight")


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
        num_iterations: of Sinkhorn's at most; one that ends earlier ends at `transport.STOP_AT`.
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
        from pipeline.expansion.methods.transport import Aligned, Transport, Weighted

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
