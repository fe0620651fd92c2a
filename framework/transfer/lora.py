"""LoRA: low-rank adapters in the linear layers of a backbone, through the package peft."""

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from framework.backbone import Backbone
from framework.errors import ConfigError, suggest
from framework.transfer.adapter import Adapter


class LoRA(Adapter):
    """Train a low-rank update of the weights of linear layers, and leave the weights themselves as they are.

    Hu et al., arXiv 2106.09685: the layer computes W x + (alpha / rank) B A x, with A of `rank` rows and B of `rank`
    columns. B is 0 at first. Everything else of the backbone is frozen; head and adapters are trained.

    Args:
        rank: Rows of A, at least 1.
        alpha: Weight of the update, over `rank`; more than 0.
        targets: Which layers, by name or the end of it (`qkv`, `blocks.11.mlp.fc1`), or by pattern (`blocks.1?.*`):
            linear layers, and convolutions of one group. Null: every linear layer.
        dropout: Share of the inputs of the adapter, not of the layer, that is dropped in training, in [0, 1).

    Raises:
        ConfigError: A number is out of range, or peft is not installed.
    """

    mark = "lora_"

    def __init__(
        self, rank: int = 8, alpha: float = 16, targets: list[str] | None = None, dropout: float = 0.0
    ) -> None:
        for wrong, text in (
            (rank < 1, f"rank is at least 1, got {rank}"),
            (not alpha > 0, f"alpha is more than 0, got {alpha}"),
            (not 0 <= dropout < 1, f"dropout is in [0, 1), got {dropout}"),
            (targets == [], "targets names no layer: name some, or leave it out for every linear layer"),
        ):
            if wrong:
                raise ConfigError(f"model.adapter: LoRA: {text}")
        if find_spec("peft") is None:
            raise ConfigError(
                "model.adapter: LoRA needs the package peft, which is not installed: "
                'pip install "vision-plugin-framework[lora]"'
            )
        self.rank, self.alpha, self.targets, self.dropout = rank, alpha, targets, dropout

    def adapt(self, backbone: Backbone) -> None:
        """Put adapters into the layers that are meant, in place.

        Raises:
            ConfigError: There is no such layer, with the nearest one; or it cannot have an adapter.
        """
        from peft import LoraConfig, inject_adapter_in_model  # takes seconds

        chosen = self._chosen(backbone)
        stage_of = {id(parameter): i for i, stage in enumerate(backbone.stages()) for parameter in stage}
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # any number
            lora_dropout=self.dropout,
            target_modules="|".join(re.escape(name) for name in chosen),
        )
        inject_adapter_in_model(config, backbone)
        del backbone.peft_config
        names: list[list[str]] = [[] for _ in range(1 + max(stage_of.values()))]
        for name, parameter in backbone.named_parameters():
            stage = stage_of.get(id(parameter))
            if stage is None:
                layer = backbone.get_submodule(name.partition(f".{self.mark}")[0])
                stage = stage_of[id(layer.base_layer.weight)]  # type: ignore[union-attr]
            names[stage].append(name)
        backbone.stages = NamedStages(backbone, names)  # type: ignore[method-assign]

    def merge(self, backbone: Backbone) -> None:
        """Fold the adapters into the weights, in place: W becomes W + (alpha / rank) B A, and nothing of peft stays."""
        for name, layer in list(_adapted(backbone)):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(backbone.get_submodule(parent), child, layer.get_base_layer())
        backbone.__dict__.pop("stages", None)
        backbone.settle()

    def _chosen(self, backbone: Backbone) -> list[str]:
        """Return the names of the layers to adapt."""
        layers = {name: layer for name, layer in backbone.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
        called = _called(backbone, layers)
        if self.targets is None:
            linear = [name for name in called if isinstance(layers[name], nn.Linear)]
            if not linear:
                raise ConfigError(
                    f"model.adapter: {type(backbone).__name__} has no linear layer for LoRA: name convolutions in "
                    f"targets, such as {next(reversed(layers), 'none')}, or take another backbone"
                )
            return linear
        meant = [[name for name in layers if _matches(name, target)] for target in self.targets]
        for target, found in zip(self.targets, meant, strict=True):
            if not found:
                near = suggest(target, layers) or suggest(target, {name.rpartition(".")[2] for name in layers})
                raise ConfigError(f"model.adapter: LoRA: no layer of the backbone is {target}; {near}".rstrip("; "))
        chosen = [name for name in layers if any(name in found for found in meant)]
        for name in chosen:
            _check_layer(name, layers[name], name in called)
        return chosen


class NamedStages:
    """The stages of a backbone by the names of its parameters, in place of the plugin's own.

    Args:
        backbone: The backbone.
        names: Names of its parameters, stage by stage.
    """

    def __init__(self, backbone: Backbone, names: list[list[str]]) -> None:
        self.backbone, self.names = backbone, names

    def __call__(self) -> list[list[nn.Parameter]]:
        """Split the parameters into stages, input to output."""
        named = dict(self.backbone.named_parameters())
        return [[named[name] for name in names] for names in self.names]


def _adapted(backbone: Backbone) -> Iterator[tuple[str, Any]]:
    """Give the layers that have adapters, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in backbone.named_modules():
        if isinstance(layer, BaseTunerLayer):
            yield name, layer


def _called(backbone: Backbone, layers: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of the layers that an image goes through.

    Attention of torch takes the weights of its output layer, and calls no layer; an adapter in there would do nothing.
    """
    if any(parameter.is_meta for parameter in backbone.parameters()):
        return list(layers)
    called: set[str] = set()
    hooks = [layer.register_forward_hook(lambda *_, name=name: called.add(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            backbone.probe()
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in layers if name in called]


def _matches(name: str, target: str) -> bool:
    return fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")


def _check_layer(name: str, layer: nn.Module, called: bool) -> None:
    """Refuse a layer in which an adapter would do nothing, or could not be merged.

    Raises:
        ConfigError: It is one.
    """
    if not called:
        raise ConfigError(
            f"model.adapter: LoRA: the backbone takes the weights of {name} without calling it as a layer, so that an "
            "adapter would do nothing: leave it out of targets"
        )
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        raise ConfigError(
            f"model.adapter: LoRA: {name} is a convolution of {layer.groups} groups, and adapters of those cannot be "
            "merged: leave it out of targets"
        )
