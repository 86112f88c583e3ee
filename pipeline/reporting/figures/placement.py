"""Puts text beside points so that it covers neither points nor other text, as far as there is room."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

DISTANCES = (12, 26, 44)  # points
ANGLES = (30, 150, -30, -150, 90, -90, 0, 180)  # degrees; beside error bars first, on them last


def place_labels(
    ax: Axes,
    labels: Sequence[tuple[float, float, str, str]],
    avoid: Sequence[tuple[float, float, float, float]] = (),
) -> list[Annotation]:
    """Annotate (x, y, text, colour) in data coordinates, each at the first free of a few places around its point.

    `avoid` holds the (left, right, bottom, top) of error bars, which are crosses and so block two strips each. The
    layout must be final: overlaps are measured in pixels.
    """
    figure = ax.figure
    canvas = FigureCanvasAgg(figure)  # type: ignore[arg-type]
    canvas.draw()
    taken = [_around(ax, x, y) for x, y, _, _ in labels]
    for left, right, bottom, top in avoid:
        middle = ((left + right) / 2, (bottom + top) / 2)
        taken += [_strip(ax, (left, middle[1]), (right, middle[1])), _strip(ax, (middle[0], bottom), (middle[0], top))]
    placed = []
    for x, y, text, colour in labels:
        annotation = _annotate(ax, x, y, text, colour)
        best = min(_offsets(), key=lambda offset: _cost(annotation, offset, taken, ax, canvas))
        _move(annotation, best)
        taken.append(annotation.get_window_extent(canvas.get_renderer()))
        placed.append(annotation)
    return placed


def _annotate(ax: Axes, x: float, y: float, text: str, colour: str) -> Annotation:
    return ax.annotate(
        text,
        (x, y),
        xytext=(0, 0),
        textcoords="offset points",
        color=colour,
        fontsize=10,
        zorder=6,
        annotation_clip=False,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
    )


def _offsets() -> list[tuple[float, float]]:
    return [
        (distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle)))
        for distance in DISTANCES
        for angle in ANGLES
    ]


def _move(annotation: Annotation, offset: tuple[float, float]) -> None:
    annotation.set_position(offset)
    annotation.set_horizontalalignment("left" if offset[0] > 1 else "right" if offset[0] < -1 else "center")
    annotation.set_verticalalignment("bottom" if offset[1] > 1 else "top" if offset[1] < -1 else "center")


def _cost(
    annotation: Annotation, offset: tuple[float, float], taken: list[Bbox], ax: Axes, canvas: FigureCanvasAgg
) -> float:
    """Pixels of overlap, with distance from the point to break ties."""
    _move(annotation, offset)
    box = annotation.get_window_extent(canvas.get_renderer())
    overlap = sum(_area(Bbox.intersection(box, other)) for other in taken)
    outside = _area(box) - _area(Bbox.intersection(box, ax.get_window_extent()))
    return overlap + outside + 0.5 * math.hypot(*offset)


def _around(ax: Axes, x: float, y: float, margin: float = 9) -> Bbox:
    px, py = ax.transData.transform((x, y))
    return Bbox.from_extents(px - margin, py - margin, px + margin, py + margin)


def _strip(ax: Axes, start: tuple[float, float], end: tuple[float, float], margin: float = 4) -> Bbox:
    (x0, y0), (x1, y1) = ax.transData.transform([start, end])
    return Bbox.from_extents(x0 - margin, y0 - margin, x1 + margin, y1 + margin)


def _area(box: Bbox | None) -> float:
    return 0.0 if box is None else box.width * box.height
