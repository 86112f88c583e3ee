"""The score matrix of a chain of tasks as a heat map: a row a model, a column a task."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipeline.records.items import Floats
from pipeline.reporting.continual import Chain
from pipeline.reporting.figures.plot import INK, STYLE, Plot, save
from pipeline.reporting.tables.wording import number

COLOURS = "cividis"
"""Even in lightness, so that it can be read in grey and by colour-blind readers."""
BEFORE = "before any"


def matrix_plot(chain: Chain, number_of_chain: int, directory: Path) -> Plot:
    """Draw it to `directory`, as PNG and SVG; `number_of_chain` tells its file from those of others."""
    slug = re.sub(r"[^A-Za-z0-9_-]+", "_", chain.label)[:60]
    path = save(matrix_figure(chain), directory, f"tasks-{number_of_chain}-{slug}")
    caption = (
        "Each row is a model: before any task, then after each. Each column is a task, in the order of learning. The "
        "frame is the task that was just learned: to its left below are tasks learned before, to its right tasks that "
        "are still to come. Lighter is a larger score."
    )
    after = [f"{BEFORE} task", *(f"after {title}" for title in chain.titles)]
    told = "; ".join(f"{when}: {_told(chain, t)}" for t, when in enumerate(after))
    return Plot(path, f"Scores of {chain.label} task by task", f"Score of every task: {told}.", caption)


def matrix_figure(chain: Chain) -> Figure:
    """Scores written into their cells, the task just learned framed."""
    num_tasks = len(chain.tasks)
    shown = chain.scores * (chain.unit.scale if chain.unit else 1.0)
    with pyplot.rc_context({**STYLE, "axes.grid": False}):
        figure, ax = pyplot.subplots(figsize=(2.6 + 0.95 * num_tasks, 1.6 + 0.5 * (num_tasks + 1)))
        coloured = shown if chain.unit else _ranked(shown)
        image, ranks = ax.imshow(np.ma.masked_invalid(coloured), cmap=COLOURS, aspect="auto"), _rank(coloured)
        for (t, i), value in np.ndenumerate(shown):
            dark = bool(ranks[t, i] < 0.55)
            ax.text(i, t, _cell(chain, value), ha="center", va="center", color="white" if dark else INK, fontsize=9.5)
        for i in range(num_tasks):
            ax.add_patch(Rectangle((i - 0.5, i + 0.5), 1, 1, fill=False, edgecolor="#D55E00", lw=2.2, clip_on=False))
        ax.set_xticks(range(num_tasks), chain.titles, rotation=30, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(num_tasks + 1), _rows(chain))
        ax.set_ylabel("after training on")
        ax.set_title(chain.label)
        if chain.unit:
            figure.colorbar(image, ax=ax, label=chain.unit.name, fraction=0.046, pad=0.03)
        figure.tight_layout()
        return figure


def _rows(chain: Chain) -> list[str]:
    return [BEFORE, *chain.titles]


def _cell(chain: Chain, value: float) -> str:
    return number(value, chain.unit.digits if chain.unit else 3)


def _told(chain: Chain, t: int) -> str:
    scale = chain.unit.scale if chain.unit else 1.0
    return ", ".join(f"{title} {_cell(chain, scale * chain.scores[t, i])}" for i, title in enumerate(chain.titles))


def _ranked(shown: Floats) -> Floats:
    """Columns of different units on one scale: from each column's smallest score to its largest."""
    return np.stack([_rank(column) for column in shown.T], axis=1)


def _rank(shown: Floats) -> Floats:
    """From 0, the smallest of all, to 1, the largest; NaN stays."""
    low, high = np.nanmin(shown), np.nanmax(shown)
    return np.asarray((shown - low) / (high - low if high > low else 1.0))
