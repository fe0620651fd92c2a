"""`framework features show`: images go through a backbone, and what it makes of their patches is drawn."""

from collections.abc import Sequence
from math import floor, lcm
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from framework.backbone import Backbone, Level
from framework.cli.construct import maker, own_arguments
from framework.cli.features import Request
from framework.data.images import distinct_names, read_image
from framework.errors import ConfigError, DataError
from framework.preprocessing import fit_shorter_side, resize_image, to_unit
from framework.tracking.drawing import Picture, Row, contact_sheet, to_rgb
from framework.tracking.features import (
    block_size,
    component_colours,
    enlarge,
    heat,
    heat_bar,
    mark_cell,
    overlay_heat,
    similarity_matrix,
    similarity_to,
)

Size = tuple[int, int]  # height, width


class View(NamedTuple):
    """An image and what the backbone makes of it.

    Args:
        name: Of its file, distinct among those shown.
        image: (C, H, W) uint8, as the backbone is given it.
        features: (D, h, w), float, of one level.
    """

    name: str
    image: Tensor
    features: Tensor

    @property
    def grid(self) -> Size:
        """How many rows and columns of patches there are."""
        return int(self.features.shape[1]), int(self.features.shape[2])


def show_features(request: Request) -> None:
    """Compute features of images, draw them, and say what was done.

    Raises:
        ConfigError: The backbone, its level or the patch is wrong.
        DataError: Images cannot be read.
    """
    backbone = maker(request.backbone, request.words)()
    if not isinstance(backbone, Backbone):
        raise ConfigError(f"--backbone: {request.backbone.class_path} is no Backbone")
    index = _level(backbone, request.level)
    images = _read(request.images, backbone.in_channels)
    stored = [(int(image.shape[1]), int(image.shape[2])) for image in images]
    point = _point(request.patch, stored[0])
    _say_weights(request)
    backbone.freeze("all")
    backbone.eval()
    wanted = [_wanted(request.size, size) for size in stored]
    resized = [_resize(image, size, _multiple(backbone)) for image, size in zip(images, wanted, strict=True)]
    names = _names(request.images)
    views = [View(name, image, _features(backbone, index, image)) for name, image in zip(names, resized, strict=True)]
    grid = views[0].grid
    cell = point[1] * grid[0] // stored[0][0], point[0] * grid[1] // stored[0][1]
    _say_sizes(request, backbone.levels[index], stored, views)
    if [tuple(image.shape[1:]) for image in resized] != wanted:
        print(
            f"--size: sides are the nearest that divide by {_multiple(backbone)}, as {request.backbone.name} needs them"
        )
    print(f"the patch at {point[0]},{point[1]} of {request.images[0].name}: row {cell[0]}, column {cell[1]}")
    title = f"{' '.join([request.backbone.name, *request.words])}, level {request.level}"
    _draw(request, views, cell, title)


def _level(backbone: Backbone, index: int) -> int:
    """Return the index of a level, counted from the finest."""
    count = len(backbone.levels)
    if not -count <= index < count:
        rows = ", ".join(f"{i}: stride {level.stride}" for i, level in enumerate(backbone.levels))
        raise ConfigError(f"--level: {type(backbone).__name__} has no level {index}; valid: {rows}; -1 is the last")
    return index % count


def _read(files: Sequence[Path], channels: int) -> list[Tensor]:
    """Read images (C, H, W) uint8; all that cannot be read are listed."""
    images, problems = [], []
    for file in files:
        try:
            images.append(torch.from_numpy(read_image(file, channels).values).permute(2, 0, 1))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return images


def _names(files: Sequence[Path]) -> list[str]:
    """Return what to call each image: its file's name, with a number where two folders have files of one name."""
    names = distinct_names(files)
    return names if len(set(names)) == len(names) else [f"{name}_{number}" for number, name in enumerate(names)]


