"""Torchvision's classification networks as backbones: those whose trunk is a sequence of layers."""

import re
from collections.abc import Iterator
from os import PathLike
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.swin_transformer import SwinTransformer

from framework.backbone import Backbone, Features, Level
from framework.errors import ConfigError, WeightsError, suggest
from framework.weights import load_strictly, read_weights

# What comes after the trunk, or, as auxiliary classifiers, beside it.
HEADS = ("aux1", "aux2", "permute", "avgpool", "flatten", "dropout", "fc", "classifier", "head")
PADDING = "its unpadded convolutions give maps that are no whole fractions of the image"
ONE_SIZE = "it takes images of one size only"
BUILT_WITH = {  # what it takes to build the network that torchvision's documentation counts, quietly
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"init_weights": True},
}
PADDED = {"alexnet": "AlexNet", "inception_v3": "InceptionV3"}  # our plugins of the same layers
UNFIT = {  # why, and the nearest model of the `Timm` plugin
    "maxvit_t": (ONE_SIZE, "maxvit_tiny_tf_224"),
    "squeezenet1_0": (PADDING, "mobilenetv3_small_100"),
    "squeezenet1_1": (PADDING, "mobilenetv3_small_100"),
    "vit_b_16": (ONE_SIZE, "vit_base_patch16_224"),
    "vit_b_32": (ONE_SIZE, "vit_base_patch32_224"),
    "vit_h_14": (ONE_SIZE, "vit_huge_patch14_224"),
    "vit_l_16": (ONE_SIZE, "vit_large_patch16_224"),
    "vit_l_32": (ONE_SIZE, "vit_large_patch32_224"),
}


class TorchVision(Backbone):
    """A torchvision classification network by name.

    Its levels are the last layers before the resolution halves, without that of the image's own resolution.

    Args:
        name: `resnet50`, `convnext_tiny`, `efficientnet_b0`, `swin_t`, `vgg16_bn`, ...
        pretrained: Take torchvision's best ImageNet weights, from its server or cache.
        weights: A file to take the weights from, in torchvision's layout.
        in_channels: Channels of the images; pretrained filters are repeated or summed over them.

    Raises:
        ConfigError: Torchvision has no such model, or it cannot keep the backbone contract.
        WeightsError: The weights cannot be had, or do not fit.
    """

    net: Any  # torchvision has no common type for its models

    def __init__(
        self, name: str, pretrained: bool = False, weights: str | PathLike[str] | None = None, in_channels: int = 3
    ) -> None:
        _check_name(name)
        if name in PADDED:
            raise ConfigError(
                f"torchvision's {name} cannot be a backbone: {PADDING}; use {{class_path: {PADDED[name]}}}, which pads "
                "them, and takes torchvision's weights from a file"
            )
        if name in UNFIT:
            why, instead = UNFIT[name]
            raise ConfigError(
                f"torchvision's {name} cannot be a backbone: {why}; "
                f"use {{class_path: Timm, init_args: {{name: {instead}}}}}"
            )
        if pretrained and weights is not None:
            raise ConfigError(f"{name}: give pretrained: true or weights: {weights}, not both")
        net: Any = get_model(name)
        known = set(net.state_dict())
        for head in HEADS:
            if hasattr(net, head):
                delattr(net, head)
        stem = _widen(net, in_channels)
        if pretrained or weights is not None:
            state = _download(name) if weights is None else read_weights(weights)
            _load(net, state, f"torchvision's {name}" if weights is None else weights, known, stem, in_channels)
        ends, levels, multiple = _measure(net, name, in_channels)
        statistics = get_model_weights(name).DEFAULT.transforms()
        inside = hasattr(net, "transform_input")  # GoogLeNet turns ImageNet's statistics into these by itself
        super().__init__(
            levels=levels,
            multiple=multiple,
            in_channels=in_channels,
            mean=[0.5] * 3 if inside else statistics.mean,
            std=[0.5] * 3 if inside else statistics.std,
        )
        self.ends = ends  # the last layer of every resolution, the image's own included
        self.taps = ends[-len(levels) :]
        self.net = net

    @classmethod
    def published(cls, *_: Any, name: str, in_channels: int = 3, **others: Any) -> nn.Module:
        """Build torchvision's whole network with its classifier, at random weights.

        Its auxiliary classifiers are there if torchvision counts them, as it does for `inception_v3`.

        Raises:
            ConfigError: Torchvision has no such model.
        """
        _check_name(name)
        net: nn.Module = get_model(name, **BUILT_WITH.get(name, {}))
        _widen(net, in_channels)
        return net

    def extract(self, images: Tensor) -> Features:
        """Compute the features of normalised images (B, C, H, W), float."""
        maps = list(_run(self.net, images))
        return Features([maps[tap] for tap in self.taps], [])

    def stages(self) -> list[list[nn.Parameter]]:
        """Split the parameters by the resolution they work at, input to output."""
        stages: list[list[nn.Parameter]] = [[]]
        for index, layer in enumerate(_layers(self.net)):
            stages[-1].extend(layer.parameters())
            if index in self.ends:
                stages.append([])
        return [stage for stage in stages if stage]


