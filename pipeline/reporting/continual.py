"""Chains of tasks in the lineage of a report: the score matrix of each, and what it says.

A chain ends with a model that learned a task and that no other learned a task after; its tasks are those of the models
that it came from. The model before the first task gives row 0. All models of a report answer a task's items together:
a bootstrap draw is one choice of items for all of them, and choices for different tasks are independent.
"""

from __future__ import annotations

import itertools
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.records.items import Floats
from pipeline.reporting.collect import read_manifest
from pipeline.reporting.compare import Comparison, ModelResult
from pipeline.reporting.seeds import spread
from pipeline.reporting.statistics.alike import answered
from pipeline.reporting.statistics.continual import MEASURES, measured, with_unseen
from pipeline.reporting.statistics.differences import percentiles
from pipeline.reporting.statistics.frontier import shared_draws
from pipeline.reporting.tables.wording import Unit


@dataclass(frozen=True)
class Estimate:
    """A measure with its interval over items."""

    value: float
    low: float
    high: float
    draws: Floats = field(repr=False, compare=False)

    def mark(self, name: str) -> str:
        """Whether the interval of a change excludes zero: better, worse, or within; nothing of a score."""
        measure = MEASURES[name]
        if not measure.is_change:
            return ""
        above, below = ("worse", "better") if measure.is_loss else ("better", "worse")
        return above if self.low > 0 else below if self.high < 0 else "within"


@dataclass(frozen=True)
class Chain:
    """A sequence of tasks.

    Attributes:
        label: of the chain, and `titles` of its tasks.
        models: T + 1: before any task, and after each.
        scores: [T + 1, T], in the tasks' own unit; `draws`: [B, T + 1, T] of them.
        answered: what tells apart the items of each task that the last model answered.
        unit: of all tasks; None where they have different ones, so that no mean over them says anything.
        measures: those of `statistics.continual`, larger is better but for forgetting; none without a unit.
    """

    label: str
    tasks: tuple[str, ...]
    titles: tuple[str, ...]
    answered: tuple[str, ...]
    models: tuple[ModelResult, ...]
    scores: Floats
    draws: Floats = field(repr=False)
    unit: Unit | None
    measures: Mapping[str, Estimate]


@dataclass(frozen=True)
class Orders:
    """Chains of the same tasks learned in the same way in different orders, and the mean of each measure over them.

    An interval's half width is that of Student's t over the orders and, in quadrature, of the mean over items.
    """

    labels: tuple[str, ...]
    measures: Mapping[str, Estimate]


def chains(comparison: Comparison, seed: int) -> list[Chain]:
    """Every chain of the report's models; `seed`: of the draws."""
    found = _sequences(comparison)
    scores = _Scores(comparison, [line for models in found for line in models], seed)
    prefixes = [_name(models) for models in found]
    unique = [
        name if prefixes.count(name) == 1 else models[-1].label for name, models in zip(prefixes, found, strict=True)
    ]
    return [_chain(label, models, scores, comparison) for label, models in zip(unique, found, strict=True)]


def over_orders(found: Sequence[Chain], confidence: float) -> list[Orders]:
    """The chains that differ in the order of their tasks alone, where there are several."""
    groups: dict[str, list[Chain]] = {}
    for chain in found:
        if chain.measures:
            groups.setdefault(_recipe(chain), []).append(chain)
    return [_mean(group, confidence) for group in groups.values() if len({chain.tasks for chain in group}) > 1]


def _mean(group: Sequence[Chain], confidence: float) -> Orders:
    measures = {}
    for name in group[0].measures:
        orders = spread([chain.measures[name].value for chain in group], confidence)
        draws = np.mean([chain.measures[name].draws for chain in group], axis=0)
        mean, (low, high) = orders.mean, percentiles(draws, confidence)
        below, above = math.hypot(mean - low, mean - orders.low), math.hypot(high - mean, orders.high - mean)
        measures[name] = Estimate(mean, mean - below, mean + above, draws)
    return Orders(tuple(chain.label for chain in group), measures)


def _sequences(comparison: Comparison) -> list[list[ModelResult]]:
    """The models of every chain, the one before its first task first."""
    paths = {line.label: _path(comparison, line) for line in comparison.lines if line.row.task is not None}
    above = {line.label for path in paths.values() for line in path[:-1]}
    return [path for label, path in paths.items() if label not in above]


