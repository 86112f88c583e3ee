"""The figure that the method is about: what was learned against how far the model moved, or what it kept."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.records.items import Floats
from pipeline.reporting.axes import Axis, measured
from pipeline.reporting.collect import Variant
from pipeline.reporting.compare import Comparison, ModelResult
from pipeline.reporting.figures.placement import place_labels
from pipeline.reporting.figures.plot import INK, PALETTE, STYLE, TRAINED, colour_of, marker_of
from pipeline.reporting.statistics.differences import Difference
from pipeline.reporting.tables.wording import number, percent

WIDE, NARROW = (8.6, 5.2), (4.3, 4.6)
"""Inches, for a screen and for a phone: the letters keep their size."""
_CHARACTERS = 12.5  # of an axis label in an inch
_FAR = 4  # times what three quarters of the models stay within
_FEW = 6  # models; fewer are told apart wherever they lie
_EDGE = 0.03  # of an axis


def tradeoff_figure(comparison: Comparison, axis: Axis, size: tuple[float, float] = WIDE) -> Figure:
    """Domain gain over `axis` for every model that has both, the base at the origin; there is at least one.

    Models that are far from all others are drawn at the edge, with their numbers, see `far_on`.
    """
    shown = shown_on(comparison, axis)
    far = far_on(comparison, axis)
    near = [line for line in shown if line not in far]
    with pyplot.rc_context(STYLE):
        figure, ax = pyplot.subplots(figsize=size)
        ax.axhline(0, color="#8c959f", lw=1)
        ax.axvline(0, color="#8c959f", lw=1)
        for line in near:
            _draw_point(ax, line, comparison, axis)
        ax.plot(0, 0, "o", color=INK, ms=7, zorder=5)
        ax.margins(0.12)
        edge = {line.label: _at_edge(ax, *_point(line, axis)) for line in far}
        points = {line.label: edge.get(line.label) or _point(line, axis) for line in shown}
        if not _is_crowded(shown):
            for variant in comparison.collection.variants:
                lines = [line for line in shown if variant.name in line.variants]
                _draw_lineage(ax, comparison, {line.name: points[line.label] for line in lines}, variant)
        for line in far:
            ax.plot(*points[line.label], color=colour_of(comparison, line), marker=marker_of(comparison, line.name),
                    ms=8, markerfacecolor="white", zorder=4)  # fmt: skip
        interval = f"{percent(comparison.confidence)} interval"
        across = f"{axis.label} ({axis.unit}, {interval})  {axis.better} better"
        up = f"domain gain (bits per byte, {interval})  → better"
        ax.set_xlabel(textwrap.fill(across, int(size[0] * _CHARACTERS)))
        ax.set_ylabel(textwrap.fill(up, int(size[1] * _CHARACTERS)))
        if len(comparison.collection.variants) > 1:
            _legend(ax, comparison, shown, 2 if size[0] < WIDE[0] else 4)
        figure.tight_layout()
        labels = [
            (*points[line.label], _with_numbers(text, line, axis) if line in far else text, colour_of(comparison, line))
            for line, text in _labelled(comparison, shown, far)
        ]
        extents = [_extent(line, axis) for line in near]
        place_labels(ax, [(0.0, 0.0, _origin(shown), INK), *labels], avoid=extents)
        return figure


def shown_on(comparison: Comparison, axis: Axis) -> list[ModelResult]:
    """The models that have both a domain gain and a value on the axis; of many, those that are not the base still."""
    shown = [line for line in measured(comparison) if axis.of(line)]
    moved = [line for line in shown if not all(found.identical for found in _measures(line, axis))]
    return moved if moved and _is_crowded(shown) else shown


def far_on(comparison: Comparison, axis: Axis) -> list[ModelResult]:
    """Models that are so far from the base, in gain or on the axis, that all others would be one heap beside them."""
    shown = shown_on(comparison, axis)
    sizes = np.abs([_point(line, axis) for line in shown])
    if len(shown) < _FEW:
        return []
    most = _FAR * np.quantile(sizes, 0.75, axis=0, method="lower")
    return [line for line, size in zip(shown, sizes, strict=True) if (size > most).any()]


def _is_crowded(shown: Sequence[ModelResult]) -> bool:
    """Whether there are more names than markers to tell them by."""
    return len({line.name for line in shown}) > len(TRAINED)


def _at_edge(ax: Axes, across: float, up: float) -> tuple[float, float]:
    """The place inside the axes, as they are, that is nearest to a point."""
    place = []
    for value, (low, high) in ((across, ax.get_xlim()), (up, ax.get_ylim())):
        inset = _EDGE * (high - low)
        place.append(min(max(value, low + inset), high - inset))
    ax.set_xlim(ax.get_xlim())
    ax.set_ylim(ax.get_ylim())
    return place[0], place[1]


def _with_numbers(text: str, line: ModelResult, axis: Axis) -> str:
    across, up = _point(line, axis)
    return f"{text} ({number(across, axis.digits, signed=axis.signed)}, {number(up, 4, signed=True)})"


def _draw_lineage(
    ax: Axes, comparison: Comparison, points: Mapping[str, tuple[float, float]], variant: Variant
) -> None:
    """From each model's parents to it; a parent that is not shown is passed over for its own, the reference is 0, 0."""
    index = [c.name for c in comparison.collection.variants].index(variant.name)
    colour = PALETTE[index % len(PALETTE)]
    for name, point in points.items():
        for start in _starts(variant, name, points):
            ax.plot(*zip(start, point, strict=True), color=colour, lw=1, alpha=0.4, zorder=2)


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


def _labelled(
    comparison: Comparison, shown: Sequence[ModelResult], far: Sequence[ModelResult]
) -> list[tuple[ModelResult, str]]:
    """The points that have a text beside them, and the text.

    Of one variant every point has its model's name; of several each one's last point has the variant's, and markers
    tell the models. Where these do not suffice, every point has its model's name and colours tell the variants.
    """
    if len(comparison.collection.variants) == 1:
        return [(line, line.name) for line in shown]
    if _is_crowded(shown):
        return [(line, line.label if _is_repeated(line, shown) else line.name) for line in shown]
    labels = {line.label: (line, line.name) for line in far}
    for variant in comparison.collection.variants:
        lines = [line for line in shown if variant.name in line.variants]
        if lines:
            last = lines[-1]
            labels[last.label] = (last, " / ".join(comparison.labels[name] for name in last.variants))
    return list(labels.values())


def _is_repeated(line: ModelResult, shown: Sequence[ModelResult]) -> bool:
    return sum(other.name == line.name for other in shown) > 1


def _legend(ax: Axes, comparison: Comparison, shown: Sequence[ModelResult], columns: int) -> None:
    """Markers of the models, or, where points have their names, colours of the variants."""
    marks: dict[str, dict[str, str]] = {}
    for line in shown:
        if _is_crowded(shown):
            text = "several runs" if len(line.variants) > 1 else comparison.labels[line.variants[0]]
            marks[text] = {"color": colour_of(comparison, line), "marker": "s"}
        else:
            marks[line.name] = {"color": "#57606a", "marker": marker_of(comparison, line.name)}
    handles = [Line2D([], [], ls="", ms=7, color=mark["color"], marker=mark["marker"]) for mark in marks.values()]
    ax.legend(handles, list(marks), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(columns, len(marks)))
