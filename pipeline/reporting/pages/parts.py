"""What lies inside a benchmark's score: its categories and its parts, each with its own standard error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.records.items import KL_NATS
from pipeline.reporting.collect import Benchmark
from pipeline.reporting.compare import Comparison
from pipeline.reporting.pages.page import Section
from pipeline.reporting.plain import plain
from pipeline.reporting.statistics.drift import ALL
from pipeline.reporting.statistics.intervals import Items, Score, ratio
from pipeline.reporting.tables.table import Column, Entry, Table
from pipeline.reporting.tables.wording import score_text

WHOLE = "score"
MAX_PARTS = 12
STDERR = "_stderr"
"""Ends the name of a further number that is the standard error of another."""

Breakdown = dict[str, dict[str, Score]]
"""category (the whole first, under `all`) -> part (the score itself first) -> its value."""


def part_sections(comparison: Comparison) -> list[Section]:
    """One section per benchmark that has categories or parts; those of a drift have a table of their own."""
    sections = []
    for benchmark in comparison.benchmarks:
        found = {
            line.label: line.row.evaluations[benchmark.name]
            for line in comparison.lines
            if benchmark.name in line.row.evaluations and line.row.evaluations[benchmark.name].metric != KL_NATS
        }
        if any(any(items.categories) or items.parts or items.also for items in found.values()):
            broken = {label: breakdown(items) for label, items in found.items()}
            sections.append(_section(benchmark, broken, comparison))
    return sections


def breakdown(items: Items) -> Breakdown:
    """Every category and part as a ratio over its items, those that no item adds to left out.

    Numbers that are no ratios stand with the whole; their standard error is the number of that name and `_stderr`, if
    there is one. A part of the same name, which is a ratio over the items, has its own.
    """
    found: Breakdown = {}
    for category, mask in _masks(items):
        scores = {
            name: ratio(numerators[mask], denominators[mask])
            for name, (numerators, denominators) in _columns(items)
            if denominators[mask].sum() > 0
        }
        if scores:
            found[category] = scores
    for name, value in items.also.items():
        if name not in found[ALL] and name.removesuffix(STDERR) not in items.also.keys() - {name}:
            found[ALL][name] = Score(value, items.also.get(f"{name}{STDERR}", math.nan), len(items.ids))
    return found


def _section(benchmark: Benchmark, broken: dict[str, Breakdown], comparison: Comparison) -> Section:
    unit = comparison.units[benchmark.name]
    names = [name for one in broken.values() for scores in one.values() for name in scores]
    parts = list(dict.fromkeys(names))[: MAX_PARTS + 1]
    columns = (*(Column("", part, unit.name if part == WHOLE else "") for part in parts), Column("", "Items"))
    rows = []
    for label, categories in broken.items():
        for category, scores in categories.items():
            entries = [Entry(score_text(scores.get(part), unit)) for part in parts]
            n = max(found.n for found in scores.values())
            rows.append((f"{label} · {category}", (*entries, Entry(f"{n:,}"))))
    table = Table(f"{benchmark.title} in parts, ± standard error", columns, tuple(rows))
    values = {"benchmark": benchmark.name, "models": {label: _values(one) for label, one in broken.items()}}
    sentences = (benchmark.note,) if benchmark.note else ()
    return Section(f"Inside {benchmark.title}", sentences, None, table, True, True, values)


def _masks(items: Items) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    yield ALL, np.ones(len(items.ids), dtype=bool)
    names = sorted({name for name in items.categories if name})
    if len(names) > 1:
        categories = np.array(items.categories)
        yield from ((name, categories == name) for name in names)


def _columns(items: Items) -> Iterator[tuple[str, tuple[Any, Any]]]:
    yield WHOLE, (items.numerators, items.denominators)
    yield from items.parts.items()


def _values(broken: Breakdown) -> dict[str, Any]:
    return {
        category: {part: plain(s, ("value", "stderr", "n")) for part, s in scores.items()}
        for category, scores in broken.items()
    }
