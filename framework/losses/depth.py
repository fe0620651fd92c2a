"""Depth losses: pure functions of predicted and measured depth, and the classes that an experiment names.

Everywhere: prediction (B, H, W), float, metres, above 0; target (B, H, W), float, metres. Where the target is not above
0, infinite or NaN there is no reading: such pixels change neither value nor gradient, whatever is predicted there.
Without any reading both are 0. The result is a scalar. Nothing waits for the device. 16-bit input is computed with in
32 bits. With several processes each takes its own share of the batch for the batch, as all losses do.
"""

from abc import ABC, abstractmethod
from math import sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.losses.alignment import fit_line, standardise
from framework.losses.segmentation import check_not_negative, check_weights

Space = Literal["log", "depth", "disparity"]
LossAlignment = Literal["median", "least_squares"]

EPS = 0.001  # metres, added inside logarithms: that of DINOv2, AdaBins and others
NEAREST = 1e-6  # metres: what is nearer has its disparity, and no gradient
FLAT = 1e-3  # disparities that vary by a smaller share are the same everywhere, see framework.losses.alignment


def si_log(
    prediction: Tensor, target: Tensor, variance_focus: float = 0.85, scale: float = 1.0, warming_up: bool = False
) -> Tensor:
    """Compute scale * sqrt(var(g) + (1 - variance_focus) * mean(g)^2) over all readings of the batch.

    g = log(prediction + 0.001) - log(target + 0.001), and the variance is the unbiased one, divided by N - 1 (0 for one
    reading): so it is DINOv2's SigLoss at the defaults. Eigen et al., NIPS 2014, equation 4, have `variance_focus` 0.5,
    no root and the variance divided by N; BTS (Lee et al., arXiv 1907.10326) has 0.85 and scale 10.

    Args:
        prediction: (B, H, W).
        target: (B, H, W).
        variance_focus: In [0, 1]; 1 leaves the scale of the prediction free.
        scale: What the result is multiplied with.
        warming_up: Leave the variance out, as DINOv2 does in its first steps.
    """
    prediction, target, counted = _readings(prediction, target)
    gap, count = _log_gap(prediction, target), counted.sum()
    mean = gap.sum() / count.clamp_min(1)
    if warming_up:
        return scale * sqrt(1 - variance_focus) * mean.abs()
    variance = ((gap - mean).square() * counted).sum() / (count - 1).clamp_min(1)
    return scale * _root(variance + (1 - variance_focus) * mean.square())


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Average |prediction - target|, in metres, over all readings of the batch."""
    prediction, target, counted = _readings(prediction, target)
    return (prediction - target).abs().sum() / counted.sum().clamp_min(1)


def log_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Average |log(prediction + 0.001) - log(target + 0.001)| over all readings of the batch."""
    prediction, target, counted = _readings(prediction, target)
    return _log_gap(prediction, target).abs().sum() / counted.sum().clamp_min(1)


def berhu(prediction: Tensor, target: Tensor, threshold: float = 0.2) -> Tensor:
    """Average the reverse Huber loss, in metres, over all readings of the batch.

    x = |prediction - target| up to c, (x^2 + c^2) / (2 c) above, where c is `threshold` times the largest x of the
    batch, and counts as a constant. Laina et al., arXiv 1606.00373, section 3.2.

    Args:
        prediction: (B, H, W).
        target: (B, H, W).
        threshold: Share of the largest error, in (0, 1]; 0.2 in the paper.
    """
    prediction, target, counted = _readings(prediction, target)
    error = (prediction - target).abs()
    c = threshold * error.detach().amax()
    far = (error.square() + c.square()) / (2 * c).clamp_min(torch.finfo(error.dtype).tiny)
    return torch.where(error <= c, error, far).sum() / counted.sum().clamp_min(1)


