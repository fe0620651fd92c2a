"""The ladder from ResNet to ConvNeXt: the same network after each change that made one out of the other.

Liu, Mao, Wu, Feichtenhofer, Darrell and Xie, "A ConvNet for the 2020s", CVPR 2022, arXiv 2201.03545, section 2 and
tables 10 and 11.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from framework.backbone import Backbone, Features, Level
from framework.errors import ConfigError, suggest

Regime = Literal["resnet50", "resnet200"]
Step = Literal[
    "resnet",
    "stage_ratio",
    "patchify_stem",
    "depthwise",
    "width",
    "inverted_bottleneck",
    "depthwise_up",
    "kernel5",
    "kernel7",
    "kernel9",
    "kernel11",
    "gelu",
    "fewer_activations",
    "fewer_norms",
    "layer_norm",
    "separate_downsampling",
]
STEPS: tuple[str, ...] = get_args(Step)
# Blocks of each level, at first and from `stage_ratio` on; width at first, from `stage_ratio` on, and from `width` on
DEPTHS = {"resnet50": ((3, 4, 6, 3), (3, 3, 9, 3)), "resnet200": ((3, 24, 36, 3), (3, 3, 27, 3))}
WIDTHS = {"resnet50": (64, 64, 96), "resnet200": (64, 84, 128)}
KERNELS = {"kernel5": 5, "kernel9": 9, "kernel11": 11}  # tried, and not kept
LAYER_SCALE = 1e-6  # what the residual of a ConvNeXt is multiplied by at first


class ConvNeXtLadder(Backbone):
    """One rung of the way from ResNet-50 to ConvNeXt-T, or from ResNet-200 to ConvNeXt-B: levels of strides 4 to 32.

    Every rung has the changes of those before it; of the kernel sizes, 7 is kept. Where the paper's words leave a
    choice: the patchify stem is the bare convolution, as the paper adds the norm after it on the last rung; a
    shortcut that changes the size has its own norm throughout; a convolution has a bias where no batch norm follows.
    Layer scale, which the paper lists among the settings of training, comes with the last rung, whose weights have it.
    Counted multiply-adds are the paper's to the last digit in all of table 11, and in table 10 but for its last two
    rungs: 4.15 and 4.46 billion, where the table has 4.46 and 4.49, and the paper's figure 2 has 4.2 and 4.5.

    Args:
        step: The rung, from `resnet` to `separate_downsampling`, which is ConvNeXt.
        regime: Which ladder: `resnet50` (table 10) or `resnet200` (table 11).
        drop_path: Rate of stochastic depth of the last block, in [0, 1); it rises linearly from 0 at the first.
        in_channels: Channels of the images.

    Raises:
        ConfigError: There is no such rung or ladder, or the rate is out of range.
    """

    def __init__(
        self,
        step: Step = "separate_downsampling",
        regime: Regime = "resnet50",
        drop_path: float = 0.0,
        in_channels: int = 3,
    ) -> None:
        rung = _rung(step, regime)
        if not 0 <= drop_path < 1:
            raise ConfigError(f"drop_path is a rate in [0, 1), not {drop_path}")
        levels = [Level(channels, 4 * 2**index) for index, channels in enumerate(rung.channels)]
        multiple = 32 if rung.separate else 4 if rung.patchify else 1
        super().__init__(levels=levels, multiple=multiple, in_channels=in_channels)
        self.stem = _stem(in_channels, rung)
        rates = torch.split(torch.linspace(0, drop_path, sum(rung.depths), device="cpu"), list(rung.depths))
        self.parts = nn.ModuleList(_part(index, part.tolist(), rung) for index, part in enumerate(rates))
        self.apply(_initialise)

    @classmethod
    def published(
        cls,
        *_: Any,
        step: Step = "separate_downsampling",
        regime: Regime = "resnet50",
        in_channels: int = 3,
        **others: Any,
    ) -> nn.Module:
        """Build the whole network with its classifier of 1000 outputs."""
        trunk = cls(step, regime, in_channels=in_channels)
        width = trunk.levels[-1].channels
        norm = LayerNorm(width, eps=1e-6) if _rung(step, regime).separate else nn.Identity()
        return Classifier(trunk, nn.Sequential(nn.AdaptiveAvgPool2d(1), norm, nn.Flatten(), nn.Linear(width, 1000)))

    def extract(self, images: Tensor) -> Features:
        """Compute the maps of normalised images (B, C, H, W), float."""
        x, maps = self.stem(images), []
        for part in self.parts:
            x = part(x)
            maps.append(x)
        return Features(maps=maps, prefix=[])

    def stages(self) -> list[list[nn.Parameter]]:
        """Split the parameters into stem and levels, input to output."""
        return [list(part.parameters()) for part in (self.stem, *self.parts)]


@dataclass(frozen=True, slots=True)
class Rung:
    """What a rung is made of.

    Args:
        depths: Blocks of each level.
        width: Channels of the stem.
        kernel: Size of the spatial convolutions of the blocks.
        patchify: Whether the stem is a 4x4 convolution of stride 4, else 7x7 of stride 2 and pooling.
        depthwise: Whether the spatial convolutions have one channel each.
        inverted: Whether a block is widest in its middle.
        moved_up: Whether the spatial convolution comes first in a block.
        gelu: Whether activations are GELU, else ReLU.
        one_activation: Whether a block has one activation.
        one_norm: Whether a block has one norm.
        layer_norm: Whether norms are layer norms, else batch norms.
        separate: Whether layers between the levels halve the maps, else the first blocks of the levels.
    """

    depths: tuple[int, ...]
    width: int
    kernel: int
    patchify: bool
    depthwise: bool
    inverted: bool
    moved_up: bool
    gelu: bool
    one_activation: bool
    one_norm: bool
    layer_norm: bool
    separate: bool

    @property
    def channels(self) -> list[int]:
        """Channels of each level."""
        return [self.width * (1 if self.inverted else 4) * 2**index for index in range(4)]


class Block(nn.Module):
    """A residual block.

    Args:
        inputs: Channels of its input.
        outputs: Channels of its output.
        stride: Cells of the input per cell of the output.
        drop_path: Rate of stochastic depth.
        rung: What it is made of.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, drop_path: float, rung: Rung) -> None:
        super().__init__()
        self.residual = nn.Sequential(*_residual(inputs, outputs, stride, rung))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(*_convolution(inputs, outputs, 1, rung, stride=stride))
        self.drop_path = StochasticDepth(drop_path, "row")
        self.activation = nn.Identity() if rung.one_activation else _activation(rung)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, outputs, h / stride, w / stride) from (B, inputs, h, w)."""
        out: Tensor = self.activation(self.shortcut(x) + self.drop_path(self.residual(x)))
        return out


class LayerNorm(nn.LayerNorm):
    """Layer norm over the channels of every cell of (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LayerScale(nn.Module):
    """A learned factor per channel.

    Args:
        channels: Channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, C, h, w)."""
        return x * self.gamma


class Classifier(nn.Module):
    """A trunk, and what makes logits of its last level.

    Args:
        trunk: The network.
        head: From its last level (B, channels, h, w) to logits (B, classes).
    """

    def __init__(self, trunk: ConvNeXtLadder, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (B, classes) of images (B, C, H, W) in [0, 1]."""
        logits: Tensor = self.head(self.trunk(images).maps[-1])
        return logits


def _rung(step: str, regime: str) -> Rung:
    """Return what a rung is made of.

    Raises:
        ConfigError: There is no such rung or ladder.
    """
    if step not in STEPS:
        raise ConfigError(f"the ladder has no step {step}, {suggest(step, STEPS) or 'steps: ' + ', '.join(STEPS)}")
    if regime not in DEPTHS:
        raise ConfigError(f"there is no ladder from {regime}, {suggest(regime, DEPTHS)}")
    done = set(STEPS[: STEPS.index(step) + 1])
    return Rung(
        depths=DEPTHS[regime]["stage_ratio" in done],
        width=WIDTHS[regime][("stage_ratio" in done) + ("width" in done)],
        kernel=KERNELS.get(step, 7 if "kernel7" in done else 3),
        patchify="patchify_stem" in done,
        depthwise="depthwise" in done,
        inverted="inverted_bottleneck" in done,
        moved_up="depthwise_up" in done,
        gelu="gelu" in done,
        one_activation="fewer_activations" in done,
        one_norm="fewer_norms" in done,
        layer_norm="layer_norm" in done,
        separate="separate_downsampling" in done,
    )


def _stem(in_channels: int, rung: Rung) -> nn.Sequential:
    """Build what makes maps of stride 4 from images."""
    if not rung.patchify:
        first = _convolution(in_channels, rung.width, 7, rung, stride=2)
        return nn.Sequential(*first, nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
    norm = [_norm(rung.width, rung)] if rung.separate else []
    return nn.Sequential(nn.Conv2d(in_channels, rung.width, 4, 4), *norm)


def _part(index: int, rates: list[float], rung: Rung) -> nn.Sequential:
    """Build the blocks of a level, with what halves the maps before it."""
    channels = rung.channels[index]
    inputs = rung.channels[index - 1] if index else rung.width
    layers: list[nn.Module] = []
    if rung.separate and index:
        layers += [_norm(inputs, rung), nn.Conv2d(inputs, channels, 2, 2)]
        inputs = channels
    for number, rate in enumerate(rates):
        stride = 2 if index and not number and not rung.separate else 1
        layers.append(Block(channels if number else inputs, channels, stride, rate, rung))
    return nn.Sequential(*layers)


def _residual(inputs: int, outputs: int, stride: int, rung: Rung) -> list[nn.Module]:
    """Build the residual of a block: a spatial convolution, and two of 1x1."""
    hidden = 4 * outputs if rung.inverted else outputs // 4
    groups = hidden if rung.depthwise else 1
    if not rung.moved_up:
        return [
            *_convolution(inputs, hidden, 1, rung),
            _activation(rung),
            *_convolution(hidden, hidden, rung.kernel, rung, stride=stride, groups=groups),
            _activation(rung),
            *_convolution(hidden, outputs, 1, rung),
        ]
    first = _convolution(inputs, inputs, rung.kernel, rung, stride=stride, groups=inputs)
    return [
        *first,
        *([] if rung.one_activation else [_activation(rung)]),
        *_convolution(inputs, hidden, 1, rung, norm=not rung.one_norm),
        _activation(rung),
        *_convolution(hidden, outputs, 1, rung, norm=not rung.one_norm),
        *([LayerScale(outputs)] if rung.separate else []),
    ]


def _convolution(
    inputs: int, outputs: int, kernel: int, rung: Rung, stride: int = 1, groups: int = 1, norm: bool = True
) -> list[nn.Module]:
    """Build a convolution that keeps the size but for its stride, and its norm."""
    bias = rung.layer_norm or not norm  # what a batch norm would subtract again
    padding = kernel // 2
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)
    return [convolution, _norm(outputs, rung)] if norm else [convolution]


def _norm(channels: int, rung: Rung) -> nn.Module:
    return LayerNorm(channels, eps=1e-6) if rung.layer_norm else nn.BatchNorm2d(channels)


def _activation(rung: Rung) -> nn.Module:
    return nn.GELU() if rung.gelu else nn.ReLU()


def _initialise(module: nn.Module) -> None:
    """Draw filters from a truncated normal distribution of deviation 0.02, as the paper's code does for ConvNeXt."""
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
