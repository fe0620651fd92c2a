"""Segmentation losses: pure functions of logits and mask, and the classes that an experiment names.

Everywhere: logits (B, C, H, W), float, unbounded; mask (B, H, W), long, ids in [0, C) or `ignore_index`; the result
is a scalar without unit. Where a loss takes them (`takes_shares`), the target may instead be shares (B, C, H, W), float
in [0, 1]: how much of each class there is after mixing. Ignored pixels change neither value nor gradient; without any
other pixel both are 0. Nothing waits for the device. 16-bit logits are computed with in 32 bits.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import isfinite
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.errors import ConfigError

Classes = Literal["present", "all"]


def cross_entropy(
    logits: Tensor,
    mask: Tensor,
    ignore_index: int,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Average -log p of the true class over pixels, each weighted by its class; in [0, inf).

    With label smoothing e the target is 1 - e on the true class plus e / C on every class (Szegedy et al.,
    arXiv 1512.00567, section 7).

    Args:
        logits: (B, C, H, W).
        mask: (B, H, W), long, or shares (B, C, H, W), float.
        ignore_index: Id of pixels that do not count.
        class_weights: (C,), not negative.
        label_smoothing: e, in [0, 1).
    """
    logits, class_weights = _widen(logits, class_weights)
    target = mask.to(logits.dtype) if mask.is_floating_point() else mask
    total = F.cross_entropy(
        logits, target, class_weights, ignore_index=ignore_index, reduction="sum", label_smoothing=label_smoothing
    )
    return _divide(total, _pixel_weights(target, ignore_index, class_weights, logits.dtype).sum())


def focal(
    logits: Tensor, mask: Tensor, ignore_index: int, gamma: float = 2.0, class_weights: Tensor | None = None
) -> Tensor:
    """Average -(1 - p)^gamma log p of the true class over pixels, each weighted by its class; in [0, inf).

    Lin et al., arXiv 1708.02002, equation 5 with softmax for sigmoid; cross entropy at gamma 0.

    Args:
        logits: (B, C, H, W).
        mask: (B, H, W), long, or shares (B, C, H, W), float: then every class counts by its share.
        ignore_index: Id of pixels that do not count.
        gamma: How strongly easy pixels are played down, at least 0.
        class_weights: (C,), not negative; the paper's alpha.
    """
    logits, class_weights = _widen(logits, class_weights)
    if mask.is_floating_point():
        return _focal_of_shares(logits, mask.to(logits.dtype), gamma, class_weights)
    surprise = F.cross_entropy(logits, mask, ignore_index=ignore_index, reduction="none")  # -log p, 0 where ignored
    error = _floor(1 - torch.exp(-surprise))  # the slope of x ** gamma is infinite at 0, if gamma is below 1
    weights = _pixel_weights(mask, ignore_index, class_weights, logits.dtype)
    return _divide((weights * error**gamma * surprise).sum(), weights.sum())


def _focal_of_shares(logits: Tensor, shares: Tensor, gamma: float, class_weights: Tensor | None) -> Tensor:
    """Average the focal loss over classes too, each by its share."""
    log_p = logits.log_softmax(1)
    weights = shares if class_weights is None else shares * class_weights.view(-1, 1, 1)
    return _divide(-(weights * _floor(1 - log_p.exp()) ** gamma * log_p).sum(), weights.sum())


def dice(logits: Tensor, mask: Tensor, ignore_index: int, smooth: float = 0.0, classes: Classes = "present") -> Tensor:
    """Average over classes of 1 - (2 |P T| + smooth) / (|P| + |T| + smooth), counted over the whole batch; in [0, 1].

    P holds softmax probabilities and T is 1 at the true class: the soft Dice loss of Sudre et al., arXiv 1707.03237.

    Args:
        logits: (B, C, H, W).
        mask: (B, H, W).
        ignore_index: Id of pixels that do not count.
        smooth: In pixels, at least 0; evens out classes of few pixels.
        classes: Average over classes that the mask holds, or over all. An absent class has loss 1 at `smooth` 0,
            whatever P is; above 0, it asks for probability 0.
    """
    logits, _ = _widen(logits)
    true, valid = _one_hot(mask, ignore_index, logits.shape[1])
    p = logits.softmax(dim=1) * valid
    count = true.sum(dim=(0, 2, 3))
    overlap = (p * true).sum(dim=(0, 2, 3))
    losses = 1 - (2 * overlap + smooth) / _floor(p.sum(dim=(0, 2, 3)) + count + smooth)
    return _average(losses, count, classes)


