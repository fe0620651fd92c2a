"""From a dense head's raw values to metres: by bins, or by one number that is mapped onto the range."""

from abc import ABC, abstractmethod
from math import log, sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.errors import ConfigError, suggest

Range = tuple[float, float]


class DepthOutput(nn.Module, ABC):
    """Raw values in, metres out, in 32 bits inside autocast too.

    Attributes:
        channels: What the head has to give.
    """

    channels: int

    def forward(self, raw: Tensor, depth_range: Range) -> Tensor:
        """Compute metres.

        Args:
            raw: (B, channels, h, w), float, unbounded.
            depth_range: Nearest and farthest depth in metres, 0 < nearest < farthest.

        Returns:
            (B, 1, h, w), float32, metres within the range, unless the class says otherwise.

        Raises:
            ConfigError: A class of a user's returns another shape.
        """
        with torch.autocast(raw.device.type, enabled=False):
            metres = self.to_metres(raw.float(), depth_range)
        if metres.shape != (raw.shape[0], 1, *raw.shape[-2:]):
            raise ConfigError(
                f"model.output: {type(self).__name__}.to_metres made {tuple(metres.shape)} of {tuple(raw.shape)}: it "
                "returns (B, 1, h, w)"
            )
        return metres

    def meaning(self) -> str:
        """Return its class and settings, as `Bins (channels 256, ...)`: under others raw values are other metres."""
        settings = {name: value for name, value in vars(self).items() if name != "training"}
        plain = [f"{name} {value}" for name, value in settings.items() if isinstance(value, str | int | float)]
        return f"{type(self).__name__} ({', '.join(plain)})" if plain else type(self).__name__

    @abstractmethod
    def to_metres(self, raw: Tensor, depth_range: Range) -> Tensor:
        """Compute (B, 1, h, w) from float32 (B, channels, h, w), outside autocast."""


class Bins(DepthOutput):
    """Depth as the mean of fixed bins, weighted by what the head gives for each: DINOv2's, after AdaBins.

    Fixed bins of Bhat et al., arXiv 2011.14141, as DINOv2 (arXiv 2304.07193, section 7.4) uses them: the centres are
    `count` depths from nearest to farthest, both included; at raw 0 everywhere depth is their mean.

    Args:
        count: Number of bins.
        spacing: `uniform` in metres, or `log`: equal ratios, so fine near and coarse far. Meta's code has an option
            meant as that, which takes powers of ten of the range; none of its published heads use it.
        normalisation: How raw values become weights that sum to 1. `linear`: ReLU, plus 0.1, divided by the sum, as
            Meta's published heads do; the 0.1 keeps every bin in play, so that the ends of the range are not quite
            reached. `softmax`, or `sigmoid`, divided by the sum.

    Raises:
        ConfigError: An option is out of range.
    """

    def __init__(
        self,
        count: int = 256,
        spacing: Literal["uniform", "log"] = "uniform",
        normalisation: Literal["linear", "softmax", "sigmoid"] = "linear",
    ) -> None:
        super().__init__()
        _require_bins(count)
        _require_known("spacing", spacing, ("uniform", "log"))
        _require_known("normalisation", normalisation, ("linear", "softmax", "sigmoid"))
        self.channels = count
        self.spacing = spacing
        self.normalisation = normalisation

    def to_metres(self, raw: Tensor, depth_range: Range) -> Tensor:
        """Average the bins."""
        near, far = depth_range
        if self.spacing == "log":
            centres = torch.linspace(log(near), log(far), self.channels, dtype=raw.dtype, device=raw.device).exp()
        else:
            centres = torch.linspace(near, far, self.channels, dtype=raw.dtype, device=raw.device)
        return self._average(raw, centres[:, None, None]).clamp(near, far)  # rounding may leave the range

    def _average(self, raw: Tensor, centres: Tensor) -> Tensor:
        """Compute the weighted mean (B, 1, h, w) of centres (count, 1, 1), without a map of normalised weights."""
        # Products are summed here and below, not multiplied as matrices: those are rounded to 11 bits under TF32.
        if self.normalisation == "linear":
            positive = F.relu(raw)
            total = (positive * centres).sum(1, keepdim=True) + 0.1 * centres.sum()
            return total / (positive.sum(1, keepdim=True) + 0.1 * self.channels)
        # sigmoid / sum of sigmoids = softmax of log sigmoid, which does not divide 0 by 0
        weights = torch.softmax(F.logsigmoid(raw) if self.normalisation == "sigmoid" else raw, dim=1)
        return (weights * centres).sum(1, keepdim=True)


