"""Augmentation of classified images on the device: RandAugment for each image, mixup and CutMix for each batch.

All numbers are drawn in the workers, from the key of a sample. They travel as NumPy arrays: Lightning moves tensors
alone to the device, so they stay on the host, where what is to be done is decided without waiting for the device.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Beta

from framework.errors import ConfigError
from framework.preprocessing import to_unit

Draw = NDArray[np.float64]
Operation = Callable[[Tensor, Tensor], Tensor]

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
STRONGEST = 30  # the magnitude at which the ranges below are used in full
SHEAR = 0.3  # pixels aside for each pixel down
SHIFT = 150 / 331  # share of the width or height
ROTATION = math.radians(30)
ENHANCEMENT = 0.9  # factors lie in [1 - 0.9, 1 + 0.9]
BITS = 4  # of 8, that posterizing takes away
LEVELS = 255  # steps of what was a byte

# Operations on pixels. Each takes images (N, C, H, W) in [0, 1] and strengths (N, 1, 1, 1) in [-1, 1].


def _brightness(images: Tensor, strength: Tensor) -> Tensor:
    return (images * (1 + ENHANCEMENT * strength)).clamp_(0, 1)


def _colour(images: Tensor, strength: Tensor) -> Tensor:
    if images.shape[1] != 3:
        return images
    grey = _luminance(images)
    return grey.lerp(images, 1 + ENHANCEMENT * strength).clamp_(0, 1)


def _contrast(images: Tensor, strength: Tensor) -> Tensor:
    mean = _luminance(images).mean((1, 2, 3), keepdim=True)
    return mean.lerp(images, 1 + ENHANCEMENT * strength).clamp_(0, 1)


def _sharpness(images: Tensor, strength: Tensor) -> Tensor:
    """Blend with an image smoothed by a 3 x 3 kernel of ones about a 5; the outermost pixels stay."""
    if min(images.shape[-2:]) < 3:
        return images
    channels = images.shape[1]
    kernel = images.new_full((channels, 1, 3, 3), 1 / 13)
    kernel[:, :, 1, 1] = 5 / 13
    inner = images[..., 1:-1, 1:-1]
    smooth = F.conv2d(images, kernel, groups=channels)
    out = images.clone()
    out[..., 1:-1, 1:-1] = smooth.lerp(inner, 1 + ENHANCEMENT * strength).clamp_(0, 1)
    return out


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    step = 2 ** (BITS * strength.abs()).round()
    return ((images * LEVELS).round_() / step).floor_() * step / LEVELS


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    bright = (images * LEVELS).round_() >= LEVELS * (1 - strength.abs())
    return torch.where(bright, 1 - images, images)


def _auto_contrast(images: Tensor, strength: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (images - low) / spread.clamp(min=1e-6), images)


def _equalize(images: Tensor, strength: Tensor) -> Tensor:
    """Spread the levels of every channel evenly by its cumulative histogram, in whole numbers as Pillow does.

    With the n pixels below the brightest level that occurs, a step is s = n // 255 pixels, and a level under which lie
    m pixels becomes (m + s // 2) // s. A channel with s = 0 stays.
    """
    levels = (images * LEVELS).round_().long().flatten(2)  # (N, C, H * W)
    histogram = torch.zeros(*levels.shape[:2], LEVELS + 1, dtype=torch.long, device=images.device)
    histogram.scatter_add_(2, levels, torch.ones_like(levels))
    at_brightest = histogram.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - at_brightest) // LEVELS
    below = histogram.cumsum(2) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=LEVELS)
    spread = table.gather(2, levels).to(images.dtype).view_as(images) / LEVELS
    return torch.where((step > 0)[..., None], spread, images)


def _luminance(images: Tensor) -> Tensor:
    """Return the luminance (N, 1, H, W) of images; the mean of channels that are not red, green and blue."""
    channels = images.shape[1]
    weights = LUMINANCE if channels == 3 else [1 / channels] * channels
    return sum(weight * images[:, i : i + 1] for i, weight in enumerate(weights))  # type: ignore[return-value]


GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
PIXELWISE: dict[str, Operation] = {
    "brightness": _brightness,
    "colour": _colour,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
}
OPERATIONS = ("identity", *GEOMETRIC, *PIXELWISE)


class RandAugment:
    """A few random operations on each training image, all of one strength, on the device.

    Cubuk et al., arXiv 1909.13719: each is one of 14 with equal probability. The scale and the ranges are those of
    torchvision: at magnitude 30 images are sheared by 0.3, moved by 150/331 of their size, rotated by 30 degrees,
    enhanced by a factor of 0.1 or 1.9, posterized to 4 bits, and solarized whole; what a geometric operation leaves
    empty is black, and what it moves is interpolated bilinearly. Google's code calls 10 what is 30 here.

    Args:
        operations: How many, one after the other.
        magnitude: Their strength, in [0, 30].

    Raises:
        ConfigError: A number is out of range.
    """

    def __init__(self, operations: int = 2, magnitude: float = 9.0) -> None:
        if operations < 1:
            raise ConfigError(f"data.rand_augment: operations is at least 1, got {operations}")
        if not 0 <= magnitude <= STRONGEST:
            raise ConfigError(f"data.rand_augment: magnitude is in [0, {STRONGEST}], got {magnitude}")
        self.operations, self.magnitude = operations, magnitude

    def draw(self, magnitude: float | None = None) -> Draw:
        """Draw what is done to one image, (operations, 2): which operation, and how strong, in [-1, 1].

        Args:
            magnitude: Strength that a plan asks for; None: the one configured.
        """
        strength = (self.magnitude if magnitude is None else magnitude) / STRONGEST
        chosen = torch.randint(len(OPERATIONS), (self.operations,)).double()
        signs = torch.randint(2, (self.operations,)).double() * 2 - 1
        return torch.stack([chosen, strength * signs], 1).numpy()

    @classmethod
    def apply(cls, images: Tensor, draws: Draw) -> Tensor:
        """Augment images (B, C, H, W), uint8 or float in [0, 1], by draws (B, operations, 2); returns floats in [0, 1].

        Each operation runs once, on all images that drew it, and the geometric ones as one.
        """
        images = to_unit(images) if not images.is_floating_point() else images.clone()
        for drawn in draws.transpose(1, 0, 2):
            cls._apply_once(images, drawn)
        return images

    @classmethod
    def _apply_once(cls, images: Tensor, drawn: Draw) -> None:
        """Do one operation to each image, in place."""
        numbers = drawn[:, 0].astype(np.int64)
        order = np.argsort(numbers, kind="stable")
        numbers, strengths = numbers[order], drawn[order, 1]
        rows, strength = _on_device(order, images.device), _on_device(strengths.astype(np.float32), images.device)
        first, last = np.searchsorted(numbers, (1, 1 + len(GEOMETRIC)))
        if first < last:
            inverse = _inverse_affine(numbers[first:last], strengths[first:last], *images.shape[-2:])
            moved = _move(images[rows[first:last]], _on_device(inverse, images.device))
            images.index_copy_(0, rows[first:last], moved)
        for number, operation in enumerate(PIXELWISE.values(), 1 + len(GEOMETRIC)):
            first, last = np.searchsorted(numbers, (number, number + 1))
            if first < last:
                changed = operation(images[rows[first:last]], strength[first:last, None, None, None].to(images.dtype))
                images.index_copy_(0, rows[first:last], changed)


def _on_device(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """Copy to a device from pinned memory, for which the host does not wait."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _move(images: Tensor, inverse: Tensor) -> Tensor:
    """Resample images (N, C, H, W) by matrices (N, 2, 3) from output to input, in the coordinates of affine_grid."""
    grid = F.affine_grid(inverse.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _inverse_affine(numbers: NDArray[np.int64], strengths: Draw, height: int, width: int) -> NDArray[np.float32]:
    """Return the matrices (N, 2, 3) of geometric operations, from output to input, both axes in [-1, 1].

    Shears leave the top left corner where it is, rotations the centre; shifts are whole pixels.
    """
    matrices = np.tile(np.eye(2, 3), (len(numbers), 1, 1))
    for matrix, number, strength in zip(matrices, numbers, strengths, strict=True):
        match OPERATIONS[number]:
            case "shear_x":
                matrix[0, 1:] = SHEAR * strength * height / width
            case "shear_y":
                matrix[1, ::2] = SHEAR * strength * width / height
            case "translate_x":
                matrix[0, 2] = -2 * int(SHIFT * strength * width) / width
            case "translate_y":
                matrix[1, 2] = -2 * int(SHIFT * strength * height) / height
            case "rotate":
                cosine, sine = math.cos(ROTATION * strength), math.sin(ROTATION * strength)
                matrix[:, :2] = [[cosine, -sine * height / width], [sine * width / height, cosine]]
    return matrices.astype(np.float32)


class Mix:
    """Mixup or CutMix of each training batch with itself, moved on by one image.

    Mixup (Zhang et al., arXiv 1710.09412) gives the share s of one image and 1 - s of another, s drawn from
    Beta(alpha, alpha) for each batch. CutMix (Yun et al., arXiv 1905.04899) pastes a window of the other that covers
    1 - s of the image, its centre anywhere; what the border clips of it counts for the image below. Labels become
    shares of the classes.

    Args:
        mixup: Alpha of mixup; 0: none.
        cutmix: Alpha of CutMix; 0: none.
        switch: Probability of CutMix where there are both.
        probability: Share of the batches that are mixed.

    Raises:
        ConfigError: A number is out of range.
    """

    def __init__(self, mixup: float = 0.2, cutmix: float = 1.0, switch: float = 0.5, probability: float = 1.0) -> None:
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if not 0 <= alpha < math.inf:
                raise ConfigError(f"data.mix: {name} is at least 0, got {alpha}")
        for name, share in (("switch", switch), ("probability", probability)):
            if not 0 <= share <= 1:
                raise ConfigError(f"data.mix: {name} is in [0, 1], got {share}")
        self.mixup, self.cutmix, self.switch, self.probability = mixup, cutmix, switch, probability

    def draw(self, mixup: float | None = None, cutmix: float | None = None) -> Draw:
        """Draw what is done to the batch that this sample is the first of.

        Args:
            mixup: Alpha that a plan asks for; None: the one configured.
            cutmix: Likewise.

        Returns:
            (4,): 1 for CutMix and 0 for mixup, the share of the image itself, and the centre of the window as shares of
            height and width. A share of 1 leaves the batch as it is.
        """
        mixup, cutmix = self.mixup if mixup is None else mixup, self.cutmix if cutmix is None else cutmix
        mixed, switched, row, column = torch.rand(4, dtype=torch.float64).tolist()
        cut = cutmix > 0 and (mixup == 0 or switched < self.switch)
        alpha = cutmix if cut else mixup
        off = alpha == 0 or mixed >= self.probability
        share = 1.0 if off else float(Beta(torch.tensor(alpha, dtype=torch.float64), alpha).sample())
        return np.array([cut, share, row, column])

    @classmethod
    def apply(cls, images: Tensor, label: Tensor, draw: Draw, num_classes: int) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: (B, C, H, W), uint8 or float in [0, 1].
            label: Classes (B,), long, or shares of them (B, num_classes), float.
            draw: What `draw` returned for the first of them.
            num_classes: Number of classes.

        Returns:
            Images (B, C, H, W), float in [0, 1], and shares (B, num_classes), float.
        """
        cut, share, row, column = draw.tolist()
        images, shares = to_unit(images), to_shares(label, num_classes)
        if share == 1:
            return images, shares
        if cut:
            top, bottom = _window(images.shape[2], row, share)
            left, right = _window(images.shape[3], column, share)
            pasted = images.clone()
            pasted[:, :, top:bottom, left:right] = images.roll(1, 0)[:, :, top:bottom, left:right]
            images, share = pasted, 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
        else:
            images = images.roll(1, 0).lerp(images, share)
        return images, shares.roll(1, 0).lerp(shares, share)


def to_shares(label: Tensor, num_classes: int) -> Tensor:
    """Bring classes (B,), long, to shares (B, num_classes), float, 1 for the class; shares pass as floats."""
    if label.ndim == 2:
        return label.float()
    return torch.zeros(len(label), num_classes, device=label.device).scatter_(1, label[:, None], 1.0)


def _window(side: int, centre: float, share: float) -> tuple[int, int]:
    """Return where a window begins and ends along a side, clipped: it covers 1 - `share` of the area, centred there."""
    length, middle = round(side * math.sqrt(1 - share)), int(side * centre)
    first = middle - length // 2
    return max(0, first), min(side, first + length)
