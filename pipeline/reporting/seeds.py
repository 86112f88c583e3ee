"""Runs that differ by seeds only, put together: mean, spread over seeds, and what is left of a gain.

The intervals between models (`statistics`) cover the choice of items for one training run. These cover the training
seed too: Student's t over the runs, and in quadrature with it the error over items, which all runs share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.reporting.collect import Variant
from pipeline.reporting.compare import Comparison, ModelResult
from pipeline.reporting.plain import plain
from pipeline.reporting.statistics.alike import are_alike
from pipeline.reporting.statistics.differences import Difference
from pipeline.reporting.statistics.intervals import Score
from pipeline.reporting.tables.labels import split_overrides, variant_labels


@dataclass(frozen=True)
class Spread:
    """Values of n runs: mean, standard deviation (of a sample), and the interval of the mean over seeds and items.

    `low` and `high` are infinite where there is one run.
    """

    mean: float
    deviation: float
    low: float
    high: float
    n: int

    @property
    def mark(self) -> str:
        """`higher` or `lower` (the interval excludes zero), or `within`."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "within"


@dataclass(frozen=True)
class SeedLine:
    """One kind of model over the seeds of its runs.

    Attributes:
        scores: benchmark -> over runs; gains: benchmark -> difference against the base, over runs; of those that all
            runs were measured by on the same items.
        models: labels of the runs' models.
    """

    label: str
    num_runs: int
    scores: dict[str, Spread]
    gains: dict[str, Spread]
    models: tuple[str, ...] = ()


def spread(values: Sequence[float], confidence: float, stderrs: Sequence[float] = ()) -> Spread:
    """Mean, standard deviation and interval of runs with different seeds on the same items.

    Half its width is sqrt((t * deviation)^2 / n + (z * stderr)^2): seeds vary from run to run; `stderrs`, each run's
    standard error over items, do not shrink with more runs, as all have the same items (their mean square is taken).

    Raises:
        ValueError: there are no runs.
    """
    from scipy import stats

    if not values:
        raise ValueError("found no runs; at least one is required")
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Spread(mean, math.nan, -math.inf, math.inf, 1)
    deviation = float(np.std(values, ddof=1))
    over_seeds = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * deviation / math.sqrt(n)
    over_items = (
        float(stats.norm.ppf((1 + confidence) / 2)) * math.sqrt(np.mean(np.square(stderrs))) if stderrs else 0.0
    )
    reach = math.hypot(over_seeds, over_items)
    return Spread(mean, deviation, mean - reach, mean + reach, n)


def excluded_at(values: Sequence[float], stderrs: Sequence[float], null: float) -> float:
    """The two-sided p-value of a mean over runs against `null`: 1 less the confidence at which the interval of `spread`
    just excludes it.

    Raises:
        ValueError: there are no runs.
    """
    if not np.isfinite([*values, *stderrs]).all():
        return 1.0

    def excludes(confidence: float) -> bool:
        found = spread(values, confidence, stderrs)
        return not found.low <= null <= found.high

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if excludes(middle) else (low, middle)
    return 1 - low


def by_settings(variants: Sequence[Variant]) -> dict[str, list[Variant]]:
    """Variants by their overrides without seeds; the key is what they have in common."""
    groups: dict[str, list[Variant]] = {}
    for variant in variants:
        kept = [part for part in split_overrides(variant.name) if not is_seed(part)]
        groups.setdefault(",".join(kept) or "default", []).append(variant)
    return groups


def seed_groups(variants: Sequence[Variant]) -> dict[str, list[Variant]]:
    """As `by_settings`, of those that there are several of."""
    return {name: members for name, members in by_settings(variants).items() if len(members) > 1}


def seed_lines(comparison: Comparison) -> list[SeedLine]:
    """Every row that at least two seeds trained anew, of every group of variants that differ by seeds only."""
    groups = seed_groups(comparison.collection.variants)
    labels = variant_labels(list(groups))
    lines = []
    for name, variants in groups.items():
        for row in dict.fromkeys(row.name for variant in variants for row in variant.rows):
            runs = _distinct(comparison, variants, row)
            if len(runs) > 1:
                label = row if len(groups) == 1 else f"{row} · {labels[name]}"
                lines.append(_line(label, runs, comparison.confidence))
    return lines


def seed_values(lines: Sequence[SeedLine]) -> list[dict[str, Any]]:
    """The same as plain JSON values."""

    def values(found: dict[str, Spread]) -> dict[str, Any]:
        return {name: plain(one, vars(one)) for name, one in sorted(found.items())}

    return [
        {
            "label": line.label,
            "num_runs": line.num_runs,
            "models": list(line.models),
            "scores": values(line.scores),
            "gains": values(line.gains),
        }
        for line in lines
    ]


def _distinct(comparison: Comparison, variants: Sequence[Variant], row: str) -> list[ModelResult]:
    """The lines of a row, each model once: seeds of later stages share the models of earlier ones."""
    found: dict[Path, ModelResult] = {}
    for variant in variants:
        line = comparison.line(variant.name, row)
        if line is not None:
            found.setdefault(line.row.model, line)
    return list(found.values())


def _line(label: str, runs: Sequence[ModelResult], confidence: float) -> SeedLine:
    each = [run.row.evaluations for run in runs]
    alike = {name for name in each[0] if are_alike(one[name] for one in each if name in one)}

    def over(found: Sequence[Mapping[str, Score | Difference]]) -> dict[str, Spread]:
        named = {name: [one[name] for one in found if name in one] for name in found[0] if name in alike}
        return {
            name: spread([one.value for one in ones], confidence, [one.stderr for one in ones])
            for name, ones in named.items()
        }

    scores, gains = over([run.scores for run in runs]), over([run.differences for run in runs])
    return SeedLine(label, len(runs), scores, gains, tuple(run.label for run in runs))


def is_seed(override: str) -> bool:
    """Whether an override gives a seed."""
    return override.partition("=")[0].lstrip("+").rpartition(".")[2] == "seed"
