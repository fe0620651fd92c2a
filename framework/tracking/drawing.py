"""Pictures for people: colours for classes, overlays, error maps, and labelled sheets of them.

Pure functions; every picture they return is (H, W, 3) uint8.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from framework.tracking.oklab import linear_rgb, oklab

Picture = NDArray[np.uint8]  # (H, W, 3)

NEUTRAL = (58, 58, 66)  # class 0, which is the background more often than not
# Okabe and Ito, Color Universal Design (2008): told apart with every common colour blindness.
OKABE_ITO = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
MOST_COLOURS = 1024
RIGHT, WRONG, HATCH = (226, 228, 232), (206, 44, 40), (150, 150, 156)
CYAN = np.array([0.0, 0.85, 1.0])
DEEP = (8, 69, 148)
CELL, MOST_NAMED = 40, 24  # pixels of a cell of a confusion matrix, and classes that it names
INK, FAINT, PAPER = (32, 33, 36), (104, 108, 114), (255, 255, 255)
GAP, MARGIN, SWATCH = 8, 16, 14
SHEET_WIDTH, LARGEST, LEGIBLE = 1640, 640, 256  # pixels: of a sheet, of a picture, and what small pictures grow to


class Row(NamedTuple):
    """One row of a sheet.

    Args:
        text: Line above the pictures, such as the sample's id and score.
        columns: (title, picture) from left to right.
    """

    text: str
    columns: Sequence[tuple[str, Picture]]


def to_rgb(image: Tensor | NDArray[Any]) -> Picture:
    """Show an image (C, H, W), uint8 or float in [0, 1], of any number of channels.

    One channel is shown grey; of two, the second grey and the first cyan over it, as a fluorescent stain over
    transmitted light; of more than three, the first three as RGB. One or two channels that use less than half
    of their range are stretched, each for itself.

    Raises:
        ValueError: It is of another shape or type.
    """
    array = _array(image)
    if np.issubdtype(array.dtype, np.floating):
        array = _round(255 * np.clip(array, 0, 1))
    if array.ndim != 3 or array.dtype != np.uint8 or not array.size:
        raise ValueError(f"an image to draw is (C, H, W), uint8 or float, got {array.shape} {array.dtype}")
    if len(array) >= 3:
        return np.ascontiguousarray(array[:3].transpose(1, 2, 0))
    channels = [_stretch(channel) for channel in array]
    picture = np.repeat(channels[-1][..., None], 3, axis=-1)
    if len(channels) == 2:
        picture = 1 - (1 - picture) * (1 - channels[0][..., None] * CYAN)  # screen blending: light adds up
    return _round(255 * picture)


def palette(count: int) -> Picture:
    """Return colours (count, 3) uint8 for classes, as distinct as can be; the first ones do not depend on `count`.

    Class 0 is a dark neutral, the next seven are Okabe and Ito's; each further one is the colour farthest from all
    before it (Glasbey et al., Colour displays for categorical images, 2007), in OKLab, to normal and to
    deuteranopic eyes.

    Raises:
        ValueError: `count` is negative or more than 1024.
    """
    if not 0 <= count <= MOST_COLOURS:
        raise ValueError(f"there are colours for 0 to {MOST_COLOURS} classes, not {count}")
    first = np.array([NEUTRAL, *OKABE_ITO], dtype=np.uint8)
    return first[:count].copy() if count <= len(first) else np.concatenate([first, _farther()[: count - len(first)]])


def overlay(
    image: Picture, mask: Any, palette: Picture, alpha: float = 0.5, ignore_index: int | None = None
) -> Picture:
    """Lay the classes of a mask over a picture, their borders a little stronger; hatch what is ignored.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) class ids, integers or bool, array or tensor.
        palette: (classes, 3) uint8.
        alpha: Opacity in [0, 1].
        ignore_index: Id without a class.

    Raises:
        ValueError: Sizes differ, or the mask holds an id that has no colour.
    """
    ids, ignored = _classes(mask, len(palette), ignore_index)
    if image.shape != (*ids.shape, 3):
        raise ValueError(f"a picture {image.shape} and a mask {ids.shape} are not of one size")
    opacity = np.where(_borders(np.where(ignored, -1, ids)), min(1.0, 1.7 * alpha), alpha)
    opacity = np.where(ignored, 0.9 * (alpha > 0) * _hatching(ids.shape), opacity)[..., None]
    colours = np.where(ignored[..., None], np.array(HATCH), palette[ids])
    return _round(image * (1 - opacity) + colours * opacity)


def error_map(target: Any, prediction: Any, ignore_index: int | None = None) -> Picture:
    """Show right pixels light, wrong ones red and ignored ones hatched.

    Args:
        target: (H, W) class ids, integers or bool, array or tensor.
        prediction: Likewise.
        ignore_index: Id in `target` that does not count.

    Raises:
        ValueError: Sizes differ.
    """
    target, prediction = _array(target), _array(prediction)
    if target.shape != prediction.shape or target.ndim != 2:
        raise ValueError(f"a target {target.shape} and a prediction {prediction.shape} are not (H, W) of one size")
    picture = np.where((target == prediction)[..., None], np.array(RIGHT), np.array(WRONG))
    if ignore_index is not None:
        picture = hatch(picture, target == ignore_index)
    return _round(picture)


def hatch(picture: NDArray[Any], where: NDArray[np.bool_]) -> NDArray[Any]:
    """Replace a part, (H, W) bool, of a picture (H, W, 3) by grey lines on white: there is nothing to show."""
    lines = np.where(_hatching(where.shape)[..., None], np.array(HATCH), np.array(PAPER))
    return np.where(where[..., None], lines.astype(picture.dtype), picture)


def confusion_chart(confusion: Any, names: Sequence[str]) -> Picture:
    """Draw a confusion matrix: a row for each true class, its shares of predictions from white to blue.

    Up to 24 classes are named, and each cell has its percentage; more are drawn without words, one pixel each at least.

    Args:
        confusion: (C, C) counts, rows are true classes, columns predicted ones; array or tensor.
        names: C names.
    """
    counts = _array(confusion).astype(np.float64)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    colours = _round(255 + (np.array(DEEP) - 255) * np.sqrt(shares)[..., None])  # the root shows rare mistakes
    if len(names) > MOST_NAMED:
        return np.asarray(np.kron(colours, np.ones((max(1, 800 // len(names)),) * 2 + (1,), np.uint8)))
    return _named_cells(counts, shares, colours, names)


def _named_cells(
    counts: NDArray[np.float64], shares: NDArray[np.float64], colours: Picture, names: Sequence[str]
) -> Picture:
    """Draw the cells of a confusion matrix with names and percentages."""
    font, caption = ImageFont.load_default(size=13), "rows: true class; columns: predicted; % of the row"
    margin = min(200, 1 + max(int(font.getlength(name)) for name in names))  # of the names
    left, top, side = MARGIN + margin + 8, MARGIN + 24, CELL * len(names)
    width = MARGIN + max(left - MARGIN + side, int(font.getlength(caption)) + 1) + MARGIN
    sheet = Image.new("RGB", (width, top + side + 8 + margin + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), caption, FAINT, font)
    for row, name in enumerate(names):
        strip = _line(name, min(margin, 1 + int(font.getlength(name))), 13, INK)
        offset = CELL * row + (CELL - strip.height) // 2
        sheet.paste(strip, (left - 8 - strip.width, top + offset))
        sheet.paste(strip.transpose(Image.Transpose.ROTATE_90), (left + offset, top + side + 8))
    for row, column in np.argwhere(counts).tolist():
        corner = (left + CELL * column, top + CELL * row)
        red, green, blue = colours[row, column].tolist()
        draw.rectangle((*corner, corner[0] + CELL - 2, corner[1] + CELL - 2), (red, green, blue))
        ink = PAPER if shares[row, column] > 0.4 else INK
        middle = (corner[0] + CELL // 2, corner[1] + CELL // 2)
        draw.text(middle, f"{100 * shares[row, column]:.0f}", ink, font, anchor="mm")
    return np.asarray(sheet).copy()


def panel(columns: Sequence[tuple[str, Picture]], text: str = "") -> Picture:
    """Set pictures side by side, titles above: a sheet of one row."""
    return contact_sheet([Row(text, columns)])


def contact_sheet(
    rows: Sequence[Row], caption: str = "", legend: Sequence[tuple[str, Sequence[int] | Picture]] = ()
) -> Picture:
    """Set rows of pictures under each other, with titles, a line of text for each row, and a legend.

    Small pictures grow by a whole factor, so that a pixel stays a square; large ones shrink.

    Args:
        rows: All with the same number of columns; titles are drawn where they differ from the row above.
        caption: Heading of the sheet.
        legend: (name, colour) of each class; (name, picture) of a scale.

    Raises:
        ValueError: There are no pictures, a picture is not (H, W, 3) uint8, or rows differ in length.
    """
    count = len(rows[0].columns) if rows else 0
    if not count or any(len(row.columns) != count for row in rows):
        raise ValueError(f"a sheet needs rows with the same number of pictures, got {[len(r.columns) for r in rows]}")
    scaled = [[_fit(picture, count) for _, picture in row.columns] for row in rows]
    widths = [max(row[i].width for row in scaled) for i in range(count)]
    inner = max(sum(widths) + GAP * (count - 1), LEGIBLE)
    strips = [(_line(caption, inner, 20, INK), 10)] if caption else []  # and the space below each
    titles: list[str] = []
    for row, pictures in zip(rows, scaled, strict=True):
        if titles != [title for title, _ in row.columns]:
            titles = [title for title, _ in row.columns]
            lines = [_line(title, width, 15, INK) for title, width in zip(titles, widths, strict=True)]
            strips.append((_beside(lines, widths), 4))
        if row.text:
            strips.append((_line(row.text, inner, 13, FAINT), 4))
        strips.append((_beside(pictures, widths), 14))
    strips += [(line, 3) for line in _legend(legend, inner)]
    sheet = Image.new("RGB", (inner + 2 * MARGIN, sum(s.height + space for s, space in strips) + 2 * MARGIN), PAPER)
    top = MARGIN
    for strip, space in strips:
        sheet.paste(strip, (MARGIN, top))
        top += strip.height + space
    return np.asarray(sheet).copy()


def _array(values: Any) -> NDArray[Any]:
    """Return an array or a tensor, on whatever device, as an array."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return np.asarray(values.float() if values.is_floating_point() else values)  # NumPy has no bfloat16