def lovasz(
    logits: Tensor, mask: Tensor, ignore_index: int, classes: Classes = "present", per_image: bool = False
) -> Tensor:
    """Average over classes of the Lovász extension of 1 - IoU, at the errors |T - P|; in [0, 1].

    Lovász-Softmax, Berman et al., arXiv 1705.08790.

    Args:
        logits: (B, C, H, W).
        mask: (B, H, W).
        ignore_index: Id of pixels that do not count.
        classes: Average over classes that the mask holds, or over all; an absent class asks for probability 0.
        per_image: IoU of each image, averaged over those with a pixel that counts, instead of the batch's.
    """
    logits, _ = _widen(logits)
    true, valid = _one_hot(mask, ignore_index, logits.shape[1])
    p = logits.softmax(dim=1)
    error = torch.where(true, 1 - p, p).masked_fill(~valid, -1)  # ignored pixels are sorted behind all others
    groups = (error, true) if per_image else (error.transpose(0, 1)[None], true.transpose(0, 1)[None])
    error, true = (x.flatten(2) for x in groups)  # (images or 1, C, pixels)
    error, order = error.sort(dim=2, descending=True)
    true = true.gather(2, order)
    losses = (error.clamp_min(0) * _jaccard_steps(true, error.dtype)).sum(dim=2)
    counts = true.sum(dim=2)
    if not per_image:
        return _average(losses[0], counts[0], classes)
    scored = valid.flatten(1).any(dim=1)
    images = torch.stack([_average(loss, count, classes) for loss, count in zip(losses, counts, strict=True)])
    return _divide((images * scored).sum(), scored.sum())


def _jaccard_steps(true: Tensor, dtype: torch.dtype) -> Tensor:
    """Return by how much 1 - IoU grows with each further pixel that is wrong (algorithm 1), along the last dimension.

    The paper subtracts neighbouring values of 1 - IoU, which cancels in 32 bits when pixels are many; the
    difference is written out here.
    """
    hits = true.cumsum(dim=-1, dtype=torch.int32)
    count = hits[..., -1:]
    union = count + torch.arange(1, true.shape[-1] + 1, dtype=torch.int32, device=true.device) - hits
    left, union = (count - hits).to(dtype), union.to(dtype)
    steps = torch.where(true, 1 / union, left / (union * (union - 1).clamp_min(1)))
    steps[..., 0] = 1 - left[..., 0] / union[..., 0]  # from 0, which an absent class has too
    return steps


