"""What each block of a loaded model does to the stream, watched through forward hooks.

Shapes: B rows, T tokens of a row, D model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from pipeline.evaluation.model.scoring import Tokens, batches
from pipeline.models.architecture.blocks import hooked, stream_of


@dataclass
class Update:
    """What one block does to the stream.

    Attributes:
        total: sum over tokens of |block(x) - x| / |x|, Euclidean norms over D.
        num_tokens: how many that are.
        is_identity: at every position of every batch the output had the input's bits.
    """

    total: float = 0.0
    num_tokens: int = 0
    is_identity: bool = field(default=True)

    @property
    def relative(self) -> float:
        """The mean over tokens; dimensionless."""
        return self.total / self.num_tokens


def measure_updates(model: nn.Module, blocks: nn.ModuleList, rows: Sequence[Tokens], batch_tokens: int) -> list[Update]:
    """One update per block, over all tokens of the rows; one pass without the output head.

    Args:
        rows: tokens, each row from its own beginning.
        batch_tokens: tokens of a forward pass, padding included.
    """
    device = model.get_input_embeddings().weight.device
    updates = [Update() for _ in blocks]
    for batch in batches(rows, [len(row) for row in rows], batch_tokens):
        # Padding stands to the right, where causal attention cannot see it; it counts in no mean.
        ids_BT = pad_sequence([torch.tensor(row) for row in batch], batch_first=True).to(device)
        lengths_B1 = torch.tensor([[len(row)] for row in batch], device=device)
        kept_BT = torch.arange(ids_BT.shape[1], device=device) < lengths_B1
        watch = ((block, partial(_watch, update, kept_BT)) for block, update in zip(blocks, updates, strict=True))
        with torch.inference_mode(), hooked(watch):
            model.base_model(input_ids=ids_BT, use_cache=False)
    return updates


def _watch(
    update: Update, kept_BT: torch.Tensor, _: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> None:
    before_BTD = stream_of(args, kwargs).float()
    after_BTD = (output[0] if isinstance(output, tuple) else output).float()
    update.is_identity &= torch.equal(before_BTD, after_BTD)
    before_ND = before_BTD[kept_BT]
    sizes_N = (after_BTD[kept_BT] - before_ND).norm(dim=-1)
    # A token whose stream is zero has no relative update; the bound keeps 0 / 0 out of the mean.
    ratios_N = sizes_N / before_ND.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    update.total += float(ratios_N.double().sum())
    update.num_tokens += len(ratios_N)
