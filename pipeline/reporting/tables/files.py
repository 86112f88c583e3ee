"""Tables as files: CSV for a program, LaTeX (booktabs) for a paper."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Sequence

from pipeline.reporting.tables.table import Column, Entry, Table, split
from pipeline.reporting.tables.wording import MISSING

_CELL = re.compile(r"(?P<value>.*?)(?: ± (?P<error>\S+))?(?: \((?P<note>[^()]*)\))?")
_BOUNDS = re.compile(r"\[(?P<low>[^,\s]+), (?P<high>[^,\s]+)\]")
_FIELDS = ("value", "error", "low", "high", "mark", "note")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "−": "$-$", "±": r"$\pm$", "·": r"$\cdot$",
    "×": r"$\times$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$", "←": r"$\leftarrow$",
    "–": "--", "≤": r"$\leq$", "≥": r"$\geq$", "\n": " ",
}  # fmt: skip


def table_files(titled: Iterable[tuple[str, Table]]) -> dict[str, str]:
    """File name -> text of every table that has rows, as CSV and as LaTeX, numbered in their order.

    Args:
        titled: each table with what its file is named after.
    """
    files: dict[str, str] = {}
    for number, (title, table) in enumerate(((title, table) for title, table in titled if table.rows), 1):
        name = f"{number:02d}-{_slug(title)}"
        files |= {f"{name}.csv": csv_text(table), f"{name}.tex": latex(table, name)}
    return files


def csv_text(table: Table) -> str:
    """One line a row; of each column what its cells have: value, error (± standard error), low and high (interval),
    mark, note. Numbers have an ASCII minus, a missing one is empty."""
    read = _as_text if table.has_texts else _parts
    parts = [[read(entries[i]) for _, entries in table.rows] for i in range(len(table.columns))]
    fields = [[f for f in _FIELDS if f == "value" or any(part[f] for part in column)] for column in parts]
    titled = [(_title(column), own) for column, own in zip(table.columns, fields, strict=True)]
    head = [title if field == "value" else f"{title} {field}" for title, own in titled for field in own]
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([table.rows_are, *head])
    for r, (label, _) in enumerate(table.rows):
        writer.writerow([label, *(column[r][f] for column, own in zip(parts, fields, strict=True) for f in own)])
    return written.getvalue()


def latex(table: Table, name: str) -> str:
    """A table environment for each part of at most six columns; bold is what holds after correction."""
    parts = split(table)
    labels = [name] if len(parts) == 1 else [f"{name}-{i}" for i in range(1, len(parts) + 1)]
    return "% \\usepackage{booktabs}\n" + "\n".join(map(_environment, parts, labels))


def _environment(table: Table, name: str) -> str:
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(table.caption)}}}",
        rf"\label{{tab:{name}}}",
        rf"\begin{{tabular}}{{{_alignment(table)}}}",
        r"\toprule",
        *_groups(table.groups),
        *_ended([_row([table.rows_are, *(column.title for column in table.columns)])]),
        *_ended([_row(["", *(column.subtitle for column in table.columns)])] if _has_subtitles(table.columns) else []),
        r"\midrule",
        *_ended([" & ".join([_label(label), *map(_cell, entries)]) for label, entries in table.rows]),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _groups(groups: Sequence[tuple[str, int]]) -> list[str]:
    """The row above the titles, with a rule below each group; none without groups."""
    if not any(group for group, _ in groups):
        return []
    cells = [rf"\multicolumn{{{span}}}{{c}}{{{_escaped(group)}}}" for group, span in groups]
    ends = list(itertools.accumulate((span for _, span in groups), initial=1))
    named = [span for (group, _), span in zip(groups, itertools.pairwise(ends), strict=True) if group]
    rules = [rf"\cmidrule(lr){{{before + 1}-{last}}}" for before, last in named]
    return [*_ended([" & ".join(["", *cells])]), "".join(rules)]


def _alignment(table: Table) -> str:
    """Numbers to the right; texts in columns of equal width that share the page."""
    num_columns = len(table.columns)
    if not table.has_texts:
        return "l" + "r" * num_columns
    return "".join([rf"p{{{0.9 / (num_columns + 1):.2f}\linewidth}}"] * (num_columns + 1))


def _has_subtitles(columns: Sequence[Column]) -> bool:
    return any(column.subtitle for column in columns)


def _ended(rows: Sequence[str]) -> list[str]:
    return [rf"{row} \\" for row in rows]


def _row(texts: Sequence[str]) -> str:
    return " & ".join(map(_escaped, texts))


def _cell(entry: Entry) -> str:
    text = _escaped(entry.text or entry.mark)
    interval = rf" {{\scriptsize {_escaped(entry.interval)}}}" if entry.interval else ""
    return (rf"\textbf{{{text}}}" if entry.holds else text) + interval


def _label(text: str) -> str:
    """The first cell of a row: a [ or * there would be read as an argument of the line break above."""
    return ("{}" if text.startswith(("[", "*")) else "") + _escaped(text)


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _parts(entry: Entry) -> dict[str, str]:
    cell, bounds = _CELL.fullmatch(entry.text), _BOUNDS.fullmatch(entry.interval)
    assert cell is not None
    found = {field: "" for field in _FIELDS} | {k: v or "" for k, v in cell.groupdict().items()} | {"mark": entry.mark}
    if bounds:
        found |= bounds.groupdict()
    elif entry.interval:
        found["note"] = " ".join(filter(None, (found["note"], entry.interval.strip("[]"))))
    return {key: "" if text == MISSING else text.replace("−", "-") for key, text in found.items()}


def _as_text(entry: Entry) -> dict[str, str]:
    return {field: "" for field in _FIELDS} | {"value": entry.text or entry.mark}


def _title(column: Column) -> str:
    name = ": ".join(filter(None, (column.group, column.title)))
    return f"{name} ({column.subtitle})" if column.subtitle else name


def _slug(title: str) -> str:
    short = title.partition(" [")[0].partition(", ")[0]
    return re.sub(r"[^a-z0-9]+", "-", short.lower()).strip("-")[:40].rstrip("-") or "table"
