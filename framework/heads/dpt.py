"""The dense prediction transformer head, for any patch size and for CNNs."""

import torch.nn.functional as F
from torch import Tensor, nn

from framework.backbone import Features, Level
from framework.heads.dense import CoarseHead, require_fraction, require_positive, resize
from framework.necks import Pyramid


class DPT(CoarseHead):
    """Class token read into the maps, a pyramid of strides 4 to 32, and its fusion from coarse to fine.

    Ranftl et al., arXiv 2103.13413. Maps are resized to the size of the skip connection and never by a factor.

    Args:
        channels: Width of the pyramid and of its fusion.
        batch_norm: Batch norm in the residual units and before the output: the paper's choice for segmentation,
            not for depth.
        dropout: Probability of dropping a value before the last convolution, in [0, 1).

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
        batch_norm: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        require_positive(channels=channels)
        require_fraction(dropout=dropout)
        self.neck = Pyramid(levels)
        self.multiple = self.neck.multiple
        self.used = self.neck.used
        self.readouts = nn.ModuleList(Readout(levels[i].channels) for i in self.used if prefix_tokens)
        self.reduce = nn.ModuleList(
            nn.Conv2d(level.channels, channels, 3, padding=1, bias=False) for level in self.neck.levels
        )
        self.skips = nn.ModuleList(ResidualUnit(channels, batch_norm) for _ in self.neck.levels[1:])
        self.fusions = nn.ModuleList(
            nn.Sequential(ResidualUnit(channels, batch_norm), nn.Conv2d(channels, channels, 1))
            for _ in self.neck.levels
        )
        self.classify = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=not batch_norm),
            nn.BatchNorm2d(channels) if batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(channels, outputs, 1),
        )

    def coarse(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Compute (B, outputs, h, w) at twice the resolution of the finest fused map."""
        maps = list(features.maps)
        if len(self.readouts):
            for index, read in zip(self.used, self.readouts, strict=True):
                maps[index] = read(maps[index], features.prefix[index][:, 0])
        maps = [reduce(x) for reduce, x in zip(self.reduce, self.neck(maps, size), strict=True)]
        x = self.fusions[0](maps.pop())
        for skip, unit, fuse in zip(reversed(maps), self.skips, self.fusions[1:], strict=True):
            x = fuse(resize(x, skip.shape[-2:]) + unit(skip))
        height, width = x.shape[-2:]
        raw: Tensor = self.classify(resize(x, (2 * height, 2 * width)))
        return raw


class Readout(nn.Module):
    """The readout "project" (equation 6): each patch token concatenated with the class token, linear, GELU.

    Args:
        channels: Depth of the tokens, kept.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        """Read the class token (B, C) into the map (B, C, h, w)."""
        # The layer is split, not its input concatenated: the class token is the same at every place.
        of_patch, of_token = self.project.weight.chunk(2, dim=1)
        read = F.linear(token, of_token, self.project.bias)
        return F.gelu(F.conv2d(x, of_patch[:, :, None, None]) + read[:, :, None, None])


class ResidualUnit(nn.Module):
    """RefineNet's residual convolution unit, pre-activated (Lin et al., arXiv 1611.06612).

    Args:
        channels: Depth of the map, kept.
        batch_norm: Batch norm after each convolution.
        bias: Whether the convolutions have one, where no batch norm follows.
    """

    def __init__(self, channels: int, batch_norm: bool, bias: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=bias and not batch_norm)]
            layers += [nn.BatchNorm2d(channels)] if batch_norm else []
        self.residual = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual to (B, channels, h, w)."""
        residual: Tensor = self.residual(x)
        return x + residual
