"""NewPlugin: a small residual network, to be replaced by yours."""

from torch import Tensor, nn

from framework.backbone import Backbone, Features, Level


class NewPlugin(Backbone):
    """A residual network of four levels, strides 4 to 32.

    Args:
        width: Channels of the finest level; each coarser one has twice as many.
        depth: Residual blocks a level.
        in_channels: Channels of the images.
    """

    def __init__(self, width: int = 32, depth: int = 1, in_channels: int = 3) -> None:
        widths = [width * 2**level for level in range(4)]
        # What `extract` returns, fine to coarse: heads are built from this alone. `multiple` is what height and width
        # must be divisible by; mean and std are ImageNet's unless you give others.
        super().__init__(
            levels=[Level(channels, 4 * 2**index) for index, channels in enumerate(widths)],
            multiple=32,
            in_channels=in_channels,
        )
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 4, 4, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Identity() if index == 0 else nn.Conv2d(widths[index - 1], channels, 2, 2),
                *(Residual(channels) for _ in range(depth)),
            )
            for index, channels in enumerate(widths)
        )

    def extract(self, images: Tensor) -> Features:
        """Compute the maps of normalised images (B, C, H, W), float."""
        x = self.stem(images)
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return Features(maps=maps, prefix=[])

    def stages(self) -> list[list[nn.Parameter]]:
        """Split the parameters into stem and levels, input to output."""
        return [list(part.parameters()) for part in (self.stem, *self.blocks)]


class Residual(nn.Module):
    """Two convolutions around which the input is led.

    Args:
        channels: Depth of the map, kept.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual to (B, channels, h, w)."""
        out: Tensor = (x + self.residual(x)).relu()
        return out
