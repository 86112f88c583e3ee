"""How far every model moved from its base, as a table."""

from __future__ import annotations

from pipeline.reporting.compare import Comparison
from pipeline.reporting.statistics.drift import ALL
from pipeline.reporting.statistics.power import detectable
from pipeline.reporting.tables.table import Column, Entry, Table, common_size, drift_entry, sized
from pipeline.reporting.tables.wording import MISSING, number, percent


def drift_table(comparison: Comparison) -> Table:
    """How far every model moved from its base on each kind of text, and how much more or less of it would show.

    Empty if it was not measured. All kinds together are a mean that their token counts weigh, so that stands only where
    there is but one.
    """
    lines = [line for line in comparison.lines if line.drift]
    keys = {
        (name, category): None
        for line in lines
        for name, found in line.drift.items()
        for category in (found if len(found) == 1 else found.keys() - {ALL})
    }
    titles = {b.name: b.title for b in comparison.benchmarks}
    columns, entries = [], []
    for name, category in sorted(keys):
        unit = comparison.units[name]
        found = [line.drift.get(name, {}).get(category) for line in lines]
        column = Column(titles[name], category, f"{unit.name} ↓", common_size([one.n for one in found if one]))
        columns.append(column)
        entries.append([sized(drift_entry(one, unit.digits), one.n if one else 0, column) for one in found])
    for name in sorted({name for name, _ in keys}):
        unit, found = comparison.units[name], [line.drift.get(name, {}).get(ALL) for line in lines]
        columns.append(Column(titles[name], "all: a change that would show", unit.name))
        shown = [MISSING if one is None else number(detectable(one, comparison.power), unit.digits) for one in found]
        entries.append([Entry(text) for text in shown])
    rows = tuple((line.label, tuple(column[i] for column in entries)) for i, line in enumerate(lines))
    interval = f"[{percent(comparison.confidence)} confidence interval; power {percent(comparison.power)}]"
    return Table(f"Drift from the base {interval}", tuple(columns), rows)
