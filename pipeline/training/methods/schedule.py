"""The learning rate as a function of the step. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.training.settings import SCHEDULE, SCHEDULES

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "1-sqrt": lambda done: 1 - math.sqrt(done),
}
"""What is left of the way from the peak to the floor, by how much of the decay is done."""


def learning_rate(
    step: int,
    num_steps: int,
    peak: float,
    warmup_ratio: float,
    min_lr_ratio: float,
    *,
    schedule: str = SCHEDULE,
    warmup_from: float | None = None,
    decay: str | None = None,
    decay_ratio: float | None = None,
) -> float:
    """Linear warm-up to `peak`, then by the schedule.

    `cosine` and `linear` fall over all steps after the warm-up, down to `min_lr_ratio * peak`; `constant` stays at the
    peak; `wsd` (warm-up, stable, decay: MiniCPM, arXiv 2404.06395) stays there until the last part of the run.

    Args:
        step: the optimizer step about to be taken, from 0.
        num_steps: of the whole run.
        warmup_from: of the peak, at the first step of the warm-up; None: one part of as many as the warm-up has steps.
        decay, decay_ratio: of wsd: the form of its fall (`SHAPES`), and its share of all steps.
    """
    warmup = math.ceil(warmup_ratio * num_steps)
    if step < warmup:
        if warmup_from is None:
            return peak * (step + 1) / warmup
        return peak * (warmup_from + (1 - warmup_from) * (step / (warmup - 1) if warmup > 1 else 1))
    if schedule == "constant":
        return peak
    shape, begin = schedule, warmup
    if schedule == "wsd":
        assert decay is not None and decay_ratio is not None
        shape, begin = decay, max(warmup, num_steps - math.ceil(decay_ratio * num_steps))
    fraction = max(0, step - begin) / max(1, num_steps - begin)
    return peak * (min_lr_ratio + (1 - min_lr_ratio) * SHAPES[shape](fraction))


def schedule_params(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section without the keys that tell how wsd falls where the schedule is another."""
    idle = {"decay", "decay_ratio"} if section.get("schedule") in SCHEDULES[:-1] else set()
    return {key: value for key, value in section.items() if key not in idle}