def gradient_matching(prediction: Tensor, target: Tensor, scales: int = 4, space: Space = "log") -> Tensor:
    """Compare the gradients of prediction and target at several scales, averaged over the images with a reading.

    For R = prediction - target in `space`, the sum over scales of sum(|dR/dx| + |dR/dy|) / M: differences between
    neighbours that are both readings, at every 1st, 2nd, 4th, ... pixel of each side, and M the readings among those
    pixels. Li and Snavely (MegaDepth), arXiv 1804.00607, section 4.2, in `log`; Ranftl et al. (MiDaS), arXiv
    1907.01341, section 5, in `disparity`. Both write one M for all scales: here, as in code that goes with MiDaS,
    each scale has its own, without which coarse scales count for next to nothing.

    Args:
        prediction: (B, H, W).
        target: (B, H, W).
        scales: How many, at least 1.
        space: What is compared: `log` (of depth + 0.001), `depth` in metres, or `disparity` in 1/m.
    """
    prediction, target, counted = _readings(prediction, target)
    return _mean_of_images(_steepness(_residual(prediction, target, space), counted, scales), counted)


def scale_shift_invariant(
    prediction: Tensor,
    target: Tensor,
    alignment: LossAlignment = "median",
    trim: float = 0.2,
    gradient_weight: float = 0.5,
    scales: int = 4,
) -> Tensor:
    """Compare disparities after each image's scale and shift are brought together; the mean of images with a reading.

    Ranftl et al. (MiDaS), arXiv 1907.01341, section 5, for disparities d of the prediction and d* of the target:

    - `median`: r = (d - median d) / mean|d - median d|, less the same of d*, and sum|r| / (2 M) over all but the
      largest `trim` of the M readings of an image: L_ssitrim at 0.2, L_ssimae at 0.
    - `least_squares`: r = s d + t - d*, with the s and t of the least sum(r^2), and sum(r^2) / (2 M) likewise:
      L_ssimse at `trim` 0. In 1/m, so near scenes count more than far ones. A prediction that is the same everywhere
      gets no gradient: start from one that is not.

    To this `gradient_weight` times the `gradient_matching` of r is added. The gradient runs through the alignment.

    Args:
        prediction: (B, H, W).
        target: (B, H, W).
        alignment: How scale and shift are found.
        trim: Share of an image's largest residuals that is left out, in [0, 1).
        gradient_weight: Weight of gradient matching, at least 0; 0.5 in the paper.
        scales: Scales of gradient matching, at least 1.
    """
    prediction, target, counted = _readings(prediction, target)
    found, true = (1 / x.clamp_min(NEAREST) for x in (prediction, target))
    if alignment == "median":
        residual = standardise(found, counted, FLAT) - standardise(true, counted, FLAT)
    else:
        line = fit_line(found, true, counted, FLAT)
        residual = line.scale * found + line.shift - true
    residual = torch.where(counted, residual, 0)
    error = _trimmed_sum(residual.abs() if alignment == "median" else residual.square(), counted, trim)
    values = error / (2 * counted.sum((1, 2))).clamp_min(1)
    if gradient_weight:
        values = values + gradient_weight * _steepness(residual, counted, scales)
    return _mean_of_images(values, counted)


