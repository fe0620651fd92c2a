"""Charts: panels of lines and points over one horizontal axis, drawn on a canvas."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, floor, log10

from framework.canvas import Canvas, Colour, Point, text_width

INK: Colour = (32, 33, 36)
FAINT: Colour = (95, 99, 104)
GRID: Colour = (228, 230, 233)
# Okabe and Ito, Color Universal Design (2008), the darker ones first: told apart with every common colour blindness.
COLOURS: tuple[Colour, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (58, 58, 66),
)
LEFT, RIGHT, TOP, BOTTOM = 70, 22, 34, 44  # of a chart, in units
TITLE, GAP = 24, 16  # above each panel, and below it
SMALL, NORMAL = 11.0, 13.0  # text


@dataclass(frozen=True)
class Series:
    """One line, or a set of points.

    Args:
        name: What the legend calls it; empty: it is not in the legend.
        points: (x, y) from left to right.
        joined: A line through the points; else a disc at each.
        labels: Text beside each point, of a line above it; empty: none.
    """

    name: str
    points: Sequence[Point]
    joined: bool = True
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Panel:
    """Series over one vertical axis.

    Args:
        title: What is shown, with its unit.
        series: What is drawn.
        height: Of the plotting area, in units.
        from_zero: The vertical axis begins at 0.
    """

    title: str
    series: Sequence[Series]
    height: int = 110
    from_zero: bool = True


@dataclass(frozen=True)
class Axis:
    """From values to places along a side of a chart.

    Args:
        low: Value at the beginning.
        high: Value at the end.
        logarithmic: Equal factors are equally far apart.
    """

    low: float
    high: float
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Return how far along a value lies, in [0, 1]."""
        low, high, value = (log10(x) if self.logarithmic else x for x in (self.low, self.high, value))
        return (value - low) / (high - low)

    def ticks(self, most: int) -> list[float]:
        """Return at most about `most` round values inside."""
        if self.logarithmic:
            powers = [10.0**power for power in range(floor(log10(self.low)), ceil(log10(self.high)) + 1)]
            factors = (1,) if 3 * len(powers) > 2 * most else (1, 2, 5)
            return [f * power for power in powers for f in factors if self.low <= f * power <= self.high]
        step = _round_up((self.high - self.low) / most)
        first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def draw_chart(
    title: str,
    panels: Sequence[Panel],
    x_title: str,
    borders: Sequence[tuple[float, str]] = (),
    logarithmic: bool = False,
    width: int = 960,
) -> Canvas:
    """Draw panels below each other.

    Args:
        title: Above everything.
        panels: From top to bottom.
        x_title: What the horizontal axis shows, with its unit.
        borders: (x, text) of dashed lines through every panel, with the text at the top.
        logarithmic: Whether the horizontal axis is.
        width: Of the chart, in units.
    """
    every = [x for panel in panels for series in panel.series for x, _ in series.points]
    axis = Axis(*_widened(min(every), max(every)), logarithmic)
    heights = [TITLE + panel.height + GAP for panel in panels]
    tops = list(accumulate(heights, initial=TOP + (18 if borders else 0)))
    canvas = Canvas(width, tops[-1] - GAP + BOTTOM)
    canvas.text(LEFT, 24, title, NORMAL + 2, INK)
    _name_borders(canvas, [(_across(canvas, axis, x), text) for x, text in borders], tops[0] - 6)
    for panel, top in zip(panels, tops, strict=False):
        for x, _ in borders:
            place = _across(canvas, axis, x)
            canvas.line([(place, top + TITLE), (place, top + TITLE + panel.height)], FAINT, dashed=True)
        _draw_panel(canvas, panel, axis, top + TITLE)
    _draw_x_axis(canvas, axis, x_title, tops[-1] - GAP)
    return canvas


def _across(canvas: Canvas, axis: Axis, x: float) -> float:
    return LEFT + (canvas.width - LEFT - RIGHT) * axis.share(x)


