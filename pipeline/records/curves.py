"""`metrics.jsonl`: what a training stage writes down of its steps and validations, and the losses read off it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

METRICS = "metrics"
METRICS_FILE = f"{METRICS}.jsonl"


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, from 1: `tokens` and `samples` so far, `labels` of this step, `loss` in nats per label, the
    mean of each of its `penalties`, `grad_norm` before clipping, and why it was `skipped`, if it was.
    """

    step: int
    tokens: int
    samples: int
    labels: int
    loss: float
    penalties: Mapping[str, float]
    lr: float
    grad_norm: float
    skipped: str | None
    tokens_per_s: float

    def to_json(self) -> dict[str, Any]:
        """Plain data, without what is None or not finite: JSON has no nan."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        known |= {f"penalty/{name}": value for name, value in known.pop("penalties").items()}
        return {name: value for name, value in known.items() if isinstance(value, str) or math.isfinite(value)}


@dataclass(frozen=True)
class ValidationRecord:
    """A validation after a step: nats per label of each source, and over all labels."""

    step: int
    tokens: int
    by_source: Mapping[str, float]
    val_loss: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        sources = {f"val/{source}": loss for source, loss in self.by_source.items()}
        return {"step": self.step, "tokens": self.tokens, **sources, "val_loss": self.val_loss}


@dataclass(frozen=True)
class Curve:
    """Losses in nats per token over trained tokens: (T,) at training steps, (V,) at validations."""

    tokens: NDArray[np.float64] = field(repr=False)
    loss: NDArray[np.float64] = field(repr=False)
    val_tokens: NDArray[np.float64] = field(repr=False)
    val_loss: NDArray[np.float64] = field(repr=False)


def read_curve(directory: Path) -> Curve:
    """The losses a training stage logged. A step logged twice, before and after a resume, counts once (the later).

    Raises:
        ValueError: there is no such file, or a line of it is no record.
    """
    path = directory / METRICS_FILE
    if not path.is_file():
        raise ValueError(f"the artifact {directory} has no {METRICS_FILE}; rerun the stage that writes it")
    points: dict[str, dict[int, tuple[float, float]]] = {"loss": {}, "val_loss": {}}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line) if line.strip() else {}
            for name in points.keys() & record.keys():
                points[name][int(record["step"])] = (float(record["tokens"]), float(record[name]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: line {number} is not a record of step, tokens and a loss: {error!r}") from error
    tables = [np.array([found[step] for step in sorted(found)], float).reshape(-1, 2) for found in points.values()]
    return Curve(*(column for table in tables for column in table.T))
