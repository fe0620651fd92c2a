"""A chart of curves in the unit square, such as precision over recall."""

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from framework.canvas import Canvas, Colour, text_width
from framework.chart import COLOURS, FAINT, GRID, INK, NORMAL, SMALL
from framework.tracking.drawing import Picture

SIDE = 300  # of the plotting area, in units: two pixels each
LEFT, TOP, BOTTOM, GAP = 58, 30, 50, 20
LEGEND, LINE, SWATCH = 150, 20, 18  # width of the legend, height of a line of it, width of a swatch
TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def curve_chart(curves: Mapping[str, NDArray[np.float64]], x: str, y: str) -> Picture:
    """Draw curves over axes from 0 to 1, the first one strong.

    Args:
        curves: By name (K, 2): places along x and y, from left to right; what is not finite is left out.
        x: What the horizontal axis shows.
        y: What the vertical axis shows.
    """
    canvas = Canvas(LEFT + SIDE + GAP + LEGEND, TOP + SIDE + BOTTOM)
    for tick in TICKS:
        across, down = _place(tick, tick)
        canvas.line([(across, TOP), (across, TOP + SIDE)], GRID)
        canvas.line([(LEFT, down), (LEFT + SIDE, down)], GRID)
        canvas.text(across, TOP + SIDE + 16, f"{tick:.1f}", SMALL, FAINT, "middle")
        canvas.text(LEFT - 8, down + 4, f"{tick:.1f}", SMALL, FAINT, "end")
    canvas.line([(LEFT, TOP), (LEFT, TOP + SIDE), (LEFT + SIDE, TOP + SIDE)], FAINT)
    canvas.text(LEFT + SIDE / 2, TOP + SIDE + 36, x, NORMAL, INK, "middle")
    canvas.text(8, 16, y, NORMAL, INK)
    styles = [(COLOURS[index % len(COLOURS)], 1.5 if index else 3.0) for index in range(len(curves))]
    for points, style in reversed(list(zip(curves.values(), styles, strict=True))):
        places = [_place(*point) for point in points.tolist() if all(isfinite(value) for value in point)]
        if places:
            canvas.line(places, *style)
    _draw_legend(canvas, list(curves), styles)
    return np.asarray(canvas.image()).copy()


def _place(x: float, y: float) -> tuple[float, float]:
    return LEFT + SIDE * x, TOP + SIDE * (1 - y)


def _draw_legend(canvas: Canvas, names: Sequence[str], styles: Sequence[tuple[Colour, float]]) -> None:
    """Write the names beside their colours; those that find no room are counted."""
    left = LEFT + SIDE + GAP
    most = SIDE // LINE
    for index, (name, (colour, width)) in enumerate(zip(names, styles, strict=True)):
        middle = TOP + LINE * index + 8
        if index == most - 1 and len(names) > most:
            canvas.text(left, middle + 4, f"and {len(names) - index} more", SMALL, FAINT)
            return
        canvas.rectangle(left, middle - width / 2, SWATCH, width, colour)
        canvas.text(left + SWATCH + 8, middle + 4, _cut(name, LEGEND - SWATCH - 16), SMALL, INK)


def _cut(name: str, width: float) -> str:
    """Cut a name to a width."""
    if text_width(name, SMALL) <= width:
        return name
    while name and text_width(name + "…", SMALL) > width:
        name = name[:-1]
    return name + "…"
