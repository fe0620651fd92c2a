"""Dense heads: from features to one value per output and pixel. The contract, and the simplest heads."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import lcm
from os import PathLike
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.backbone import Features, Level
from framework.errors import ConfigError
from framework.heads.published import load_head


class DenseHead(nn.Module, ABC):
    """Features in, a map at image size out: logits for segmentation, raw values for depth.

    A head is built as `Head(levels, prefix_tokens, outputs, ...)`: the first three come from the backbone and the
    task, and what follows is the head's own and can be set in an experiment. It writes one method: `forward`, or,
    as a `CoarseHead`, `coarse`.

    Args:
        levels: What the backbone returns, fine to coarse.
        prefix_tokens: Tokens that the backbone returns beside each map, the class token first; 0 for a CNN.
        outputs: Channels of the result, such as the number of classes.

    Attributes:
        multiple: What the height and width of the padded image must be divisible by, beside the backbone's own.
        used: Indices of the backbone's levels that the head reads.
    """

    tasks: ClassVar[tuple[str, ...]] = ("Segmentation", "Depth")
    any_levels: ClassVar[bool] = True  # False: made for one kind of backbone; others are refused with a ConfigError

    multiple: int
    used: tuple[int, ...]

    @abstractmethod
    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Compute (B, outputs, *size), float, unbounded, for images whose padded height and width are `size`."""

    def coarse(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Compute what `forward` resizes to `size`: (B, outputs, h, w), at the head's own resolution.

        Depth turns these values into metres before it resizes: 256 bins at image size would be sixteen times as many
        values and more. A head that does not resize gives its result.
        """
        result: Tensor = self(features, size)
        return result


class CoarseHead(DenseHead):
    """A dense head that computes at its own resolution: it writes `coarse`, and its result is resized to the image."""

    @abstractmethod
    def coarse(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Compute (B, outputs, h, w), float, unbounded, for images whose padded height and width are `size`."""

    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Compute (B, outputs, *size): `coarse`, resized bilinearly."""
        return resize(self.coarse(features, size), size)


DenseHeadFactory = Callable[[tuple[Level, ...], int, int], DenseHead]
"""Builds a head from (levels, prefix_tokens, outputs): the type of a task's `head` argument."""


class LinearHead(CoarseHead):
    """Batch normalisation and a 1x1 convolution over the last levels, brought to the finest of them.

    DINOv2's linear evaluation (arXiv 2304.07193, section 7.4): `layers: 1` is its "lin", 4 the features of its
    "+ms".

    Args:
        layers: How many of the last levels are concatenated; all, if the backbone returns fewer.
        dropout: Probability of dropping a whole channel before the convolution, in [0, 1).
        weights: A file of Meta's linear segmentation heads, such as dinov2_vits14_ade20k_linear_head.pth (1 level) or
            dinov2_vits14_ade20k_ms_head.pth (4), or of this head. Their levels are the last blocks after the final
            norm, and their ADE20K has the 150 classes without a background.

    Raises:
        ConfigError: `layers` or `dropout` is out of range.
        WeightsError: The file cannot be read, or does not fit.
    """

    def __init__(
        self,
        levels: tuple[Level, ...],
        prefix_tokens: int,
        outputs: int,
        *,
        layers: int = 4,
        dropout: float = 0.0,
        weights: str | PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        require_positive(layers=layers)
        require_fraction(dropout=dropout)
        self.used = tuple(range(len(levels)))[-layers:]
        self.multiple = lcm(*(levels[index].stride for index in self.used))
        channels = sum(levels[index].channels for index in self.used)
        self.norm = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, outputs, 1)
        nn.init.normal_(self.classify.weight, std=0.01)
        if weights is not None:
            load_head(self, "LinearHead", weights)

    def coarse(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Compute (B, outputs, h, w) at the finest of the levels."""
        raw: Tensor = self.classify(self.dropout(self.norm(concatenate(features, self.used))))
        return raw


class ConvHead(CoarseHead):
    """A 3x3 convolution, ReLU and a 1x1 convolution over the last levels, brought to the finest of them.

    The smallest head that looks at neighbours: between the linear ones and DPT.

    Args:
        channels: Width between the two convolutions.
        layers: How many of the last levels are concatenated; all, if the backbone returns fewer.
        dropout: Probability of dropping a whole channel before the last convolution, in [0, 1).

    Raises:
        ConfigError: An option is out of range.
    """

    def __init__(
        self,
        levels: tuple[Level, ...],
        prefix_tokens: int,
        outputs: int,
        *,
        channels: int = 256,
        layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_positive(channels=channels, layers=layers)
        require_fraction(dropout=dropout)
        self.used = tuple(range(len(levels)))[-layers:]
        self.multiple = lcm(*(levels[index].stride for index in self.used))
        self.mix = nn.Conv2d(sum(levels[index].channels for index in self.used), channels, 3, padding=1)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, outputs, 1)

    def coarse(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Compute (B, outputs, h, w) at the finest of the levels."""
        raw: Tensor = self.classify(self.dropout(F.relu(self.mix(concatenate(features, self.used)))))
        return raw


def concatenate(features: Features, used: Sequence[int]) -> Tensor:
    """Bring the levels in `used` to the size of the first of them, and join their channels: (B, C, h, w)."""
    maps = [features.maps[index] for index in used]
    return torch.cat([maps[0], *(resize(x, maps[0].shape[-2:]) for x in maps[1:])], dim=1)


def resize(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resize (B, C, h, w) to (B, C, *size) bilinearly, edges aligned; untouched if it has that size."""
    return x if x.shape[-2:] == tuple(size) else F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def require_positive(**options: int) -> None:
    """Raise a ConfigError for an option that is not at least 1."""
    for name, value in options.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")


def require_fraction(**options: float) -> None:
    """Raise a ConfigError for an option that is not in [0, 1)."""
    for name, value in options.items():
        if not 0 <= value < 1:
            raise ConfigError(f"{name} must be at least 0 and less than 1, got {value}")
