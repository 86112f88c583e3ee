"""The report's figures. Light background, a palette that colour-blind readers can tell apart, labels at the data."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.records.items import Floats
from pipeline.reporting.compare import Comparison, ModelResult
from pipeline.reporting.tables.labels import swept_number

# Okabe and Ito 2008, "Color Universal Design", without its yellow, which is too light for lines on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
UNTRAINED, TRAINED = "D", ("o", "s", "^", "v", "P", "X", "p", "h")
"""Markers of models that no training made, and of those that one did, by their order in the lineage."""
STAGE_TITLES = {"pretrain": "Post-pretraining", "sft": "Instruction tuning"}
INK, FAINT = "#24292f", "#d0d7de"
MAX_POINTS = 2000  # more points than pixels only make the file larger
MAX_FAINT = 2  # with more variants than this, single steps behind the running means are clutter
NUM_SMOOTH = 40  # the running mean spans this fraction (1 / NUM_SMOOTH) of a curve
STYLE: Any = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": "#8c959f",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": "#eaeef2",
    "text.color": INK,
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "legend.frameon": False,
    "text.parse_math": False,  # override strings may hold dollar signs
    "svg.hashsalt": "report",  # the same numbers give the same file
}


@dataclass(frozen=True)
class Plot:
    """A figure of the page: its SVG file, heading, description for those who cannot see it, and how to read it.

    `narrow` is the SVG file of its form for a phone, where there is one.
    """

    path: Path
    title: str
    alt: str
    caption: str
    narrow: Path | None = None

    @property
    def source(self) -> str:
        return _embedded(self.path)

    @property
    def narrow_source(self) -> str:
        return _embedded(self.narrow) if self.narrow else ""


def _embedded(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()


def loss_figure(comparison: Comparison) -> Figure | None:
    """Training loss over tokens, one axes per training stage, all variants in it; None if nothing was trained."""
    with pyplot.rc_context(STYLE):
        stages = _stages(comparison)
        if not stages:
            return None
        figure, axes = pyplot.subplots(1, len(stages), figsize=(7.5 if len(stages) == 1 else 11, 4.6), squeeze=False)
        for ax, (stage, lines) in zip(axes[0], stages.items(), strict=True):
            for line in lines:
                _draw_curve(ax, line, comparison)
            ax.set_title(STAGE_TITLES.get(stage, stage))
            ax.set_xlabel("tokens trained")
            ax.set_ylabel("loss (nats per token)")
            ax.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=" "))
        _curve_legend(figure, comparison, [line for lines in stages.values() for line in lines])
        return figure


def sweep_figure(comparison: Comparison) -> Figure | None:
    """Domain bits per byte over the number that the sweep varies; None if variants differ in something else, or in the
    items that they were measured on."""
    variants = comparison.collection.variants
    swept = swept_number([variant.name for variant in variants]) if len(variants) > 2 else None
    measures = [
        b
        for b in comparison.benchmarks
        if b.group == "domain" and comparison.units[b.name].name == "bits/byte" and not b.gold_of
        and len(comparison.by_items(b.name)) == 1
    ]  # fmt: skip
    if swept is None or not measures:
        return None
    name, values = swept
    measure = measures[0]
    with pyplot.rc_context(STYLE):
        figure, ax = pyplot.subplots(figsize=(7.5, 4.6))
        for i, row in enumerate(comparison.trained_names()):
            points = _sweep_points(comparison, row, measure.name, values)
            if points:
                x, y, low, high = (np.array(column) for column in zip(*points, strict=True))
                error = np.maximum([y - low, high - y], 0)
                ax.errorbar(
                    x,
                    y,
                    error,
                    color=PALETTE[i % len(PALETTE)],
                    marker=TRAINED[i % len(TRAINED)],
                    lw=1.8,
                    capsize=3,
                    label=row,
                )
        for dash, base in zip(DASHES[1:], _references(comparison, measure.name), strict=False):
            ax.axhline(base.scores[measure.name].value, color=INK, lw=1.2, ls=dash, label=base.name)
        if min(values) > 0 and max(values) / min(values) > 20:
            ax.set_xscale("log")
            ax.minorticks_off()
        ticks = sorted(set(values))
        ax.set_xticks(ticks, [f"{value:g}" for value in ticks])
        ax.set_xlabel(name)
        ax.set_ylabel("bits per byte  ← better")
        ax.set_title(measure.title)
        ax.legend(loc="best")
        figure.tight_layout()
        return figure


def marker_of(comparison: Comparison, name: str) -> str:
    """The marker of the models of one name."""
    trained = comparison.trained_names()
    return TRAINED[trained.index(name) % len(TRAINED)] if name in trained else UNTRAINED


def save(figure: Figure, directory: Path, name: str) -> Path:
    """Write `<name>.png` (for pasting) and `<name>.svg` (for the page); returns the svg's path."""
    with pyplot.rc_context(STYLE):
        figure.savefig(directory / f"{name}.png", dpi=150, bbox_inches="tight", metadata={"Software": None})
        figure.savefig(directory / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return directory / f"{name}.svg"


def colour_of(comparison: Comparison, line: ModelResult) -> str:
    """A variant's colour; a model that all of several variants share is drawn in ink."""
    if len(line.variants) > 1:
        return INK
    return PALETTE[_index(comparison, line) % len(PALETTE)]


def running_mean(values: Floats, span: int) -> Floats:
    """(T,) -> (T,): the mean of the last `span` values, or of all there are so far."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(stop - span, 0)
    return (sums[stop] - sums[start]) / (stop - start)


def _references(comparison: Comparison, benchmark: str) -> list[ModelResult]:
    bases = [line for line in comparison.lines if line.row.reference is None and benchmark in line.scores]
    return list({line.row.model: line for line in reversed(bases)}.values())[::-1]


def _stages(comparison: Comparison) -> dict[str, list[ModelResult]]:
    stages: dict[str, list[ModelResult]] = {}
    for line in comparison.lines:
        curve = line.row.curve
        if curve is not None and (curve.tokens.size or curve.val_tokens.size):
            stages.setdefault(line.row.stage, []).append(line)
    return dict(
        sorted(stages.items(), key=lambda item: list(STAGE_TITLES).index(item[0]) if item[0] in STAGE_TITLES else 9)
    )


def _draw_curve(ax: Axes, line: ModelResult, comparison: Comparison) -> None:
    curve, colour, dash = line.row.curve, colour_of(comparison, line), _dash(comparison, line)
    assert curve is not None
    span = max(1, curve.loss.size // NUM_SMOOTH)
    thin = slice(None, None, max(1, math.ceil(curve.loss.size / MAX_POINTS)))
    if span > 1 and len(comparison.collection.variants) <= MAX_FAINT:
        ax.plot(curve.tokens[thin], curve.loss[thin], color=colour, lw=0.7, alpha=0.22)
    begun = slice(span // 2, None)  # a mean over the first few steps is as noisy as they are
    mean = running_mean(curve.loss, span)
    ax.plot(curve.tokens[begun][thin], mean[begun][thin], color=colour, ls=dash, lw=1.8)
    ax.plot(
        curve.val_tokens,
        curve.val_loss,
        "o",
        color=colour,
        ms=6,
        markerfacecolor="white",
        markeredgewidth=1.6,
        zorder=4,
    )


def _curve_legend(figure: Figure, comparison: Comparison, lines: Sequence[ModelResult]) -> None:
    handles, names = [], []
    many = len(comparison.collection.variants) > 1
    for line in lines:
        label = " / ".join(comparison.labels[variant] for variant in line.variants)
        if many and label not in names:
            colour, dash = colour_of(comparison, line), _dash(comparison, line)
            handles.append(matplotlib.lines.Line2D([], [], color=colour, ls=dash, lw=2))
            names.append(label)
    handles.append(matplotlib.lines.Line2D([], [], color="#57606a", lw=1.8))
    names.append("training (running mean)")
    handles.append(
        matplotlib.lines.Line2D(
            [], [], color="#57606a", marker="o", ls="", markerfacecolor="white", markeredgewidth=1.6
        )
    )
    names.append("validation")
    columns = min(len(names), 3)
    rows = math.ceil(len(names) / columns)
    figure.tight_layout(rect=(0, 0.02 + 0.06 * rows, 1, 1))
    figure.legend(handles, names, loc="lower center", ncols=columns)


def _sweep_points(
    comparison: Comparison, row: str, measure: str, values: Sequence[float]
) -> list[tuple[float, float, float, float]]:
    """(swept value, score, low, high): the interval of the paired difference, moved to the base's score."""
    points = []
    for variant, value in zip(comparison.collection.variants, values, strict=True):
        line = comparison.line(variant.name, row)
        if line is None or measure not in line.scores:
            continue
        found, difference = line.scores[measure].value, line.differences.get(measure)
        low = high = found
        if difference is not None and math.isfinite(difference.low):
            low, high = found - difference.value + difference.low, found - difference.value + difference.high
        points.append((value, found, low, high))
    return sorted(points)


def _index(comparison: Comparison, line: ModelResult) -> int:
    return [variant.name for variant in comparison.collection.variants].index(line.variants[0])


def _dash(comparison: Comparison, line: ModelResult) -> str:
    return DASHES[_index(comparison, line) // len(PALETTE) % len(DASHES)]
