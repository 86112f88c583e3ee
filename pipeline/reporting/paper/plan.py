"""What a plan shows of the paper's tables: the numbers that a run will stand beside. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipeline.reporting.paper.tables import PaperTable, asked_rows


def paper_lines(asked: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    """The rows of the paper that models of the run stand beside, each table with its notes."""
    return [line for table, rows in asked_rows(asked) if rows for line in _lines(table, rows)]


def _lines(table: PaperTable, rows: Mapping[str, str]) -> Iterator[str]:
    yield f"paper: {table.title} ({table.where}), {table.unit}"
    columns = [column.name for column in table.columns]
    names = [name for name in columns if any(table.rows[row][name] is not None for row in rows.values())]
    labels = [f"{model}: {row}" for model, row in rows.items()]
    width, first = [max(len(name), 5) for name in names], max(map(len, labels))
    yield "  ".join(["  " + " " * first, *(name.rjust(w) for name, w in zip(names, width, strict=True))])
    for label, row in zip(labels, rows.values(), strict=True):
        values = (_text(table.rows[row][name]).rjust(w) for name, w in zip(names, width, strict=True))
        yield "  ".join(["  " + label.ljust(first), *values])
    ours = [column.name for column in table.columns if not (column.benchmark or column.mean)]
    if ours:
        yield f"  not measured here: {', '.join(ours)}"
    yield from (f"  note: {note}" for note in table.notes)


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
