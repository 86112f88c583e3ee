"""What chains of tasks learned and kept: sentences, heat maps and tables of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.reporting.compare import Comparison
from pipeline.reporting.continual import Chain, Estimate, Orders, chains, estimated, over_orders
from pipeline.reporting.figures.matrix import BEFORE, matrix_plot
from pipeline.reporting.pages.page import Section
from pipeline.reporting.plain import finite, plain
from pipeline.reporting.statistics.continual import MEASURES
from pipeline.reporting.tables.table import Column, Entry, Table
from pipeline.reporting.tables.wording import MISSING, Unit, interval, number, percent, span

OF_ORDERS = "mean over orders"
HOW = (
    "R[t, i] is the score on task i after task t, R[0, i] that before any. OP is the mean of the last row; BWT that "
    "of R[T, i] − R[i, i] and forgetting that of the best R[t, i] before the last task − R[T, i], over all tasks but "
    "the last; FWT the mean of R[i−1, i] − R[0, i] over all but the first; learning accuracy the mean of R[i, i]. "
    "Intervals are of a bootstrap over items with the same draws for all models; they cover neither training seeds nor "
    "the order of the tasks, except where a mean over orders is given. Where all answers of a model are right, or all "
    "wrong, the interval has the exact bound (Clopper-Pearson) of the share of items that may be otherwise."
)


def continual_sections(comparison: Comparison, directory: Path, seed: int) -> list[Section]:
    """The measures of all chains, then each one's matrix; none without a chain. Figures go to `directory`."""
    found = chains(comparison, seed)
    if not found:
        return []
    orders = over_orders(found, comparison.confidence)
    matrices = [_matrix(chain, i, comparison.confidence, directory) for i, chain in enumerate(found, 1)]
    return [*_summary(found, orders, comparison.confidence), *matrices]


def _summary(found: Sequence[Chain], orders: Sequence[Orders], confidence: float) -> list[Section]:
    measured = [chain for chain in found if chain.measures]
    if not measured:
        return []
    sentences = [_first(measured)]
    sentences += [_told(chain, confidence) for chain in measured]
    sentences += [_against(chain, measured[0], confidence) for chain in measured[1:]]
    sentences += [_spread(chain) for chain in orders]
    values = {
        "chains": {chain.label: _all_values(chain.measures) for chain in measured},
        "orders": [{"chains": list(one.labels), **_all_values(one.measures)} for one in orders],
    }
    title = "What was learned, and what later tasks left of it"
    table = _measures_table(measured, orders, confidence)
    return [Section(title, (*sentences, HOW), None, table, True, True, values, leads=True)]


def _first(found: Sequence[Chain]) -> str:
    """What a reader asks first: how well each chain does in the end, and what it lost on the way."""
    ends = "; ".join(f"{chain.label} {_short(chain, 'op')}" for chain in found)
    text = f"Mean score over the tasks when all were learned: {ends}."
    kept = [chain for chain in found if "bwt" in chain.measures]
    if not kept:
        return text
    changes = "; ".join(f"{chain.label} {_short(chain, 'bwt')}" for chain in kept)
    return f"{text} How later tasks changed what had been learned: {changes}."


def _short(chain: Chain, name: str) -> str:
    one, unit, signed = chain.measures[name], _unit(chain), MEASURES[name].is_change
    bounds = interval(one, unit.digits, unit.scale, signed=signed)
    return f"{_number(one.value, unit, signed)} {_unit_name(name, unit)} {bounds}"


def _told(chain: Chain, confidence: float) -> str:
    unit = _unit(chain)
    parts = [f"OP {_estimate(chain.measures['op'], unit, confidence)}"]
    if "bwt" in chain.measures:
        parts.append(f"BWT {_estimate(chain.measures['bwt'], unit, confidence, signed=True)}")
    return f"{chain.label}, {len(chain.tasks)} tasks in {unit.name}: {', '.join(parts)}."


def _against(chain: Chain, first: Chain, confidence: float) -> str:
    """How much more or less a chain has than the first, item by item; of the same tasks."""
    if set(chain.tasks) != set(first.tasks):
        return f"{chain.label} has other tasks than {first.label}, so the two are not compared."
    if {*zip(chain.tasks, chain.answered, strict=True)} != {*zip(first.tasks, first.answered, strict=True)}:
        return f"{chain.label} answered other items of its tasks than {first.label}, so the two are not compared."
    unit, parts = _unit(chain), []
    for name in ("op", "bwt"):
        if name in chain.measures and name in first.measures:
            one, other = chain.measures[name], first.measures[name]
            gap = estimated(one.value - other.value, one.draws - other.draws, confidence)
            parts.append(f"{MEASURES[name].title} {_estimate(gap, unit, confidence, signed=True)}")
    return f"{chain.label} against {first.label}, paired over items: {', '.join(parts)}."