def _path(comparison: Comparison, line: ModelResult) -> list[ModelResult]:
    """From the model before the first task to this one, those between tasks left out."""
    path, here = [line], line
    while True:
        name = next(iter(here.row.parents.values()), None)
        parent = None if name is None else comparison.line(here.variants[0], name)
        if parent is None:
            break
        here = parent
        if here.row.task is not None:
            path.insert(0, here)
    first = next(iter(path[0].row.parents.values()), None)
    before = None if first is None else comparison.line(path[0].variants[0], first)
    return [before or path[0], *path]


class _Scores:
    """Scores of all models on each task's items, and on the same draws of them."""

    def __init__(self, comparison: Comparison, lines: Sequence[ModelResult], seed: int) -> None:
        self.values: dict[Path, float] = {}  # by the directory of an evaluation: models may share one
        self.draws: dict[Path, Floats] = {}
        self.num_bootstrap = comparison.num_bootstrap
        tasks = dict.fromkeys(line.row.task for line in lines if line.row.task is not None)
        for task in tasks:
            own = {line.label for line in lines}
            for alike in comparison.by_items(task).values():
                if having := {line.row.directories[task]: line for line in alike if line.label in own}:
                    self._add(task, having, seed)

    def _add(self, task: str, having: Mapping[Path, ModelResult], seed: int) -> None:
        """Those of models that answered the same items of a task."""
        models = [line.row.evaluations[task] for line in having.values()]
        stream = f"task {task}"
        values, draws = shared_draws(models, num_bootstrap=self.num_bootstrap, seed=seed, stream=stream)
        draws = with_unseen(models, draws, np.random.default_rng([seed, zlib.crc32(stream.encode())]))
        for i, place in enumerate(having):
            self.values[place], self.draws[place] = float(values[i]), draws[:, i]

    def matrix(self, models: Sequence[ModelResult], tasks: Sequence[str]) -> tuple[Floats, Floats]:
        """[T + 1, T] scores and [B, T + 1, T] draws of them."""
        scores = np.full((len(models), len(tasks)), np.nan)
        draws = np.full((self.num_bootstrap, *scores.shape), np.nan)
        for t, line in enumerate(models):
            for i, task in enumerate(tasks):
                if task in line.row.evaluations:
                    place = line.row.directories[task]
                    scores[t, i], draws[:, t, i] = self.values[place], self.draws[place]
        return scores, draws


def _chain(label: str, models: Sequence[ModelResult], scores: _Scores, comparison: Comparison) -> Chain:
    tasks = tuple(str(line.row.task) for line in models[1:])
    titles = {b.name: b.title for b in comparison.benchmarks}
    found, draws = scores.matrix(models, tasks)
    units = {comparison.units[task] for task in tasks}
    unit = units.pop() if len(units) == 1 else None
    measures = _measures(found, draws, unit, comparison.confidence) if unit else {}
    evaluations = models[-1].row.evaluations
    items = tuple(answered(evaluations[task]) if task in evaluations else "" for task in tasks)
    named = tuple(titles[task] for task in tasks)
    return Chain(label, tasks, named, items, tuple(models), found, draws, unit, measures)


def _measures(scores: Floats, draws: Floats, unit: Unit, confidence: float) -> dict[str, Estimate]:
    """In the unit's own direction for scores; a change is positive where it is better, forgetting where it is worse."""
    sign = 1.0 if unit.higher_is_better else -1.0
    values, samples = measured(sign * scores), measured(sign * draws)
    turned = {name: 1.0 if MEASURES[name].is_change else sign for name in values}
    return {
        name: estimated(turned[name] * float(values[name]), turned[name] * samples[name], confidence)
        for name in values
        if np.isfinite(values[name])
    }


def estimated(value: float, draws: Floats, confidence: float) -> Estimate:
    """A value and the percentile interval of (B,) draws, which contains it."""
    low, high = percentiles(draws, confidence)
    return Estimate(value, min(low, value), max(high, value), draws)


def _name(models: Sequence[ModelResult]) -> str:
    """What the names of a chain's models begin with; of one whose names have nothing in common that of its last."""
    names = [line.name.split("-") for line in models[1:]]
    alike = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*(name[:-1] for name in names), strict=False))
    return "-".join(parts[0] for parts in alike) or models[-1].name


def _recipe(chain: Chain) -> str:
    """How each task was learned and on what it was measured, as text: equal for chains that differ in the order of
    their tasks alone."""
    learned = zip(chain.tasks, chain.models[1:], strict=True)
    steps = {task: read_manifest(line.row.model).get("params") for task, line in learned}
    items = dict(zip(chain.tasks, chain.answered, strict=True))
    return json.dumps([steps, items, chain.models[0].row.fingerprint], sort_keys=True)