def _widen(logits: Tensor, class_weights: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Bring logits to 32 bits at least, and the weights to their type."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits, None if class_weights is None else class_weights.to(logits.dtype)


def _pixel_weights(mask: Tensor, ignore_index: int, class_weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return each pixel's weight (B, H, W): its class's or 1, and 0 if ignored; of shares, each class's."""
    if mask.is_floating_point():
        return mask if class_weights is None else mask * class_weights.view(-1, 1, 1)
    valid = mask != ignore_index
    return valid.to(dtype) if class_weights is None else class_weights[mask.where(valid, 0)] * valid


def _one_hot(mask: Tensor, ignore_index: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return (B, C, H, W), bool, true at each pixel's class unless ignored, and (B, 1, H, W), true unless ignored."""
    ids = mask[:, None]
    valid = ids != ignore_index
    return (ids == torch.arange(classes, device=mask.device)[:, None, None]) & valid, valid


def as_shares(target: Tensor, ignore_index: int, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Bring a mask or shares to shares (B, C, H, W) of 32 bits at least, and say what counts (B, 1, H, W), bool."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if target.is_floating_point():
        return target.to(dtype), torch.ones_like(target[:, :1], dtype=torch.bool)
    true, valid = _one_hot(target, ignore_index, logits.shape[1])
    return true.to(dtype), valid


def _average(losses: Tensor, count: Tensor, classes: Classes) -> Tensor:
    """Average losses (C,) over the classes with pixels, or over all; 0 if no class has pixels."""
    counted = count > 0 if classes == "present" else count.sum().expand_as(count) > 0
    return _divide((losses * counted).sum(), counted.sum())


def _divide(total: Tensor, weight: Tensor) -> Tensor:
    """Divide, but 0 / 0 is 0."""
    return total / _floor(weight.to(total.dtype))


def _floor(x: Tensor) -> Tensor:
    """Replace 0 by the smallest normal number."""
    return x.clamp_min(torch.finfo(x.dtype).tiny)


class SegmentationLoss(nn.Module, ABC):
    """Logits and mask in, a scalar out.

    Attributes:
        takes_shares: Whether the target may be shares (B, C, H, W) instead of a mask, as mixing gives them.
        several_classes: Whether an image or pixel may have several classes: then the loss looks at each by itself.
    """

    tasks: ClassVar[tuple[str, ...]] = ("Segmentation", "Classification")
    takes_shares: bool = False
    several_classes: bool = False

    @abstractmethod
    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        """Compute the loss of logits (B, C, H, W), float, for a mask (B, H, W), long."""

    def image_weights(self, mask: Tensor, ignore_index: int) -> Tensor:
        """Return how much each image counts (B,) where this loss is averaged over images; all the same by default."""
        return torch.ones(len(mask), device=mask.device)

    def check(self, num_classes: int) -> None:  # nothing to check is a fine default
        """Raise a ConfigError if the loss does not fit this number of classes."""


class WeightedLoss(SegmentationLoss):
    """A loss with a weight per class."""

    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None) -> None:
        super().__init__()
        if class_weights is not None:
            check_weights("class_weights", class_weights)
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def check(self, num_classes: int) -> None:
        """Raise a ConfigError unless there is one weight per class."""
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise ConfigError(
                f"{type(self).__name__} has {len(self.class_weights)} class_weights and the data has {num_classes} "
                f"classes: give one weight per class"
            )


class _OfClass(WeightedLoss):
    """A loss in which every image counts by the weight of its class."""

    def image_weights(self, mask: Tensor, ignore_index: int) -> Tensor:
        """Return the sum of the weights of each image's pixels (B,)."""
        return _pixel_weights(mask, ignore_index, self.class_weights, torch.float32).flatten(1).sum(1)


class CrossEntropy(_OfClass):
    """Cross entropy, averaged over pixels.

    Args:
        class_weights: One weight per class, in the order of the classes; all equal if not given.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).

    Raises:
        ConfigError: A weight is negative, all are 0, or the smoothing is out of range.
    """

    takes_shares = True

    def __init__(self, class_weights: list[float] | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__(class_weights)
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be at least 0 and less than 1, got {label_smoothing}")
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        """Compute the loss of logits (B, C, H, W) for a mask (B, H, W)."""
        return cross_entropy(logits, mask, ignore_index, self.class_weights, self.label_smoothing)


class Focal(_OfClass):
    """Cross entropy that plays down pixels which are right already.

    Args:
        gamma: How strongly, at least 0; 0 is cross entropy.
        class_weights: One weight per class, in the order of the classes; all equal if not given.

    Raises:
        ConfigError: `gamma` or a weight is negative, or all weights are 0.
    """

    takes_shares = True

    def __init__(self, gamma: float = 2.0, class_weights: list[float] | None = None) -> None:
        super().__init__(class_weights)
        check_not_negative("gamma", gamma)
        self.gamma = gamma

    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        """Compute the loss of logits (B, C, H, W) for a mask (B, H, W)."""
        return focal(logits, mask, ignore_index, self.gamma, self.class_weights)


class Dice(SegmentationLoss):
    """One minus the soft Dice coefficient, averaged over classes.

    Args:
        smooth: Pixels added to numerator and denominator, at least 0; evens out classes of few pixels.
        classes: Average over the classes present in the batch, or over all.

    Raises:
        ConfigError: `smooth` is negative.
    """

    def __init__(self, smooth: float = 0.0, classes: Classes = "present") -> None:
        super().__init__()
        check_not_negative("smooth", smooth)
        self.smooth = smooth
        self.classes: Classes = classes

    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        """Compute the loss of logits (B, C, H, W) for a mask (B, H, W)."""
        return dice(logits, mask, ignore_index, self.smooth, self.classes)


class Lovasz(SegmentationLoss):
    """Lovász-Softmax: a surrogate of one minus the mean IoU; best together with, or after, cross entropy.

    Args:
        classes: Average over the classes present in the batch (or image), or over all.
        per_image: The IoU of each image instead of the batch's.
    """

    def __init__(self, classes: Classes = "present", per_image: bool = False) -> None:
        super().__init__()
        self.classes: Classes = classes
        self.per_image = per_image

    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        """Compute the loss of logits (B, C, H, W) for a mask (B, H, W)."""
        return lovasz(logits, mask, ignore_index, self.classes, self.per_image)


class WeightedSum(SegmentationLoss):
    """Several losses, each times its weight, added up.

    Args:
        losses: The losses.
        weights: One weight per loss, in their order; all 1 if not given.

    Raises:
        ConfigError: There is no loss, not one weight per loss, a negative weight, or only weights of 0.
    """

    def __init__(self, losses: list[SegmentationLoss], weights: list[float] | None = None) -> None:
        super().__init__()
        if not losses:
            raise ConfigError("WeightedSum needs at least one loss, got none")
        weights = [1.0] * len(losses) if weights is None else weights
        if len(weights) != len(losses):
            raise ConfigError(f"WeightedSum has {len(losses)} losses and {len(weights)} weights: give one per loss")
        check_weights("weights", weights)
        self.losses = nn.ModuleList(losses)
        self.takes_shares = all(loss.takes_shares for loss in losses)
        self.several_classes = all(loss.several_classes for loss in losses)
        self.weights = tuple(weights)

    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        """Compute the loss of logits (B, C, H, W) for a mask (B, H, W)."""
        terms = [loss(logits, mask, ignore_index) for loss in self.losses]
        return torch.stack([weight * term for weight, term in zip(self.weights, terms, strict=True)]).sum()

    def check(self, num_classes: int) -> None:
        """Raise a ConfigError if any of the losses does not fit this number of classes."""
        for loss in self.losses:
            loss.check(num_classes)  # type: ignore[operator]  # a ModuleList forgets its members' type


def check_not_negative(name: str, value: float) -> None:
    """Raise a ConfigError unless the value is finite and at least 0."""
    if not (isfinite(value) and value >= 0):
        raise ConfigError(f"{name} must be at least 0, got {value}")


def check_weights(name: str, weights: Sequence[float]) -> None:
    """Raise a ConfigError unless weights are finite, at least 0, and one is above 0."""
    for index, weight in enumerate(weights):
        check_not_negative(f"{name}[{index}]", weight)
    if not any(weights):
        raise ConfigError(f"{name} needs one weight above 0, got {list(weights)}")
