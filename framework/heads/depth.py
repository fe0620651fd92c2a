"""DINOv2's linear heads for depth."""

from math import lcm
from os import PathLike

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.backbone import Features, Level
from framework.heads.dense import CoarseHead, require_positive, resize
from framework.heads.published import load_head


class LinearDepth(CoarseHead):
    """One 1x1 convolution over the last levels, each patch token joined with the class token, all enlarged.

    DINOv2's depth evaluation (arXiv 2304.07193, section 7.4): `layers: 1` is its "lin. 1", 4 its "lin. 4", both with
    the output `Bins` of 256 bins. A CNN has no class token: its maps are read alone. Meta reads the levels without the
    final norm (the backbone's `norm: false`).

    The convolution is linear, so that it comes before the enlarging here: the same numbers up to rounding, for
    `upsample` squared times fewer multiplications; and the class token's part is one product per image.

    Args:
        layers: How many of the last levels are read; all, if the backbone returns fewer.
        upsample: How many times finer than the finest of them the result is.
        weights: A file of Meta's linear depth heads, such as dinov2_vits14_nyu_linear4_head.pth, or of this head.
            Those of NYU were trained with depth_range [0.001, 10], KITTI's with [0.001, 80]: the same weights give
            other metres under another range, and Meta's hub code, which fixes the maximum of its linear heads at 80,
            shows NYU eight times too deep.

    Raises:
        ConfigError: An option is out of range.
        WeightsError: The file cannot be read, or does not fit.
    """

    tasks = ("Depth",)

    def __init__(
        self,
        levels: tuple[Level, ...],
        prefix_tokens: int,
        outputs: int,
        *,
        layers: int = 1,
        upsample: int = 4,
        weights: str | PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        require_positive(layers=layers, upsample=upsample)
        self.used = tuple(range(len(levels)))[-layers:]
        self.multiple = lcm(*(levels[index].stride for index in self.used))
        self.upsample = upsample
        self.reads_token = prefix_tokens > 0
        self.widths = [levels[index].channels for index in self.used for _ in range(1 + self.reads_token)]
        self.project = nn.Conv2d(sum(self.widths), outputs, 1)
        if weights is not None:
            load_head(self, "LinearDepth", weights)

    def coarse(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Compute (B, outputs, h, w), `upsample` times finer than the finest of the levels."""
        height, width = features.maps[self.used[0]].shape[-2:]
        parts = iter(torch.split(self.project.weight, self.widths, dim=1))
        of_places: list[Tensor] = []
        assert self.project.bias is not None
        of_image: Tensor = self.project.bias  # (outputs,), or with class tokens (B, outputs)
        for index in self.used:
            of_places.append(resize(F.conv2d(features.maps[index], next(parts)), (height, width)))
            if self.reads_token:
                of_image = of_image + F.linear(features.prefix[index][:, 0], next(parts)[:, :, 0, 0])
        raw = sum(of_places[1:], of_places[0]) + of_image[..., None, None]
        return resize(raw, (self.upsample * height, self.upsample * width))
