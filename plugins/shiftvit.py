"""ShiftViT: a hierarchical transformer whose attention is replaced by shifting channels to neighbouring cells.

Wang, Zhao, Tang, Luo and Zeng, "When shift operation meets vision transformer: an extremely simple alternative to
attention mechanism", AAAI 2022, arXiv 2201.10801; repository microsoft/SPACH, whose parameter names are kept.
"""

from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from framework.backbone import Backbone, Features, Level
from framework.errors import ConfigError, suggest
from framework.weights import fit_channels, load_strictly, read_weights

PATCH = 4  # pixels
FIRST = "patch_embed.proj.weight"
Variant = Literal["tiny", "small", "base", "light_tiny", "light_small", "light_base"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What tells the variants apart.

    Args:
        embed_dim: Channels of the finest level; each coarser one has twice as many.
        depths: Blocks of each level.
        mlp_ratio: Hidden channels of a block over its own.
        n_div: One channel in this many is shifted in each of four directions.
    """

    embed_dim: int
    depths: tuple[int, ...]
    mlp_ratio: float = 2.0
    n_div: int = 12


SHAPES = {
    "tiny": Shape(96, (6, 8, 18, 6)),
    "small": Shape(96, (10, 18, 36, 10)),
    "base": Shape(128, (10, 18, 36, 10), n_div=16),
    "light_tiny": Shape(96, (2, 2, 6, 2), mlp_ratio=4.0),
    "light_small": Shape(96, (2, 2, 18, 2), mlp_ratio=4.0),
    "light_base": Shape(128, (2, 2, 18, 2), mlp_ratio=4.0, n_div=16),
}


class ShiftViT(Backbone):
    """ShiftViT: four levels of strides 4 to 32, from an operation without parameters or arithmetic and MLPs.

    The last level is normalised, the others are not. A map of odd sides is padded with zeros where it is halved,
    which the original, made for 224x224 images, need not do.

    Args:
        variant: `tiny`, `small` or `base`, the paper's networks, or `light_...`, with as few blocks as Swin and wider
            MLPs. The next four arguments change single things.
        embed_dim: Channels of the finest level; each coarser one has twice as many.
        depths: Blocks of each level, fine to coarse.
        mlp_ratio: Hidden channels of a block over its own.
        n_div: One channel in this many is shifted to the left, one to the right, one up and one down.
        dropout: Rate of dropout inside the MLPs, in [0, 1).
        drop_path: Rate of stochastic depth of the last block, in [0, 1); it rises linearly from 0 at the first. The
            repository trains the light and the full networks with 0.2 (tiny), 0.4 (small) and 0.5 or 0.6 (base).
        weights: A file to take the weights from, in the layout of the paper's repository.
        in_channels: Channels of the images; the file's first filters are summed or repeated over them.

    Raises:
        ConfigError: There is no such variant, or a number makes no network.
        WeightsError: The weights cannot be read, or do not fit.
    """

    def __init__(
        self,
        variant: Variant = "tiny",
        embed_dim: int | None = None,
        depths: list[int] | None = None,
        mlp_ratio: float | None = None,
        n_div: int | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        weights: str | PathLike[str] | None = None,
        in_channels: int = 3,
    ) -> None:
        shape = _shape(variant, embed_dim, depths, mlp_ratio, n_div)
        _check_rates(dropout=dropout, drop_path=drop_path)
        widths = [shape.embed_dim * 2**index for index in range(len(shape.depths))]
        levels = [Level(width, PATCH * 2**index) for index, width in enumerate(widths)]
        super().__init__(levels=levels, multiple=PATCH, in_channels=in_channels)
        self.patch_embed = PatchEmbedding(in_channels, shape.embed_dim)
        rates = torch.split(torch.linspace(0, drop_path, sum(shape.depths), device="cpu"), list(shape.depths))
        self.layers = nn.ModuleList(
            Stage([Block(width, shape, dropout, float(rate)) for rate in stage_rates], merges=width != widths[-1])
            for width, stage_rates in zip(widths, rates, strict=True)
        )
        self.norm = _norm(widths[-1])
        self.apply(_initialise)
        if weights is not None:
            state = read_weights(weights)
            if FIRST in state:
                state[FIRST] = fit_channels(state[FIRST], in_channels)
            load_strictly(self, state, weights, may_exceed=("head.weight", "head.bias"))

    @classmethod
    def published(cls, *_: Any, **arguments: Any) -> nn.Module:
        """Build the whole network with its classifier of 1000 outputs."""
        return Classifier(cls(**{**arguments, "weights": None}), 1000)

    def extract(self, images: Tensor) -> Features:
        """Compute the maps of normalised images (B, C, H, W), float."""
        x, maps = self.patch_embed(images), []
        layer: Any
        for layer in self.layers:
            maps.append(layer.blocks(x))
            x = layer.downsample(maps[-1])
        return Features(maps=[*maps[:-1], self.norm(x)], prefix=[])

    def stages(self) -> list[list[nn.Parameter]]:
        """Split the parameters into patch embedding and levels, input to output."""
        layers: list[Any] = list(self.layers)
        merges = [[], *(list(layer.downsample.parameters()) for layer in layers[:-1])]
        levels = [[*merge, *layer.blocks.parameters()] for merge, layer in zip(merges, layers, strict=True)]
        levels[-1] += self.norm.parameters()
        return [list(self.patch_embed.parameters()), *levels]


class PatchEmbedding(nn.Module):
    """Image to patches of 4x4 pixels.

    Args:
        in_channels: Channels of the images.
        width: Channels of a patch.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, PATCH, PATCH)
        self.norm = _norm(width)

    def forward(self, images: Tensor) -> Tensor:
        """Embed (B, C, H, W) as (B, width, H/4, W/4)."""
        x: Tensor = self.norm(self.proj(images))
        return x


