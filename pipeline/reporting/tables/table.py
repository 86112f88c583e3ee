"""Tables as data (strings in cells): `markdown` writes them for a terminal, the page renders them as HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.reporting.axes import drift_of_line
from pipeline.reporting.collect import Benchmark
from pipeline.reporting.compare import Comparison, ModelResult
from pipeline.reporting.seeds import SeedLine
from pipeline.reporting.statistics.differences import Difference
from pipeline.reporting.statistics.power import detectable, is_too_small
from pipeline.reporting.tables.wording import (
    MISSING,
    count,
    difference_parts,
    duration,
    interval,
    memory,
    number,
    percent,
    score_text,
)

GROUP_TITLES = {"domain": "Domain", "drift": "Drift", "general": "General", "retention": "Retention"}
PAGE_COLUMNS = 6


@dataclass(frozen=True)
class Column:
    """A column's group (the header above it), title, unit with direction, and number of items."""

    group: str
    title: str
    unit: str = ""
    n: int | None = None

    @property
    def subtitle(self) -> str:
        return ", ".join(part for part in (self.unit, f"n={self.n:,}" if self.n is not None else "") if part)


@dataclass(frozen=True)
class Entry:
    """One cell: its text and, for a difference, its mark (such as `better` or `within`) and interval.

    `holds`: it is more than chance after correction for the number of comparisons, and stands in bold.
    """

    text: str
    mark: str = ""
    interval: str = ""
    holds: bool = False


@dataclass(frozen=True)
class Table:
    """`rows_are` heads the first column, which names what a row is about. `has_texts`: its cells are sentences, which
    take several lines on the page, and one in Markdown."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]
    rows_are: str = "Model"
    has_texts: bool = False

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Group titles with the number of consecutive columns each spans."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans


def values_table(comparison: Comparison) -> Table:
    """Every model's score ± standard error on every benchmark."""

    def entry(line: ModelResult, b: Benchmark) -> Entry:
        return Entry(score_text(line.scores.get(b.name), comparison.units[b.name]))

    return _table(comparison, "Scores ± standard error", comparison.lines, entry)


def differences_table(comparison: Comparison) -> Table:
    """Every model minus the base of its variant, with the interval and the mark."""
    adjusted, alpha = comparison.corrected(), 1 - comparison.confidence

    def entry(line: ModelResult, b: Benchmark) -> Entry:
        unit = comparison.units[b.name]
        found = difference_entry(line.differences.get(b.name), unit.digits, unit.scale)
        return replace(found, holds=adjusted.get((line.label, b.name), 1.0) <= alpha)

    caption = f"Difference against the base [{percent(comparison.confidence)} confidence interval]"
    lines = [line for line in comparison.lines if line.gains is not None]
    return without_empty(_table(comparison, caption, lines, entry))


def detectable_table(comparison: Comparison) -> Table:
    """How large a change would have shown, where none did; empty if every comparison has an answer."""

    def entry(line: ModelResult, b: Benchmark) -> Entry:
        difference, unit = line.differences.get(b.name), comparison.units[b.name]
        if difference is None or not is_too_small(difference):
            return Entry(MISSING)
        return Entry(number(detectable(difference, comparison.power) * unit.scale, unit.digits))

    caption = f"Too small to tell: the change that would show, with a power of {percent(comparison.power)}"
    lines = [line for line in comparison.lines if line.gains is not None]
    return without_empty(_table(comparison, caption, lines, entry))


def seed_tables(comparison: Comparison, lines: Sequence[SeedLine]) -> list[Table]:
    """Scores over seeds, and differences against the base over seeds; none if no runs differ by seeds only."""
    if not lines:
        return []

    def scores(line: SeedLine, b: Benchmark) -> Entry:
        found, unit = line.scores.get(b.name), comparison.units[b.name]
        if found is None:
            return Entry(MISSING)
        values = (number(value * unit.scale, unit.digits) for value in (found.mean, found.deviation))
        return Entry(" ± ".join(values), "", f"{found.n} runs")

    def gains(line: SeedLine, b: Benchmark) -> Entry:
        found, unit = line.gains.get(b.name), comparison.units[b.name]
        if found is None:
            return Entry(MISSING)
        value = number(found.mean * unit.scale, unit.digits, signed=True)
        if not math.isfinite(found.low):
            return Entry(value)
        good = {"higher": unit.higher_is_better, "lower": not unit.higher_is_better}.get(found.mark)
        return Entry(
            value, "within" if good is None else "better" if good else "worse", interval(found, unit.digits, unit.scale)
        )

    columns = tuple(_column(comparison, b) for b in comparison.benchmarks)

    def table(caption: str, entry: Callable[[SeedLine, Benchmark], Entry]) -> Table:
        rows = tuple((one.label, tuple(entry(one, b) for b in comparison.benchmarks)) for one in lines)
        return Table(caption, columns, rows)

    how = f"[{percent(comparison.confidence)} interval over seeds and items]"
    return [
        table("Over seeds: mean ± standard deviation", scores),
        table(f"Over seeds: difference against the base {how}", gains),
    ]


