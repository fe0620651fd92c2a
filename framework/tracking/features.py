"""Pictures of what a backbone sees: principal components of its patches as colours, and how alike patches are.

A patch is one cell of a feature map: of a ViT a patch of the image, of a CNN a cell of one of its levels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from framework.tracking.colour_scale import EMBER, WIDTH, colour_values, scale_bar
from framework.tracking.drawing import INK, PAPER, Picture

TAILS = 0.01  # share of the patches at either end of a component that share the end's colour
ROUNDING = 1e-5  # of the first component's spread: a component that spreads less is what 32 bits leave of none
DARK = (24, 24, 28)  # what is not foreground
MOST_PATCHES = 1600  # rows and columns of a similarity matrix: 37 x 37 patches, and a few more, are shown one by one
HEAT: tuple[tuple[int, int, int], ...] = EMBER[::-1]  # dark: unlike; light: alike


def principal_components(features: Tensor, count: int = 3) -> Tensor:
    """Compute the directions in which features vary most, by singular value decomposition in 64 bits.

    The sign of a component is arbitrary. Here the largest weight of each direction, by magnitude, is positive: the
    first of several equal ones. So the same features have the same colours everywhere.

    Args:
        features: (N, D), float.
        count: How many components.

    Returns:
        (N, count) float64, centred: the features along each direction; 0 where there are no so many.
    """
    centred = features.double() - features.double().mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False)[2][:count]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    along = centred @ (directions * largest.sign()).T
    return F.pad(along, (0, count - along.shape[1]))


def find_foreground(maps: Sequence[Tensor]) -> list[NDArray[np.bool_]]:
    """Split patches in two by the sign of their first principal component, over all maps together.

    Oquab et al., DINOv2 (arXiv 2304.07193), figure 1. Which side is the foreground, the sign does not say: it is the
    one that has the smaller share of the patches at the borders of the images than of the others.

    Args:
        maps: Of each image (D, h, w), float.

    Returns:
        Of each image (h, w), whether a patch is foreground.
    """
    positive = principal_components(_patches(maps), 1)[:, 0].numpy() > 0
    border = np.concatenate([_border(one.shape[1:]).ravel() for one in maps])
    inverted = not border.all() and positive[border].mean() > positive[~border].mean()
    return _split(positive ^ inverted, maps)


def component_colours(maps: Sequence[Tensor], foreground: bool = False) -> list[Picture]:
    """Show the first three principal components of all patches together as red, green and blue.

    Each component is spread over the whole range of its channel, but for the lowest and the highest 1 % of patches,
    which share the colours at the ends. Images that are given together have comparable colours.

    Args:
        maps: Of each image (D, h, w), float.
        foreground: Components of the foreground alone, as `find_foreground` finds it; the rest is dark.

    Returns:
        Of each image (h, w, 3) uint8.
    """
    masks = find_foreground(maps) if foreground else [np.ones(one.shape[1:], bool) for one in maps]
    inside = torch.from_numpy(np.concatenate([mask.ravel() for mask in masks]))
    components = np.zeros((len(inside), 3))
    if inside.any():
        along = principal_components(_patches(maps)[inside]).numpy()
        low, high = np.quantile(along, (TAILS, 1 - TAILS), axis=0)
        span = high - low
        real = span > ROUNDING * span.max()
        components[inside.numpy()] = np.where(real, along - low, 0) / np.where(real, span, 1)
    colours = np.where(inside.numpy()[:, None], np.rint(255 * np.clip(components, 0, 1)), DARK).astype(np.uint8)
    return _split(colours, maps)


def similarity_to(maps: Sequence[Tensor], patch: tuple[int, int]) -> list[NDArray[np.float32]]:
    """Compute the cosine similarity of every patch of all images to one patch of the first.

    Args:
        maps: Of each image (D, h, w), float.
        patch: (row, column) in the first map.

    Returns:
        Of each image (h, w), in [-1, 1]; 0 for a patch, or to a patch, of no length.
    """
    units = [F.normalize(one.float(), dim=0) for one in maps]
    chosen = units[0][:, patch[0], patch[1]]
    return [np.asarray(torch.einsum("d,dhw->hw", chosen, unit).clamp(-1, 1)) for unit in units]


def similarity_matrix(features: Tensor, most: int = MOST_PATCHES) -> NDArray[np.float32]:
    """Compute the cosine similarity of every patch of a map to every other.

    Args:
        features: (D, h, w), float.
        most: Patches to be told apart: of more, blocks of f by f are put together, f as small as will do, and what is
            given is the mean similarity of the patches of two blocks.

    Returns:
        (N, N), N = ceil(h / f) ceil(w / f), row by row, in [-1, 1].
    """
    unit, factor = F.normalize(features.float(), dim=0), block_size((features.shape[1], features.shape[2]), most)
    # The mean of all products of two blocks is the product of their means.
    blocks = F.avg_pool2d(unit[None], factor, ceil_mode=True)[0].flatten(1)
    return np.asarray((blocks.T @ blocks).clamp(-1, 1))


def block_size(grid: tuple[int, int], most: int = MOST_PATCHES) -> int:
    """Return the side of the smallest square blocks of which a grid (h, w) has at most so many."""
    factor = 1
    while -(-grid[0] // factor) * -(-grid[1] // factor) > most:
        factor += 1
    return factor


def heat(similarity: NDArray[Any], scale: tuple[float, float] = (0.0, 1.0)) -> Picture:
    """Colour similarities (h, w), dark at the low end of a scale, light at its high end: (h, w, 3) uint8."""
    low, high = scale
    return colour_values((similarity - low) / (high - low), HEAT)


def heat_bar(scale: tuple[float, float] = (0.0, 1.0), width: int = WIDTH) -> Picture:
    """Draw the scale of `heat`, (H, width, 3) uint8."""
    low, high = scale
    ticks = [(value, f"{value:.2g}") for value in (low, high, (low + high) / 2)]
    return scale_bar(HEAT, ticks, lambda value: (value - low) / (high - low), width)


def overlay_heat(
    image: Picture, similarity: NDArray[Any], scale: tuple[float, float] = (0.0, 1.0), alpha: float = 0.65
) -> Picture:
    """Lay similarities (h, w) over an image (H, W, 3) as colours, cell by cell."""
    under = np.repeat(image.mean(-1, keepdims=True), 3, -1)  # grey, so that the colours are those of the scale
    return np.asarray(np.rint(under + alpha * (enlarge(heat(similarity, scale), image.shape[:2]) - under)), np.uint8)


def enlarge(cells: Picture, size: tuple[int, ...]) -> Picture:
    """Show every cell of (h, w, 3) as a block of a picture of a size (height, width), without smoothing."""
    image = Image.fromarray(cells).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(image).copy()


def mark_cell(picture: Picture, cell: tuple[int, int], grid: tuple[int, int]) -> Picture:
    """Frame one (row, column) of a grid (h, w) that is laid over a picture."""
    height, width = picture.shape[:2]
    (row, column), (rows, columns) = cell, grid
    left, right = round(column * width / columns), round((column + 1) * width / columns) - 1
    top, bottom = round(row * height / rows), round((row + 1) * height / rows) - 1
    image, line = Image.fromarray(picture), max(1, round(max(height, width) / 250))
    draw = ImageDraw.Draw(image)
    for out, colour in ((2 * line, INK), (line, PAPER)):
        draw.rectangle((left - out, top - out, right + out, bottom + out), outline=colour, width=line)
    return np.asarray(image).copy()


def _patches(maps: Sequence[Tensor]) -> Tensor:
    """Return the patches of all maps, row by row, as (N, D)."""
    return torch.cat([one.flatten(1).T for one in maps])


def _split(values: NDArray[Any], maps: Sequence[Tensor]) -> list[NDArray[Any]]:
    """Return what is known of all patches (N, ...) as what is known of those of each map (h, w, ...)."""
    ends = np.cumsum([one[0].numel() for one in maps])[:-1]
    return [
        part.reshape(*one.shape[1:], *part.shape[1:]) for part, one in zip(np.split(values, ends), maps, strict=True)
    ]


def _border(shape: Sequence[int]) -> NDArray[np.bool_]:
    """Mark the outermost cells of a grid."""
    border = np.ones(shape, bool)
    border[1:-1, 1:-1] = False
    return border
