"""A stack as a picture: old and new blocks from the embeddings (left) to the head; arcs lead from origin to copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from pipeline.reporting.figures.plot import FAINT, INK, PALETTE, STYLE, save
from pipeline.reporting.stack import Stack, inspection

WIDTH, HEIGHT = 11.0, 2.0  # inches
MAX_BLOCK, MAX_ARC = 0.42, 0.55  # inches
MANY_NEW = 12  # more new blocks than this and their positions are written upright
OLD_TICKS = (1, 2, 5, 10, 20, 50)  # how many old blocks apart positions are named


def stack_figure(stack: Stack) -> Figure:
    """One rectangle a block; an arc leads from a new block's origin to it. Readable from a few blocks to about 120."""
    n = len(stack.blocks)
    block = min(MAX_BLOCK, WIDTH / n)
    with pyplot.rc_context(STYLE):
        figure = pyplot.figure(figsize=(WIDTH, HEIGHT))
        ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        # In inches, with the stack centred, so that arcs look alike at any depth.
        ax.set_xlim(-(WIDTH - n * block) / 2, n * block + (WIDTH - n * block) / 2)
        ax.set_ylim(-0.75, HEIGHT - 0.85)
        ax.axis("off")
        for i, entry in enumerate(stack.blocks):
            _draw_block(ax, i * block, block, colour_of_round(entry.round))
            if entry.origin is not None:
                _draw_arc(ax, (entry.origin + 0.5) * block, (i + 0.5) * block, colour_of_round(entry.round))
        _name_positions(ax, stack, block)
        _legend(figure, stack)
        return figure


def write_inspection(stack: Stack, directory: Path) -> None:
    """Write stack.txt, stack.svg and stack.png to a directory."""
    (directory / "stack.txt").write_text(inspection(stack), encoding="utf-8")
    save(stack_figure(stack), directory, "stack")


def colour_of_round(round_: int) -> str:
    """Of an old block (round 0) or of a round's."""
    return FAINT if round_ == 0 else PALETTE[(round_ - 1) % len(PALETTE)]


def _draw_block(ax: Axes, left: float, width: float, colour: str) -> None:
    gap = min(0.03, width * 0.15)
    ax.add_patch(Rectangle((left + gap / 2, 0), width - gap, 0.5, facecolor=colour, edgecolor="none"))


def _draw_arc(ax: Axes, start: float, end: float, colour: str) -> None:
    distance = abs(end - start)
    height = min(0.12 + 0.35 * distance, MAX_ARC)
    style = f"arc3,rad={(-1 if end > start else 1) * 2 * height / distance:.4f}"
    arrow: Any = {"arrowstyle": "-|>", "mutation_scale": 7, "shrinkA": 0, "shrinkB": 0}
    ax.add_patch(FancyArrowPatch((start, 0.54), (end, 0.54), connectionstyle=style, color=colour, lw=1.1, **arrow))


def _name_positions(ax: Axes, stack: Stack, block: float) -> None:
    """Every new block by its position, in its colour; old ones where there is room for a number beside those."""
    upright = len(stack.new) > MANY_NEW or block < 0.2
    room = next((step for step in OLD_TICKS if step * block >= 0.34), OLD_TICKS[-1])
    named = {entry.position for entry in stack.new}
    for entry in stack.blocks:
        clear = all(abs(entry.position - other) * block > 0.22 for other in named)
        if not entry.is_new and (entry.position % room or not clear):
            continue
        ax.text(
            (entry.position + 0.5) * block,
            -0.06,
            str(entry.position),
            ha="center",
            va="top",
            rotation=90 if upright and entry.is_new else 0,
            fontsize=8 if block >= 0.11 else 6.5,
            color=colour_of_round(entry.round) if entry.is_new else "#57606a",
            fontweight="bold" if entry.is_new else "normal",
        )


def _legend(figure: Figure, stack: Stack) -> None:
    widened = not stack.new
    old = len(stack.blocks) - len(stack.new)
    names = [f"{old} old blocks" + (", each with new parameters" if widened else "")]
    handles: list[Artist] = [Rectangle((0, 0), 1, 1, facecolor=FAINT)]
    for round_, method in enumerate(stack.methods, start=1):
        added = sum(block.round == round_ for block in stack.blocks)
        if added:
            names.append(f"{added} new" + (f" in round {round_}" if len(stack.methods) > 1 else "") + f" ({method})")
            handles.append(Rectangle((0, 0), 1, 1, facecolor=colour_of_round(round_)))
    if stack.new:
        names.append("from its origin")
        handles.append(matplotlib.lines.Line2D([], [], color=INK, lw=1.1, marker=">", markevery=[1]))
    figure.legend(handles, names, loc="lower center", ncols=len(names), handlelength=1.4)
