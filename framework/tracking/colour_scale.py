"""Colour scales: numbers as colours whose steps look equal, also to the colour-blind and in grey; and their bars."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from framework.tracking.drawing import INK, PAPER, RIGHT, WRONG, Picture
from framework.tracking.oklab import linear_rgb, oklab, srgb

STEPS = 256
Colour = tuple[int, int, int]
# From light to dark throughout: lightness is what every eye tells apart.
EMBER: tuple[Colour, ...] = (
    (255, 244, 176),
    (249, 176, 74),
    (226, 96, 78),
    (156, 44, 124),
    (72, 28, 130),
    (14, 14, 48),
)
BLUSH: tuple[Colour, ...] = (RIGHT, (238, 150, 112), WRONG, (84, 8, 28))
BAR, TICK, TEXT = 12, 4, 12  # pixels: height of a bar, of its ticks and of their labels
SIDE = 14  # pixels beside a bar, into which the labels at its ends may stand
WIDTH = 248


@lru_cache
def colour_table(colours: tuple[Colour, ...]) -> Picture:
    """Return a table (256, 3) of the colours on the way through some: straight in OKLab, and in equal steps there."""
    given = oklab(linear_rgb(np.array(colours)))
    along = np.linspace(0, len(colours) - 1, 16 * STEPS)
    path = np.stack([np.interp(along, np.arange(len(colours)), axis) for axis in given.T], 1)
    lengths = np.cumsum(np.r_[0, np.linalg.norm(np.diff(path, axis=0), axis=1)])
    even = np.linspace(0, lengths[-1], STEPS)
    table = np.rint(srgb(np.stack([np.interp(even, lengths, axis) for axis in path.T], 1))).astype(np.uint8)
    table.setflags(write=False)  # it is kept
    return np.asarray(table)


def colour_values(values: NDArray[Any], colours: tuple[Colour, ...]) -> Picture:
    """Colour values (...) in [0, 1] as (..., 3); what lies beyond has the colour of the end, NaN that of 0."""
    shares = np.nan_to_num(np.clip(np.asarray(values, dtype=np.float32), 0, 1))
    return np.asarray(colour_table(colours)[np.rint((STEPS - 1) * shares).astype(np.uint8)])


def scale_bar(
    colours: tuple[Colour, ...],
    ticks: Sequence[tuple[float, str]],
    share: Callable[[float], float],
    width: int = WIDTH,
) -> Picture:
    """Draw a colour scale with labelled ticks below it.

    Args:
        colours: Those of the scale, from left to right.
        ticks: (value, label), the most important first: a label that has no room is left out, with its tick.
        share: Where on the scale a value lies, in [0, 1].
        width: Of the picture, in pixels.

    Returns:
        (H, width, 3) uint8.
    """
    font, inner = ImageFont.load_default(size=TEXT), width - 2 * SIDE
    sheet = Image.new("RGB", (width, BAR + TICK + round(1.3 * TEXT)), PAPER)
    ramp = colour_values(np.linspace(0, 1, inner)[None].repeat(BAR, 0), colours)
    sheet.paste(Image.fromarray(ramp), (SIDE, 0))
    draw, taken = ImageDraw.Draw(sheet), np.zeros(width, bool)
    for value, label in ticks:
        x = SIDE + round(share(value) * (inner - 1))
        half = font.getlength(label) / 2
        middle = min(max(float(x), half), width - half)
        room = slice(max(0, int(middle - half) - 3), int(middle + half) + 4)
        if not taken[room].any():
            taken[room] = True
            draw.line((x, BAR, x, BAR + TICK - 1), INK)
            draw.text((middle, BAR + TICK), label, INK, font, anchor="mt")
    return np.asarray(sheet).copy()
