"""AlexNet: eight layers that won ImageNet in 2012.

Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks", NeurIPS 2012; in
one column as in Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997, with
the widths that torchvision has.
"""

from os import PathLike
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from framework.backbone import Backbone, Features, Level
from framework.weights import fit_channels, load_strictly, read_weights

# Under the names of torchvision's file: input and output channels, kernel size
CONVOLUTIONS = {"0": (3, 64, 11), "3": (64, 192, 5), "6": (192, 384, 3), "8": (384, 256, 3), "10": (256, 256, 3)}
FIRST = "features.0.weight"
CLASSIFIER = [f"classifier.{layer}.{leaf}" for layer in (1, 4, 6) for leaf in ("weight", "bias")]
NEIGHBOURS = 5  # channels that the 2012 paper's normalisation sums over, itself included


class AlexNet(Backbone):
    """AlexNet's five convolutions, for images of any size: levels of strides 4 to 32.

    The levels are the first convolution, the second, the fifth, and the fifth pooled. The original crops: its 224x224
    image gives maps of 55, 27, 13 and 6 cells a side, where the contract wants 56, 28, 14 and 7. So zeros are added,
    at the right and lower edge alone: away from there every cell sees, and with the same weights has, what it does in
    the original.

    Args:
        lrn: Local response normalisation after the first two convolutions, as in 2012. Torchvision's weights were
            trained without.
        weights: A file to take the weights from, in torchvision's layout.
        in_channels: Channels of the images; the file's first filters are summed or repeated over them.

    Raises:
        WeightsError: The weights cannot be read, or do not fit.
    """

    def __init__(self, lrn: bool = False, weights: str | PathLike[str] | None = None, in_channels: int = 3) -> None:
        levels = [Level(64, 4), Level(192, 8), Level(256, 16), Level(256, 32)]
        super().__init__(levels=levels, in_channels=in_channels)
        self.features = nn.ModuleDict({name: _convolution(name, in_channels) for name in CONVOLUTIONS})
        self.norm = _norm(lrn)
        if weights is not None:
            state = read_weights(weights)
            if FIRST in state:
                state[FIRST] = fit_channels(state[FIRST], in_channels)
            load_strictly(self, state, weights, may_exceed=CLASSIFIER)

    @classmethod
    def published(cls, *_: Any, lrn: bool = False, in_channels: int = 3, **others: Any) -> nn.Module:
        """Build the whole network of the original geometry, with its classifier of 1000 outputs."""
        first, second, *rest = (_convolution(name, in_channels) for name in CONVOLUTIONS)
        first.padding = (2, 2)
        layers: list[nn.Module] = [first, nn.ReLU(), _norm(lrn), nn.MaxPool2d(3, 2)]
        layers += [second, nn.ReLU(), _norm(lrn), nn.MaxPool2d(3, 2)]
        for convolution in rest:
            layers += [convolution, nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2), nn.AdaptiveAvgPool2d(6), nn.Flatten()]
        for inputs, outputs in ((256 * 6 * 6, 4096), (4096, 4096)):
            layers += [nn.Dropout(), nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(4096, 1000))

    def extract(self, images: Tensor) -> Features:
        """Compute the maps of normalised images (B, C, H, W), float."""
        first, second, *rest = self.features.values()
        fine = self.norm(first(F.pad(images, (2, 8, 2, 8))).relu())
        middle = self.norm(second(_pool(fine)).relu())
        coarse = _pool(middle)
        for convolution in rest:
            coarse = convolution(coarse).relu()
        return Features(maps=[fine, middle, coarse, _pool(coarse)], prefix=[])

    def stages(self) -> list[list[nn.Parameter]]:
        """Split the parameters by convolution, input to output."""
        return [list(convolution.parameters()) for convolution in self.features.values()]


def _convolution(name: str, in_channels: int) -> nn.Conv2d:
    """Build a convolution; the first strides, and is not padded."""
    inputs, outputs, size = CONVOLUTIONS[name]
    if name == "0":
        return nn.Conv2d(in_channels, outputs, size, stride=4)
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


def _norm(lrn: bool) -> nn.Module:
    """Build the normalisation of the 2012 paper, section 3.3, or nothing.

    A value is divided by (k + alpha * the sum of squares over 5 neighbouring channels) ** beta, with k = 2,
    alpha = 1e-4 and beta = 0.75. Torch takes the mean of the squares, so its alpha is 5 times the paper's.
    """
    return nn.LocalResponseNorm(NEIGHBOURS, alpha=1e-4 * NEIGHBOURS, beta=0.75, k=2.0) if lrn else nn.Identity()


def _pool(x: Tensor) -> Tensor:
    """Take maxima of 3x3 cells at stride 2, (B, C, H, W) to half of that rounded up; `x` is not negative."""
    return F.max_pool2d(F.pad(x, (0, 2, 0, 2)), 3, 2)
