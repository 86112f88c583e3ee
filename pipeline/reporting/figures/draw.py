"""Which figures a report shows, and the words around them."""

from __future__ import annotations

from pathlib import Path

from pipeline.reporting.compare import Comparison
from pipeline.reporting.figures.path_figure import path_plot
from pipeline.reporting.figures.plot import Plot, loss_figure, save, sweep_figure
from pipeline.reporting.figures.tradeoff import tradeoff_figure
from pipeline.reporting.tables.wording import number, percent


def draw(comparison: Comparison, directory: Path) -> list[Plot]:
    """Write the figures that the artifacts allow to `directory`, as PNG and SVG; returns them for the page."""
    plots = []
    tradeoff, sweep, loss = tradeoff_figure(comparison), sweep_figure(comparison), loss_figure(comparison)
    if tradeoff is not None:
        caption = (
            "Up and to the right is better: more learned, less forgotten. The base is the origin. "
            f"Bars are {percent(comparison.confidence)} intervals of the paired difference."
        )
        file = save(tradeoff, directory, "tradeoff")
        plots.append(Plot(file, "What was learned against what was kept", _tradeoff_alt(comparison), caption))
    if (path := path_plot(comparison, directory)) is not None:
        plots.append(path)
    if sweep is not None:
        alt = "Domain bits per byte of the trained models over the swept setting; the values are in the score table."
        caption = f"Bars are {percent(comparison.confidence)} intervals of the paired difference against the base."
        plots.append(Plot(save(sweep, directory, "sweep"), "The sweep", alt, caption))
    if loss is not None:
        alt = f"Training and validation loss over trained tokens. {_last_losses(comparison)}"
        caption = "Losses of different stages are means over different tokens and cannot be compared with each other."
        plots.append(Plot(save(loss, directory, "loss"), "Training", alt, caption))
    return plots


def _tradeoff_alt(comparison: Comparison) -> str:
    points = []
    for line in comparison.lines:
        gains, kept = line.gains, comparison.kept_change(line)
        if gains is not None and gains.domain is not None and kept is not None:
            domain = number(gains.domain.value, 4, signed=True)
            change = number(kept.change.value, kept.digits, signed=True)
            points.append(f"{line.label} {domain} bits per byte and {change} {kept.unit}")
    return f"Domain gain, and mean change of what the base could do already, against the base: {'; '.join(points)}."


def _last_losses(comparison: Comparison) -> str:
    ends = []
    for line in comparison.lines:
        curve = line.row.curve
        if curve is not None and curve.val_loss.size:
            first, last = number(curve.val_loss[0], 3), number(curve.val_loss[-1], 3)
            ends.append(f"{line.label}: validation loss from {first} to {last}")
    return "; ".join(ends) + "." if ends else ""