def _spread(orders: Orders) -> str:
    return (
        f"{', '.join(orders.labels)} differ in the order of their tasks alone; the mean over these orders has an "
        "interval of Student's t over orders and, in quadrature, the error over items."
    )


def _measures_table(found: Sequence[Chain], orders: Sequence[Orders], confidence: float) -> Table:
    names = [name for name in MEASURES if any(name in chain.measures for chain in found)]
    columns = tuple(Column("", MEASURES[name].title, _arrow(name, _unit(found[0]))) for name in names)
    rows = [(chain.label, _entries(chain.measures, names, _unit(chain))) for chain in found]
    for one in orders:
        unit = next(_unit(chain) for chain in found if chain.label == one.labels[0])
        rows.append((f"{one.labels[0]}: {OF_ORDERS} ({len(one.labels)})", _entries(one.measures, names, unit)))
    caption = f"Over all tasks of a chain [{percent(confidence)} confidence interval]"
    return Table(caption, columns, tuple(rows), "Chain")


def _entries(measures: Mapping[str, Estimate], names: Sequence[str], unit: Unit) -> tuple[Entry, ...]:
    entries = []
    for name in names:
        one = measures.get(name)
        if one is None:
            entries.append(Entry(MISSING))
            continue
        signed = MEASURES[name].is_change
        entries.append(
            Entry(
                _number(one.value, unit, signed), one.mark(name), interval(one, unit.digits, unit.scale, signed=signed)
            )
        )
    return tuple(entries)


def _matrix(chain: Chain, place: int, confidence: float, directory: Path) -> Section:
    plot = matrix_plot(chain, place, directory)
    columns = tuple(Column("", title, chain.unit.name if chain.unit else "") for title in chain.titles)
    rows = tuple(
        (f"{t}: {name}", tuple(_score(chain, t, i, confidence) for i in range(len(chain.tasks))))
        for t, name in enumerate((BEFORE, *chain.titles))
    )
    sentences = [f"The models of this chain: {', '.join(line.label for line in chain.models)}."]
    if chain.unit is None:
        sentences.append("Its tasks are measured in different units, so no mean over them is given.")
    caption = f"R[t, i] of {chain.label} [{percent(confidence)} confidence interval over items]"
    values = {
        "chain": chain.label,
        "tasks": list(chain.tasks),
        "models": [line.label for line in chain.models],
        "scores": [list(map(finite, row)) for row in chain.scores.tolist()],
        "measures": _all_values(chain.measures),
    }
    table = Table(caption, columns, rows, "After")
    return Section(f"Task by task: {chain.label}", tuple(sentences), plot, table, True, True, values)


def _score(chain: Chain, t: int, i: int, confidence: float) -> Entry:
    value, unit = float(chain.scores[t, i]), chain.unit or Unit("", 1.0, 3, True)
    if not math.isfinite(value):
        return Entry(MISSING)
    one = estimated(value, chain.draws[:, t, i], confidence)
    return Entry(_number(value, unit, False), "", interval(one, unit.digits, unit.scale, signed=False))


def _unit(chain: Chain) -> Unit:
    assert chain.unit is not None
    return chain.unit


def _arrow(name: str, unit: Unit) -> str:
    measure = MEASURES[name]
    up = not measure.is_loss if measure.is_change else unit.higher_is_better
    return f"{_unit_name(name, unit)} {'↑' if up else '↓'}"


def _unit_name(name: str, unit: Unit) -> str:
    return unit.of_changes if MEASURES[name].is_change else unit.name


def _number(value: float, unit: Unit, signed: bool) -> str:
    return number(value * unit.scale, unit.digits, signed=signed)


def _estimate(one: Estimate, unit: Unit, confidence: float, *, signed: bool = False) -> str:
    return f"{_number(one.value, unit, signed)} ({span(one, unit.digits, confidence, unit.scale, signed=signed)})"


def _all_values(measures: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: plain(one) for name, one in measures.items()}
