"""Floating-point operations that a training step needs, counted as two a multiply-add. Imports no torch.

Needed, with F a matrix's parameters, for every token (and the head's for every labelled token):
    forward 2F of every matrix; the input's gradient, 2F, where something below trains; the weight's own, 2F, where it
    trains itself.
Attention is counted over the pairs of a query and a key that it may look at: q_i k_j and p_ij v_j forward, twice that
backward. What is recomputed to save memory is not needed; neither are masked pairs, padding, or gradients that nobody
reads. 6ND (Kaplan et al., arXiv 2001.08361) counts none of this: N is what a token is multiplied with (the active
experts, the head, no lookup table), D the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.models.architecture.shape import Block, Matrix, Shape


@dataclass(frozen=True)
class Window:
    """Attention of the blocks that share a window: FLOPs for each pair of a query and a key, over those blocks.

    `size` is in tokens; None looks at everything before. `added`: what penalties need beside both.
    """

    size: int | None
    forward: float
    backward: float
    added: float = 0.0

    def pairs(self, position: int) -> int:
        """Keys that the query at this position of its document looks at."""
        return position + 1 if self.size is None else min(position + 1, self.size)


@dataclass(frozen=True)
class Cost:
    """FLOPs of one model under one strategy.

    Attributes:
        forward, backward: of the blocks' matrices, a token.
        head_forward, head_backward: of the head, a labelled token.
        windows: of attention, a pair.
        added, added_label: what penalties need beside all these, a token and a labelled token.
        row_forward, row_backward: a row, however long it is: of weights that meet weights, or of an image, which a row
            may have several of. Rows of one micro batch share the former; it is counted as where each has its own, so
            that a length in FLOPs does not depend on the launch.
    """

    forward: float
    backward: float
    head_forward: float
    head_backward: float
    windows: tuple[Window, ...]
    added: float = 0.0
    added_label: float = 0.0
    row_forward: float = 0.0
    row_backward: float = 0.0

    @property
    def num_used(self) -> float:
        """N of 6ND: parameters that a token is multiplied with."""
        return (self.forward + self.head_forward) / 2

    def needed(self, tokens: float, labels: float, pairs: Callable[[Window], float], rows: float = 1) -> float:
        """Of a forward and a backward pass; `pairs` says how many a window leaves."""
        matrices = tokens * (self.forward + self.backward + self.added) + rows * (self.row_forward + self.row_backward)
        head = labels * (self.head_forward + self.head_backward + self.added_label)
        return matrices + head + sum(pairs(w) * (w.forward + w.backward + w.added) for w in self.windows)

    def of_rows(self, seq_len: int, rows: float = 1) -> float:
        """Of full rows that are one document each, every token labelled: the most that rows of this length can need."""
        tokens = seq_len * rows
        return self.needed(tokens, tokens, lambda window: rows * sum(map(window.pairs, range(seq_len))), rows)

    def six_nd(self, tokens: float) -> float:
        """The usual estimate of training all parameters."""
        return 6 * self.num_used * tokens


@dataclass(frozen=True)
class Trains:
    """What a strategy trains. Estimates of memory and FLOPs follow from it.

    Attributes:
        way: "new_blocks", "full" (all), "lora" of a rank in every linear layer, or "blocks" by their numbers.
        blocks: depth of a model -> numbers of its blocks: those that train, or that a rank of 0 matches in parameters.
    """

    way: str
    rank: int = 0
    blocks: Callable[[int], Sequence[int]] | None = field(default=None, compare=False)

    def of(self, shape: Shape) -> tuple[Shape, Trains]:
        """The same for a model of this shape, without `blocks`; the shape has those that train marked as new.

        Raises:
            ValueError: the model has no such blocks.
        """
        if self.blocks is None:
            return shape, self
        chosen = self.blocks(len(shape.blocks))
        if self.way == "blocks":
            return shape.with_new(chosen), Trains("new_blocks")
        wanted = sum(shape.blocks[number].num_parameters for number in chosen)
        return shape, Trains("lora", nearest_rank(wanted, Trains("lora", 1).num_trainable(shape)))

    def weights_of(self, block: Block) -> bool:
        """Whether all of a block's own parameters train."""
        return self.way == "full" or (self.way == "new_blocks" and block.new)

    def fits(self, shape: Shape) -> bool:
        """Whether this can be told of such a model: LoRA finds no experts, and without new blocks none train."""
        if self.way == "lora":
            return all(matrix.linear for block in shape.blocks for matrix in block.matrices)
        return self.way == "full" or any(block.new for block in shape.blocks)

    def num_added(self, shape: Shape) -> int:
        """Parameters that the model has while it trains, beside its own."""
        return self.num_trainable(shape) if self.way == "lora" else 0

    def num_trainable(self, shape: Shape) -> int:
        """Parameters that train."""
        if self.way == "full":
            return shape.num_parameters
        if self.way == "lora":
            return self.rank * sum(m.inputs + m.outputs for block in shape.blocks for m in block.matrices)
        return sum(block.num_parameters for block in shape.blocks if block.new)


def nearest_rank(wanted: int, per_rank: int) -> int:
    """The rank, at least 1, at which adapters of `per_rank` parameters for each have about as many as wanted."""
    return max(1, -((per_rank - 2 * wanted) // (2 * per_rank)))


def cost_of(shape: Shape, trains: Trains) -> Cost:
    """The cost of a model of this shape.

    Raises:
        ValueError: nothing of it trains, or it cannot be told what does (see `Trains.fits`).
    """
    if not trains.fits(shape):
        raise ValueError(f"what {trains.way} trains in this model cannot be told from its shape")
    lowest = first_trainable(shape, trains)
    forward = backward = 0.0
    for index, block in enumerate(shape.blocks):
        for matrix in block.matrices:
            extra = _adapter(matrix, trains)
            forward += 2 * (matrix.num_used + extra)
            if index >= lowest:
                backward += _backward(matrix, trains, block, index == lowest)
    head = 2.0 * shape.hidden * shape.vocab
    return Cost(
        forward=forward,
        backward=backward,
        head_forward=head,
        head_backward=head * (2 if trains.way == "full" else 1),
        windows=tuple(_windows(shape.blocks, lowest)),
    )


def first_trainable(shape: Shape, trains: Trains) -> int:
    """The lowest block that a gradient reaches."""
    return next(i for i, block in enumerate(shape.blocks) if trains.way != "new_blocks" or block.new)


def _backward(matrix: Matrix, trains: Trains, block: Block, is_lowest: bool) -> float:
    own = matrix.num_used if trains.weights_of(block) else 0
    extra = _adapter(matrix, trains)
    # Below the lowest block nothing trains; its own norms need the gradient of what reads them, unless they are frozen.
    needless = is_lowest and trains.way == "lora" and matrix.reads_stream
    through = 0 if needless else matrix.num_used
    # Of an adapter's two factors each has a weight gradient; the one that reads the input passes one on to it.
    adapter = 2 * extra - (matrix.inputs * trains.rank if needless else 0)
    return 2 * (through + own + adapter)


def _adapter(matrix: Matrix, trains: Trains) -> int:
    return trains.rank * (matrix.inputs + matrix.outputs) if trains.way == "lora" else 0


def _windows(blocks: tuple[Block, ...], lowest: int) -> Iterable[Window]:
    for size in dict.fromkeys(block.window for block in blocks):
        same = [(i, 2.0 * (block.query + block.value)) for i, block in enumerate(blocks) if block.window == size]
        yield Window(size, sum(cost for _, cost in same), sum(2 * cost for i, cost in same if i >= lowest))
