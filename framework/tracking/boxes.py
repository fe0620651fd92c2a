"""Pictures of boxes: what there is to find, and what was found, by name and score."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from framework.tracking.drawing import INK, LARGEST, PAPER, Picture

TEXT = 45  # the longer side of a picture is so many times as long as its text is high
SMALLEST_TEXT = 11  # pixels
LINE = 240  # the longer side is so many times as long as a line is wide
SLIM = 12  # a box is at least about so many times as wide as its line
NARROW = 0.8  # a tag is written if its box is at least so many times as wide
HIDDEN, HIDDEN_OWN = 0.1, 0.5  # share of another box, and of its own, that a tag may cover at most
LIGHT = 140  # brightness, of 255, from which on dark ink is the more legible

Area = tuple[int, int, int, int]  # left, top, right, bottom


class _Tag(NamedTuple):
    area: Area
    text: str
    paper: tuple[int, int, int]


def draw_boxes(
    picture: Picture,
    boxes: Any,
    labels: Any,
    names: Sequence[str],
    colours: Picture,
    scores: Any = None,
) -> Picture:
    """Draw boxes with their names, and scores if given, over a picture.

    A small picture is enlarged by a whole factor first, so that words can be read. The best boxes lie above the others,
    and are named first. A name is written above its box, or inside it, or below. A box has its score alone, or no words
    at all, if it is too narrow for more, or if more would cover the words of a better one or a good part of any box.

    Args:
        picture: (H, W, 3) uint8.
        boxes: (N, 4), x1, y1, x2, y2 in pixels of the picture, array or tensor.
        labels: (N,), class indices.
        names: Of the C classes.
        colours: (C, 3) uint8, of the classes.
        scores: (N,), in [0, 1].

    Returns:
        (f H, f W, 3), for a whole f that brings the longer side up to 640 pixels, or 1.
    """
    corners, classes = _array(boxes).reshape(-1, 4).astype(np.float64), _array(labels).astype(np.int64)
    certainty = np.ones(len(corners)) if scores is None else _array(scores).astype(np.float64)
    best_first = np.argsort(-certainty, kind="stable").tolist()
    factor = max(1, LARGEST // max(picture.shape[:2]))
    image = Image.fromarray(np.ascontiguousarray(picture))
    image = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
    areas = _pixels(corners * factor, image.size)
    inks = [(int(red), int(green), int(blue)) for red, green, blue in colours[classes]]
    drawing = ImageDraw.Draw(image)
    width = max(2, round(max(image.size) / LINE))
    for index in reversed(best_first):
        _outline(drawing, areas[index], inks[index], width)
    font = ImageFont.load_default(size=max(SMALLEST_TEXT, round(max(image.size) / TEXT)))
    tags: list[_Tag] = []
    for index in best_first:
        percent = [] if scores is None else [f"{certainty[index]:.0%}"]
        words = [" ".join([names[classes[index]], *percent]), *percent]
        place = _place(words, index, areas, font, image.size, [tag.area for tag in tags])
        tags += [_Tag(*place, inks[index])] if place is not None else []
    for tag in tags:
        _write(drawing, tag, font)
    return np.asarray(image).copy()


def _array(values: Any) -> NDArray[Any]:
    """Return an array, or a tensor on whatever device, as an array."""
    return np.asarray(values.detach().float().cpu() if hasattr(values, "detach") else values)


def _pixels(boxes: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.int64]:
    """Return the first and last pixels of boxes (N, 4) inside a picture of a size (width, height)."""
    whole = np.rint(boxes).astype(np.int64)
    last = np.array(size) - 1
    first = np.clip(whole[:, :2], 0, last)
    return np.concatenate([first, np.minimum(np.maximum(whole[:, 2:] - 1, first), last)], 1)


def _outline(drawing: ImageDraw.ImageDraw, area: NDArray[np.int64], colour: tuple[int, int, int], width: int) -> None:
    """Draw a frame, thin about a small box, else with a dark hair line that sets it off from what has its colour."""
    left, top, right, bottom = area.tolist()
    thin = 1 + min(right - left, bottom - top) // SLIM
    if thin >= width:
        drawing.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=INK)
    drawing.rectangle((left, top, right, bottom), outline=colour, width=min(width, thin))


def _place(
    words: Sequence[str],
    index: int,
    areas: NDArray[np.int64],
    font: Any,
    size: tuple[int, int],
    taken: Sequence[Area],
) -> tuple[Area, str] | None:
    """Return where the first of some words that have room at a box are written: above it, inside it, or below."""
    left, top, right, bottom = areas[index].tolist()
    most = np.where(np.arange(len(areas)) == index, HIDDEN_OWN, HIDDEN)
    height = round(1.3 * font.size)
    for text in words:
        width = int(font.getlength(text)) + 2 * round(font.size / 4)
        x = max(0, min(left, size[0] - width))
        for y in (top - height, top, bottom + 1):
            place = (x, y, x + width - 1, y + height - 1)
            inside = y >= 0 and y + height <= size[1] and right - left + 1 >= NARROW * width
            free = not taken or not _covered(np.array(taken), place).any()
            if inside and free and (_covered(areas, place) <= most).all():
                return place, text
    return None


def _covered(areas: NDArray[np.int64], by: Area) -> NDArray[np.float64]:
    """Return the share of each area (N, 4), first and last pixels, that another one covers (N,)."""
    low, high = np.maximum(areas[:, :2], by[:2]), np.minimum(areas[:, 2:], by[2:])
    common = (high - low + 1).clip(0).prod(1)
    return np.asarray(common / (areas[:, 2:] - areas[:, :2] + 1).prod(1))


def _write(drawing: ImageDraw.ImageDraw, tag: _Tag, font: Any) -> None:
    """Write words on their colour."""
    red, green, blue = tag.paper
    ink = INK if 0.299 * red + 0.587 * green + 0.114 * blue > LIGHT else PAPER
    drawing.rectangle(tag.area, fill=tag.paper)
    left, top, _, bottom = tag.area
    drawing.text((left + round(font.size / 4), (top + bottom + 1) / 2), tag.text, ink, font, anchor="lm")
