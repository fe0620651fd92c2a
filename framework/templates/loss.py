"""NewPlugin: a loss on logits and masks, to be replaced by yours."""

from torch import Tensor

from framework.errors import ConfigError
from framework.losses.segmentation import SegmentationLoss


class NewPlugin(SegmentationLoss):
    """Squared distance between softmax probabilities and the true class (the Brier score), averaged over pixels.

    Args:
        weight: What the result is multiplied with, above 0.

    Raises:
        ConfigError: `weight` is not above 0.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if weight <= 0:
            raise ConfigError(f"weight must be above 0, got {weight}")
        self.weight = weight

    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        """Compute the loss of logits (B, C, H, W), float, for a mask (B, H, W), long; in [0, 2 * weight]."""
        counted = mask != ignore_index
        probability = logits.float().softmax(1)
        of_the_truth = probability.gather(1, mask.where(counted, 0)[:, None])[:, 0]
        # |p - t|^2 summed over classes, where t is 1 at the true class and 0 elsewhere
        distance = probability.square().sum(1) - 2 * of_the_truth + 1
        return self.weight * (distance * counted).sum() / counted.sum().clamp_min(1)
