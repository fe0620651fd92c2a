"""NewPlugin: a dense head that sums projected levels, to be replaced by yours."""

from math import lcm

from torch import Tensor, nn

from framework.backbone import Features, Level
from framework.heads.dense import DenseHead, resize


class NewPlugin(DenseHead):
    """Every level projected to one width, enlarged to the finest, added up, and classified.

    The first three arguments come from the backbone and the task; what follows can be set in an experiment.

    Args:
        levels: What the backbone returns, fine to coarse.
        prefix_tokens: Tokens that the backbone returns beside each map; 0 for a CNN.
        outputs: Channels of the result, such as the number of classes.
        channels: Width that every level is projected to.
    """

    def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, outputs: int, *, channels: int = 64) -> None:
        super().__init__()
        self.used = tuple(range(len(levels)))  # which levels `forward` reads
        self.multiple = lcm(*(level.stride for level in levels))  # what padded images must be divisible by
        self.project = nn.ModuleList(nn.Conv2d(level.channels, channels, 1) for level in levels)
        self.mix = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.classify = nn.Conv2d(channels, outputs, 1)

    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Compute (B, outputs, *size)."""
        finest = features.maps[0].shape[-2:]
        maps = [resize(project(x), finest) for project, x in zip(self.project, features.maps, strict=True)]
        return resize(self.classify(self.mix(sum(maps[1:], maps[0]))), size)
