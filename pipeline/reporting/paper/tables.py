"""The paper's tables as data: `tables.yaml`, checked."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_name("tables.yaml")
EXPONENTIAL = "exp"
_COLUMN_KEYS = {"benchmark", "twin", "part", "scale", "mean"}


@dataclass(frozen=True)
class PaperColumn:
    """A column, and what measures it here.

    Attributes:
        benchmark: the one that the paper has; "" where there is none here.
        twin: one of the same kind for a smaller model, "" for none: its scores stand in, and are not subtracted.
        part: of the benchmark, "" for its score.
        scale: what a score is multiplied with, or `EXPONENTIAL`.
        mean: the columns that this one is the mean of.
    """

    name: str
    benchmark: str = ""
    twin: str = ""
    part: str = ""
    scale: float | str = 1.0
    mean: tuple[str, ...] = ()


@dataclass(frozen=True)
class PaperTable:
    """`where`: its number in the paper; `rows`: row -> column -> number; `figure`: the columns of both axes, if one is
    drawn."""

    name: str
    title: str
    where: str
    unit: str
    columns: tuple[PaperColumn, ...]
    rows: Mapping[str, Mapping[str, float | None]]
    notes: tuple[str, ...]
    figure: tuple[str, str] | None = None

    def column(self, name: str) -> PaperColumn:
        return next(column for column in self.columns if column.name == name)


@cache
def paper_tables() -> dict[str, PaperTable]:
    """name -> table, of all that the file has. Raises ValueError where a row does not fit its columns."""
    return {name: _table(name, found) for name, found in yaml.safe_load(FILE.read_text(encoding="utf-8")).items()}


def check_asked(asked: Any) -> None:
    """Raise ValueError for what is no mapping of the paper's tables to {a model of the run: a row of the table}."""
    if not isinstance(asked, Mapping):
        raise ValueError(f"report.paper={asked!r} must map tables of the paper to models and their rows, or be {{}}")
    for name, rows in asked.items():
        if name not in paper_tables():
            raise ValueError(f"report.paper names the table {name!r}{near(name, paper_tables())}")
        if not isinstance(rows, Mapping):
            raise ValueError(f"report.paper.{name}={rows!r} must map models of the run to rows of the table")
        for model, row in rows.items():
            if row is not None and row not in (known := paper_tables()[name].rows):
                raise ValueError(f"report.paper.{name}.{model}={row!r} is no row of it{near(str(row), known)}")


def asked_rows(asked: Mapping[str, Mapping[str, str | None]]) -> list[tuple[PaperTable, dict[str, str]]]:
    """Each table that is asked for, with model -> row; a model that is null is left out."""
    return [
        (paper_tables()[name], {model: row for model, row in rows.items() if row is not None})
        for name, rows in asked.items()
    ]


def near(name: str, known: Iterable[str]) -> str:
    """Which of the known names may be meant, to go on a sentence with; else all of them."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


def _table(name: str, found: Mapping[str, Any]) -> PaperTable:
    columns = tuple(_column(name, title, one) for title, one in found["columns"].items())
    names = [column.name for column in columns]
    for row, values in found["rows"].items():
        if len(values) != len(names):
            raise ValueError(f"{FILE.name}: {name}, {row} has {len(values)} numbers for {len(names)} columns")
    rows = {row: dict(zip(names, values, strict=True)) for row, values in found["rows"].items()}
    axes = found.get("figure")
    figure = (axes["x"], axes["y"]) if axes else None
    return PaperTable(name, found["title"], found["where"], found["unit"], columns, rows, tuple(found["notes"]), figure)


def _column(table: str, name: str, found: Mapping[str, Any]) -> PaperColumn:
    if unknown := set(found) - _COLUMN_KEYS:
        raise ValueError(f"{FILE.name}: {table}, column {name} has the keys {sorted(unknown)}")
    return PaperColumn(name, **{**found, "mean": tuple(found.get("mean", ()))})
