"""A picture of published accuracy against counted cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10, sqrt
from pathlib import Path

from framework.canvas import PAPER, Canvas, Colour, text_width
from framework.chart import FAINT, GRID, INK
from framework.compare import Row
from framework.errors import ConfigError

WIDTH, HEIGHT = 1180, 860  # of the picture, in units of the canvas
LEFT, RIGHT, TOP, BOTTOM = 60, 210, 70, 60  # margins; families are listed in the right one
SMALL, NORMAL, LARGE = 11.0, 12.0, 17.0  # text
COLOURS: tuple[Colour, ...] = (
    *((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (235, 120, 0), (0, 160, 180), (140, 86, 75)),
    *((214, 80, 170), (20, 20, 20), (150, 150, 0), (0, 63, 92), (122, 81, 149), (239, 86, 117), (0, 110, 100)),
    *((184, 134, 11), (91, 60, 196)),
)

Box = tuple[float, float, float, float]  # left, top, right and lower edge


@dataclass(frozen=True, slots=True)
class Spot:
    """A network in the picture.

    Args:
        row: Which.
        x: Where, in units.
        y: Where, in units.
        radius: Of its disc, in units: pi square units of area are a million parameters.
    """

    row: Row
    x: float
    y: float
    radius: float

    @property
    def family(self) -> str:
        """The family that the network is of."""
        return self.row.published.family if self.row.published else ""


@dataclass(frozen=True, slots=True)
class Axes:
    """Where a cost and an accuracy are in the picture.

    Args:
        least: Least multiply-adds, in billions.
        most: Most multiply-adds, in billions.
        worst: Lower end of the accuracies, in per cent.
        best: Upper end.
    """

    least: float
    most: float
    worst: int
    best: int

    def x(self, cost: float) -> float:
        """Return where multiply-adds, in billions, are from left to right."""
        return LEFT + (WIDTH - LEFT - RIGHT) * log10(cost / self.least) / log10(self.most / self.least)

    def y(self, top1: float) -> float:
        """Return where an accuracy, in per cent, is from top to bottom."""
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.best - top1) / (self.best - self.worst)

    def costs(self) -> Iterator[float]:
        """Yield 1, 2 and 5 times every power of ten within the axis."""
        for power in range(floor(log10(self.least)), ceil(log10(self.most)) + 1):
            for factor in (1, 2, 5):
                if self.least <= factor * 10.0**power <= self.most:
                    yield factor * 10.0**power

    def levels(self) -> range:
        """Return at most a dozen round accuracies within the axis."""
        step = next(step for step in (1, 2, 5, 10) if (self.best - self.worst) / step <= 12)
        return range(-(-self.worst // step) * step, self.best + 1, step)


def is_drawn(row: Row) -> bool:
    """Return whether a network can be in the picture: its accuracy is published, and its cost is counted."""
    return row.cost is not None and row.published is not None and row.published.top1 is not None


def scatter(rows: Sequence[Row]) -> Canvas:
    """Draw the networks whose accuracy is published: top-1 over multiply-adds, area as parameters.

    Those of a family have one colour and are joined by a line. Trained on more than ImageNet-1k: hollow. A name for
    which there is no room is left out.

    Raises:
        ConfigError: There is none.
    """
    drawn = [(row, *_values(row)) for row in rows if is_drawn(row)]
    if not drawn:
        raise ConfigError("--plot: none of these networks has a published top-1 accuracy")
    costs, accuracies = [cost for _, cost, _, _ in drawn], [top1 for _, _, top1, _ in drawn]
    axes = Axes(min(costs) / 1.5, max(costs) * 2, floor(min(accuracies) - 0.5), ceil(max(accuracies) + 1))
    spots = [
        Spot(row, axes.x(cost), axes.y(top1), max(2.5, sqrt(millions)))  # what would vanish is larger
        for row, cost, top1, millions in drawn
    ]
    families = dict.fromkeys(spot.family for spot in spots)
    colours = {family: COLOURS[index % len(COLOURS)] for index, family in enumerate(families)}
    canvas = Canvas(WIDTH, HEIGHT)
    _draw_axes(canvas, axes)
    _draw_spots(canvas, spots, colours)
    _draw_legend(canvas, colours)
    return canvas


def write_scatter(rows: Sequence[Row], file: Path) -> None:
    """Draw a picture to a .svg or .png file.

    Raises:
        ConfigError: No network has a published accuracy.
    """
    scatter(rows).save(file)


def _values(row: Row) -> tuple[float, float, float]:
    """Return multiply-adds in billions, top-1 in per cent, and parameters in millions."""
    assert row.cost is not None
    assert row.published is not None
    assert row.published.top1 is not None
    return row.cost.multiply_adds / 1e9, row.published.top1, row.cost.parameters / 1e6


def _draw_axes(canvas: Canvas, axes: Axes) -> None:
    """Draw the grid, its numbers, and what they are."""
    for cost in axes.costs():
        canvas.line([(axes.x(cost), TOP), (axes.x(cost), HEIGHT - BOTTOM)], GRID)
        canvas.text(axes.x(cost), HEIGHT - BOTTOM + 17, f"{cost:g}", NORMAL, FAINT, "middle")
    for level in axes.levels():
        canvas.line([(LEFT, axes.y(level)), (WIDTH - RIGHT, axes.y(level))], GRID)
        canvas.text(LEFT - 8, axes.y(level) + 4, str(level), NORMAL, FAINT, "end")
    canvas.line([(LEFT, TOP), (LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)], FAINT)
    canvas.text(LEFT, 28, "Published ImageNet-1k accuracy against counted cost", LARGE, INK)
    canvas.text(LEFT - 40, TOP - 16, "top-1 accuracy, %", NORMAL, INK)
    middle = (LEFT + WIDTH - RIGHT) / 2
    canvas.text(middle, HEIGHT - 16, "multiply-adds of one image, in billions, logarithmic", NORMAL, INK, "middle")


def _draw_spots(canvas: Canvas, spots: Sequence[Spot], colours: dict[str, Colour]) -> None:
    """Draw the networks: lines below, large ones below small ones, names above all."""
    for family, colour in colours.items():
        own = sorted((spot for spot in spots if spot.family == family), key=lambda spot: (spot.x, -spot.y))
        canvas.line([(spot.x, spot.y) for spot in own], _mix(colour, 0.5))
    for spot in sorted(spots, key=lambda spot: -spot.radius):
        colour = colours[spot.family]
        canvas.disc(spot.x, spot.y, spot.radius, colour)
        hollow = spot.row.published is None or spot.row.published.trained_on != "ImageNet-1k"
        canvas.disc(spot.x, spot.y, spot.radius - 1.3, PAPER if hollow else _mix(colour, 0.5))
    for spot, x, y in _names(spots):
        canvas.text(x, y + 4, spot.row.name, SMALL, colours[spot.family], "middle")


def _mix(colour: Colour, share: float) -> Colour:
    """Return a colour on white paper that lets it through by a share."""
    red, green, blue = (round(share * part + (1 - share) * 255) for part in colour)
    return red, green, blue


def _names(spots: Sequence[Spot]) -> Iterator[tuple[Spot, float, float]]:
    """Yield every name that there is room for, with the place of its middle."""
    discs = [_box(spot.x, spot.y, 2 * min(spot.radius, 9), 2 * min(spot.radius, 9)) for spot in spots]
    names: list[Box] = []
    for index, spot in enumerate(spots):
        length = text_width(spot.row.name, SMALL)
        taken = [*discs[:index], *discs[index + 1 :], *names]
        for x, y in _places(spot, length):
            box = _box(x, y, length, SMALL)
            if _is_inside(box) and not any(_overlap(box, other) for other in taken):
                names.append(box)
                yield spot, x, y
                break


def _places(spot: Spot, length: float) -> Iterator[tuple[float, float]]:
    """Yield where the middle of a name could be, best first."""
    if 2 * spot.radius > length:
        yield spot.x, spot.y
    for far in (4, 12):
        beside, above = spot.radius + far + length / 2, spot.radius + far + SMALL / 2
        yield from ((spot.x + beside, spot.y), (spot.x - beside, spot.y))
        yield from ((spot.x, spot.y - above), (spot.x, spot.y + above))
        for right in (1, -1):
            for down in (1, -1):
                yield spot.x + right * beside, spot.y + down * (far + SMALL / 2)


def _box(x: float, y: float, width: float, height: float) -> Box:
    """Return the edges of what has its middle at a place."""
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _is_inside(box: Box) -> bool:
    """Return whether a box is within the axes."""
    return box[0] > LEFT and box[1] > TOP and box[2] < WIDTH - RIGHT and box[3] < HEIGHT - BOTTOM


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _draw_legend(canvas: Canvas, colours: dict[str, Colour]) -> None:
    """Draw the families, what hollow means, and what areas mean."""
    x, y = WIDTH - RIGHT + 28.0, TOP + 8.0
    for family, colour in colours.items():
        canvas.disc(x, y, 5, colour)
        canvas.text(x + 14, y + 4, family, NORMAL, INK)
        y += 20
    y += 12
    canvas.disc(x, y, 5, FAINT)
    canvas.disc(x, y, 3.7, PAPER)
    canvas.text(x + 14, y + 4, "saw more than ImageNet-1k", NORMAL, INK)
    y += 8
    for millions in (5, 50, 500):
        y += sqrt(millions) + 14
        canvas.disc(x + 12, y, sqrt(millions), FAINT)
        canvas.text(x + 44, y + 4, f"{millions} M parameters", NORMAL, INK)
        y += sqrt(millions)
