"""Which figures a report shows, and the words around them."""

from __future__ import annotations

from pathlib import Path

from pipeline.reporting.axes import Axis, axes
from pipeline.reporting.compare import Comparison
from pipeline.reporting.figures.path_figure import path_plot
from pipeline.reporting.figures.plot import Plot, loss_figure, save, sweep_figure
from pipeline.reporting.figures.tradeoff import NARROW, far_on, shown_on, tradeoff_figure
from pipeline.reporting.tables.wording import number, percent


def draw(comparison: Comparison, directory: Path) -> list[Plot]:
    """Write the figures that the artifacts allow to `directory`, as PNG and SVG; returns them for the page.

    One that has a narrow form is what the page begins with.
    """
    plots = [_tradeoff(comparison, axis, directory, i == 0) for i, axis in enumerate(axes(comparison))]
    sweep, loss, path = sweep_figure(comparison), loss_figure(comparison), path_plot(comparison, directory)
    plots += [path] if path else []
    if sweep is not None:
        alt = "Domain bits per byte of the trained models over the swept setting; the values are in the score table."
        caption = f"Bars are {percent(comparison.confidence)} intervals of the paired difference against the base."
        plots.append(Plot(save(sweep, directory, "sweep"), "The sweep", alt, caption))
    if loss is not None:
        alt = f"Training and validation loss over trained tokens. {_last_losses(comparison)}"
        caption = "Losses of different stages are means over different tokens and cannot be compared with each other."
        plots.append(Plot(save(loss, directory, "loss"), "Training", alt, caption))
    return plots


def _tradeoff(comparison: Comparison, axis: Axis, directory: Path, is_first: bool) -> Plot:
    name = "tradeoff" if is_first else f"tradeoff-{axis.key}"
    narrow = save(tradeoff_figure(comparison, axis, NARROW), directory, f"{name}-narrow") if is_first else None
    caption = (
        f"Up and to the {'left' if axis.better == '←' else 'right'} is better. The base is the origin. Bars are "
        f"{percent(comparison.confidence)} intervals of the paired difference."
    )
    if far := far_on(comparison, axis):
        caption += f" At the edge, as they are far off: {', '.join(line.label for line in far)}."
    path = save(tradeoff_figure(comparison, axis), directory, name)
    return Plot(path, f"What was learned against {axis.noun}", _tradeoff_alt(comparison, axis), caption, narrow)


def _tradeoff_alt(comparison: Comparison, axis: Axis) -> str:
    points = []
    for line in shown_on(comparison, axis):
        across = axis.of(line)
        assert across is not None and line.gains is not None and line.gains.domain is not None
        gain = number(line.gains.domain.value, 4, signed=True)
        points.append(f"{line.label} {gain} bits per byte and {number(across.value, axis.digits, signed=axis.signed)}")
    return f"Domain gain over the base against {axis.label}, in {axis.unit}: {'; '.join(points)}."


def _last_losses(comparison: Comparison) -> str:
    ends = []
    for line in comparison.lines:
        curve = line.row.curve
        if curve is not None and curve.val_loss.size:
            first, last = number(curve.val_loss[0], 3), number(curve.val_loss[-1], 3)
            ends.append(f"{line.label}: validation loss from {first} to {last}")
    return "; ".join(ends) + "." if ends else ""
