"""How depths, or disparities, of an unknown scale and shift are brought to known ones: medians and least squares."""

from typing import NamedTuple

import torch
from torch import Tensor


class Line(NamedTuple):
    """What brings x to y, each (..., 1, 1): `scale * x + shift`."""

    scale: Tensor
    shift: Tensor


def masked_mean(x: Tensor, counted: Tensor) -> Tensor:
    """Average each image (..., H, W) over the pixels that count, bool (..., H, W): (..., 1, 1), 0 without any."""
    count = counted.sum((-2, -1), keepdim=True).clamp_min(1)
    return torch.where(counted, x, 0).sum((-2, -1), keepdim=True) / count


def masked_median(x: Tensor, counted: Tensor) -> Tensor:
    """Return the median of each image (..., H, W) over the pixels that count: (..., 1, 1), 0 without any.

    Of an even number of pixels it is the mean of the two in the middle, as numpy has it.
    """
    if not x.shape[-1] * x.shape[-2]:
        return masked_mean(x, counted)
    order = torch.where(counted, x.detach(), torch.inf).flatten(-2).argsort(-1)  # those that do not count come last
    count = counted.flatten(-2).sum(-1, keepdim=True)
    middle = torch.cat([(count - 1) // 2, count // 2], -1).clamp_min(0)
    median = x.flatten(-2).gather(-1, order.gather(-1, middle)).mean(-1, keepdim=True)  # a gradient without a sort
    return torch.where(count > 0, median, 0)[..., None]


def fit_line(x: Tensor, y: Tensor, counted: Tensor, flat: float) -> Line:
    """Find the scale and shift by which x comes nearest to y, in squares summed over the pixels that count.

    The closed form of Ranftl et al. (MiDaS), arXiv 1907.01341, section 5, with means taken off first: so it does not
    cancel in 32 bits. Without any pixel both are 0.

    Args:
        x: (..., H, W).
        y: (..., H, W).
        counted: Which pixels count, bool (..., H, W).
        flat: A standard deviation of x below this share of its mean counts as this much: no division by 0, and a
            bounded gradient, where x is the same everywhere. The scale is 0 there, and the shift the mean of y.
    """
    x_mean, y_mean = masked_mean(x, counted), masked_mean(y, counted)
    off = x - x_mean
    variance = _at_least(masked_mean(off.square(), counted), (flat * x_mean).square())
    scale = masked_mean(off * (y - y_mean), counted) / variance
    return Line(scale, y_mean - scale * x_mean)


def standardise(x: Tensor, counted: Tensor, flat: float) -> Tensor:
    """Take off each image's median, and divide by the mean absolute deviation from it; pixels that count alone.

    Ranftl et al. (MiDaS), arXiv 1907.01341, section 5.

    Args:
        x: (..., H, W).
        counted: Which pixels count, bool (..., H, W).
        flat: A deviation below this share of the median counts as this much.
    """
    median = masked_median(x, counted)
    off = x - median
    return off / _at_least(masked_mean(off.abs(), counted), flat * median.abs())


def _at_least(x: Tensor, least: Tensor) -> Tensor:
    """Raise values to a least one, which gets no gradient, and above 0."""
    return torch.maximum(x, least.detach().clamp_min(torch.finfo(x.dtype).tiny))
