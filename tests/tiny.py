"""A tiny backbone for tests that are not about backbones."""

from torch import Tensor, nn

from framework.backbone import Backbone, Features, Level


class Tiny(Backbone):
    """Two convolutions of stride 4 and 2, with batch norm."""

    def __init__(self, width: int = 8, in_channels: int = 3) -> None:
        super().__init__([Level(width, 4), Level(2 * width, 8)], multiple=8, in_channels=in_channels)
        self.fine = nn.Sequential(nn.Conv2d(in_channels, width, 4, 4), nn.BatchNorm2d(width), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(width, 2 * width, 2, 2), nn.BatchNorm2d(2 * width), nn.ReLU())

    def extract(self, images: Tensor) -> Features:
        """Compute both maps."""
        fine = self.fine(images)
        return Features([fine, self.coarse(fine)], [])

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the two stages."""
        return [list(self.fine.parameters()), list(self.coarse.parameters())]