def _check_name(name: str) -> None:
    """Refuse a name that torchvision does not have.

    Raises:
        ConfigError: It does not; the message has the nearest.
    """
    names = list_models(module=torchvision.models)
    if name not in names:
        raise ConfigError(f"torchvision {torchvision.__version__} has no model {name}, {suggest(name, names)}")


def _layers(net: Any) -> Iterator[nn.Module]:
    """Yield the layers of a trunk in order."""
    for child in net.children():
        yield from child if type(child) is nn.Sequential else [child]


def _run(net: Any, images: Tensor) -> Iterator[Tensor]:
    """Yield what every layer makes of the images, (B, C, H, W)."""
    nhwc = isinstance(net, SwinTransformer)
    for layer in _layers(net):
        images = layer(images)
        yield images.permute(0, 3, 1, 2) if nhwc else images


def _measure(net: Any, name: str, in_channels: int) -> tuple[list[int], list[Level], int]:
    """Run small images through: where each resolution ends, the levels, and the multiple that sizes need.

    Raises:
        ConfigError: The maps are no whole fractions of the image.
    """
    shapes = _shapes(net, in_channels, 64, 96)
    sizes = [shape[1:] for shape in shapes]
    ends = [index for index in range(len(sizes)) if sizes[index] != (*sizes, None)[index + 1]]
    strides = [64 // height for height, _ in (sizes[end] for end in ends)]
    if [sizes[end] for end in ends] != [(64 / stride, 96 / stride) for stride in strides]:
        raise ConfigError(
            f"torchvision's {name} cannot be a backbone: 96x64 images give maps of "
            f"{', '.join(f'{sizes[end][1]}x{sizes[end][0]}' for end in ends)}; use the plugin Timm"
        )
    for multiple in (1, *(stride for stride in strides if stride > 1)):
        odd = _shapes(net, in_channels, 64 + multiple, 96 + multiple)
        wanted = [(-(-(64 + multiple) // stride), -(-(96 + multiple) // stride)) for stride in strides]
        if [odd[end][1:] for end in ends] == wanted:
            break
    return (
        ends,
        [Level(shapes[end][0], stride) for end, stride in zip(ends, strides, strict=True) if stride > 1],
        multiple,
    )


@torch.no_grad()
def _shapes(net: Any, in_channels: int, height: int, width: int) -> list[tuple[int, ...]]:
    """Return the shape of every layer's output, (C, H, W)."""
    net.eval()  # batch norm would refuse a single cell, and learn from nothing
    shapes = [tuple(x.shape[1:]) for x in _run(net, torch.zeros(1, in_channels, height, width))]
    net.train()
    return shapes


def _widen(net: Any, in_channels: int) -> str:
    """Give a network a first convolution for that many channels, and return its name."""
    name, stem = next((name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d))
    if in_channels != stem.in_channels:
        stem.in_channels = in_channels
        stem.weight = nn.Parameter(torch.empty(stem.out_channels, in_channels, *stem.kernel_size))
        stem.reset_parameters()
    return str(name)


def _download(name: str) -> dict[str, Tensor]:
    """Return torchvision's best ImageNet weights from its cache or server."""
    entry = get_model_weights(name).DEFAULT
    try:
        state: dict[str, Tensor] = entry.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"no weights for torchvision's {name}: {error}\n"
            f"  neither from {entry.url} nor in its cache, {torch.hub.get_dir()}/checkpoints\n"
            "  with a network, run it once more there and copy the cache, or download that file and set weights: PATH\n"
            "  without, set pretrained: false, or use Timm, which has packaged weights"
        ) from error
    return state


def _load(
    net: Any, state: dict[str, Tensor], source: str | PathLike[str], known: set[str], stem: str, in_channels: int
) -> None:
    """Load weights in torchvision's layout into a trunk.

    Raises:
        WeightsError: They do not fit.
    """
    # DenseNet's published files have names from before torch 0.4, such as `denselayer1.norm.1.weight`.
    state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key): x for key, x in state.items()}
    weight = state.get(f"{stem}.weight")
    if weight is not None and weight.shape[1] == 3 and in_channels == 1:
        state[f"{stem}.weight"] = weight.sum(1, keepdim=True)
    elif weight is not None and weight.shape[1] == 3 and in_channels != 3:  # as many copies as fit, at the same sum
        copies = weight.repeat(1, -(-in_channels // 3), 1, 1)[:, :in_channels]
        state[f"{stem}.weight"] = copies * (3 / in_channels)
    load_strictly(net, state, source, may_exceed=known)
