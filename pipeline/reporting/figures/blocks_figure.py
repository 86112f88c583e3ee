"""The picture of a diagnosis: how much every block does to the stream, and what each new one is worth."""

from __future__ import annotations

import math

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.records.diagnosis import Diagnosis
from pipeline.reporting.figures.plot import INK, STYLE
from pipeline.reporting.figures.stack_figure import colour_of_round


def diagnosis_figure(diagnosis: Diagnosis) -> Figure:
    """Two panels over the position in the stack: relative update of all blocks, loss without each new block."""
    with pyplot.rc_context(STYLE):
        figure, (above, below) = pyplot.subplots(2, 1, figsize=(11, 4.4), sharex=True)
        _draw_updates(above, diagnosis)
        _draw_costs(below, diagnosis)
        below.set_xlim(-0.7, len(diagnosis.updates) - 0.3)
        below.xaxis.set_major_locator(MaxNLocator(nbins=20, integer=True))
        below.set_xlabel("block")
        for ax in (above, below):
            ax.grid(axis="x", visible=False)
        figure.align_ylabels()
        figure.tight_layout()
        return figure


def _draw_updates(ax: Axes, diagnosis: Diagnosis) -> None:
    rounds = {block.position: block.round for block in diagnosis.blocks}
    colours = [colour_of_round(rounds.get(i, 0)) for i in range(len(diagnosis.updates))]
    ax.bar(range(len(colours)), diagnosis.updates, color=colours, width=0.8)
    if max(diagnosis.updates) > 20 * float(np.median(diagnosis.updates)) > 0:
        ax.set_yscale("log")  # the first blocks of many models multiply the embeddings
        ax.minorticks_off()
    ax.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    ax.set_ylabel("update of the stream")


def _draw_costs(ax: Axes, diagnosis: Diagnosis) -> None:
    for block in diagnosis.blocks:
        removal = block.without
        ax.bar(block.position, removal.value, color=colour_of_round(block.round), width=0.8)
        if math.isfinite(removal.low):
            reach = [[removal.value - removal.low], [removal.high - removal.value]]
            ax.errorbar(block.position, removal.value, reach, color=INK, lw=1.2, capsize=3)
    ax.axhline(0, color="#8c959f", lw=1)
    ax.set_ylabel("loss without it\n(bits per byte)")
