"""The way that training took: what was learned against how far the model moved, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.records.items import Floats
from pipeline.reporting.compare import Comparison, ModelResult
from pipeline.reporting.figures.placement import place_labels
from pipeline.reporting.figures.plot import INK, STYLE, Plot, colour_of, marker_of, save
from pipeline.reporting.tables.wording import number

SMALLEST, LARGEST = 14.0, 60.0
"""Areas of the first and the last point of a run, square points."""
CAPTION = (
    "Each line is a training run, each point a step at which it was measured, later ones larger. Up and to the left is "
    "better: more learned, less moved. These are few texts, read in training; the tables have intervals."
)


@dataclass(frozen=True)
class Run:
    """A training stage's measured steps (K,): gain in bits per byte over the base, drift from it in nats per token."""

    line: ModelResult
    steps: Floats
    gain: Floats
    drift: Floats

    @property
    def alt(self) -> str:
        """In words, for those who cannot see it."""
        gain, drift = number(self.gain[-1], 4, signed=True), number(self.drift[-1], 3)
        return f"{self.line.label}: {gain} bits per byte at {drift} nats per token after step {self.steps[-1]:.0f}"


def runs(comparison: Comparison) -> list[Run]:
    """Of every stage that tracked domain and drift."""
    found = []
    for line in comparison.lines:
        tracked = line.row.curve and line.row.curve.tracked
        if tracked and {"domain", "drift"} <= tracked.values.keys() and "domain" in tracked.base:
            gain, drift = tracked.base["domain"] - tracked.values["domain"], tracked.values["drift"]
            known = np.isfinite(gain) & np.isfinite(drift)
            if known.any():
                found.append(Run(line, tracked.steps[known].astype(float), gain[known], drift[known]))
    return found


def path_plot(comparison: Comparison, directory: Path) -> Plot | None:
    """The figure, written to `directory`; what ended a run early or kept a step of it is said below."""
    figure = path_figure(comparison)
    if figure is None:
        return None
    alt = f"Domain gain and drift along training. {'; '.join(run.alt for run in runs(comparison))}."
    caption = " ".join([CAPTION, *_endings(comparison)])
    return Plot(save(figure, directory, "path"), "What was learned against how far the model moved", alt, caption)


def _endings(comparison: Comparison) -> list[str]:
    sentences = []
    for line in comparison.lines:
        if line.row.facts.stopped:
            sentences.append(f"{line.label} was {line.row.facts.stopped}.")
        if line.row.facts.kept_step is not None:
            sentences.append(f"Of {line.label} the weights after step {line.row.facts.kept_step} were kept (ringed).")
    return sentences


def path_figure(comparison: Comparison) -> Figure | None:
    """Domain gain over drift along every tracked run, the base at the origin; None if none was tracked."""
    found = runs(comparison)
    if not found:
        return None
    with pyplot.rc_context(STYLE):
        figure, ax = pyplot.subplots(figsize=(8.6, 5.2))
        ax.axhline(0, color="#8c959f", lw=1)
        ax.axvline(0, color="#8c959f", lw=1)
        for run in found:
            _draw(ax, run, comparison)
        ax.plot(0, 0, "o", color=INK, ms=7, zorder=5)
        ax.set_xlabel("← better   drift from the base (nats per token)")
        ax.set_ylabel("domain gain over the base (bits per byte)  → better")
        ax.margins(0.1)
        if len(comparison.collection.variants) > 1:
            _legend(ax, comparison, found)
        figure.tight_layout()
        points = [(x, y) for run in found for x, y in zip(run.drift.tolist(), run.gain.tolist(), strict=True)]
        avoid = [(x, x, y, y) for x, y in points]
        place_labels(ax, [(0.0, 0.0, "base", INK), *_labels(comparison, found)], avoid)
        return figure


def _draw(ax: Axes, run: Run, comparison: Comparison) -> None:
    colour = colour_of(comparison, run.line)
    ax.plot(run.drift, run.gain, color=colour, lw=1.6, alpha=0.8, zorder=3)
    sizes = SMALLEST + (LARGEST - SMALLEST) * run.steps / max(1.0, run.steps[-1])
    marker = marker_of(comparison, run.line.name)
    ax.scatter(run.drift, run.gain, s=sizes, color=colour, marker=marker, edgecolors="white", lw=0.8, zorder=4)
    kept = run.steps == run.line.row.facts.kept_step
    ax.scatter(run.drift[kept], run.gain[kept], s=150, facecolors="none", edgecolors=INK, lw=1.4, zorder=5)


def _labels(comparison: Comparison, found: list[Run]) -> list[tuple[float, float, str, str]]:
    """The end of every run: by its model, or where there are several variants by the variant."""
    many = len(comparison.collection.variants) > 1
    labels = []
    for run in found:
        variants = " / ".join(comparison.labels[name] for name in run.line.variants)
        text = variants if many else f"{run.line.name}, step {run.steps[-1]:.0f}"
        labels.append((float(run.drift[-1]), float(run.gain[-1]), text, colour_of(comparison, run.line)))
    return labels


def _legend(ax: Axes, comparison: Comparison, found: list[Run]) -> None:
    names = list(dict.fromkeys(run.line.name for run in found))
    marks = [marker_of(comparison, name) for name in names]
    handles = [matplotlib.lines.Line2D([], [], color="#57606a", marker=mark, ls="", ms=7) for mark in marks]
    ax.legend(handles, names, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(names))
