"""Between a backbone and a head that wants a pyramid."""

from collections.abc import Sequence
from itertools import groupby, pairwise
from math import lcm, log2
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from framework.backbone import Level

Extra = Literal["none", "pool", "convolutions"]


class Pyramid(nn.Module):
    """Bring levels of any stride to the given strides, so that each map is exactly twice the next one.

    A level that has an asked stride passes through untouched. A stride that is missing is made from the level
    nearest to it by bilinear interpolation (antialiased when shrinking) and a 1x1 convolution that starts as the
    identity. The last asked stride is always made from the deepest level, so that a backbone never computes
    its last stage in vain. Levels of one stride (a plain ViT, a dilated CNN) are spread over the asked strides that
    are nearest to it, in order: shallow to fine, deep to coarse.

    Args:
        levels: What the backbone returns, fine to coarse.
        strides: What comes out, fine to coarse; each divides the last.

    Attributes:
        levels: Channels and stride of each map that comes out.
        multiple: What height and width must be divisible by: the strides of the levels that are read, so that their
            maps cover the image exactly, and the coarsest asked stride, if any level passes through untouched. If none
            does (a ViT of patch 14), the neck picks its own grid, `ceil(size / coarsest stride)` and its doubles.
        used: Indices of the backbone's levels that are read; the others stay unused.

    Raises:
        ValueError: The levels or the strides are not fine to coarse, or a stride does not divide the last.
    """

    def __init__(self, levels: Sequence[Level], strides: Sequence[int] = (4, 8, 16, 32)) -> None:
        super().__init__()
        have = [level.stride for level in levels]
        if not have or have != sorted(have):
            raise ValueError(f"a pyramid is made from levels that go fine to coarse, got strides {have}")
        if sorted(set(strides)) != list(strides) or any(strides[-1] % stride for stride in strides):
            raise ValueError(f"strides go fine to coarse and each divides the last, got {list(strides)}")
        self.sources = _assign(have, strides)
        self.used = tuple(sorted(set(self.sources)))
        self.levels = tuple(
            Level(levels[source].channels, stride) for source, stride in zip(self.sources, strides, strict=True)
        )
        self.resample = nn.ModuleDict(
            {
                str(level.stride): Resample(level.channels, shrink=have[source] < level.stride)
                for source, level in zip(self.sources, self.levels, strict=True)
                if have[source] != level.stride
            }
        )
        untouched = len(self.resample) < len(self.levels)
        self.multiple = lcm(*(have[source] for source in self.used), strides[-1] if untouched else 1)

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Resample maps, per level (B, channels, h, w), of images whose height and width are `size` pixels.

        Raises:
            ValueError: Height or width is not divisible by `multiple`.
        """
        if size[0] % self.multiple or size[1] % self.multiple:
            raise ValueError(
                f"this pyramid needs sides divisible by {self.multiple}, got {size[0]}x{size[1]}: pad them"
            )
        coarsest = self.levels[-1].stride
        base = [-(-side // coarsest) for side in size]
        out = []
        for source, level in zip(self.sources, self.levels, strict=True):
            x = maps[source]
            if str(level.stride) in self.resample:
                x = self.resample[str(level.stride)](x, [cells * (coarsest // level.stride) for cells in base])
            out.append(x)
        return out


class Resample(nn.Module):
    """Bilinear interpolation to a size, and a 1x1 convolution that starts as the identity.

    Args:
        channels: Depth of the map, kept.
        shrink: Whether maps get smaller, which needs antialiasing.
    """

    def __init__(self, channels: int, shrink: bool) -> None:
        super().__init__()
        self.shrink = shrink
        self.project = nn.Conv2d(channels, channels, 1)
        nn.init.dirac_(self.project.weight)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]  # there is one

    def forward(self, x: Tensor, size: list[int]) -> Tensor:
        """Resample (B, channels, h, w) to (B, channels, *size)."""
        if self.shrink:
            shrunk: Tensor = self.project(_shrink(x, size))
            return shrunk
        return F.interpolate(self.project(x), size, mode="bilinear")  # the two commute: this order is cheaper


def _shrink(x: Tensor, size: list[int]) -> Tensor:
    """Resize (B, C, h, w) to (B, C, *size), bilinear with antialiasing, as two matrix products.

    `F.interpolate(antialias=True)` has no 16 bits on the CPU, no deterministic gradient on CUDA, and is wrong when
    only one column remains (torch 2.14, CPU).
    """
    rows, columns = (_triangles(old, new).to(x) for old, new in zip(x.shape[-2:], size, strict=True))
    return rows @ x @ columns.T


def _triangles(old: int, new: int) -> Tensor:
    """Return (new, old): the weight of each source cell in each target cell, falling linearly with distance."""
    step = old / new
    distance = (torch.arange(new)[:, None] + 0.5) * step - (torch.arange(old) + 0.5)
    weights = (1 - distance.abs() / max(step, 1.0)).clamp_min(0)
    return weights / weights.sum(dim=1, keepdim=True)


def _assign(have: list[int], want: Sequence[int]) -> tuple[int, ...]:
    """Return, for each wanted stride, the index of the level that it is made from."""
    nearest = [min(have, key=lambda stride: (abs(log2(stride / goal)), stride)) for goal in want]
    nearest[-1] = have[-1]
    sources = []
    for stride, goals in groupby(nearest):
        equal = [index for index, other in enumerate(have) if other == stride]
        count = len(list(goals))
        steps = [round(i * (len(equal) - 1) / (count - 1)) for i in range(count)] if count > 1 else [-1]
        sources += [equal[step] for step in steps]
    return tuple(sources)


class FeaturePyramid(nn.Module):
    """Make maps of one depth, each of twice the stride of the one before, for detection.

    Levels of several strides (CNNs, hierarchical transformers) are brought to the asked strides by `Pyramid` and joined
    from coarse to fine by torchvision's feature pyramid network. Levels that all have one stride (plain ViTs) say the
    same at the same scale: the last of them alone becomes ViTDet's simple feature pyramid.

    Args:
        levels: What the backbone returns, fine to coarse.
        strides: What is asked for, fine to coarse; each divides the next.
        channels: Depth of every map that comes out.
        extra: Coarser maps made from the last: `pool` adds one by taking every second cell (Faster R-CNN's),
            `convolutions` two by convolutions of stride 2 (P6 and P7 of FCOS and RetinaNet).

    Attributes:
        strides: Pixels per cell of each map that comes out, extra ones included: those that were asked for, or, from
            levels of one stride, that stride times the nearest powers of two (7, 14, 28 for patches of 14). Cell i
            begins at i times the stride, also where the last cell reaches beyond the image.
        channels: Depth of every map that comes out.
        multiple: What height and width must be divisible by.
        used: Indices of the backbone's levels that are read; the others stay unused.

    Raises:
        ValueError: The levels or the strides are not fine to coarse, or a stride does not divide the next.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        strides: Sequence[int] = (8, 16, 32),
        channels: int = 256,
        extra: Extra = "none",
    ) -> None:
        super().__init__()
        if not strides or any(coarse <= fine or coarse % fine for fine, coarse in pairwise(strides)):
            raise ValueError(f"strides go fine to coarse and each divides the next, got {list(strides)}")
        alike = len({level.stride for level in levels}) == 1
        self.neck: SimplePyramid | TopDownPyramid = (
            SimplePyramid(levels, strides, channels) if alike else TopDownPyramid(levels, strides, channels)
        )
        self.extra = _extra_block(extra, channels)
        self.channels = channels
        self.multiple = self.neck.multiple
        self.used = self.neck.used
        doubled = range({"none": 0, "pool": 1, "convolutions": 2}[extra])
        self.strides = (*self.neck.strides, *(self.neck.strides[-1] * 2.0 ** (1 + step) for step in doubled))

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Compute maps (B, channels, h, w), fine to coarse, from those of images whose sides are `size` pixels.

        Raises:
            ValueError: Height or width is not divisible by `multiple`.
        """
        if size[0] % self.multiple or size[1] % self.multiple:
            raise ValueError(
                f"this pyramid needs sides divisible by {self.multiple}, got {size[0]}x{size[1]}: pad them"
            )
        out: list[Tensor] = self.neck(maps, size)
        if self.extra is not None:
            out, _ = self.extra(out, out, [])
        return out


class TopDownPyramid(nn.Module):
    """Lateral convolutions and a path from coarse to fine: torchvision's, of Lin et al., arXiv 1612.03144.

    Args:
        levels: What the backbone returns, fine to coarse.
        strides: What comes out, fine to coarse; each divides the next.
        channels: Depth of every map that comes out.

    Attributes:
        strides: As asked.
        multiple: What height and width must be divisible by; then every map covers the image exactly.
        used: Indices of the backbone's levels that are read.
    """

    def __init__(self, levels: Sequence[Level], strides: Sequence[int], channels: int) -> None:
        super().__init__()
        self.resample = Pyramid(levels, strides)
        self.fpn = FeaturePyramidNetwork([level.channels for level in self.resample.levels], channels)
        self.strides = tuple(float(stride) for stride in strides)
        self.multiple = lcm(self.resample.multiple, strides[-1])
        self.used = self.resample.used

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Compute maps (B, channels, h, w) of images whose height and width are `size` pixels."""
        resampled = {str(index): x for index, x in enumerate(self.resample(maps, size))}
        return list(self.fpn(resampled).values())


