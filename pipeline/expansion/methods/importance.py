"""How much each block matters for text in general: the loss without it, less the loss with it. ADEPT, arXiv 2510.10071.

Shapes: B rows, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.models.architecture.blocks import bypassed

_IGNORED = -100
_BATCH_TOKENS = 1024  # of one forward pass: their logits all stand in memory at once


@dataclass(frozen=True)
class Importance:
    """What bypassing each block costs.

    Attributes:
        loss: of the whole model, nats a token.
        increases: per block, by how much the loss is higher without it; negative if the model does better without.
        num_tokens: whose prediction was scored.
    """

    loss: float
    increases: tuple[float, ...]
    num_tokens: int

    def least(self, count: int) -> list[int]:
        """The blocks that cost least, in the order of the stack; of equal ones the lower."""
        return sorted(sorted(range(len(self.increases)), key=lambda i: (self.increases[i], i))[:count])

    def shares(self, blocks: Sequence[int]) -> list[float]:
        """The importance of these blocks in [0, 1], relative to each other: 1/2 is their mean, 1 twice that or more.

        Ours. Taken over all blocks instead, the first one, without which a model loses nearly everything, would leave
        no difference between those that are chosen. A block without which the loss falls has 0.
        """
        costs = [max(0.0, self.increases[block]) for block in blocks]
        mean = sum(costs) / len(costs)
        return [min(1.0, cost / (2 * mean)) if mean else 0.5 for cost in costs]


def measure(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    rows: Sequence[Sequence[int]],
    progress: Callable[..., None] = lambda **_: None,
) -> Importance:
    """Score the rows once with the whole model, and once for each block with that block bypassed.

    A bypassed block hands on the stream that came in; the others, and their positions in the cache, are as before.

    Args:
        model: a causal language model in evaluation mode.
        blocks: its blocks, as modules of it.
        rows: token ids, two or more each.
    """
    num_tokens = sum(len(row) - 1 for row in rows)
    losses = []
    for index in range(-1, len(blocks)):
        progress(step=index + 1, total=len(blocks) + 1, note="importance of blocks")
        with bypassed(blocks, [index] if index >= 0 else []):
            losses.append(_total_loss(model, rows) / num_tokens)
    return Importance(losses[0], tuple(loss - losses[0] for loss in losses[1:]), num_tokens)


@torch.no_grad()
def _total_loss(model: nn.Module, rows: Sequence[Sequence[int]]) -> float:
    """Cross entropy in nats, summed over every token but each row's first."""
    device = next(model.parameters()).device
    total = 0.0
    for batch in _batches(rows):
        ids_BT, labels_BT = (tensor.to(device) for tensor in _padded(batch))
        logits = model(input_ids=ids_BT, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        labels = labels_BT[:, 1:].flatten()
        total += nn.functional.cross_entropy(logits, labels, ignore_index=_IGNORED, reduction="sum").item()
    return total


def _padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels [B, T]. What a causal model makes of a row does not depend on padding behind it."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows])
    labels = torch.tensor([[*row, *[_IGNORED] * (longest - len(row))] for row in rows])
    return ids, labels


def _batches(rows: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    batch: list[Sequence[int]] = []
    for row in sorted(rows, key=len, reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    yield batch
