"""The paper's Figure 4: two means of its columns against each other, its models and the run's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib import pyplot

from pipeline.reporting.compare import Comparison
from pipeline.reporting.figures.placement import place_labels
from pipeline.reporting.figures.plot import INK, STYLE, Plot, colour_of, save
from pipeline.reporting.paper.beside import Number, score_in
from pipeline.reporting.paper.tables import PaperTable

FAINT = "#8c959f"


def pareto_plot(comparison: Comparison, table: PaperTable, rows: Mapping[str, str], directory: Path) -> Plot:
    """Drawn to `directory`; of a table with a `figure`."""
    assert table.figure is not None
    ours = _ours(comparison, table, rows)
    with pyplot.rc_context(STYLE):
        figure, ax = pyplot.subplots(figsize=(8.6, 5.2))
        labels = []
        for name, found in table.rows.items():
            theirs = [found[axis] for axis in table.figure]
            if theirs[0] is not None and theirs[1] is not None:
                ax.plot(theirs[0], theirs[1], "o", color=FAINT, ms=7, mfc="none")
                labels.append((theirs[0], theirs[1], name, FAINT))
        for label, (across, up, colour) in ours.items():
            ax.errorbar(
                across.value, up.value, xerr=across.value - across.low, yerr=up.value - up.low, fmt="o", color=colour,
                ms=8, capsize=3, zorder=4,
            )  # fmt: skip
            labels.append((across.value, up.value, label, INK))
        x, y = table.figure
        ax.set_xlabel(f"{x} ({table.unit})  → better")
        ax.set_ylabel(f"{y} ({table.unit})  → better")
        ax.margins(0.12)
        figure.tight_layout()
        place_labels(ax, labels)
    told = "; ".join(f"{label} {across.value:.2f}, {up.value:.2f}" for label, (across, up, _) in ours.items())
    caption = f"Open circles are the paper's models, filled ones this run's, with intervals over items. {told}"
    path = save(figure, directory, f"paper_{table.name}")
    alt = f"Scatter of {y} over {x}, the paper's models and this run's. {told}"
    return Plot(path, f"{y} against {x}", alt, caption)


def _ours(comparison: Comparison, table: PaperTable, rows: Mapping[str, str]) -> dict[str, tuple[Number, Number, str]]:
    """label -> both axes and a colour, of the models that were measured as the paper's are."""
    assert table.figure is not None
    found = {}
    for line in comparison.lines:
        if line.name in rows:
            x, y = (score_in(line, table, table.column(axis), comparison.confidence) for axis in table.figure)
            if x is not None and y is not None and x.is_paired and y.is_paired:
                found[line.label] = (x, y, colour_of(comparison, line))
    return found
