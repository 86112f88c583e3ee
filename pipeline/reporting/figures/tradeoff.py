"""The figure that the method is about: what was learned against how far the model moved, or what it kept."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.records.items import Floats
from pipeline.reporting.axes import Axis, measured
from pipeline.reporting.collect import Variant
from pipeline.reporting.compare import Comparison, ModelResult
from pipeline.reporting.figures.placement import place_labels
from pipeline.reporting.figures.plot import INK, PALETTE, STYLE, colour_of, marker_of
from pipeline.reporting.statistics.differences import Difference
from pipeline.reporting.tables.wording import percent

WIDE, NARROW = (8.6, 5.2), (4.3, 4.6)
"""Inches, for a screen and for a phone: the letters keep their size."""
_CHARACTERS = 12.5  # of an axis label in an inch


def tradeoff_figure(comparison: Comparison, axis: Axis, size: tuple[float, float] = WIDE) -> Figure:
    """Domain gain over `axis` for every model that has both, the base at the origin; there is at least one."""
    shown = shown_on(comparison, axis)
    with pyplot.rc_context(STYLE):
        figure, ax = pyplot.subplots(figsize=size)
        ax.axhline(0, color="#8c959f", lw=1)
        ax.axvline(0, color="#8c959f", lw=1)
        for variant in comparison.collection.variants:
            lines = [line for line in shown if variant.name in line.variants]
            _draw_lineage(ax, comparison, lines, variant, axis)
        for line in shown:
            _draw_point(ax, line, comparison, axis)
        labels = _tradeoff_labels(comparison, shown, axis)
        ax.plot(0, 0, "o", color=INK, ms=7, zorder=5)
        interval = f"{percent(comparison.confidence)} interval"
        across = f"{axis.label} ({axis.unit}, {interval})  {axis.better} better"
        up = f"domain gain (bits per byte, {interval})  → better"
        ax.set_xlabel(textwrap.fill(across, int(size[0] * _CHARACTERS)))
        ax.set_ylabel(textwrap.fill(up, int(size[1] * _CHARACTERS)))
        ax.margins(0.12)
        if len(comparison.collection.variants) > 1:
            _marker_legend(ax, comparison, shown, 2 if size[0] < WIDE[0] else 4)
        figure.tight_layout()
        extents = [_extent(line, axis) for line in shown]
        place_labels(ax, [(0.0, 0.0, _origin(shown), INK), *labels], avoid=extents)
        return figure


def shown_on(comparison: Comparison, axis: Axis) -> list[ModelResult]:
    """The models that have both a domain gain and a value on the axis."""
    return [line for line in measured(comparison) if axis.of(line)]


def _draw_lineage(ax: Axes, comparison: Comparison, lines: Sequence[ModelResult], variant: Variant, axis: Axis) -> None:
    """From each model's parents to it; a parent that is not shown is passed over for its own, the reference is 0, 0."""
    points = {line.name: _point(line, axis) for line in lines}
    index = [c.name for c in comparison.collection.variants].index(variant.name)
    colour = PALETTE[index % len(PALETTE)]
    for line in lines:
        for start in _starts(variant, line.name, points):
            ax.plot(*zip(start, points[line.name], strict=True), color=colour, lw=1, alpha=0.4, zorder=2)


def _starts(variant: Variant, name: str, points: Mapping[str, tuple[float, float]]) -> list[tuple[float, float]]:
    row = variant.row(name)
    if row is None or not row.parents:
        return [(0.0, 0.0)]
    found = [[points[one]] if one in points else _starts(variant, one, points) for one in row.parents.values()]
    return [point for points_of_one in found for point in points_of_one]


def _origin(shown: Sequence[ModelResult]) -> str:
    """What stands at 0, 0."""
    return " / ".join(dict.fromkeys(str(line.row.reference) for line in shown))


def _draw_point(ax: Axes, line: ModelResult, comparison: Comparison, axis: Axis) -> None:
    across, up = _measures(line, axis)
    ax.errorbar(
        *_point(line, axis),
        xerr=_error(across),
        yerr=_error(up),
        color=colour_of(comparison, line),
        marker=marker_of(comparison, line.name),
        ms=8,
        lw=1.3,
        capsize=3,
        zorder=4,
    )


def _measures(line: ModelResult, axis: Axis) -> tuple[Difference, Difference]:
    across = axis.of(line)
    assert across is not None and line.gains is not None and line.gains.domain is not None
    return across, line.gains.domain


def _extent(line: ModelResult, axis: Axis) -> tuple[float, float, float, float]:
    """left, right, bottom, top of a point's intervals."""
    bounds = []
    for found in _measures(line, axis):
        known = math.isfinite(found.low)
        bounds += [found.low if known else found.value, found.high if known else found.value]
    return bounds[0], bounds[1], bounds[2], bounds[3]


def _point(line: ModelResult, axis: Axis) -> tuple[float, float]:
    across, up = _measures(line, axis)
    return across.value, up.value


def _error(difference: Difference) -> Floats | None:
    """(2, 1) distances to the interval's ends; the percentile interval need not contain the estimate."""
    if not math.isfinite(difference.low):
        return None
    return np.maximum([[difference.value - difference.low], [difference.high - difference.value]], 0.0)


def _tradeoff_labels(
    comparison: Comparison, shown: Sequence[ModelResult], axis: Axis
) -> list[tuple[float, float, str, str]]:
    """One variant: every point by its model. Several: each one's last point by the variant; markers tell the models."""
    if len(comparison.collection.variants) == 1:
        return [(*_point(line, axis), line.name, colour_of(comparison, line)) for line in shown]
    labels = {}
    for variant in comparison.collection.variants:
        lines = [line for line in shown if variant.name in line.variants]
        if lines:
            last = lines[-1]
            text = " / ".join(comparison.labels[name] for name in last.variants)
            labels[last.label] = (*_point(last, axis), text, colour_of(comparison, last))
    return list(labels.values())


def _marker_legend(ax: Axes, comparison: Comparison, shown: Sequence[ModelResult], columns: int) -> None:
    rows = list(dict.fromkeys(line.name for line in shown))
    marks = [marker_of(comparison, row) for row in rows]
    handles = [matplotlib.lines.Line2D([], [], color="#57606a", marker=mark, ls="", ms=7) for mark in marks]
    ax.legend(handles, rows, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(columns, len(rows)))