class Stage(nn.Module):
    """The blocks of one level, and the way to the next.

    Args:
        blocks: The blocks.
        merges: Whether there is a next level.
    """

    def __init__(self, blocks: list["Block"], merges: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = PatchMerging(blocks[0].width) if merges else nn.Identity()


class Block(nn.Module):
    """A shift, then an MLP around which its input is led.

    Args:
        width: Channels.
        shape: Ratio of the MLP, and share of channels that is shifted.
        dropout: Rate of dropout after both layers of the MLP.
        drop_path: Rate of stochastic depth.
    """

    def __init__(self, width: int, shape: Shape, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.width = width
        self.group = width // shape.n_div
        self.norm2 = _norm(width)
        self.mlp = MLP(width, int(width * shape.mlp_ratio), dropout)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        """Compute new cells (B, width, h, w) from (B, width, h, w)."""
        x = shift(x, self.group)
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class MLP(nn.Module):
    """Two layers on every cell by itself.

    Args:
        width: Channels in and out.
        hidden: Channels between.
        dropout: Rate of dropout after both layers.
    """

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, width, 1)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, h, w) to (B, width, h, w)."""
        x = self.drop(self.act(self.fc1(x)))
        x = self.drop(self.fc2(x))
        return x


class PatchMerging(nn.Module):
    """Four cells to one of twice the channels.

    Args:
        width: Channels of the finer map.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.reduction = nn.Conv2d(width, 2 * width, 2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Halve (B, width, h, w), rounded up, to (B, 2 * width, h/2, w/2)."""
        out: Tensor = self.reduction(F.pad(self.norm(x), (0, x.shape[3] % 2, 0, x.shape[2] % 2)))
        return out


class Classifier(nn.Module):
    """A linear classifier of the mean of the last level.

    Args:
        trunk: The network.
        num_classes: Outputs.
    """

    def __init__(self, trunk: ShiftViT, num_classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(trunk.levels[-1].channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (B, num_classes) of images (B, C, H, W) in [0, 1]."""
        logits: Tensor = self.head(self.trunk(images).maps[-1].mean((2, 3)))
        return logits


def shift(x: Tensor, group: int) -> Tensor:
    """Move four groups of channels by one cell (section 3.2): to the left, to the right, up, and down.

    What leaves the map is lost, and zeros come in at the opposite edge.

    Args:
        x: A map (B, C, h, w).
        group: Channels of a group; the first is shifted to the left. Those after the fourth stay.

    Returns:
        The shifted map (B, C, h, w).
    """
    left, right, up, down, rest = torch.split(x, [group] * 4 + [x.shape[1] - 4 * group], 1)
    moved = [
        F.pad(left[..., 1:], (0, 1)),
        F.pad(right[..., :-1], (1, 0)),
        F.pad(up[..., 1:, :], (0, 0, 0, 1)),
        F.pad(down[..., :-1, :], (0, 0, 1, 0)),
    ]
    return torch.cat([*moved, rest], 1)


def _norm(width: int) -> nn.GroupNorm:
    """Build the normalisation of all values of an image together, which stands in for layer norm."""
    return nn.GroupNorm(1, width)


def _initialise(module: nn.Module) -> None:
    """Draw filters from a truncated normal distribution of deviation 0.02, as the repository does."""
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _shape(
    variant: str, embed_dim: int | None, depths: list[int] | None, mlp_ratio: float | None, n_div: int | None
) -> Shape:
    """Return a variant with single things changed.

    Raises:
        ConfigError: There is no such variant, or a number makes no network.
    """
    if variant not in SHAPES:
        raise ConfigError(f"ShiftViT has no variant {variant}, {suggest(variant, SHAPES)}")
    given: dict[str, Any] = {"embed_dim": embed_dim, "mlp_ratio": mlp_ratio, "n_div": n_div}
    given["depths"] = None if depths is None else tuple(depths)
    shape = replace(SHAPES[variant], **{key: value for key, value in given.items() if value is not None})
    if not shape.depths or min(shape.depths) < 1:
        raise ConfigError(f"ShiftViT's depths are blocks per level, at least 1 each, not {depths}")
    if shape.n_div < 4 or shape.embed_dim < shape.n_div:
        raise ConfigError(
            f"ShiftViT shifts one channel in n_div in each of four directions, so n_div is at least 4 and at most "
            f"embed_dim ({shape.embed_dim}), not {shape.n_div}"
        )
    if shape.mlp_ratio <= 0:
        raise ConfigError(f"ShiftViT's mlp_ratio is above 0, not {shape.mlp_ratio}")
    return shape


def _check_rates(**rates: float) -> None:
    """Refuse rates outside [0, 1)."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ConfigError(f"{name} is a rate in [0, 1), not {rate}")