def gains_table(comparison: Comparison) -> Table:
    """What every model gained over its base, summed up over each group; positive is better in every column."""
    lines = [(line, line.gains) for line in comparison.lines if line.gains is not None]
    unit = f"{lines[0][1].retention_unit}, mean of {_span([g.num_retention for _, g in lines])}" if lines else ""
    golds = f"bits/byte, mean of {_span([g.num_gold for _, g in lines])}" if lines else ""
    columns = (
        Column("", "Domain gain", "bits/byte"),
        Column("", "Drift ↓", "nats/token"),
        Column("", "General-text gain", "bits/byte"),
        Column("", "Beyond general shift", "bits/byte"),
        Column("", "Kept, mean change", unit),
        Column("", "Kept, gold answers", golds),
        Column("", "Kept", "measures worse"),
    )
    rows = []
    for line, gains in lines:
        domain, *others = (difference_entry(gain, 4) for gain in (gains.domain, gains.general, gains.beyond))
        kept = difference_entry(gains.retention, 2), difference_entry(gains.gold, 4)
        drift = drift_entry(drift_of_line(line), 4)
        rows.append((line.label, (domain, drift, *others, *kept, _num_worse(comparison, line))))
    caption = f"Gains over the base, positive is better [{percent(comparison.confidence)} confidence interval]"
    return without_empty(Table(caption, columns, tuple(rows)))


def drift_entry(difference: Difference | None, digits: int) -> Entry:
    """A divergence, which is never negative and always away: without signs and without a mark."""
    value, bounds = difference_parts(difference, digits)
    return Entry(value.removeprefix("+"), "", bounds.replace("+", ""))


def _num_worse(comparison: Comparison, line: ModelResult) -> Entry:
    marks = [line.differences[b.name].mark for b in comparison.kept(line)]
    return Entry(f"{marks.count('worse')} of {len(marks)}" if marks else MISSING)


def facts_table(comparison: Comparison) -> Table:
    """Size and cost of every model."""
    titles = ("Parameters", "New", "Trained", "Tokens", "Wall time", "Peak memory", "MFU (by 6ND)")
    rows = []
    for line in comparison.lines:
        facts, share = line.row.facts, line.row.facts.trainable_share
        texts = (
            count(facts.num_parameters),
            count(facts.num_new),
            MISSING if share is None else percent(share),
            count(facts.tokens),
            duration(facts.wall_time_s),
            memory(facts.peak_memory_bytes),
            _utilisation(facts.mfu, facts.mfu_6nd),
        )
        rows.append((line.label, tuple(Entry(text) for text in texts)))
    return Table("Models", tuple(Column("", title) for title in titles), tuple(rows))


def _utilisation(needed: float | None, six_nd: float | None) -> str:
    return MISSING if needed is None or six_nd is None else f"{percent(needed)} ({percent(six_nd)})"


def split(table: Table, num_columns: int = PAGE_COLUMNS) -> list[Table]:
    """The table in parts of about equal size with at most `num_columns` columns each."""
    num_parts = max(1, math.ceil(len(table.columns) / num_columns))
    size = math.ceil(len(table.columns) / num_parts)
    starts = range(0, len(table.columns), size) if size else [0]
    return [
        replace(
            table,
            caption=table.caption if start == 0 else f"{table.caption}, continued",
            columns=table.columns[start : start + size],
            rows=tuple((label, entries[start : start + size]) for label, entries in table.rows),
        )
        for start in starts
    ]


def _table(
    comparison: Comparison, caption: str, lines: Sequence[ModelResult], entry: Callable[[ModelResult, Benchmark], Entry]
) -> Table:
    columns = {b.name: _column(comparison, b) for b in comparison.benchmarks}

    def cell(line: ModelResult, b: Benchmark) -> Entry:
        return sized(entry(line, b), line.scores[b.name].n if b.name in line.scores else 0, columns[b.name])

    rows = [(line.label, tuple(cell(line, b) for b in comparison.benchmarks)) for line in lines]
    return Table(caption, tuple(columns.values()), tuple(rows) if columns else ())


def without_column(table: Table, title: str) -> Table:
    """The table without the columns of a title."""
    shown = [i for i, column in enumerate(table.columns) if column.title != title]
    rows = tuple((label, tuple(entries[i] for i in shown)) for label, entries in table.rows)
    return replace(table, columns=tuple(table.columns[i] for i in shown), rows=rows)


def without_empty(table: Table) -> Table:
    """The table without columns that say nothing about any model; without rows if none is left."""
    shown = [i for i in range(len(table.columns)) if any(entries[i].text != MISSING for _, entries in table.rows)]
    rows = tuple((label, tuple(entries[i] for i in shown)) for label, entries in table.rows)
    return Table(table.caption, tuple(table.columns[i] for i in shown), rows if shown else (), table.rows_are)


def difference_entry(difference: Difference | None, digits: int, scale: float = 1.0) -> Entry:
    value, bounds = difference_parts(difference, digits, scale)
    return Entry(value, difference.mark if difference else "", bounds)


def _column(comparison: Comparison, benchmark: Benchmark) -> Column:
    unit = comparison.units[benchmark.name]
    n = common_size([score.n for line in comparison.lines if (score := line.scores.get(benchmark.name))])
    arrow = "↑" if unit.higher_is_better else "↓"
    return Column(GROUP_TITLES[benchmark.group], benchmark.title, f"{unit.name} {arrow}", n)


def common_size(sizes: Sequence[int]) -> int | None:
    """The number of items that all models of a column have, for its head; None where each cell must tell its own."""
    return sizes[0] if len(set(sizes)) == 1 else None


def sized(entry: Entry, n: int, column: Column) -> Entry:
    """A cell with its number of items, unless the column's head has it."""
    return entry if column.n is not None or entry.text == MISSING else replace(entry, text=f"{entry.text} (n={n:,})")


def _span(counts: Sequence[int]) -> str:
    """How many measures each model's mean is over: one number, or the least and the most."""
    low, high = min(counts), max(counts)
    return f"{high}" if low == high else f"{low} to {high}"
