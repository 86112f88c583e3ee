"""The Markdown form of tables, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.reporting.tables.table import Entry, Table

TERMINAL_WIDTH = 118


def markdown(table: Table, width: int = TERMINAL_WIDTH) -> str:
    """The table in as many aligned Markdown tables as keep every line within `width` characters, groups kept whole; one
    of sentences as it is."""
    if table.has_texts:
        return _texts(table)
    names = [table.rows_are, "", *(label for label, _ in table.rows)]
    columns = [
        [column.title, column.subtitle, *(_plain(entries[i]) for _, entries in table.rows)]
        for i, column in enumerate(table.columns)
    ]
    room = width - _width(names) - 1
    parts = []
    for indices in _chunks([_width(cells) for cells in columns], [column.group for column in table.columns], room):
        groups = ", ".join(dict.fromkeys(table.columns[i].group for i in indices if table.columns[i].group))
        text = _markdown_chunk([names, *(columns[i] for i in indices)])
        parts.append(f"**{groups}**\n\n{text}" if groups else text)
    return "\n\n".join(parts)


def _texts(table: Table) -> str:
    """A line a row, without padding."""
    head = [table.rows_are, *(column.title for column in table.columns)]
    rows = [[label, *map(_plain, entries)] for label, entries in table.rows]
    lines = [" | ".join(map(_escape, cells)) for cells in (head, *rows)]
    lines.insert(1, " | ".join([":--"] * len(head)))
    return "\n".join(f"| {line} |" for line in lines)


def _chunks(widths: Sequence[int], groups: Sequence[str], room: int) -> list[list[int]]:
    """Column indices in runs that fit; a group that does not fit whole beside the others starts a run of its own."""
    chunks: list[list[int]] = [[]]
    used = 0
    for i, width in enumerate(widths):
        starts = i == 0 or groups[i] != groups[i - 1]
        needed = (
            sum(w for w, group in zip(widths[i:], groups[i:], strict=True) if group == groups[i]) if starts else width
        )
        if chunks[-1] and used + needed > room:
            chunks.append([])
            used = 0
        chunks[-1].append(i)
        used += width
    return chunks


def _width(cells: Sequence[str]) -> int:
    return max(map(len, cells)) + 3  # a separator and two spaces


def _markdown_chunk(columns: list[list[str]]) -> str:
    widths = [_width(cells) - 3 for cells in columns]
    escaped = [[_escape(text) for text in cells] for cells in columns]
    lines = []
    for r in range(len(columns[0])):
        cells = [
            escaped[c][r].ljust(widths[c]) if c == 0 else escaped[c][r].rjust(widths[c]) for c in range(len(columns))
        ]
        lines.append("| " + " | ".join(cells) + " |")
    rule = "|".join([":" + "-" * (widths[0] + 1), *("-" * (w + 1) + ":" for w in widths[1:])])
    lines.insert(1, f"|{rule}|")
    return "\n".join(lines)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _plain(entry: Entry) -> str:
    text = f"**{entry.text}**" if entry.holds else entry.text
    return " ".join(part for part in (text, entry.interval, entry.mark) if part)
