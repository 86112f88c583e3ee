"""How small a change each task would show, by its score and by the loss of its right answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from pipeline.reporting.collect import Benchmark, gold_name
from pipeline.reporting.compare import KEPT_GROUPS, Comparison, ModelResult
from pipeline.reporting.statistics.power import detectable, deviation
from pipeline.reporting.tables.table import Column, Entry, Table
from pipeline.reporting.tables.wording import MISSING, Unit, number, percent


@dataclass(frozen=True)
class Shown:
    """The smallest change that would show in a measure, in its unit, and the base's standard deviation over items."""

    change: float
    deviation: float

    @property
    def relative(self) -> float:
        """The change in standard deviations; nan where the base's items do not differ, or the change is not known."""
        return self.change / self.deviation if self.deviation > 0 else math.nan


@dataclass(frozen=True)
class Power:
    """What one comparison of a model with its base would show on a task, or on the mean of tasks.

    Attributes:
        unit: of the score.
        score, gold: by the score of the task, and by the loss of its right answers.
    """

    title: str
    model: str
    unit: Unit
    score: Shown
    gold: Shown

    @property
    def ratio(self) -> float:
        """How many times smaller a change the right answers show, both in standard deviations."""
        return self.score.relative / self.gold.relative if self.gold.relative > 0 else math.nan


def powers(comparison: Comparison) -> list[Power]:
    """Of every task with losses of right answers, and of every model that differs from its base on them."""
    named = {b.name: b for b in comparison.benchmarks}
    tasks = [named[b.gold_of] for b in comparison.benchmarks if b.gold_of in named]
    lines = [line for line in comparison.lines if line.gains is not None]
    single = [_power(comparison, line, task) for task in tasks for line in lines if _is_shared(line, task)]
    means = [mean for line in lines for mean in _mean(comparison, line, tasks)]
    return [one for one in (*single, *means) if math.isfinite(one.gold.relative)]


def power_table(comparison: Comparison, found: Sequence[Power]) -> Table:
    """One row for each, with how many times smaller a change the right answers show."""
    columns = (
        Column("Score", "Change", "in its unit"),
        Column("Score", "Change", "SD of the base"),
        Column("Gold answer", "Change", "bits/byte"),
        Column("Gold answer", "Change", "SD of the base"),
        Column("", "Smaller by"),
    )
    caption = f"The smallest change that would show, with a power of {percent(comparison.power)}"
    rows = tuple((f"{one.title} · {one.model}", tuple(Entry(text) for text in _texts(one))) for one in found)
    return Table(caption, columns, rows, "Task")


def _texts(power: Power) -> tuple[str, ...]:
    own = number(power.score.change * power.unit.scale, power.unit.digits)
    return (
        own if own == MISSING else f"{own} {power.unit.of_changes}",
        number(power.score.relative, 3),
        number(power.gold.change, 4),
        number(power.gold.relative, 3),
        f"{number(power.ratio, 1)} times" if math.isfinite(power.ratio) else MISSING,
    )


def _is_shared(line: ModelResult, task: Benchmark) -> bool:
    return {task.name, gold_name(task.name)} <= line.differences.keys()


def _power(comparison: Comparison, line: ModelResult, task: Benchmark) -> Power:
    score, gold = (
        Shown(detectable(line.differences[name], comparison.power), _deviation(comparison, line, name))
        for name in (task.name, gold_name(task.name))
    )
    return Power(task.title, line.label, comparison.units[task.name], score, gold)


def _mean(comparison: Comparison, line: ModelResult, tasks: Sequence[Benchmark]) -> Iterator[Power]:
    """Of the mean over what was kept, if the same tasks have both; its deviation is the mean of theirs."""
    gains = line.gains
    own = [task.name for task in tasks if task.group in KEPT_GROUPS and _is_shared(line, task)]
    if gains is None or gains.gold is None or gains.retention is None:
        return
    units = {comparison.units[name] for name in own}
    if not len(own) == gains.num_retention == gains.num_gold > 1 or {unit.name for unit in units} != {"%"}:
        return
    (unit,) = units
    score, gold = (
        Shown(detectable(change, comparison.power) / scale, fmean(_deviation(comparison, line, name) for name in names))
        for change, scale, names in (
            (gains.retention, unit.scale, own),
            (gains.gold, 1.0, list(map(gold_name, own))),
        )
    )
    yield Power(f"Mean of {len(own)}", line.label, unit, score, gold)


def _deviation(comparison: Comparison, line: ModelResult, name: str) -> float:
    base = comparison.reference(line)
    return math.nan if base is None or name not in base.scores else deviation(base.scores[name])
