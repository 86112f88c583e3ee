"""The paper's tables beside a run's numbers, cell by cell: sections of the report, and what a plan shows of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.reporting.compare import Comparison
from pipeline.reporting.pages.page import Section
from pipeline.reporting.paper.beside import Cell, Number, Pair, pairs
from pipeline.reporting.paper.figure import pareto_plot
from pipeline.reporting.paper.tables import PaperTable, asked_rows
from pipeline.reporting.plain import finite, plain
from pipeline.reporting.tables.table import Column, Entry, Table, common_size
from pipeline.reporting.tables.wording import MISSING, interval, number, percent

Asked = Mapping[str, Mapping[str, str | None]]
"""Table -> model of the run -> row of the table; null leaves a model out."""
DIGITS = 2
HOW = (
    "Ours minus the paper's takes the paper's number as it is printed, without an error of its own; its interval is "
    "ours, over items. Changes are from the model that each is compared with, ours paired by item. Where another "
    "measure stands in for the paper's, nothing is subtracted."
)


def paper_sections(comparison: Comparison, asked: Asked, directory: Path) -> list[Section]:
    """One section for each table that is asked for and that some model of the run has a row in."""
    found = [(table, rows, pairs(comparison, table, rows)) for table, rows in asked_rows(asked)]
    return [_section(comparison, table, shown, rows, directory) for table, rows, shown in found if shown]


def _section(
    comparison: Comparison, table: PaperTable, shown: Sequence[Pair], rows: Mapping[str, str], directory: Path
) -> Section:
    stand_in = [f"{column.name}: {_title(comparison, column.twin)}" for column in table.columns
                if any(c.ours and not c.ours.is_paired for p in shown for c in p.cells if c.column == column.name)
                and column.twin]  # fmt: skip
    is_measured = any(cell.ours for pair in shown for cell in pair.cells)
    sentences = [_verdict(table, shown, comparison.confidence), *([HOW] if is_measured else [])]
    sentences += [f"In place of the paper's measures stand {'; '.join(stand_in)}."] if stand_in else []
    plot = pareto_plot(comparison, table, rows, directory) if table.figure else None
    return Section(
        f"The paper's numbers: {table.title}", (*sentences, *table.notes), plot, _table(table, shown, comparison),
        True, True, {"table": table.name, "pairs": [_values(one) for one in shown]},
    )  # fmt: skip


def _verdict(table: PaperTable, shown: Sequence[Pair], confidence: float) -> str:
    where = f"{table.where} of the paper"
    cells = [(pair, cell) for pair in shown if not pair.reference for cell in pair.cells if cell.gap]
    if not any(cell.ours for pair in shown for cell in pair.cells):
        return f"{where}: this run has no measure of it and no stand-in, so the paper's numbers stand alone."
    if not cells:
        return f"{where}: this run has no measure of it as the paper has it, so only changes and stand-ins can be read."
    outside = [f"{pair.label}, {cell.column} ({_signed(cell.gap)})" for pair, cell in cells if not cell.is_within]
    told = f"{where}: {len(cells) - len(outside)} of {len(cells)} numbers are within our {percent(confidence)} interval"
    return f"{told} of the paper's." if not outside else f"{told}; outside are {'; '.join(outside)}."


def _table(table: PaperTable, shown: Sequence[Pair], comparison: Comparison) -> Table:
    cells = {c.name: [cell.ours for p in shown for cell in p.cells if cell.column == c.name] for c in table.columns}
    counts = {name: common_size([one.n for one in own if one and one.n is not None]) for name, own in cells.items()}
    columns = tuple(Column("", c.name, table.unit, counts[c.name]) for c in table.columns)
    rows = [row for pair in shown for row in _rows(pair, columns)]
    others = [name for name in table.rows if name not in {pair.row for pair in shown}]
    for name in others:
        entries = tuple(_plain(table.rows[name][c.name]) for c in table.columns)
        rows.append((f"paper: {name}", entries))
    interval = f"{percent(comparison.confidence)} confidence interval"
    return Table(f"{table.title}, {table.where}: the paper's beside ours [{interval}]", columns, tuple(rows))


def _rows(pair: Pair, columns: Sequence[Column]) -> Iterator[tuple[str, tuple[Entry, ...]]]:
    ours, theirs, signed = pair.label, pair.row, bool(pair.reference)
    if signed:
        ours, theirs = f"{ours} − {pair.reference}", f"{theirs} − {pair.reference_row}"
    yield f"{ours} · paper: {theirs}", tuple(_plain(cell.paper, signed) for cell in pair.cells)
    own = {
        "ours": tuple(_ours(cell, signed, column) for cell, column in zip(pair.cells, columns, strict=True)),
        "ours − paper": tuple(_gap(cell) for cell in pair.cells),
    }
    yield from (
        (f"{ours} · {what}", entries) for what, entries in own.items() if {e.text for e in entries} != {MISSING}
    )


def _plain(value: float | None, signed: bool = False) -> Entry:
    return Entry(MISSING if value is None else number(value, DIGITS, signed=signed))


def _ours(cell: Cell, signed: bool, column: Column) -> Entry:
    if cell.ours is None:
        return Entry(MISSING)
    text, n = number(cell.ours.value, DIGITS, signed=signed), cell.ours.n
    notes = [*([] if cell.ours.is_paired else ["stand-in"]), *([f"n={n:,}"] if n and column.n is None else [])]
    note = f" ({', '.join(notes)})" if notes else ""
    if signed:
        return Entry(text + note, "", interval(cell.ours, DIGITS))
    return Entry(f"{text} ± {number(cell.ours.stderr, DIGITS)}{note}")


def _gap(cell: Cell) -> Entry:
    gap = cell.gap
    return (
        Entry(MISSING)
        if gap is None
        else Entry(_signed(gap), "within" if cell.is_within else "", interval(gap, DIGITS))
    )


def _signed(value: Number | None) -> str:
    return MISSING if value is None else number(value.value, DIGITS, signed=True)


def _title(comparison: Comparison, benchmark: str) -> str:
    return next((b.title for b in comparison.benchmarks if b.name == benchmark), benchmark)


def _values(pair: Pair) -> dict[str, Any]:
    cells = {
        cell.column: {
            "paper": cell.paper,
            "ours": None if cell.ours is None else plain(cell.ours, vars(cell.ours)),
            "gap": None if cell.gap is None else finite(cell.gap.value),
        }
        for cell in pair.cells
    }
    return {"model": pair.label, "row": pair.row, "reference": pair.reference or None, "cells": cells}
