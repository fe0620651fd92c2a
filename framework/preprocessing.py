"""From stored pixels to what a network takes, and back: one set of functions for training, evaluation and predict."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv


def to_unit(images: Tensor) -> Tensor:
    """Bring images to floats in [0, 1]: uint8 is divided by 255, floats pass through unchanged."""
    return images if images.is_floating_point() else images.to(torch.get_default_dtype()).div_(255)


def fit_shorter_side(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    """Return the (height, width) of the same aspect ratio whose shorter side is `shorter_side` pixels."""
    height, width = size
    if height <= width:
        return shorter_side, max(1, round(width * shorter_side / height))
    return max(1, round(height * shorter_side / width)), shorter_side


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (..., C, H, W), uint8 or float, to `size` (height, width): bilinear, antialiased."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    resized: Tensor = tv.resize(image, list(size), antialias=True)
    return resized


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) at the bottom and right, by repeating the edge, until both sides divide by `multiple`."""
    height, width = images.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images


def pad_around(images: Tensor, multiple: int, colour: Tensor) -> Tensor:
    """Pad float (B, C, H, W) with one colour on all sides until both sides divide by `multiple`.

    Where the number of pixels is odd, the bottom or right gets one more. So DINOv2's published dense heads are given
    their images (CenterPadding in Meta's code, where 0 after normalisation is the mean colour), and their results are
    stretched over the image, padding included, and not cropped.

    Args:
        images: Float (B, C, H, W).
        multiple: What both sides are made divisible by, in pixels.
        colour: (C, 1, 1), in the unit of the images.
    """
    height, width = images.shape[-2:]
    across, down = -width % multiple, -height % multiple
    if not (across or down):
        return images
    canvas = colour.to(images).expand(*images.shape[:2], height + down, width + across).clone()
    canvas[..., down // 2 : down // 2 + height, across // 2 : across // 2 + width] = images
    return canvas


def crop_back(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo `pad_to_multiple` on maps (..., H, W) of the padded size."""
    return maps[..., : size[0], : size[1]]


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, H, W) floats to `size` (height, width): bilinear."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def pad_with_colour(images: Tensor, sizes: Sequence[tuple[int, int]], multiple: int, colour: Tensor) -> Tensor:
    """Give what lies beside each image one colour, and add to the bottom and right until both sides divide.

    Args:
        images: Float (B, C, H, W).
        sizes: Height and width of each image, in its upper left corner.
        multiple: What both sides are made divisible by.
        colour: Float (C, 1, 1).
    """
    height, width = (-(-side // multiple) * multiple for side in images.shape[-2:])
    whole = (int(images.shape[-2]), int(images.shape[-1]))
    if (height, width) == whole and all(tuple(size) == whole for size in sizes):
        return images
    canvas = colour.to(images).expand(len(images), images.shape[1], height, width).clone()
    for image, place, size in zip(images, canvas, sizes, strict=True):
        place[:, : size[0], : size[1]] = image[:, : size[0], : size[1]]
    return canvas
