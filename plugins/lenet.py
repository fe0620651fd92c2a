"""LeNet-5: the first convolutional network in wide use, for small grey images such as digits.

LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", Proceedings of the IEEE
86(11), 1998, section II.B.
"""

from typing import Any, Literal

from torch import Tensor, nn

from framework.backbone import Backbone, Features, Level
from framework.errors import ConfigError, suggest

Activation = Literal["tanh", "relu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


class LeNet(Backbone):
    """LeNet-5's convolutions, for images of any size: levels of strides 2 and 4.

    The levels are the paper's S2 (6 maps) and C5 (120 maps); S4 (16 maps) lies between them. So that maps are whole
    fractions of the image, the 5x5 convolutions are padded by 2 and pooling takes what is left at an odd edge, which
    the paper does not do. As in common implementations, C3 sees all maps of S2, and pooling is an average without
    parameters. Images are scaled to [-1, 1].

    Args:
        activation: What follows every convolution: `tanh` as in the paper, or `relu`.
        in_channels: Channels of the images.

    Raises:
        ConfigError: There is no such activation.
    """

    def __init__(self, activation: Activation = "tanh", in_channels: int = 1) -> None:
        super().__init__(levels=[Level(6, 2), Level(120, 4)], in_channels=in_channels, mean=[0.5], std=[0.5])
        self.s2 = _pooled(in_channels, 6, activation, padding=2)
        self.s4 = _pooled(6, 16, activation, padding=2)
        self.c5 = nn.Sequential(nn.Conv2d(16, 120, 5, padding=2), _activation(activation))

    @classmethod
    def published(
        cls, *_: Any, activation: Activation = "tanh", in_channels: int = 1, num_classes: int = 10, **others: Any
    ) -> nn.Module:
        """Build the whole LeNet-5 for 32x32 images, unpadded, with its layers F6 and output.

        It has 61,706 parameters: the paper's has 60,000, because its C3 sees only some maps of S2, its pooling has
        parameters, and its output layer (radial basis functions) has none.
        """
        return nn.Sequential(
            _pooled(in_channels, 6, activation, padding=0),
            _pooled(6, 16, activation, padding=0),
            nn.Conv2d(16, 120, 5),
            _activation(activation),
            nn.Flatten(),
            nn.Linear(120, 84),
            _activation(activation),
            nn.Linear(84, num_classes),
        )

    def extract(self, images: Tensor) -> Features:
        """Compute the maps of normalised images (B, C, H, W), float."""
        fine = self.s2(images)
        return Features(maps=[fine, self.c5(self.s4(fine))], prefix=[])

    def stages(self) -> list[list[nn.Parameter]]:
        """Split the parameters by convolution, input to output."""
        return [list(part.parameters()) for part in (self.s2, self.s4, self.c5)]


def _activation(name: str) -> nn.Module:
    """Build an activation.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"LeNet has no activation {name}, {suggest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def _pooled(in_channels: int, channels: int, activation: str, padding: int) -> nn.Sequential:
    """Build a 5x5 convolution with its activation and the pooling that halves its maps."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 5, padding=padding), _activation(activation), nn.AvgPool2d(2, ceil_mode=True)
    )
