"""A drawing surface of lines, shapes and text that is written as SVG or as PNG, without a plotting library."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from framework.errors import ConfigError, suggest

Point = tuple[float, float]
Colour = tuple[int, int, int]
Anchor = Literal["start", "middle", "end"]

PAPER: Colour = (255, 255, 255)
SHARPNESS, OVERSAMPLED = 2, 2  # pixels of a PNG for a unit of the canvas, and how much finer it is drawn first
FONT = "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif"
ANCHORS: dict[Anchor, str] = {"start": "ls", "middle": "ms", "end": "rs"}
FORMATS = ("svg", "png")


class Line(NamedTuple):
    """Straight pieces through points (x, y)."""

    points: Sequence[Point]
    colour: Colour
    width: float
    dashed: bool


class Rectangle(NamedTuple):
    """A filled rectangle from its upper left corner."""

    x: float
    y: float
    width: float
    height: float
    colour: Colour


class Disc(NamedTuple):
    """A filled circle about a point."""

    x: float
    y: float
    radius: float
    colour: Colour


class Text(NamedTuple):
    """A line of text whose base line passes through a point."""

    x: float
    y: float
    text: str
    size: float
    colour: Colour
    anchor: Anchor


Mark = Line | Rectangle | Disc | Text


class Canvas:
    """A white surface with marks on it, the later above the earlier.

    Args:
        width: In units; x goes right.
        height: In units; y goes down.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.marks: list[Mark] = [Rectangle(0, 0, width, height, PAPER)]

    def line(self, points: Sequence[Point], colour: Colour, width: float = 1.0, dashed: bool = False) -> None:
        """Draw straight pieces through points."""
        self.marks.append(Line(points, colour, width, dashed))

    def rectangle(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        """Fill a rectangle from its upper left corner."""
        self.marks.append(Rectangle(x, y, width, height, colour))

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Fill a circle about a point."""
        self.marks.append(Disc(x, y, radius, colour))

    def text(self, x: float, y: float, text: str, size: float, colour: Colour, anchor: Anchor = "start") -> None:
        """Write a line of text; the point is the start, the middle or the end of its base line."""
        self.marks.append(Text(x, y, text, size, colour, anchor))

    def svg(self) -> str:
        """Return the drawing as SVG."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}"'
        return "\n".join(
            [
                f'{head} viewBox="0 0 {self.width} {self.height}" font-family="{FONT}">',
                *(_svg_of(mark) for mark in self.marks),
                "</svg>\n",
            ]
        )

    def image(self) -> Image.Image:
        """Return the drawing as an RGB image of twice as many pixels as units a side."""
        scale = SHARPNESS * OVERSAMPLED
        picture = Image.new("RGB", (scale * self.width, scale * self.height))
        drawing = ImageDraw.Draw(picture)
        for mark in self.marks:
            _draw(drawing, mark, scale)
        return picture.resize((SHARPNESS * self.width, SHARPNESS * self.height), Image.Resampling.BOX)

    def save(self, path: Path) -> None:
        """Write the drawing as its suffix says, `.svg` or `.png`.

        Raises:
            ConfigError: The suffix is another.
        """
        kind = path.suffix.lower().removeprefix(".")
        if kind not in FORMATS:
            raise ConfigError(f"{path}: a drawing is written as .svg or .png; {suggest(kind, FORMATS)}")
        if kind == "svg":
            path.write_text(self.svg(), encoding="utf-8")
        else:
            self.image().save(path)


def text_width(text: str, size: float) -> float:
    """Return about how wide a line of text is, in units."""
    return float(ImageFont.load_default(size).getlength(text))


def _svg_of(mark: Mark) -> str:
    colour = f"rgb({','.join(map(str, mark.colour))})"
    match mark:
        case Line(points, _, width, dashed):
            path = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
            dashes = ' stroke-dasharray="3 3"' if dashed else ""
            return (
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" '
                f'stroke-linejoin="round"{dashes}/>'
            )
        case Rectangle(x, y, width, height, _):
            return f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" fill="{colour}"/>'
        case Disc(x, y, radius, _):
            return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius}" fill="{colour}"/>'
        case Text(x, y, text, size, _, anchor):
            place = f'x="{x:.2f}" y="{y:.2f}" font-size="{size}" text-anchor="{anchor}"'
            return f'<text {place} fill="{colour}">{escape(text)}</text>'


def _draw(drawing: ImageDraw.ImageDraw, mark: Mark, scale: int) -> None:
    match mark:
        case Line(points, colour, width, dashed):
            for piece in _dashes(points) if dashed else [points]:
                scaled = [(scale * x, scale * y) for x, y in piece]
                drawing.line(scaled, colour, max(1, round(scale * width)), joint="curve")
        case Rectangle(x, y, width, height, colour):
            drawing.rectangle((scale * x, scale * y, scale * (x + width) - 1, scale * (y + height) - 1), colour)
        case Disc(x, y, radius, colour):
            drawing.circle((scale * x, scale * y), scale * radius, colour)
        case Text(x, y, text, size, colour, anchor):
            font = ImageFont.load_default(scale * size)
            drawing.text((scale * x, scale * y), text, colour, font, ANCHORS[anchor])


def _dashes(points: Sequence[Point], length: float = 3.0) -> list[list[Point]]:
    """Cut a straight line from the first point to the last into dashes."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    whole = max(abs(x1 - x0), abs(y1 - y0))
    ends = [min(whole, length * index) / whole for index in range(int(whole / length) + 2)]
    return [
        [(x0 + (x1 - x0) * one, y0 + (y1 - y0) * one), (x0 + (x1 - x0) * two, y0 + (y1 - y0) * two)]
        for one, two in zip(ends[::2], ends[1::2], strict=False)
    ]