def _point(patch: tuple[int, int] | None, stored: Size) -> tuple[int, int]:
    """Return the (x, y) of the patch that others are compared to."""
    height, width = stored
    x, y = patch or (width // 2, height // 2)
    if not (x < width and y < height):
        raise ConfigError(
            f"--patch: {x},{y} is outside the first image, which is {width} pixels wide and {height} high: x is 0 to "
            f"{width - 1}, y 0 to {height - 1}"
        )
    return x, y


def _wanted(size: int | Size, stored: Size) -> Size:
    """Return the (height, width) that was asked for of an image."""
    return fit_shorter_side(stored, size) if isinstance(size, int) else size


def _resize(image: Tensor, size: Size, multiple: int) -> Tensor:
    """Resize an image (C, H, W) to the sides nearest to a size that divide by `multiple`."""
    height, width = (multiple * max(1, round(side / multiple)) for side in size)
    return resize_image(image, (height, width))


def _multiple(backbone: Backbone) -> int:
    """Return what sides have to be divisible by, so that every level has whole cells."""
    return lcm(backbone.multiple, *(level.stride for level in backbone.levels))


@torch.no_grad()
def _features(backbone: Backbone, index: int, image: Tensor) -> Tensor:
    """Compute the features (D, h, w) of one image at one level."""
    features: Tensor = backbone(to_unit(image[None])).maps[index][0]
    if not features.isfinite().all():
        raise ConfigError(f"--backbone: {type(backbone).__name__} gives features that are not finite")
    return features


def _say_weights(request: Request) -> None:
    """Say that weights are random, where they can be had and were not asked for."""
    given = {word.partition("=")[0] for word in request.words}
    sources = [one for one in own_arguments(request.backbone) if one.name in ("pretrained", "weights")]
    if sources and not any(one.name in given or one.default for one in sources):
        wanted = " or ".join(f"{one.name}=..." for one in sources)
        print(f"the weights are random: add {wanted}")


def _say_sizes(request: Request, level: Level, stored: Sequence[Size], views: Sequence[View]) -> None:
    """Say what is shown, and at what size."""
    print(
        f"{request.backbone.name}, level {request.level}: {level.channels} channels, patches of {level.stride} pixels"
    )
    for file, size, view in zip(request.images, stored, views, strict=True):
        shown = (int(view.image.shape[1]), int(view.image.shape[2]))
        print(f"{file.name}: {_by(size)} resized to {_by(shown)} (height x width), {_by(view.grid)} patches")


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def _draw(request: Request, views: Sequence[View], cell: Size, title: str) -> None:
    """Draw all pictures of all images, and write the sheet, or each by itself too."""
    maps = [view.features for view in views]
    colours, similarities = component_colours(maps, request.foreground), similarity_to(maps, cell)
    matrices = [similarity_matrix(one) for one in maps]
    scale = _scale([*similarities, *matrices])
    rows = []
    for number, view in enumerate(views):
        picture = to_rgb(view.image)
        size, over = picture.shape[:2], overlay_heat(picture, similarities[number], scale)
        if not number:
            picture, over = (mark_cell(one, cell, view.grid) for one in (picture, over))
        blocks = block_size(view.grid)
        columns = [
            ("image", picture),
            ("principal components" + " of the foreground" * request.foreground, enlarge(colours[number], size)),
            ("similarity to the patch", over),
            ("every patch to every patch", heat(matrices[number], scale)),
        ]
        text = f"{view.name}: {_by(view.grid)} patches"
        rows.append(Row(text + f"; the last picture by blocks of {_by((blocks, blocks))}" * (blocks > 1), columns))
    sheet = contact_sheet(rows, title, [("cosine similarity", heat_bar(scale))])
    _write(request.out, sheet, rows, [view.name for view in views])


def _scale(similarities: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    """Return where the scale of similarities begins and ends: at 0 and 1, but later if hardly any are so small."""
    low = float(np.quantile(np.concatenate([part.ravel() for part in similarities]), 0.01))
    return min(max(0.0, floor(10 * low) / 10), 0.9), 1.0


def _write(out: Path, sheet: Picture, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Write the sheet to a file, or it and every picture to a folder."""
    files = {out: sheet}
    if out.is_dir() or not out.suffix:
        out.mkdir(exist_ok=True)
        whats = ("image", "components", "similarity", "matrix")
        files = {out / "features.png": sheet} | {
            out / f"{name}_{what}.png": picture
            for name, row in zip(names, rows, strict=True)
            for what, (_, picture) in zip(whats, row.columns, strict=True)
        }
    for file, picture in files.items():
        Image.fromarray(picture).save(file)
        print(f"wrote {file}")
