"""AdamW with decay groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch


def build_adamw(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    lr: float,
    betas: Sequence[float],
    eps: float,
    weight_decay: float,
) -> torch.optim.AdamW:
    """AdamW over what requires a gradient: matrices decay, vectors (norms, biases) do not."""
    trainable = [p for _, p in named_parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True
    )


def learning_rate(step: int, num_steps: int, peak: float, warmup_ratio: float, min_lr_ratio: float) -> float:
    """Linear warm-up to `peak`, then a cosine down to `min_lr_ratio * peak`.

    Args:
        step: the optimizer step about to be taken, from 0.
        num_steps: of the whole run.
    """
    warmup = math.ceil(warmup_ratio * num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    fraction = (step - warmup) / max(1, num_steps - warmup)
    return peak * (min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * fraction)))
