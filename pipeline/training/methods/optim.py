"""AdamW with groups by decay and by scale of the learning rate, and the rate of a step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from pipeline.training.methods.schedule import learning_rate
from pipeline.training.settings import Settings


def build_adamw(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    lr: float,
    betas: Sequence[float],
    eps: float,
    weight_decay: float,
    lr_scales: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW over what requires a gradient: matrices decay, vectors (norms, biases) do not.

    Args:
        lr_scales: what the learning rate is multiplied by, for parameters for which that is not 1, by name.
    """
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = defaultdict(list)
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            groups[(lr_scales or {}).get(name, 1.0), parameter.ndim < 2].append(parameter)
    settings: list[dict[str, Any]] = [
        {"params": groups[key], "lr_scale": key[0], "weight_decay": 0.0 if key[1] else weight_decay}
        for key in sorted(groups)
    ]
    optimizer = torch.optim.AdamW(settings, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True)
    set_learning_rate(optimizer, lr)
    return optimizer


def set_lr_scales(optimizer: torch.optim.Optimizer, scales: Mapping[torch.nn.Parameter, float]) -> None:
    """Give parameters other multiples of the learning rate; the others keep theirs, and all their state and decay."""
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            scale = scales.get(parameter, group["lr_scale"])
            regrouped = groups.setdefault((scale, -group["weight_decay"]), {**group, "params": [], "lr_scale": scale})
            regrouped["params"].append(parameter)
    optimizer.param_groups[:] = [groups[key] for key in sorted(groups)]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group of `build_adamw` its multiple of this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def rate_of(settings: Settings, step: int, num_steps: int) -> float:
    """The learning rate of a step (from 0) of a training with these settings, of `num_steps` in all."""
    return learning_rate(
        step,
        num_steps,
        settings.lr,
        settings.warmup_ratio,
        settings.min_lr_ratio,
        schedule=settings.schedule,
        warmup_from=settings.warmup_from,
        decay=settings.decay,
        decay_ratio=settings.decay_ratio,
    )