def _name_borders(canvas: Canvas, borders: Sequence[tuple[float, str]], y: float) -> None:
    """Write the names of borders (place, name), but those that would touch the one before."""
    free = 0.0
    for x, text in borders:
        half = text_width(text, SMALL) / 2
        if x - half >= free:
            canvas.text(x, y, text, SMALL, FAINT, "middle")
            free = x + half + 8


def _draw_panel(canvas: Canvas, panel: Panel, x_axis: Axis, top: float) -> None:
    values = [y for series in panel.series for _, y in series.points]
    above = (
        18 if any(series.joined and series.labels for series in panel.series) else 6
    )  # units, for what is at the top
    axis = Axis(*_widened(min([*values, 0.0] if panel.from_zero else values), max(values), above / panel.height))
    bottom = top + panel.height
    canvas.text(LEFT, top - 8, panel.title, NORMAL, INK)
    for tick in axis.ticks(4):
        y = bottom - panel.height * axis.share(tick)
        canvas.line([(LEFT, y), (canvas.width - RIGHT, y)], GRID)
        canvas.text(LEFT - 8, y + 4, f"{tick:.10g}", SMALL, FAINT, "end")
    for index, series in enumerate(panel.series):
        places = [(_across(canvas, x_axis, x), bottom - panel.height * axis.share(y)) for x, y in series.points]
        _draw_series(canvas, series, places, COLOURS[index % len(COLOURS)])
    _draw_legend(canvas, [series.name for series in panel.series], top - 8, LEFT + text_width(panel.title, NORMAL) + 18)


def _draw_series(canvas: Canvas, series: Series, places: Sequence[Point], colour: Colour) -> None:
    if series.joined:
        canvas.line(places, colour, 2.0)
    for x, y in () if series.joined else places:
        canvas.disc(x, y, 4.0, colour)
    aside, down = (4, -5) if series.joined else (8, 4)
    for (x, y), text in zip(places, series.labels, strict=False):
        fits = x + aside + text_width(text, SMALL) < canvas.width
        canvas.text(x + aside if fits else x - aside, y + down, text, SMALL, INK, "start" if fits else "end")


def _draw_legend(canvas: Canvas, names: Sequence[str], y: float, left: float) -> None:
    """Write the names beside their colours, from the right end; those that do not fit are counted."""
    x = float(canvas.width - RIGHT)
    for index, name in reversed(list(enumerate(names))):
        more = f"and {index + 1} more"
        if name and x - text_width(name, SMALL) - 42 - (text_width(more, SMALL) if index else 0) < left:
            canvas.text(x, y, more, SMALL, FAINT, "end")
            return
        if name:
            canvas.text(x, y, name, SMALL, FAINT, "end")
            x -= text_width(name, SMALL) + 24
            canvas.rectangle(x, y - 6, 16, 4, COLOURS[index % len(COLOURS)])
            x -= 18


def _draw_x_axis(canvas: Canvas, axis: Axis, title: str, y: float) -> None:
    canvas.line([(LEFT, y), (canvas.width - RIGHT, y)], FAINT)
    for tick in axis.ticks(8):
        x = _across(canvas, axis, tick)
        canvas.line([(x, y), (x, y + 4)], FAINT)
        canvas.text(x, y + 16, f"{tick:.10g}", SMALL, FAINT, "middle")
    canvas.text((LEFT + canvas.width - RIGHT) / 2, y + 34, title, SMALL, FAINT, "middle")


def _widened(low: float, high: float, margin: float = 0.0) -> tuple[float, float]:
    """Return a range that is not empty, with a margin above that lines at its top need."""
    if high == low:
        return (0.0, 1.0) if low == 0 else (min(low, 0.0), max(low, 0.0) + abs(low) * max(margin, 0.06))
    return low, high + margin * (high - low)


def _round_up(step: float) -> float:
    """Return the next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** floor(log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))
