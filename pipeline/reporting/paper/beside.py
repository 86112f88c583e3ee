"""A run's numbers in the paper's columns, and how far they are from the paper's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from pipeline.reporting.compare import Comparison, ModelResult
from pipeline.reporting.paper.tables import EXPONENTIAL, PaperColumn, PaperTable
from pipeline.reporting.statistics.differences import Difference, combine
from pipeline.reporting.statistics.intervals import Score, ratio


@dataclass(frozen=True)
class Number:
    """A number of this run in the unit of the paper's table.

    Attributes:
        low, high: its interval over items.
        n: items; None for a mean over columns.
        is_paired: whether it is a measure that the paper has, and not its twin.
    """

    value: float
    stderr: float
    low: float
    high: float
    n: int | None
    is_paired: bool


@dataclass(frozen=True)
class Cell:
    """One number of the paper's and ours; either may be missing."""

    column: str
    paper: float | None
    ours: Number | None

    @property
    def gap(self) -> Number | None:
        """Ours minus the paper's, which is taken as it is printed; None where the two do not measure the same."""
        if self.paper is None or self.ours is None or not self.ours.is_paired:
            return None
        own, paper = self.ours, self.paper
        return Number(own.value - paper, own.stderr, own.low - paper, own.high - paper, own.n, True)

    @property
    def is_within(self) -> bool:
        """Whether the interval of ours contains the paper's number."""
        return self.gap is not None and self.gap.low <= 0 <= self.gap.high


@dataclass(frozen=True)
class Pair:
    """A model of this run beside a row of the paper; or, with `reference`, what both changed from theirs."""

    label: str
    row: str
    cells: tuple[Cell, ...]
    reference: str = ""
    reference_row: str = ""


def pairs(comparison: Comparison, table: PaperTable, rows: Mapping[str, str]) -> list[Pair]:
    """Every model of the run that has a row in the table, then the changes of those whose reference has one too."""
    lines = [line for line in comparison.lines if line.name in rows]
    found = [_scores(line, table, rows[line.name], comparison.confidence) for line in lines]
    for line in lines:
        reference = comparison.reference(line)
        if reference is not None and reference.name in rows and rows[reference.name] != rows[line.name]:
            found.append(_changes(line, reference, table, rows, comparison.confidence))
    return found


def _scores(line: ModelResult, table: PaperTable, row: str, confidence: float) -> Pair:
    cells = (Cell(c.name, table.rows[row][c.name], score_in(line, table, c, confidence)) for c in table.columns)
    return Pair(line.label, row, tuple(cells))


def score_in(line: ModelResult, table: PaperTable, column: PaperColumn, confidence: float) -> Number | None:
    """A model's number in a column; None where it was not measured."""
    if column.mean:
        parts = [score_in(line, table, table.column(name), confidence) for name in column.mean]
        known = [part for part in parts if part is not None]
        return _mean(known, confidence) if len(known) == len(parts) else None
    for benchmark in filter(None, (column.benchmark, column.twin)):
        if (score := _score(line, benchmark, column.part)) is not None:
            return _scaled(score, column.scale, confidence, benchmark == column.benchmark)
    return None


def _score(line: ModelResult, benchmark: str, part: str) -> Score | None:
    if not part:
        return line.scores.get(benchmark)
    items = line.row.evaluations.get(benchmark)
    return ratio(*items.parts[part]) if items is not None and part in items.parts else None


def _scaled(score: Score, scale: float | str, confidence: float, is_paired: bool) -> Number:
    if scale == EXPONENTIAL:
        own = _number(score.value, score.stderr, score.n, confidence, is_paired)
        value = math.exp(own.value)
        return Number(value, value * own.stderr, math.exp(own.low), math.exp(own.high), own.n, is_paired)
    return _number(score.value * float(scale), score.stderr * float(scale), score.n, confidence, is_paired)


def _mean(parts: list[Number], confidence: float) -> Number:
    stderr = math.sqrt(sum(part.stderr**2 for part in parts)) / len(parts)
    value = sum(part.value for part in parts) / len(parts)
    return _number(value, stderr, None, confidence, all(part.is_paired for part in parts))


def _number(value: float, stderr: float, n: int | None, confidence: float, is_paired: bool) -> Number:
    half = NormalDist().inv_cdf((1 + confidence) / 2) * stderr
    return Number(value, stderr, value - half, value + half, n, is_paired)


def _changes(
    line: ModelResult, reference: ModelResult, table: PaperTable, rows: Mapping[str, str], confidence: float
) -> Pair:
    own, theirs = table.rows[rows[line.name]], table.rows[rows[reference.name]]
    cells = []
    for column in table.columns:
        after, before = own[column.name], theirs[column.name]
        change = None if after is None or before is None else after - before
        cells.append(Cell(column.name, change, _change(line, table, column, confidence)))
    return Pair(line.label, rows[line.name], tuple(cells), reference.name, rows[reference.name])


def _change(line: ModelResult, table: PaperTable, column: PaperColumn, confidence: float) -> Number | None:
    terms = _terms(line, table, column, 1.0)
    if not terms:
        return None
    found = combine([(weight, difference) for weight, difference, _ in terms], confidence=confidence)
    n = found.n if len(terms) == 1 else None
    return Number(found.value, found.stderr, found.low, found.high, n, all(paired for _, _, paired in terms))


def _terms(
    line: ModelResult, table: PaperTable, column: PaperColumn, weight: float
) -> list[tuple[float, Difference, bool]]:
    """(weight, paired difference from the reference, whether of the paper's own measure) of all that a column is the
    mean of; none where one is missing."""
    if column.mean:
        parts = [_terms(line, table, table.column(name), weight / len(column.mean)) for name in column.mean]
        return [term for part in parts for term in part] if all(parts) else []
    if column.part or column.scale == EXPONENTIAL:
        return []
    for benchmark in filter(None, (column.benchmark, column.twin)):
        if (difference := line.differences.get(benchmark)) is not None:
            return [(weight * float(column.scale), difference, benchmark == column.benchmark)]
    return []
