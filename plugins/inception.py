"""Inception v3 on torchvision's layers, padded so that its maps are whole fractions of the image.

Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, "Rethinking the Inception architecture for computer vision", CVPR 2016,
arXiv 1512.00567. GoogLeNet, the first Inception, is torchvision's `googlenet`, which needs no plugin of its own.
"""

from os import PathLike
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception_v3

from framework.backbone import Backbone, Features, Level
from framework.weights import fit_channels, load_strictly, read_weights

FIRST = "Conv2d_1a_3x3.conv.weight"
# What comes before each level's end, under torchvision's names
PARTS = (
    ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
    ("maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    ("maxpool2", "Mixed_5b", "Mixed_5c", "Mixed_5d"),
    ("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
)
CROPPING = {"Conv2d_1a_3x3", "Conv2d_2a_3x3", "maxpool1", "Conv2d_4a_3x3", "maxpool2", "Mixed_6a", "Mixed_7a"}
LEVELS = (Level(64, 2), Level(192, 4), Level(288, 8), Level(768, 16), Level(2048, 32))


class InceptionV3(Backbone):
    """Inception v3, for images of any size: levels of strides 2 to 32.

    Seven of the original's layers crop: its 299x299 image gives maps of 147, 71, 35, 17 and 8 cells a side, where the
    contract wants 150, 75, 38, 19 and 10. So what goes into these layers gets an edge of zeros, one cell wide. Away
    from the edges every cell sees, and with the same weights has, what it does in the original.

    Args:
        weights: A file to take the weights from, in torchvision's layout.
        in_channels: Channels of the images; the file's first filters are summed or repeated over them.

    Raises:
        WeightsError: The weights cannot be read, or do not fit.
    """

    net: Any  # torchvision has no types

    def __init__(self, weights: str | PathLike[str] | None = None, in_channels: int = 3) -> None:
        # Torchvision's own forward turns ImageNet's statistics into these, which the weights were trained with.
        super().__init__(levels=LEVELS, in_channels=in_channels, mean=[0.5], std=[0.5])
        whole = _whole(in_channels, aux_logits=False)
        self.net = nn.ModuleDict({name: whole.get_submodule(name) for part in PARTS for name in part})
        if weights is not None:
            state = read_weights(weights)
            if FIRST in state:
                state[FIRST] = fit_channels(state[FIRST], in_channels)
            classifiers = [name for name in state if name.startswith(("AuxLogits.", "fc."))]
            load_strictly(self.net, state, weights, may_exceed=classifiers)

    @classmethod
    def published(cls, *_: Any, in_channels: int = 3, **others: Any) -> nn.Module:
        """Build the original for 299x299 images, with its classifier of 1000 outputs and the auxiliary one."""
        return _whole(in_channels, aux_logits=True)

    def extract(self, images: Tensor) -> Features:
        """Compute the maps of normalised images (B, C, H, W), float."""
        x, maps = images, []
        for part in PARTS:
            for name in part:
                x = self.net[name](F.pad(x, (1, 1, 1, 1)) if name in CROPPING else x)
            maps.append(x)
        return Features(maps=maps, prefix=[])

    def stages(self) -> list[list[nn.Parameter]]:
        """Split the parameters by level, input to output."""
        return [[parameter for name in part for parameter in self.net[name].parameters()] for part in PARTS]


def _whole(in_channels: int, aux_logits: bool) -> nn.Module:
    """Build torchvision's network at random weights."""
    net: Any = inception_v3(
        aux_logits=aux_logits, init_weights=False
    )  # torch's own initialisation, which takes no minute
    first = net.Conv2d_1a_3x3.conv
    net.Conv2d_1a_3x3.conv = nn.Conv2d(in_channels, first.out_channels, 3, 2, bias=False)
    whole: nn.Module = net
    return whole
