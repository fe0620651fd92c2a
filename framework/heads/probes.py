"""A grid of linear classifiers over the same features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.backbone import Features, Level
from framework.errors import ConfigError
from framework.heads.classification import LinearClassifier, Pool


class Probe(NamedTuple):
    """One linear classifier of a grid.

    Args:
        layers: Of how many of the last levels it reads the class token.
        pool: What stands for an image.
        rate: Its learning rate for a step of `reference` images.
    """

    layers: int
    pool: Pool
    rate: float

    @property
    def name(self) -> str:
        """What figures call it, such as `layers4_cls+mean_lr0.001`."""
        return f"layers{self.layers}_{self.pool}_lr{self.rate:g}"

    @property
    def key(self) -> str:
        """What its parameters are called: a module's name has no dot."""
        return self.name.replace(".", "_")


class Probes(nn.Module):
    """Linear classifiers that differ in what they read, and in how fast they learn.

    Args:
        levels: What the backbone returns, fine to coarse.
        prefix_tokens: Tokens that the backbone returns beside each map.
        outputs: Number of classes.
        probes: The classifiers; those that read the same stand together.

    Raises:
        ConfigError: Two are alike, or one reads what the backbone does not return.
    """

    def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, outputs: int, probes: Sequence[Probe]) -> None:
        super().__init__()
        twice = sorted({probe.name for probe in probes if probes.count(probe) > 1})
        if twice:
            raise ConfigError(f"model.rates, model.layers, model.pools: {twice[0]} stands twice")
        most = max(probe.layers for probe in probes)
        if most > len(levels):
            raise ConfigError(
                f"model.layers: {most} of the last levels are read, and the backbone returns {len(levels)}: set "
                f"model.backbone.layers to {most}, if it has that option, or lower model.layers"
            )
        self.probes = list(probes)
        self.classifiers = nn.ModuleDict(
            {
                probe.key: LinearClassifier(levels, prefix_tokens, outputs, pool=probe.pool, layers=probe.layers)
                for probe in probes
            }
        )
        kinds = dict.fromkeys((probe.layers, probe.pool) for probe in probes)
        self.alike = [[probe.key for probe in probes if (probe.layers, probe.pool) == kind] for kind in kinds]

    def forward(self, features: Features) -> Tensor:
        """Compute logits (B, probes, classes) in the order of `probes`: one product for all that read the same."""
        parts = []
        for keys in self.alike:
            alike = [self._classifier(key) for key in keys]
            weight = torch.cat([each.classify.weight for each in alike])
            bias = torch.cat([each.classify.bias for each in alike])
            logits = F.linear(alike[0].pool(features), weight, bias)
            parts.append(logits.view(len(logits), len(keys), -1))
        return torch.cat(parts, dim=1)

    def _classifier(self, key: str) -> LinearClassifier:
        classifier = self.classifiers[key]
        assert isinstance(classifier, LinearClassifier)
        return classifier
