"""A length in training FLOPs: as many whole steps as the budget allows. Imports no torch.

A token is counted as one of a full row that is one document, as the forecast has it, whatever the data. Shorter
documents have fewer pairs in attention, so a run needs less than its budget: `training_flops` of its metrics.
"""

from __future__ import annotations

import math
from dataclasses import replace

from pipeline.training.cost.flops import Cost
from pipeline.training.settings import Settings, Units


def tokens_within(num_flops: float, cost: Cost, seq_len: int) -> int:
    """Tokens that so many FLOPs train, forward and backward, in rows of this length."""
    return int(num_flops) * seq_len // math.ceil(cost.of_rows(seq_len))


def in_steps(settings: Settings, cost: Cost, stream: Units | None, is_exact: bool = True) -> Settings:
    """The same settings with the steps that `num_flops` allows in its place; themselves for another length.

    Args:
        cost: of the model with what trains in it.
        stream: None: units are full rows.
        is_exact: False: units may have fewer tokens than full rows, so that there are at least so many steps.

    Raises:
        ValueError: the budget is too small for one step: what one needs.
    """
    if settings.num_flops is None:
        return settings
    tokens = tokens_within(settings.num_flops, cost, settings.seq_len)
    # The units before the one that would hold the first token too many.
    units = tokens // settings.seq_len if stream is None else stream.units_of_tokens(tokens + 1) - 1
    num_steps = units // settings.batch_size
    if num_steps < 1 and is_exact:
        step = math.ceil(cost.of_rows(settings.seq_len)) * settings.batch_size
        raise ValueError(
            f"num_flops={settings.num_flops:.4g} is {tokens:,} tokens of this model and too few for one step of "
            f"batch_size={settings.batch_size}; use at least {step:.5g}, which {settings.batch_size} rows of "
            f"seq_len={settings.seq_len} need, or a smaller batch"
        )
    return replace(settings, num_flops=None, num_steps=max(1, int(num_steps)))
