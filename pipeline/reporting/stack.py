"""An expanded model as facts and as text: old and new blocks, where each new one came from, what it costs.

Read off `expansion.json` and the headers of the weights; no weight is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.models.files.safetensors_io import read_index
from pipeline.models.files.tensor_file import Stored
from pipeline.records.expansion import ExpansionMap, origins, read_expansion, split_name
from pipeline.reporting.tables.wording import count, percent

ADAMW_BYTES = 12  # a trainable parameter: fp32 master weight and two fp32 moments
GRADIENT_BYTES = 4  # a trainable parameter: fp32, as its master weight
ASSUMPTION = (
    "AdamW in fp32: 12 bytes a trainable parameter for the master weight and two moments, and 4 for its gradient. "
    "Activations and the weights of frozen parameters come on top."
)
RIBBON_WIDTH = 100  # blocks a line; below the width of a terminal


@dataclass(frozen=True)
class Block:
    """One block of a stack.

    Attributes:
        position: its index.
        num_parameters, num_new: of which the last round added.
        round: that added it, from 1; 0 for a block of the base.
        origin: position, in this stack, of the block it was made from; None for a block of the base.
        group: counts the insertion points of its round.
        lr_scale: what its learning rate is multiplied by.
    """

    position: int
    num_parameters: int
    num_new: int
    round: int = 0
    origin: int | None = None
    group: int | None = None
    lr_scale: float = 1.0

    @property
    def is_new(self) -> bool:
        return self.round > 0


@dataclass(frozen=True)
class Stack:
    """An expanded model.

    Attributes:
        blocks: from the embeddings up.
        num_parameters: of the whole model, tied weights once.
        num_new: of which the last round added; these are what training the new blocks trains.
        num_bytes: of all weights as stored.
        num_new_bytes: of the last round's.
        methods: one a round, the first first.
    """

    blocks: tuple[Block, ...]
    num_parameters: int
    num_new: int
    num_bytes: int
    num_new_bytes: int
    methods: tuple[str, ...]

    @property
    def new(self) -> tuple[Block, ...]:
        """All rounds' blocks."""
        return tuple(block for block in self.blocks if block.is_new)

    @property
    def trainable_share(self) -> float:
        """Of the parameters, where the last round's are trained and nothing else."""
        return self.num_new / self.num_parameters

    @property
    def summary(self) -> str:
        """One line."""
        old = len(self.blocks) - len(self.new)
        text = f"{len(self.blocks)} blocks: {old} old and {len(self.new)} new"
        rounds = f" in {len(self.methods)} rounds ({', '.join(self.methods)})" if len(self.methods) > 1 else ""
        return f"{text}{rounds}; {count(self.num_new)} new parameters, {percent(self.trainable_share)} of the model."


def read_stack(directory: Path) -> Stack | None:
    """The stack of a model directory, or None if it records no expansion.

    Raises:
        ValueError: its weights or its record are damaged, or do not fit.
    """
    record = read_expansion(directory)
    return build_stack(record, read_index(directory)) if record.new_parameters else None


def build_stack(record: ExpansionMap, tensors: Mapping[str, Stored]) -> Stack:
    """The stack of an expansion record and the tensors of the expanded model, by their names on disk.

    Raises:
        ValueError: the tensors lack a recorded parameter, or have no block where the record has one.
    """
    new = set(record.new_parameters)
    if lost := sorted(new - set(tensors)):
        raise ValueError(f"the weights lack {len(lost)} recorded new parameters, such as {lost[0]}; expand again")
    buffers = set(record.buffers)
    tensors = {name: stored for name, stored in tensors.items() if name not in buffers}
    by_block = _by_block(tensors, _blocks_prefix(new))
    added = record.by_position
    if beyond := sorted(set(added) - set(range(len(by_block)))):
        raise ValueError(f"the record names new blocks {beyond}, but the weights have {len(by_block)}; expand again")
    sources = origins(record.blocks, len(by_block))
    blocks = []
    for position, names in enumerate(by_block):
        sizes = [_num_parameters(tensors[name] for name in held) for held in (names, new.intersection(names))]
        block = Block(position, *sizes)
        if one := added.get(position):
            block = replace(block, round=one.round, origin=sources[position], group=one.group, lr_scale=one.lr_scale)
        blocks.append(block)
    return Stack(
        blocks=tuple(blocks),
        num_parameters=_num_parameters(tensors.values()),
        num_new=_num_parameters(tensors[name] for name in new),
        num_bytes=sum(stored.num_bytes for stored in tensors.values()),
        num_new_bytes=sum(tensors[name].num_bytes for name in new),
        methods=tuple(one.method for one in record.history),
    )


