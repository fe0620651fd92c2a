"""The DPT head whose weights Meta publishes for DINOv2."""

from os import PathLike

import torch.nn.functional as F
from torch import Tensor, nn

from framework.backbone import Features, Level
from framework.errors import ConfigError
from framework.heads.dense import CoarseHead, require_positive, resize
from framework.heads.dpt import Readout, ResidualUnit
from framework.heads.published import load_head


class DINOv2DPT(CoarseHead):
    """DINOv2's DPT for depth: for a plain ViT, and to the letter what Meta's weights were trained in.

    Ranftl et al., arXiv 2103.13413, as in Meta's code of DINOv2 (arXiv 2304.07193, section 7.4). It differs from `DPT`
    in that maps are enlarged by factors, corners aligned, wherever the coarse grid ends up (a skip connection is
    resized to it), and in a last part of two more convolutions at twice the resolution. New work is better served by
    `DPT`, which takes any backbone.

    Meta's depth heads go with four levels without the final norm (the backbone's `norm: false`), blocks 2, 5, 8, 11 of
    the variants s and b, 4, 11, 17, 23 of l and 9, 19, 29, 39 of g (its `layers`), `padding: around`, and the output
    `LinearRegression` with `activation: relu` for a depth_range of [0.001, 10] (NYU) or [0.001, 80] (KITTI).

    Args:
        channels: Width of the fusion; Meta's have 256.
        weights: A file of Meta's DPT heads, such as dinov2_vits14_nyu_dpt_head.pth, or of this head.

    Raises:
        ConfigError: `channels` is out of range, or the backbone does not have four levels of one stride and width
            with a class token.
        WeightsError: The file cannot be read, or does not fit.
    """

    any_levels = False

    def __init__(
        self,
        levels: tuple[Level, ...],
        prefix_tokens: int,
        outputs: int,
        *,
        channels: int = 256,
        weights: str | PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        require_positive(channels=channels)
        _require_plain_vit(levels, prefix_tokens)
        self.used = (0, 1, 2, 3)
        self.multiple = levels[0].stride
        depth = levels[0].channels
        widths = [max(1, depth // 8), max(1, depth // 4), max(1, depth // 2), depth]
        half = max(1, channels // 2)
        self.readouts = nn.ModuleList(Readout(depth) for _ in widths)
        self.narrow = nn.ModuleList(nn.Conv2d(depth, width, 1) for width in widths)
        self.rescale = nn.ModuleList(
            (
                nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
                nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
            )
        )
        self.reduce = nn.ModuleList(nn.Conv2d(width, channels, 3, padding=1, bias=False) for width in widths)
        self.fusions = nn.ModuleList(Fusion(channels, joins=step > 0) for step in range(len(widths)))
        self.mix = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        self.last = nn.Sequential(
            nn.Conv2d(channels, half, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(half, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, outputs, 1),
        )
        if weights is not None:
            load_head(self, "DINOv2DPT", weights)

    def coarse(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Compute (B, outputs, h, w): 32 times as high as half the grid of patches, rounded up, and as wide."""
        maps = []
        for index, (read, narrow, rescale, reduce) in enumerate(
            zip(self.readouts, self.narrow, self.rescale, self.reduce, strict=True)
        ):
            x = read(features.maps[index], features.prefix[index][:, 0])
            maps.append(reduce(rescale(narrow(x))))
        x = self.fusions[0](maps.pop())
        for skip, fuse in zip(reversed(maps), list(self.fusions)[1:], strict=True):
            x = fuse(x, skip)
        raw: Tensor = self.last(self.mix(x))
        return raw


class Fusion(nn.Module):
    """RefineNet's fusion of a coarse map with the next finer level, twice as large afterwards (arXiv 1611.06612).

    Args:
        channels: Depth of the maps, kept.
        joins: Whether there is a level to join; the coarsest map has none.
    """

    def __init__(self, channels: int, joins: bool) -> None:
        super().__init__()
        self.skip = ResidualUnit(channels, batch_norm=False, bias=False) if joins else None
        self.unit = ResidualUnit(channels, batch_norm=False, bias=False)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        """Fuse (B, channels, h, w) with a level of about that size: (B, channels, 2h, 2w)."""
        if self.skip is not None and level is not None:
            x = x + self.skip(resize(level, x.shape[-2:]))
        # Meta enlarges first; a 1x1 convolution of a bilinear map is the same, for a quarter of the multiplications.
        fused: Tensor = F.interpolate(self.project(self.unit(x)), scale_factor=2, mode="bilinear", align_corners=True)
        return fused


def _require_plain_vit(levels: tuple[Level, ...], prefix_tokens: int) -> None:
    """Refuse levels that Meta's head was not made for.

    Raises:
        ConfigError: They are such.
    """
    if len(levels) == 4 and len(set(levels)) == 1 and prefix_tokens:
        return
    strides = ", ".join(str(level.stride) for level in levels)
    raise ConfigError(
        "model.head: DINOv2DPT needs four levels of one stride and width, each with a class token, as DINOv2 gives "
        f"with layers: null; this backbone gives {len(levels)} of stride {strides} with {prefix_tokens} prefix tokens: "
        "the head DPT takes any backbone"
    )
