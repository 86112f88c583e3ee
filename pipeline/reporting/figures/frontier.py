"""The learning-forgetting frontier: drift over domain gain, one line a method over its learning rates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure

from pipeline.records.items import Floats
from pipeline.reporting.figures.placement import place_labels
from pipeline.reporting.figures.plot import DASHES, INK, PALETTE, STYLE, TRAINED, Plot, save
from pipeline.reporting.frontier import Frontier, Method
from pipeline.reporting.statistics.differences import percentiles
from pipeline.reporting.statistics.frontier import Point
from pipeline.reporting.tables.wording import number, percent

MOST_INSIDE = 4
"""Methods whose legend stands within the axes."""


def frontier_plot(frontier: Frontier, confidence: float, directory: Path, name: str = "frontier") -> Plot:
    """Draw it to `directory`, as PNG and SVG called `name`."""
    caption = (
        f"Down and to the right is better. The base is the origin. Bars are {percent(confidence)} intervals over "
        "items. Hollow points are beaten in both by another rate of their method; lines join the rest."
    )
    if lost := _lost(frontier, confidence):
        caption += f" Not drawn, as they got worse on the domain: {'; '.join(lost)}."
    told = "; ".join(f"{one.label} {_told(one)}" for one in frontier.methods)
    path = save(frontier_figure(frontier, confidence), directory, name)
    return Plot(path, "Drift at equal gain", f"Drift from the base over domain gain: {told}.", caption)


def frontier_figure(frontier: Frontier, confidence: float) -> Figure:
    """Every point with its intervals, and each method's envelope as a line."""
    with pyplot.rc_context(STYLE):
        figure, ax = pyplot.subplots(figsize=(8.6, 5.6))
        labels = [(0.0, 0.0, frontier.base, INK)]
        for i, method in enumerate(frontier.methods):
            colour, marker, curve = PALETTE[i % len(PALETTE)], TRAINED[i % len(TRAINED)], method.curve
            curve = [one for one in curve if not _got_worse(one, confidence)]
            ax.plot(
                [one.gain for one in curve], [one.drift for one in curve], color=colour, lw=1.8, marker=marker, ms=7,
                ls=DASHES[i // len(PALETTE) % len(DASHES)], label=method.label, zorder=4,
            )  # fmt: skip
            for point, rate in zip(method.points, method.rate_texts, strict=True):
                if _got_worse(point, confidence):
                    continue
                face = colour if any(point is one for one in curve) else "white"
                ax.errorbar(
                    point.gain, point.drift, _error(point.drift, point.drifts, confidence),
                    _error(point.gain, point.gains, confidence), color=colour, marker=marker, ms=7, lw=1, alpha=0.7,
                    capsize=2, markerfacecolor=face,
                )  # fmt: skip
                labels.append((point.gain, point.drift, rate, colour))
        ax.plot(0, 0, "o", color=INK, ms=7, zorder=5)
        interval = f"{percent(confidence)} interval"
        ax.set_xlabel(f"domain gain over the base (bits per byte, {interval})  → better")
        ax.set_ylabel(f"drift from the base, KL(base || model)\n(nats per token, {interval})  ↓ better")
        ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
        ax.margins(0.08)
        title = f"method, at its {' or '.join(_swept(frontier))}"
        if len(frontier.methods) > MOST_INSIDE:
            ax.legend(loc="upper left", title=title, bbox_to_anchor=(1.01, 1.0))
        else:
            ax.legend(loc="upper left", title=title)
        figure.tight_layout()
        place_labels(ax, labels)
        return figure


def _got_worse(point: Point, confidence: float) -> bool:
    """Whether its gain is below zero beyond chance: far to the left, it would leave the others no room."""
    return bool(percentiles(point.gains, confidence)[1] < 0)


def _lost(frontier: Frontier, confidence: float) -> list[str]:
    """The points that are not drawn, with their gain and drift."""
    return [
        f"{method.label} at {rate} ({number(point.gain, 4, signed=True)}, drifting {number(point.drift, 4)})"
        for method in frontier.methods
        for rate, point in zip(method.rate_texts, method.points, strict=True)
        if _got_worse(point, confidence)
    ]


def _swept(frontier: Frontier) -> list[str]:
    return list(dict.fromkeys("learning rates" if one.swept == "lr" else one.swept for one in frontier.methods))


def _error(value: float, draws: Floats, confidence: float) -> Floats | None:
    """(2, 1) distances to the interval's ends; the percentile interval need not contain the estimate."""
    low, high = percentiles(draws, confidence)
    return np.maximum([[value - low], [high - value]], 0.0) if np.isfinite([low, high]).all() else None


def _told(method: Method) -> str:
    points = zip(method.rate_texts, method.points, strict=True)
    return ", ".join(f"{number(p.drift, 4)} for {number(p.gain, 4)} at {rate}" for rate, p in points)
