"""Losses that ask of every class by itself whether it is there: for images with several classes, or with one.

Everywhere: logits (B, C, H, W), float, unbounded; under classification H = W = 1. The target is a mask (B, H, W), long,
ids in [0, C) or `ignore_index`, or shares (B, C, H, W), float in [0, 1]: 0 or 1 for images with several classes, or
anything between after mixing. The result is a scalar without unit. 16-bit logits are computed with in 32 bits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.errors import ConfigError
from framework.losses.segmentation import WeightedLoss, as_shares, check_not_negative, check_weights


def binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    class_weights: Tensor | None = None,
    positive_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Average -t log s - (1 - t) log(1 - s) over pixels and classes, s the sigmoid of the logit; in [0, inf).

    With label smoothing e the target t becomes (1 - e) t + e / 2.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W), long, or (B, C, H, W), float.
        ignore_index: Id of pixels that do not count.
        class_weights: (C,), not negative: how much each class counts.
        positive_weights: (C,), not negative: the term of t is multiplied with it, against few positives.
        label_smoothing: e, in [0, 1).
    """
    shares, valid = as_shares(target, ignore_index, logits)
    smooth = (1 - label_smoothing) * shares + label_smoothing / 2
    positive = None if positive_weights is None else positive_weights.view(-1, 1, 1)
    each = F.binary_cross_entropy_with_logits(logits.to(shares.dtype), smooth, reduction="none", pos_weight=positive)
    return _average(each, valid, class_weights)


def binary_focal(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    gamma: float = 2.0,
    alpha: float | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Average -t a (1 - s)^gamma log s - (1 - t) (1 - a) s^gamma log(1 - s) over pixels and classes; in [0, inf).

    Lin et al., arXiv 1708.02002, equation 5, s the sigmoid of the logit; without alpha neither side is weighted.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W), long, or (B, C, H, W), float.
        ignore_index: Id of pixels that do not count.
        gamma: How strongly what is right already is played down, at least 0.
        alpha: a, the weight of classes that are there, in (0, 1); the others weigh 1 - a.
        class_weights: (C,), not negative: how much each class counts.
    """
    shares, valid = as_shares(target, ignore_index, logits)
    logits = logits.to(shares.dtype)
    there, absent = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    tiny = torch.finfo(shares.dtype).tiny  # the slope of x ** gamma is infinite at 0, if gamma is below 1
    s = logits.sigmoid()
    each = -there * shares * (1 - s).clamp_min(tiny) ** gamma * F.logsigmoid(logits)
    each = each - absent * (1 - shares) * s.clamp_min(tiny) ** gamma * F.logsigmoid(-logits)
    return _average(each, valid, class_weights)


def _average(each: Tensor, valid: Tensor, class_weights: Tensor | None) -> Tensor:
    """Average (B, C, H, W) over what counts: valid pixels (B, 1, H, W), each class by its weight; 0 if none does."""
    weights = each.new_ones(each.shape[1]) if class_weights is None else class_weights.to(each.dtype)
    weights = weights.view(-1, 1, 1) * valid
    return (each * weights).sum() / weights.sum().clamp_min(torch.finfo(each.dtype).tiny)


class BinaryCrossEntropy(WeightedLoss):
    """Cross entropy of every class by itself, averaged over pixels and classes.

    The loss for images with several classes; for images with one, it is that of Wightman et al., "ResNet strikes back"
    (arXiv 2110.00476).

    Args:
        class_weights: How much each class counts, in the order of the classes; all the same if not given.
        positive_weights: One weight per class, of the images that have it, against classes that few images have.
        label_smoothing: Share of the target that is moved to one half, in [0, 1).

    Raises:
        ConfigError: A weight is negative, all are 0, or the smoothing is out of range.
    """

    takes_shares = True
    several_classes = True

    positive_weights: Tensor | None

    def __init__(
        self,
        class_weights: list[float] | None = None,
        positive_weights: list[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(class_weights)
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be at least 0 and less than 1, got {label_smoothing}")
        if positive_weights is not None:
            check_weights("positive_weights", positive_weights)
        self.label_smoothing = label_smoothing
        weights = None if positive_weights is None else torch.tensor(positive_weights, dtype=torch.float32)
        self.register_buffer("positive_weights", weights, persistent=False)

    def check(self, num_classes: int) -> None:
        """Raise a ConfigError unless there is one weight of a kind per class."""
        super().check(num_classes)
        if self.positive_weights is not None and len(self.positive_weights) != num_classes:
            raise ConfigError(
                f"BinaryCrossEntropy has {len(self.positive_weights)} positive_weights and the data has {num_classes} "
                "classes: give one weight per class"
            )

    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        """Compute the loss of logits (B, C, H, W) for a mask (B, H, W) or shares (B, C, H, W)."""
        return binary_cross_entropy(
            logits, mask, ignore_index, self.class_weights, self.positive_weights, self.label_smoothing
        )


class BinaryFocal(WeightedLoss):
    """Binary cross entropy that plays down what is right already.

    Args:
        gamma: How strongly, at least 0; 0 is binary cross entropy.
        alpha: Weight of classes that are there, in (0, 1); the others weigh one minus it; null: both weigh 1.
        class_weights: How much each class counts, in the order of the classes; all the same if not given.

    Raises:
        ConfigError: `gamma` or a weight is negative, all weights are 0, or `alpha` is out of range.
    """

    takes_shares = True
    several_classes = True

    def __init__(
        self, gamma: float = 2.0, alpha: float | None = None, class_weights: list[float] | None = None
    ) -> None:
        super().__init__(class_weights)
        check_not_negative("gamma", gamma)
        if alpha is not None and not 0 < alpha < 1:
            raise ConfigError(f"alpha must be more than 0 and less than 1, got {alpha}")
        self.gamma, self.alpha = gamma, alpha

    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        """Compute the loss of logits (B, C, H, W) for a mask (B, H, W) or shares (B, C, H, W)."""
        return binary_focal(logits, mask, ignore_index, self.gamma, self.alpha, self.class_weights)