def _round(values: NDArray[Any]) -> Picture:
    """Round to uint8; values are in [0, 255]."""
    return np.asarray(np.rint(values).astype(np.uint8))


def _stretch(channel: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Map a channel (H, W) to [0, 1], spreading its central 99 % over it if they use less than half."""
    low, high = np.percentile(channel, (0.5, 99.5))
    if not 0 < high - low < 128:
        low, high = 0, 255
    return np.asarray(np.clip((channel - low) / (high - low), 0, 1))


def _classes(mask: Any, count: int, ignore_index: int | None) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return a mask as class ids below `count`, and where it is ignored (id 0 there)."""
    ids = _array(mask).astype(np.int64)
    ignored = np.zeros(ids.shape, bool) if ignore_index is None else ids == ignore_index
    ids = np.where(ignored, 0, ids)
    strangers = ids[(ids < 0) | (ids >= count)]
    if strangers.size:
        raise ValueError(f"the mask holds class {strangers[0]}, but there are colours for 0 to {count - 1} only")
    return ids, ignored


def _borders(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark pixels with another class next to them."""
    borders = np.zeros(ids.shape, bool)
    down, right = ids[1:] != ids[:-1], ids[:, 1:] != ids[:, :-1]
    borders[1:] |= down
    borders[:-1] |= down
    borders[:, 1:] |= right
    borders[:, :-1] |= right
    return borders


def _hatching(shape: Sequence[int]) -> NDArray[np.bool_]:
    """Mark diagonal lines, two pixels of every eight."""
    rows, columns = np.indices(shape)
    return np.asarray((rows + columns) % 8 < 2)


@lru_cache
def _farther() -> Picture:
    """Choose the colours after the first ones, greedily, from a grid without the darkest, lightest and greyest."""
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 17)] * 3, indexing="ij"), -1).reshape(-1, 3)
    lab = oklab(linear_rgb(grid))
    vivid = (lab[:, 0] > 0.35) & (lab[:, 0] < 0.93) & (np.hypot(lab[:, 1], lab[:, 2]) > 0.05)
    grid = grid[vivid]
    seen, chosen = _seen(grid), []
    taken = np.array([NEUTRAL, *OKABE_ITO, RIGHT, PAPER])
    distance = np.min([_distance(seen, _seen(colour[None])) for colour in taken], axis=0)
    for _ in range(MOST_COLOURS - 1 - len(OKABE_ITO)):
        best = int(distance.argmax())
        chosen.append(grid[best])
        distance = np.minimum(distance, _distance(seen, seen[:, best : best + 1]))
    return np.array(chosen, dtype=np.uint8)


def _seen(colours: NDArray[Any]) -> NDArray[np.float64]:
    """Return OKLab (2, n, 3) of colours (n, 3) as seen by normal and by deuteranopic eyes.

    The matrix is that of Machado, Oliveira and Fernandes (2009) for full severity, in linear RGB.
    """
    linear = linear_rgb(colours)
    deuteranopia = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    )
    return np.stack([oklab(linear), oklab(np.clip(linear @ deuteranopia.T, 0, 1))])


def _distance(seen: NDArray[np.float64], one: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each colour (2, n, 3) to one (2, 1, 3), to the eyes that tell them apart least."""
    return np.asarray(np.linalg.norm(seen - one, axis=-1).min(axis=0))


def _fit(picture: Picture, count: int) -> Image.Image:
    """Bring a picture to a size that can be looked at in a sheet of `count` columns."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise ValueError(f"a picture is (H, W, 3) uint8, got {picture.shape} {picture.dtype}")
    image = Image.fromarray(np.ascontiguousarray(picture))
    widest = min(LARGEST, SHEET_WIDTH // count - GAP)
    scale = min(widest / image.width, LARGEST / image.height)
    if scale < 1:
        size = max(1, round(scale * image.width)), max(1, round(scale * image.height))
        return image.resize(size, Image.Resampling.LANCZOS)
    factor = max(1, min(LEGIBLE, widest) // max(image.size))
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


def _line(text: str, width: int, size: int, colour: tuple[int, int, int]) -> Image.Image:
    """Write one line of text, cut to a width."""
    font, text = ImageFont.load_default(size=size), text.replace("\n", " ")
    if font.getlength(text) > width:
        lengths = range(len(text))
        fitting = bisect_right(lengths, float(width), key=lambda length: float(font.getlength(text[:length] + "…")))
        text = text[: max(0, fitting - 1)] + "…"
    strip = Image.new("RGB", (width, round(1.3 * size)), PAPER)
    ImageDraw.Draw(strip).text((0, round(1.05 * size)), text, colour, font, anchor="ls")
    return strip


def _beside(pictures: Sequence[Image.Image], widths: Sequence[int], gap: int = GAP) -> Image.Image:
    """Set pictures side by side in columns of given widths."""
    strip = Image.new("RGB", (sum(widths) + gap * (len(widths) - 1), max(p.height for p in pictures)), PAPER)
    left = 0
    for picture, width in zip(pictures, widths, strict=True):
        strip.paste(picture, (left, 0))
        left += width + gap
    return strip


def _legend(legend: Sequence[tuple[str, Sequence[int] | Picture]], width: int) -> list[Image.Image]:
    """Write the entries of a legend, as many to a line as fit."""
    lines: list[list[Image.Image]] = []
    left = width
    for name, colour in legend:
        entry = _entry(name, np.asarray(colour), width)
        if left + entry.width > width:
            lines.append([])
            left = 0
        lines[-1].append(entry)
        left += entry.width + 2 * GAP
    return [_beside(line, [entry.width for entry in line], 2 * GAP) for line in lines]


def _entry(name: str, colour: NDArray[Any], width: int) -> Image.Image:
    """Write a swatch (3,) and a name beside it, or a name and a picture (H, W, 3) below it."""
    size = SWATCH
    room = int(ImageFont.load_default(size=size).getlength(name)) + 1
    if colour.ndim == 3:
        line, below = _line(name, min(width, max(room, colour.shape[1])), size, INK), Image.fromarray(colour)
        entry = Image.new("RGB", (max(line.width, below.width), line.height + 2 + below.height), PAPER)
        entry.paste(line, (0, 0))
        entry.paste(below, (0, line.height + 2))
        return entry.crop((0, 0, min(width, entry.width), entry.height))
    needed = min(width, size + 6 + room)
    entry = Image.new("RGB", (needed, round(1.3 * size)), PAPER)
    red, green, blue = (int(value) for value in colour)
    ImageDraw.Draw(entry).rectangle((0, 2, size - 1, size + 1), (red, green, blue), FAINT)
    entry.paste(_line(name, needed - size - 6, size, INK), (size + 6, 0))
    return entry
