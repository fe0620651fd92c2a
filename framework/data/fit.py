"""How large an image is shown to the network: one rule for training, evaluation and predict."""

from dataclasses import dataclass
from math import ceil

import torch.nn.functional as F
from torch import Tensor

from framework.boxes import Size
from framework.errors import ConfigError
from framework.preprocessing import fit_shorter_side


@dataclass(frozen=True, slots=True)
class Fit:
    """Bring images to the network by the shorter side, by a letterbox, or as stored; the aspect ratio stays.

    Args:
        resize: Shorter side, in pixels; None: none is asked for.
        longest: Longer side at most, in pixels, whatever the shorter one becomes; None: as `resize` makes it.
        letterbox: Height and width of the canvas in which the image becomes as large as fits; None: no canvas.

    Raises:
        ConfigError: The rules contradict each other.
    """

    resize: int | None = None
    longest: int | None = None
    letterbox: Size | None = None

    def __post_init__(self) -> None:
        if self.letterbox is not None and (self.resize is not None or self.longest is not None):
            other = "resize" if self.resize is not None else "longest"
            raise ConfigError(
                f"data.letterbox and data.{other} both say how large images become: leave one of them out"
            )
        if self.longest is not None and self.resize is None:
            raise ConfigError(
                f"data.longest bounds what data.resize makes: set data.resize, or data.letterbox: {self.longest}"
            )
        if self.longest is not None and self.resize is not None and self.longest < self.resize:
            raise ConfigError(f"data.longest: the longer side, {self.longest}, is less than data.resize, {self.resize}")

    def size(self, original: Size) -> Size:
        """Return the (height, width) at which an image of size `original` is shown."""
        if self.letterbox is not None:
            return _fit_inside(original, self.letterbox)
        if self.resize is None:
            return original
        size = fit_shorter_side(original, self.resize)
        if self.longest is None or max(size) <= self.longest:
            return size
        return _fit_inside(original, (self.longest, self.longest))

    def canvas(self, size: Size) -> Size:
        """Return the (height, width) of the tensor in which an image shown at `size` lies, at the upper left."""
        return self.letterbox or size

    def at_least(self, scale: float = 1.0) -> int | None:
        """Return the shorter side from which on images shown at up to `scale` need not be enlarged; None: all of it."""
        shorter = self.resize if self.letterbox is None else min(self.letterbox)
        return None if shorter is None else ceil(shorter * max(1.0, scale))


def _fit_inside(size: Size, canvas: Size) -> Size:
    """Return the largest size of the same aspect ratio that fits into a canvas; one side is the canvas's."""
    (height, width), (rows, columns) = size, canvas
    if rows * width <= columns * height:  # the height fills the canvas first
        return rows, min(columns, max(1, round(width * rows / height)))
    return min(rows, max(1, round(height * columns / width))), columns


def pad_to_size(image: Tensor, size: Size) -> Tensor:
    """Add zeros at the bottom and right of an image (C, H, W), up to `size` (height, width); a longer side stays."""
    bottom, right = max(0, size[0] - image.shape[-2]), max(0, size[1] - image.shape[-1])
    return F.pad(image, (0, right, 0, bottom)) if bottom or right else image
