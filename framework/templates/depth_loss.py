"""NewPlugin: a loss on predicted and measured depth, to be replaced by yours."""

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.errors import ConfigError
from framework.losses.depth import DepthLoss


class NewPlugin(DepthLoss):
    """Huber loss of the logarithm of depth, averaged over readings: squared while small, absolute above.

    Args:
        delta: Difference of logarithms from which on it is absolute, above 0; 0.1 is about 10 % of the depth.

    Raises:
        ConfigError: `delta` is not above 0.
    """

    relative = False  # True for a loss that leaves the scale of depth free: its metres mean nothing then

    def __init__(self, delta: float = 0.1) -> None:
        super().__init__()
        if delta <= 0:
            raise ConfigError(f"delta must be above 0, got {delta}")
        self.delta = delta

    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        """Compute the loss of a prediction (B, H, W), metres above 0, for a target (B, H, W), metres, 0 if unknown."""
        prediction, target = prediction.float(), target.float()
        counted = target.isfinite() & (target > 0)  # what is no reading changes neither value nor gradient
        prediction, target = (torch.where(counted, x, 1) for x in (prediction, target))
        error = F.huber_loss(prediction.log(), target.log(), reduction="sum", delta=self.delta)
        return error / counted.sum().clamp_min(1)
