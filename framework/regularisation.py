"""Dropout and stochastic depth that change in training: the layers, and the rates that a plan sets them to."""

from typing import Any, Protocol

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from framework.errors import ConfigError

BACKBONE = "backbone."


class Rates(Protocol):
    """What a stage of training asks for; None leaves the layers as they were built."""

    @property
    def dropout(self) -> float | None:
        """Probability of dropping a feature, in [0, 1)."""

    @property
    def drop_path(self) -> float | None:
        """Rate of stochastic depth of the layer that has the highest, in [0, 1)."""


class Regularisation:
    """The dropout and the stochastic depth of a network.

    Dropout is that of every `nn.Dropout` beside the backbone: EfficientNetV2 (arXiv 2104.00298, table 6) raises that
    before the classifier. Stochastic depth (Huang et al., arXiv 1603.09382) is that of torchvision's `StochasticDepth`
    and of every module with a number `drop_prob`, as the `DropPath` of timm and of transformers have; the rates rise
    with depth as they were built, and the highest is what a stage asks for. A layer that was built with the rate 0
    keeps it.

    Args:
        network: The network as it was built; what lies under `backbone` is its backbone.
    """

    def __init__(self, network: nn.Module) -> None:
        named = list(network.named_modules())
        self.dropouts = [m for name, m in named if isinstance(m, _DropoutNd) and not name.startswith(BACKBONE)]
        self.depths = [(module, _rate_of(module)) for _, module in named if _rate_of(module)]
        self.highest = max((rate for _, rate in self.depths), default=0.0)

    def check(self, plan: Any) -> None:
        """Refuse a plan that the network has no layers for.

        Args:
            plan: Has lists `dropout` and `drop_path`, a rate per stage, or None.

        Raises:
            ConfigError: There are none.
        """
        if any(plan.drop_path or ()) and not self.depths:
            raise ConfigError(
                "data.progressive: drop_path is scheduled, but no layer of the network has stochastic depth: set "
                "drop_path of the backbone above 0, such as model.backbone.drop_path: 0.1, or leave the schedule out"
            )
        if any(plan.dropout or ()) and not self.dropouts:
            raise ConfigError(
                "data.progressive: dropout is scheduled, but the head has no dropout layer: take a head with one, such "
                "as LinearClassifier, or leave the schedule out"
            )

    def set(self, rates: Rates) -> None:
        """Set the layers to the rates of a stage."""
        if rates.dropout is not None:
            for module in self.dropouts:
                module.p = rates.dropout
        if rates.drop_path is not None:
            for module, built in self.depths:
                name = "p" if isinstance(module, StochasticDepth) else "drop_prob"
                setattr(module, name, rates.drop_path * (built / self.highest))


def _rate_of(module: nn.Module) -> float:
    """Return the rate of stochastic depth of a module itself, not of what it contains; 0 if it has none."""
    rate = getattr(module, "p" if isinstance(module, StochasticDepth) else "drop_prob", None)
    return float(rate) if isinstance(rate, int | float) else 0.0
