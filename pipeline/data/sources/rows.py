"""Rows of a source before anything is known about what they mean, and the account of what was not used of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rejected:
    """A row that is not used, and why. Counted and listed, never dropped in silence.

    reason: short and the same for all rows of its kind, for counting; it holds nothing of the row. detail: what was
    found in this one. by_rule: left out by what the config asks for (a filter, a limit of length) and not because it is
    damaged or of another form. remedy: the setting of its source that would read it, if one would.
    """

    id: str
    reason: str
    detail: str = ""
    by_rule: bool = False
    remedy: str = ""


def not_utf8(identity: str, where: str = "") -> Rejected:
    """A row or file whose bytes are no UTF-8, with what to do."""
    advice = "save it as UTF-8; if it is Latin-1, with iconv -f ISO-8859-1 -t UTF-8 FILE > NEW"
    return Rejected(identity, "invalid UTF-8", f"{where}{advice}")


@dataclass(frozen=True)
class Row:
    """One record: its columns by name. A plain text file is one record with the column `text`.

    nulls_are_absent: the row is from a table, in which a null inside a struct stands for a key that the row lacks.
    """

    id: str
    fields: Mapping
    nulls_are_absent: bool = False


@dataclass(frozen=True)
class Unused:
    """Keys of a row that nothing reads, by path and once per occurrence. The row itself is used; this follows it."""

    id: str
    keys: tuple[str, ...]


Item = tuple[str, tuple[bytes, ...]]
"""A document: its id, and its parts, of which the first is its text."""
Found = Item | Rejected | Unused


def escaped(text: str) -> str:
    """Text that UTF-8 can spell: half a surrogate pair, or a byte of a file name that is not UTF-8, as `\\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()


def field_value(fields: Mapping, path: str) -> object:
    """A column by name, or inside nested objects by a dotted path. Raises KeyError naming what is there instead."""
    if path in fields:
        return fields[path]
    value: object = fields
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise KeyError(f"no field {path!r}; the row has {columns(fields)}")
        value = value[part]
    return value


def columns(fields: Mapping) -> str:
    """The names of a row's columns for a message, and which of them look like a list of rows."""
    names = [f"{name!r}{_rows_inside(fields[name])}" for name in sorted(fields, key=str)]
    return f"[{', '.join(names)}]"


def _rows_inside(value: object) -> str:
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(entry, Mapping) for entry in value):
        return ""
    return f" (a list of {len(value)} objects; if these are the rows, write them to a file of their own)"


def strings(value: object, keys: bool = False) -> Iterator[str]:
    """Every text inside a value, at any depth; with the keys of objects, if asked for."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from strings(key) if keys else ()
            yield from strings(inner, keys)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings(inner, keys)


def unread(fields: Mapping, paths: Collection[str], where: str = "") -> Iterator[tuple[str, object]]:
    """The keys that none of the (dotted) paths reads and that hold something other than null, and what they hold."""
    for key, value in fields.items():
        if value is None or key in paths:
            continue
        below = {path[len(key) + 1 :] for path in paths if path.startswith(f"{key}.")}
        if below and isinstance(value, Mapping):
            yield from unread(value, below, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def unused(row: Row, paths: Collection[str]) -> Iterator[Unused]:
    """The account of a row of which these paths are read, if there is anything else in it."""
    if keys := tuple(key for key, _ in unread(row.fields, paths)):
        yield Unused(row.id, keys)