class SimplePyramid(nn.Module):
    """ViTDet's simple feature pyramid: every map from the last one alone. Li et al., arXiv 2203.16527, section 3.

    Finer maps by transposed convolutions, coarser ones by max pooling, which rounds up where the grid is odd; then a
    1x1 and a 3x3 convolution, each with layer normalisation over channels.

    Args:
        levels: What the backbone returns, all of one stride.
        strides: What is asked for, fine to coarse; each divides the next.
        channels: Depth of every map that comes out.

    Attributes:
        strides: Of what comes out: the levels' stride times the power of two that is nearest to what is asked for.
        multiple: What height and width must be divisible by: the levels' stride.
        used: Index of the last level.
    """

    def __init__(self, levels: Sequence[Level], strides: Sequence[int], channels: int) -> None:
        super().__init__()
        *_, last = levels
        doublings = [round(log2(stride / last.stride)) for stride in strides]
        self.strides = tuple(last.stride * 2.0**count for count in doublings)
        self.multiple = last.stride
        self.used = (len(levels) - 1,)
        self.branches = nn.ModuleList(_simple_branch(last.channels, channels, count) for count in doublings)

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Compute maps (B, channels, h, w) of images of any size."""
        return [branch(maps[self.used[0]]) for branch in self.branches]


def _simple_branch(depth: int, channels: int, doublings: int) -> nn.Sequential:
    """Build what makes a map of 2 ** doublings times the stride; doublings below 0 make it finer."""
    layers: list[nn.Module] = []
    for step in range(-doublings):
        if step:
            layers += [LayerNorm2d(depth, eps=1e-6), nn.GELU()]
        finer = max(depth // 2, 8)  # layer normalisation over one channel would leave nothing
        layers.append(nn.ConvTranspose2d(depth, finer, 2, stride=2))
        depth = finer
    if doublings > 0:
        layers.append(nn.MaxPool2d(2**doublings, ceil_mode=True))
    return nn.Sequential(
        *layers,
        nn.Conv2d(depth, channels, 1, bias=False),
        LayerNorm2d(channels, eps=1e-6),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels, eps=1e-6),
    )


def _extra_block(extra: Extra, channels: int) -> ExtraFPNBlock | None:
    """Return torchvision's module that appends coarser maps."""
    if extra == "pool":
        return LastLevelMaxPool()
    return LastLevelP6P7(channels, channels) if extra == "convolutions" else None
