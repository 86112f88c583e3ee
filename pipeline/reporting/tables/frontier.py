"""Who drifted least for the same gain, as a table."""

from __future__ import annotations

from pipeline.reporting.frontier import Frontier
from pipeline.reporting.statistics.differences import Difference
from pipeline.reporting.statistics.frontier import Level
from pipeline.reporting.tables.table import Column, Entry, Table
from pipeline.reporting.tables.wording import difference_parts, number, percent

NATS = "nats/token ↓"
GAP_MARKS = {True: "worse", False: "within"}


def frontier_table(frontier: Frontier, confidence: float) -> Table:
    """One row a gain: the drift of each method, which is the least, and how far the next is behind it."""
    columns = [Column("Drift", method.label, NATS) for method in frontier.methods]
    columns += [Column("", "Least"), Column("", "The next drifted more by", "nats/token")]
    rows = tuple(
        (f"{level.gain:g} bits/byte", tuple(_entries(frontier, level, confidence))) for level in frontier.levels
    )
    return Table(f"Drift at equal gain [{percent(confidence)} confidence interval]", tuple(columns), rows, "Gain")


def _entries(frontier: Frontier, level: Level, confidence: float) -> list[Entry]:
    entries = []
    for method in frontier.methods:
        drift = level.drifts[method.label]
        outside = "not reached" if level.gain > method.curve[-1].gain else "starts higher"
        entries.append(Entry(outside) if drift is None else _drift(drift))
    behind = level.behind[level.next]
    value, interval = difference_parts(behind, 4)
    holds = level.adjusted[level.next] <= 1 - confidence
    gap = Entry(f"{value} ({level.next})", GAP_MARKS[behind.low > 0], interval, holds)
    return [*entries, Entry(level.least), gap]


def _drift(drift: Difference) -> Entry:
    _, interval = difference_parts(drift, 4)
    return Entry(number(drift.value, 4), "", interval.replace("+", ""))