class AdaptiveBins(DepthOutput):
    """Depth as the mean of bins whose widths are chosen for each image, after AdaBins (arXiv 2011.14141).

    The head gives `count` logits per place, and `count` more channels whose mean over the image, through a softmax,
    divides the range into widths. Centres lie in the middle of their bins (equation 2); depth is the mean of the
    centres under a softmax over the logits (equation 3).

    AdaBins has a transformer (mini-ViT) here, on the decoder's map: its first token gives the widths, through an MLP,
    ReLU and a constant, and others are multiplied with the map to give what the logits are computed from. None of that
    is here, only the mean of the head's own channels; nor is AdaBins' loss, which draws centres to the depths of the
    image. The mean covers the padding of an image that is no multiple of the backbone's, and each tile of an image
    that is predicted in tiles has bins of its own.

    Args:
        count: Number of bins. At raw 0 everywhere they are equally wide.

    Raises:
        ConfigError: `count` is out of range.
    """

    def __init__(self, count: int = 64) -> None:
        super().__init__()
        _require_bins(count)
        self.count = count
        self.channels = 2 * count

    def to_metres(self, raw: Tensor, depth_range: Range) -> Tensor:
        """Divide the range for each image, and average the bins."""
        near, far = depth_range
        logits, votes = raw[:, : self.count], raw[:, self.count :]
        widths = torch.softmax(votes.mean(dim=(2, 3)), dim=1)  # (B, count), shares of the range
        centres = near + (far - near) * (widths.cumsum(1) - widths / 2)
        depth = (torch.softmax(logits, dim=1) * centres[:, :, None, None]).sum(1, keepdim=True)
        return depth.clamp(near, far)


class LogRegression(DepthOutput):
    """Depth as one number between the logarithms of the range.

    log depth = log near + sigmoid(raw + shift) (log far - log near). In the logarithm an equal step is an equal
    ratio, which is what the metrics and SILog measure, and near things are resolved as finely as far ones; the sigmoid
    keeps depth in the range, where exp of a free number overflows. At raw 0 depth is that of `beginning`.
    """

    channels = 1

    def to_metres(self, raw: Tensor, depth_range: Range) -> Tensor:
        """Interpolate between the logarithms."""
        near, far = depth_range
        share = log(beginning(depth_range) / near) / log(far / near)
        depth = (log(near) + torch.sigmoid(raw + logit(share)) * log(far / near)).exp()
        return depth.clamp(near, far)


class LinearRegression(DepthOutput):
    """Depth as one number in metres.

    Args:
        activation: `sigmoid`: near + sigmoid(raw) (far - near), the middle of the range at raw 0. `relu`: near +
            relu(raw), metres as the head gives them, not bounded above (evaluation clamps): Meta's DPT heads. A place
            with raw below 0 has no gradient.

    Raises:
        ConfigError: There is no such activation.
    """

    channels = 1

    def __init__(self, activation: Literal["sigmoid", "relu"] = "sigmoid") -> None:
        super().__init__()
        _require_known("activation", activation, ("sigmoid", "relu"))
        self.activation = activation

    def to_metres(self, raw: Tensor, depth_range: Range) -> Tensor:
        """Scale, or shift alone."""
        near, far = depth_range
        if self.activation == "relu":
            return near + F.relu(raw)
        return (near + torch.sigmoid(raw) * (far - near)).clamp(near, far)


class DisparityRegression(DepthOutput):
    """Depth as the inverse of one number between the inverses of the range, as in stereo and monodepth2.

    1 / depth = 1 / far + sigmoid(raw + shift) (1 / near - 1 / far): Godard et al., arXiv 1806.01260, and the function
    disp_to_depth of its code. The shift is ours: with it depth is that of `beginning` at raw 0. Without it, it is the
    harmonic mean of the range, twice the nearest depth for any wide one.
    """

    channels = 1

    def to_metres(self, raw: Tensor, depth_range: Range) -> Tensor:
        """Interpolate between the inverses."""
        near, far = depth_range
        share = torch.sigmoid(raw + logit((1 / beginning(depth_range) - 1 / far) / (1 / near - 1 / far)))
        return (1 / (1 / far + share * (1 / near - 1 / far))).clamp(near, far)


def beginning(depth_range: Range) -> float:
    """Return the depth at which regression starts: the geometric mean of the range, or of its farther two decades.

    The nearest depth of a wide range, such as 1 mm of NYU's 10 m, says that 0 is no reading, and nothing about rooms.
    """
    near, far = depth_range
    return sqrt(max(near, far / 100) * far)


def logit(share: float) -> float:
    """Return the number whose sigmoid is a share in (0, 1)."""
    return log(share / (1 - share))


def _require_bins(count: int) -> None:
    if count < 2:
        raise ConfigError(f"count is a number of bins, at least 2, not {count}")


def _require_known(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"there is no {name} '{value}', {suggest(value, known)}")