def _readings(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bring both to 32 bits at least, and to 1 m where there is no reading; and say where there is one, bool."""
    if prediction.shape != target.shape or prediction.ndim != 3:
        raise ValueError(
            f"prediction and target must both be (B, H, W), got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    prediction, target = prediction.to(dtype), target.to(dtype)
    counted = target.isfinite() & (target > 0)
    return torch.where(counted, prediction, 1), torch.where(counted, target, 1), counted


def _log_gap(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction + EPS).log() - (target + EPS).log()


def _residual(prediction: Tensor, target: Tensor, space: Space) -> Tensor:
    """Return prediction less target in a space; 0 where both are 1."""
    if space == "log":
        return _log_gap(prediction, target)
    if space == "depth":
        return prediction - target
    return 1 / prediction.clamp_min(NEAREST) - 1 / target.clamp_min(NEAREST)


def _steepness(residual: Tensor, counted: Tensor, scales: int) -> Tensor:
    """Sum the differences between neighbours of each image, over its readings, for all scales: (B,)."""
    total = residual.new_zeros(len(residual))
    for step in (2**index for index in range(scales)):
        r, c = residual[:, ::step, ::step], counted[:, ::step, ::step]
        across = (r.diff(dim=2).abs() * (c[:, :, 1:] & c[:, :, :-1])).sum((1, 2))
        down = (r.diff(dim=1).abs() * (c[:, 1:] & c[:, :-1])).sum((1, 2))
        total = total + (across + down) / c.sum((1, 2)).clamp_min(1)
    return total


def _trimmed_sum(error: Tensor, counted: Tensor, trim: float) -> Tensor:
    """Sum each image's errors (B, H, W) but for the largest `trim` of those that count: (B,)."""
    if not trim:
        return (error * counted).sum((1, 2))
    order = torch.where(counted, error.detach(), torch.inf).flatten(1).argsort(1)
    most = ((1 - trim) * counted.sum((1, 2)) + 1e-4).floor()  # 0.8 * 15 is less than 12 to a computer
    first = torch.arange(order.shape[1], device=error.device) < most[:, None]
    kept = torch.zeros_like(first).scatter(1, order, first)
    return (error.flatten(1) * kept).sum(1)


def _mean_of_images(values: Tensor, counted: Tensor) -> Tensor:
    """Average values (B,) over the images with a reading; 0 if there is none."""
    seen = counted.flatten(1).any(1)
    return (values * seen).sum() / seen.sum().clamp_min(1)


def _root(x: Tensor) -> Tensor:
    """Take the root of a scalar of at least 0, whose gradient is 0 at 0, not infinite."""
    tiny = torch.finfo(x.dtype).tiny
    return torch.where(x > tiny, x.clamp_min(tiny).sqrt(), 0)


class DepthLoss(nn.Module, ABC):
    """Predicted and measured depth in, a scalar out.

    Attributes:
        relative: Whether the scale of the prediction is left free: its metres mean nothing then, and it can only be
            evaluated after an alignment.
    """

    tasks: ClassVar[tuple[str, ...]] = ("Depth",)
    relative: bool = False

    @abstractmethod
    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        """Compute the loss of a prediction (B, H, W), float, metres above 0, for a target (B, H, W), float, metres.

        Pixels without a reading, whose target is not above 0, infinite or NaN, do not count.

        Args:
            prediction: (B, H, W).
            target: (B, H, W).
            step: How many optimizer steps were taken, for a loss that changes with them; None in evaluation.
        """


class SILog(DepthLoss):
    """Scale-invariant log loss: the spread of log errors, and a part of their mean; DINOv2's SigLoss as it stands.

    Args:
        variance_focus: How much of the mean log error is forgiven, in [0, 1]: 0 is the root mean square of log errors,
            0.85 DINOv2, BTS and AdaBins, and 1 leaves the scale of the prediction free.
        scale: What the result is multiplied with, above 0; BTS and AdaBins have 10.
        warmup: Optimizer steps at the beginning in which only the mean log error counts; DINOv2 has 100.

    Raises:
        ConfigError: A value is out of range, or nothing is left to learn in the warm-up.
    """

    def __init__(self, variance_focus: float = 0.85, scale: float = 1.0, warmup: int = 0) -> None:
        super().__init__()
        if not 0 <= variance_focus <= 1:
            raise ConfigError(f"SILog: variance_focus must be in [0, 1], got {variance_focus}")
        _check_positive("SILog: scale", scale)
        check_not_negative("SILog: warmup", warmup)
        if warmup and variance_focus == 1:
            raise ConfigError(
                "SILog: in the warm-up only the mean log error counts, which variance_focus 1 leaves out: set warmup "
                "to 0, or variance_focus below 1"
            )
        self.variance_focus, self.scale, self.warmup = variance_focus, scale, warmup
        self.relative = variance_focus == 1

    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        """Compute the loss of a prediction (B, H, W) for a target (B, H, W)."""
        warming_up = step is not None and step < self.warmup
        return si_log(prediction, target, self.variance_focus, self.scale, warming_up)


class L1(DepthLoss):
    """Absolute error in metres, averaged over readings."""

    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        """Compute the loss of a prediction (B, H, W) for a target (B, H, W)."""
        return l1(prediction, target)


class LogL1(DepthLoss):
    """Absolute error of the logarithm of depth, averaged over readings: near and far count alike."""

    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        """Compute the loss of a prediction (B, H, W) for a target (B, H, W)."""
        return log_l1(prediction, target)


class BerHu(DepthLoss):
    """Reverse Huber loss: small errors count as they are, large ones squared.

    Args:
        threshold: From which share of the batch's largest error on an error is large, in (0, 1].

    Raises:
        ConfigError: `threshold` is out of range.
    """

    def __init__(self, threshold: float = 0.2) -> None:
        super().__init__()
        if not 0 < threshold <= 1:
            raise ConfigError(f"BerHu: threshold must be above 0 and at most 1, got {threshold}")
        self.threshold = threshold

    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        """Compute the loss of a prediction (B, H, W) for a target (B, H, W)."""
        return berhu(prediction, target, self.threshold)


class GradientMatching(DepthLoss):
    """Edges and slopes where the target has them; use it beside another loss, as it says nothing of the depth itself.

    Args:
        scales: At how many scales, each of half the size, at least 1.
        space: What is compared: `log` of depth (MegaDepth), `depth`, or `disparity` (MiDaS).

    Raises:
        ConfigError: There is no scale.
    """

    relative = True

    def __init__(self, scales: int = 4, space: Space = "log") -> None:
        super().__init__()
        _check_scales("GradientMatching", scales)
        self.scales = scales
        self.space: Space = space

    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        """Compute the loss of a prediction (B, H, W) for a target (B, H, W)."""
        return gradient_matching(prediction, target, self.scales, self.space)


class ScaleShiftInvariant(DepthLoss):
    """MiDaS's loss: disparity up to a scale and a shift of each image, for targets whose own are not known.

    Args:
        alignment: `median` brings medians and mean deviations together and counts absolute residuals;
            `least_squares` fits the prediction to the target and counts squares, and has no gradient where the
            prediction is the same everywhere.
        trim: Share of an image's largest residuals that is left out as wrong targets, in [0, 1).
        gradient_weight: Weight of gradient matching beside it, at least 0.
        scales: Scales of gradient matching, at least 1.

    Raises:
        ConfigError: A value is out of range.
    """

    relative = True

    def __init__(
        self, alignment: LossAlignment = "median", trim: float = 0.2, gradient_weight: float = 0.5, scales: int = 4
    ) -> None:
        super().__init__()
        if not 0 <= trim < 1:
            raise ConfigError(f"ScaleShiftInvariant: trim must be at least 0 and less than 1, got {trim}")
        check_not_negative("ScaleShiftInvariant: gradient_weight", gradient_weight)
        _check_scales("ScaleShiftInvariant", scales)
        self.alignment: LossAlignment = alignment
        self.trim, self.gradient_weight, self.scales = trim, gradient_weight, scales

    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        """Compute the loss of a prediction (B, H, W) for a target (B, H, W)."""
        return scale_shift_invariant(prediction, target, self.alignment, self.trim, self.gradient_weight, self.scales)


class DepthLossSum(DepthLoss):
    """Several depth losses, each times its weight, added up; the scale is free if it is so for all that count.

    Args:
        losses: The losses.
        weights: One weight per loss, in their order; all 1 if not given.

    Raises:
        ConfigError: There is no loss, not one weight per loss, a negative weight, or only weights of 0.
    """

    def __init__(self, losses: list[DepthLoss], weights: list[float] | None = None) -> None:
        super().__init__()
        if not losses:
            raise ConfigError("DepthLossSum needs at least one loss, got none")
        weights = [1.0] * len(losses) if weights is None else weights
        if len(weights) != len(losses):
            raise ConfigError(f"DepthLossSum has {len(losses)} losses and {len(weights)} weights: give one per loss")
        check_weights("DepthLossSum: weights", weights)
        self.losses = nn.ModuleList(losses)
        self.relative = all(loss.relative for loss, weight in zip(losses, weights, strict=True) if weight)
        self.weights = tuple(weights)

    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        """Compute the loss of a prediction (B, H, W) for a target (B, H, W)."""
        terms = [loss(prediction, target, step) for loss in self.losses]
        return torch.stack([weight * term for weight, term in zip(self.weights, terms, strict=True)]).sum()


def _check_positive(name: str, value: float) -> None:
    check_not_negative(name, value)
    if not value:
        raise ConfigError(f"{name} must be above 0, got {value}")


def _check_scales(name: str, scales: int) -> None:
    if scales < 1:
        raise ConfigError(f"{name}: scales must be at least 1, got {scales}")
