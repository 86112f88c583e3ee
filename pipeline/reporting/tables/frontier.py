"""Who drifted least for the same gain, as a table."""

from __future__ import annotations

from pipeline.reporting.axes import drift_of_line
from pipeline.reporting.compare import Comparison
from pipeline.reporting.frontier import Frontier
from pipeline.reporting.statistics.differences import Difference
from pipeline.reporting.statistics.frontier import Level
from pipeline.reporting.tables.table import Column, Entry, Table, difference_entry, drift_entry, without_empty
from pipeline.reporting.tables.wording import MISSING, count, difference_parts, duration, memory, number, percent

NATS = "nats/token ↓"
SCALES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1.0, ""))
GAP_MARKS = {True: "worse", False: "within"}


def frontier_table(frontier: Frontier, confidence: float) -> Table:
    """One row a gain: the drift of each method, which is the least, and how far the next is behind it."""
    columns = [Column("Drift", method.label, NATS) for method in frontier.methods]
    columns += [Column("", "Least"), Column("", "The next drifted more by", "nats/token")]
    rows = tuple(
        (f"{level.gain:g} bits/byte", tuple(_entries(frontier, level, confidence))) for level in frontier.levels
    )
    return Table(f"Drift at equal gain [{percent(confidence)} confidence interval]", tuple(columns), rows, "Gain")


def methods_table(comparison: Comparison, frontier: Frontier, title: str) -> Table:
    """One row a method, at the rate of its largest gain: gain, drift, what was kept, and what it cost to train."""
    rows = []
    for method in sorted(frontier.methods, key=lambda one: -one.largest.gain):
        line = method.lines[method.points.index(method.largest)]
        gains, facts = line.gains, line.row.facts
        entries = (
            Entry(method.text_of(method.largest)),
            difference_entry(gains.domain if gains else None, 4),
            drift_entry(drift_of_line(line), 4),
            difference_entry(gains.general if gains else None, 4),
            difference_entry(gains.gold if gains else None, 4),
            Entry(count(facts.num_trainable)),
            Entry(count(facts.num_parameters)),
            Entry(count(facts.num_active)),
            Entry(count(facts.tokens)),
            Entry(_flops(facts.flops_per_token)),
            Entry(_flops(facts.flops_per_token and facts.tokens and facts.flops_per_token * facts.tokens)),
            Entry(MISSING if facts.tokens_per_s is None else number(facts.tokens_per_s, 0)),
            Entry(memory(facts.peak_memory_bytes)),
            Entry(duration(facts.wall_time_s)),
        )
        rows.append((method.label, entries))
    columns = (
        Column("", "Rate"), Column("", "Domain gain", "bits/byte"), Column("", "Drift", NATS),
        Column("", "General-text gain", "bits/byte"), Column("", "Kept, gold answers", "bits/byte"),
        Column("", "Trained", "parameters"),
        Column("", "Model", "parameters"), Column("", "Active", "parameters a token"), Column("", "Tokens"),
        Column("", "FLOPs a token", "training"), Column("", "FLOPs", "training"), Column("", "Tokens/s", "training"),
        Column("", "Peak memory", "training"), Column("", "Time", "training"),
    )  # fmt: skip
    caption = f"Methods {title}, each at its best rate [{percent(comparison.confidence)} confidence interval]"
    return without_empty(Table(caption, columns, tuple(rows), "Method"))


def _flops(flops: int | None) -> str:
    """14.7 TFLOP, as people write it."""
    if not flops:
        return MISSING
    scale, name = next((at for at in SCALES if flops >= at[0]), SCALES[-1])
    return f"{number(flops / scale, 1)} {name}FLOP"


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