def cost_rows(stack: Stack) -> list[tuple[str, str, str]]:
    """(what, of the new blocks, of everything): parameters, bytes, and what training them would hold."""
    both = (stack.num_new, stack.num_parameters)
    rows = [
        ("parameters", *(f"{n:,}" for n in both)),
        ("trainable share", percent(stack.trainable_share), percent(1.0)),
        ("weights", byte_size(stack.num_new_bytes), byte_size(stack.num_bytes)),
        ("optimizer (AdamW)", *(byte_size(n * ADAMW_BYTES) for n in both)),
        ("gradients", *(byte_size(n * GRADIENT_BYTES) for n in both)),
        ("optimizer and gradients", *(byte_size(n * (ADAMW_BYTES + GRADIENT_BYTES)) for n in both)),
    ]
    return [(name, new, everything) for name, new, everything in rows]


def inspection(stack: Stack) -> str:
    """The stack as text: a ribbon with one sign a block, a line per new block or run of old ones, and the costs."""
    parts = [stack.summary, _ribbon(stack), _aligned(_block_rows(stack), "r")]
    costs = [("", "new blocks" if stack.new else "new", "everything"), *cost_rows(stack)]
    return "\n\n".join([*parts, _aligned(costs, "l"), ASSUMPTION]) + "\n"


def byte_size(num_bytes: int) -> str:
    """Binary units, three digits: 1.21 GiB."""
    for exponent, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if num_bytes >= 2**exponent:
            value = num_bytes / 2**exponent
            return f"{value:.{max(0, 2 - int(math.log10(value)))}f} {unit}"
    return f"{num_bytes} B"


def _blocks_prefix(new: Iterable[str]) -> str:
    """Where the blocks stand in the names: what precedes the first number in every new parameter."""
    prefixes = {place[0] for name in new if (place := split_name(name))}
    if len(prefixes) != 1:
        raise ValueError(
            f"the new parameters stand under {sorted(prefixes) or 'no number'}; expected one numbered list of blocks"
        )
    return prefixes.pop()


def _by_block(names: Iterable[str], prefix: str) -> list[list[str]]:
    blocks: dict[int, list[str]] = {}
    for name in names:
        if (place := split_name(name)) and place[0] == prefix:
            blocks.setdefault(place[1], []).append(name)
    return [blocks.get(index, []) for index in range(max(blocks, default=-1) + 1)]


def _num_parameters(tensors: Iterable[Stored]) -> int:
    return sum(math.prod(stored.shape) for stored in tensors)


def _ribbon(stack: Stack) -> str:
    """`.` an old block, a digit a new one by its round."""
    signs = "".join(str(block.round % 10) if block.is_new else "." for block in stack.blocks)
    lines = [f"{start:>4} {signs[start : start + RIBBON_WIDTH]}" for start in range(0, len(signs), RIBBON_WIDTH)]
    added = [f"{n % 10} new" + (f" in round {n}" if len(stack.methods) > 1 else "") for n in _rounds(stack)]
    return "\n".join([*lines, "     " + ", ".join([". old", *added])])


def _rounds(stack: Stack) -> list[int]:
    return sorted({block.round for block in stack.new})


def _block_rows(stack: Stack) -> list[tuple[str, ...]]:
    """A header, then a line per new block and per run of equal old ones, the top of the stack last."""
    scaled = any(block.lr_scale != 1 for block in stack.blocks)
    rows: list[tuple[str, ...]] = [("position", "", "from", "round", "group", *(["lr"] * scaled), "parameters")]
    for run in _runs(stack.blocks):
        first, last = run[0], run[-1]
        where = str(first.position) if first is last else f"{first.position}-{last.position}"
        each = f"{first.num_parameters:,}" + (" each" if len(run) > 1 else "")
        facts = ("old", "", "", "")
        if first.is_new:
            facts = ("new", str(first.origin), str(first.round), "" if first.group is None else str(first.group))
        elif first.num_new:
            facts = ("old, wider", "", "", "")
        rows.append((where, *facts, *([f"x{first.lr_scale:g}" if first.is_new else ""] * scaled), each))
    return rows


def _runs(blocks: Sequence[Block]) -> list[list[Block]]:
    runs: list[list[Block]] = []
    for block in blocks:
        if runs and not block.is_new and not runs[-1][0].is_new and _size(runs[-1][0]) == _size(block):
            runs[-1].append(block)
        else:
            runs.append([block])
    return runs


def _size(block: Block) -> tuple[int, int]:
    return block.num_parameters, block.num_new


def _aligned(rows: Sequence[Sequence[str]], first: str) -> str:
    """Columns two spaces apart, to the right but for the first, which goes to the left if `first` is "l"."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        head = row[0].ljust(widths[0]) if first == "l" else row[0].rjust(widths[0])
        lines.append("  ".join([head, *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]))
    return "\n".join(line.rstrip() for line in lines)
