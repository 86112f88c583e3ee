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
TRACKED, OF_BASE = "track/", "base/"
"""What the names of measures begin with, of a run's weights and of its base."""


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
    """A validation after a step: nats per label of each source, and over all labels.

    `routers`: what is measured beside of a mixture of experts, by name.
    """

    step: int
    tokens: int
    by_source: Mapping[str, float]
    val_loss: float
    routers: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        named: dict[str, Any] = {f"val/{source}": loss for source, loss in self.by_source.items()}
        named |= {f"router/{name}": value for name, value in self.routers.items()}
        return {"step": self.step, "tokens": self.tokens, **named, "val_loss": self.val_loss}


@dataclass(frozen=True)
class TrackRecord:
    """Measures of the weights after a step, and those of the base among them that are not 0 for it by their nature."""

    step: int
    tokens: int
    values: Mapping[str, float]
    base: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain data, without what is not finite."""
        named = {f"{TRACKED}{name}": value for name, value in self.values.items()}
        named |= {f"{OF_BASE}{name}": value for name, value in self.base.items()}
        known = {name: value for name, value in named.items() if math.isfinite(value)}
        return {"step": self.step, "tokens": self.tokens, **known}


@dataclass(frozen=True)
class Tracked:
    """Measures along a run, by name: (K,) each, nan where there is none, after `steps` (K,); and those of the base."""

    steps: NDArray[np.int64] = field(repr=False)
    values: Mapping[str, NDArray[np.float64]] = field(repr=False)
    base: Mapping[str, float]


@dataclass(frozen=True)
class Curve:
    """Losses in nats per token over trained tokens: (T,) at training steps, (V,) at validations; what is tracked."""

    tokens: NDArray[np.float64] = field(repr=False)
    loss: NDArray[np.float64] = field(repr=False)
    val_tokens: NDArray[np.float64] = field(repr=False)
    val_loss: NDArray[np.float64] = field(repr=False)
    tracked: Tracked | None = None


def read_curve(directory: Path) -> Curve:
    """The losses a training stage logged. A step logged twice, before and after a resume, counts once (the later).

    Raises:
        ValueError: there is no such file, or a line of it is no record.
    """
    path = directory / METRICS_FILE
    if not path.is_file():
        raise ValueError(f"the artifact {directory} has no {METRICS_FILE}; rerun the stage that writes it")
    points: dict[str, dict[int, tuple[float, float]]] = {"loss": {}, "val_loss": {}}
    tracked: dict[int, Mapping[str, float]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line) if line.strip() else {}
            for name in points.keys() & record.keys():
                points[name][int(record["step"])] = (float(record["tokens"]), float(record[name]))
            if any(name.startswith(TRACKED) for name in record):
                tracked[int(record["step"])] = record
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: line {number} is not a record of step, tokens and a loss: {error!r}") from error
    tables = [np.array([found[step] for step in sorted(found)], float).reshape(-1, 2) for found in points.values()]
    (tokens, loss), (val_tokens, val_loss) = (table.T for table in tables)
    return Curve(tokens, loss, val_tokens, val_loss, _tracked(tracked) if tracked else None)


def _tracked(records: Mapping[int, Mapping[str, float]]) -> Tracked:
    steps = sorted(records)

    def named(start: str) -> list[str]:
        return list(dict.fromkeys(name for step in steps for name in records[step] if name.startswith(start)))

    values = {
        name.removeprefix(TRACKED): np.array([records[step].get(name, math.nan) for step in steps], float)
        for name in named(TRACKED)
    }
    base = {name.removeprefix(OF_BASE): float(records[steps[-1]][name]) for name in named(OF_BASE)}
    return Tracked(np.array(steps), values, base)
