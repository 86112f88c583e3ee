"""The figure that the method is about: what was learned against what was kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.records.items import Floats
from pipeline.reporting.collect import Variant
from pipeline.reporting.compare import Comparison, ModelResult
from pipeline.reporting.figures.placement import place_labels
from pipeline.reporting.figures.plot import INK, PALETTE, STYLE, colour_of, marker_of
from pipeline.reporting.statistics.differences import Difference
from pipeline.reporting.tables.wording import percent


def tradeoff_figure(comparison: Comparison) -> Figure | None:
    """Domain gain against retention for every model, the base at the origin; None if one of the two is not measured."""
    shown = [line for line in comparison.lines if line.gains and line.gains.domain and comparison.kept_change(line)]
    if not shown:
        return None
    with pyplot.rc_context(STYLE):
        figure, ax = pyplot.subplots(figsize=(8.6, 5.6))
        ax.axhline(0, color="#8c959f", lw=1)
        ax.axvline(0, color="#8c959f", lw=1)
        for variant in comparison.collection.variants:
            _draw_lineage(ax, comparison, [line for line in shown if variant.name in line.variants], variant)
        for line in shown:
            _draw_point(ax, line, comparison)
        labels = _tradeoff_labels(comparison, shown)
        ax.plot(0, 0, "o", color=INK, ms=7, zorder=5)
        interval = percent(comparison.confidence)
        kept = comparison.kept_change(shown[0])
        assert kept is not None
        ax.set_xlabel(f"domain gain over the base (bits per byte, {interval} interval)  → better")
        ax.set_ylabel(
            f"kept: mean change over {kept.what} of what the base could do\n"
            f"({kept.unit}, {interval} interval)  → better"
        )
        ax.margins(0.12)
        if len(comparison.collection.variants) > 1:
            _marker_legend(ax, comparison, shown)
        figure.tight_layout()
        place_labels(
            ax, [(0.0, 0.0, _origin(shown), INK), *labels], avoid=[_extent(comparison, line) for line in shown]
        )
        return figure


def _draw_lineage(ax: Axes, comparison: Comparison, lines: Sequence[ModelResult], variant: Variant) -> None:
    """From each model's parents to it; a parent that is not shown is passed over for its own, the reference is 0, 0."""
    points = {line.name: _point(comparison, line) for line in lines}
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


def _draw_point(ax: Axes, line: ModelResult, comparison: Comparison) -> None:
    gain, kept = _gains(comparison, line)
    x, y = _point(comparison, line)
    ax.errorbar(
        x,
        y,
        xerr=_error(gain),
        yerr=_error(kept),
        color=colour_of(comparison, line),
        marker=marker_of(comparison, line.name),
        ms=8,
        lw=1.3,
        capsize=3,
        zorder=4,
    )


def _extent(comparison: Comparison, line: ModelResult) -> tuple[float, float, float, float]:
    """left, right, bottom, top of a point's intervals."""
    bounds = []
    for gain in _gains(comparison, line):
        known = math.isfinite(gain.low)
        bounds += [gain.low if known else gain.value, gain.high if known else gain.value]
    return bounds[0], bounds[1], bounds[2], bounds[3]


def _point(comparison: Comparison, line: ModelResult) -> tuple[float, float]:
    # Both are means over measures turned so that larger is better, whatever the metric's own direction.
    gain, kept = _gains(comparison, line)
    return gain.value, kept.value


def _gains(comparison: Comparison, line: ModelResult) -> tuple[Difference, Difference]:
    """What was learned and what was kept."""
    kept = comparison.kept_change(line)
    assert line.gains and line.gains.domain and kept
    return line.gains.domain, kept.change


def _error(difference: Difference) -> Floats | None:
    """(2, 1) distances to the interval's ends; the percentile interval need not contain the estimate."""
    if not math.isfinite(difference.low):
        return None
    return np.maximum([[difference.value - difference.low], [difference.high - difference.value]], 0.0)


def _tradeoff_labels(comparison: Comparison, shown: Sequence[ModelResult]) -> list[tuple[float, float, str, str]]:
    """One variant: every point by its model. Several: each one's last point by the variant; markers tell the models."""
    if len(comparison.collection.variants) == 1:
        return [(*_point(comparison, line), line.name, colour_of(comparison, line)) for line in shown]
    labels = {}
    for variant in comparison.collection.variants:
        lines = [line for line in shown if variant.name in line.variants]
        if lines:
            last = lines[-1]
            text = " / ".join(comparison.labels[name] for name in last.variants)
            labels[last.label] = (*_point(comparison, last), text, colour_of(comparison, last))
    return list(labels.values())


def _marker_legend(ax: Axes, comparison: Comparison, shown: Sequence[ModelResult]) -> None:
    rows = list(dict.fromkeys(line.name for line in shown))
    marks = [marker_of(comparison, row) for row in rows]
    handles = [matplotlib.lines.Line2D([], [], color="#57606a", marker=mark, ls="", ms=7) for mark in marks]
    ax.legend(handles, rows, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(rows))
