"""What a split of images with depth is counted with: errors of every image, and of all pixels together."""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from framework.errors import ConfigError, TrainingError, suggest
from framework.losses.alignment import fit_line, masked_median
from framework.metrics.gathering import gather_rows

Crop = Literal["nyu_eigen", "kitti_eigen", "garg"]
Alignment = Literal["median", "least_squares", "least_squares_disparity"]

NAMES = ("rmse", "rmse_log", "abs_rel", "sq_rel", "log10", "silog", "delta1", "delta2", "delta3")
SUMS = 10  # what is added up over the pixels of an image, see `error_sums`
NEAREST = 1e-6  # metres: a prediction of less, 0 too, is aligned as this much
FLAT = 1e-9  # a prediction that varies by a smaller share is the same everywhere

# Top, bottom, left and right as shares of height and width.
EDGES: dict[str, tuple[float, float, float, float]] = {
    "nyu_eigen": (45 / 480, 471 / 480, 41 / 640, 601 / 640),
    "kitti_eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}


def crop_window(crop: Crop | None, height: int, width: int) -> tuple[slice, slice]:
    """Return the rows and columns of a depth map that are evaluated.

    - `nyu_eigen`: rows 45 to 470 and columns 41 to 600 of 480 x 640, which Eigen et al., NIPS 2014, evaluate, and BTS
      and AdaBins after them; of other sizes, the same share, rounded.
    - `kitti_eigen`: rows from 0.3324324 to 0.91351351 of the height, columns from 0.0359477 to 0.96405229 of the width,
      rounded down: found by monodepth's authors to reproduce Eigen et al.
    - `garg`: rows from 0.40810811 to 0.99189189, columns from 0.03594771 to 0.96405229, rounded down: Garg et al.,
      arXiv 1603.04992, as monodepth2, BTS and AdaBins have it.

    Args:
        crop: Its name; None: everything.
        height: Of the depth map as stored, in pixels.
        width: Likewise.

    Raises:
        ConfigError: There is no crop of that name.
    """
    if crop is None:
        return slice(0, height), slice(0, width)
    if crop not in EDGES:
        raise ConfigError(f"there is no crop {crop}; {suggest(crop, EDGES)}".rstrip("; "))
    places = [edge * side for edge, side in zip(EDGES[crop], (height, height, width, width), strict=True)]
    top, bottom, left, right = (round(place) if crop == "nyu_eigen" else int(place) for place in places)
    return slice(top, bottom), slice(left, right)


def crop_mask(crop: Crop | None, height: int, width: int) -> Tensor:
    """Return which pixels of a depth map are evaluated, bool (height, width); see `crop_window`."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[crop_window(crop, height, width)] = True
    return mask


def depth_errors(prediction: Tensor, target: Tensor, counted: Tensor | None = None) -> dict[str, Tensor]:
    """Compute the errors of one image, for the pixels that count.

    For the difference e = p - t of prediction and target and g = log p - log t, means over pixels: `rmse` sqrt(mean
    e^2), in metres; `rmse_log` sqrt(mean g^2); `abs_rel` mean |e| / t; `sq_rel` mean e^2 / t, in metres; `delta1` the
    share of pixels whose max(p / t, t / p) is below 1.25, `delta2` below 1.25^2, `delta3` below 1.25^3 (Eigen et al.,
    NIPS 2014, section 4.3); `log10` mean |log10 p - log10 t| (Saxena et al., Make3D); `silog` 100 sqrt(mean g^2 -
    (mean g)^2), KITTI's. The scale of a prediction does not change `silog`.

    Args:
        prediction: (..., H, W), metres, above 0. One that is NaN makes errors NaN, and counts as wrong in `delta1` ...
        target: (..., H, W), metres.
        counted: Which pixels count, bool (..., H, W); those whose target is above 0 and finite, if not given.

    Returns:
        Each error (...), float64 (float32 on devices without it); NaN without any pixel.
    """
    if counted is None:
        counted = target.isfinite() & (target > 0)
    prediction, target = (torch.where(counted, _widen(x), 1) for x in (prediction, target))
    return dict(zip(NAMES, errors_of(error_sums(prediction, target, counted)).unbind(-1), strict=True))


def error_sums(prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Add up what errors are made of over the pixels that count.

    Args:
        prediction: (..., H, W), above 0.
        target: (..., H, W), above 0.
        counted: Which pixels count, bool (..., H, W).

    Returns:
        (..., SUMS): the number of pixels, and the sums of e^2, g^2, |e| / t, e^2 / t, |log10 p - log10 t|, g, and of
        the three pixel counts of delta; see `depth_errors`. Sums of images add up to those of all their pixels.
    """
    error, ratio = prediction - target, prediction / target
    gap, ratio = ratio.log(), torch.maximum(ratio, target / prediction)
    terms = [torch.ones_like(error), error.square(), gap.square(), error.abs() / target, error.square() / target]
    terms += [gap.abs() / np.log(10), gap, *((ratio < 1.25**power).to(error.dtype) for power in (1, 2, 3))]
    return torch.stack([torch.where(counted, term, 0).sum((-2, -1)) for term in terms], -1)


def errors_of(sums: Tensor) -> Tensor:
    """Compute errors (..., 9), in the order of `NAMES`, from sums (..., SUMS); NaN without any pixel."""
    means = (sums[..., 1:] / sums[..., :1]).unbind(-1)
    squared, squared_log, abs_rel, sq_rel, log10, gap = means[:6]
    silog = 100 * (squared_log - gap.square()).clamp_min(0).sqrt()
    return torch.stack([squared.sqrt(), squared_log.sqrt(), abs_rel, sq_rel, log10, silog, *means[6:]], -1)


def align(prediction: Tensor, target: Tensor, counted: Tensor, alignment: Alignment) -> Tensor:
    """Bring the prediction of each image to the scale of its target, by the pixels that count.

    - `median`: times median(target) / median(prediction), as Zhou et al. (SfMLearner, arXiv 1704.07813) and monodepth2.
    - `least_squares`: scale and shift of depth with the least squared error in metres.
    - `least_squares_disparity`: scale and shift of disparity, 1 / depth, with the least squared error in 1/m, as MiDaS
      (arXiv 1907.01341, section 6) evaluates; what comes out at or below 0 is as far as can be.

    Args:
        prediction: (..., H, W), metres, above 0; not yet clamped to any range.
        target: (..., H, W), metres, above 0 where it counts.
        counted: Which pixels count, bool (..., H, W).
        alignment: How.

    Returns:
        (..., H, W), metres; it may be 0 and below after `least_squares`.
    """
    tiny = torch.finfo(prediction.dtype).tiny
    prediction, target = (torch.where(counted, x, 1) for x in (prediction, target))
    if alignment == "median":
        return prediction * masked_median(target, counted) / masked_median(prediction, counted).clamp_min(NEAREST)
    if alignment == "least_squares":
        line = fit_line(prediction, target, counted, FLAT)
        return line.scale * prediction + line.shift
    disparity = 1 / prediction.clamp_min(NEAREST)
    line = fit_line(disparity, 1 / target, counted, FLAT)
    return 1 / (line.scale * disparity + line.shift).clamp_min(tiny)


def _widen(x: Tensor) -> Tensor:
    """Bring numbers to 64 bits; to 32 on Apple's GPUs, which have no more."""
    return x.detach().to(torch.float32 if x.device.type == "mps" else torch.float64)


class DepthMetrics(nn.Module):
    """The errors of a split, for every way of aligning that is asked for.

    A pixel counts where its target lies between the ends of the depth range, neither included (as BTS, AdaBins and
    monodepth2 have it), and inside the crop. The prediction is clamped to the range: as it is, or after it was aligned.

    For each error of `depth_errors`, `image/NAME` is the mean over images with a pixel that counts, as is usual for
    KITTI and NYU, and `pixel/NAME` the error of all pixels together, as Eigen et al. define it. What was aligned has
    the alignment in its name, `image/NAME/ALIGNMENT`: it is not comparable with what was not. `score`, the headline, is
    `image/delta1`, of the first alignment where the scale is free. `loss` is the mean over the same images.

    Sums are 64 bits wide. Only `compute` waits for the device. It gives the same numbers, to the bit, however many
    processes the images are dealt to.

    Args:
        depth_range: Nearest and farthest depth, in metres.
        crop: What part of an image is evaluated; see `crop_window`.
        alignments: Ways of aligning to count beside the prediction as it is; see `align`.
        relative: Whether the loss leaves the scale free, so that only aligned errors say something.

    Raises:
        ConfigError: The range is none, there is no such crop or alignment, or none is given where the scale is free.
    """

    def __init__(
        self,
        depth_range: tuple[float, float],
        crop: Crop | None = None,
        alignments: tuple[Alignment, ...] = (),
        relative: bool = False,
    ) -> None:
        super().__init__()
        near, far = depth_range
        if not 0 < near < far < float("inf"):
            raise ConfigError(f"depth_range must be two depths in metres, 0 < nearest < farthest, got {near} and {far}")
        crop_window(crop, 1, 1)
        for name in alignments:
            if name not in get_args(Alignment):
                raise ConfigError(f"there is no alignment {name}; {suggest(name, get_args(Alignment))}".rstrip("; "))
        if relative and not alignments:
            raise ConfigError(
                "the loss leaves the scale of depth free, so metres mean nothing before they are aligned: name an "
                f"alignment; valid: {', '.join(get_args(Alignment))}"
            )
        self.near, self.far = near, far
        self.crop: Crop | None = crop
        self.alignments, self.relative = tuple(dict.fromkeys(alignments)), relative
        self._rows: list[Tensor] = []  # of each image: its loss, and SUMS for every way of aligning, on its device
        self._computed: dict[str, Tensor] | None = None

    def reset(self) -> None:
        """Forget what was counted."""
        self._rows, self._computed = [], None

    def update(self, prediction: Tensor, target: Tensor, loss: Tensor) -> None:
        """Count one image at its stored size, on any device.

        Args:
            prediction: (H, W), metres.
            target: (H, W), metres; what is not within the depth range, or NaN, does not count.
            loss: Its loss, a scalar.
        """
        self._computed = None
        rows, columns = crop_window(self.crop, *(int(side) for side in target.shape))
        prediction, target = prediction[rows, columns], target[rows, columns]
        counted = (target > self.near) & (target < self.far)  # in its own type: 0.001 of 32 bits is more than 0.001
        prediction, target = _widen(prediction), _widen(target)
        prediction, target = (torch.where(counted, x, 1) for x in (prediction, target))
        found = [prediction, *(align(prediction, target, counted, each) for each in self.alignments)]
        sums = [error_sums(each.clamp(self.near, self.far), target, counted) for each in found]
        self._rows.append(torch.cat([_widen(loss).reshape(1), *sums]))

    def compute(self) -> dict[str, Tensor]:
        """Return all metrics, over all processes: float64, on the CPU.

        Raises:
            TrainingError: No pixel was counted.
        """
        if self._computed is None:
            loss, sums = self._gather()
            tables = {"image": errors_of(sums).mean(0), "pixel": errors_of(sums.sum(0))}  # (1 + alignments, 9) each
            errors = {
                f"{average}/{name}": value
                for average, table in tables.items()
                for name, value in zip(self._error_names(), table.flatten().unbind(), strict=True)
            }
            score = errors[f"image/delta1/{self.alignments[0]}" if self.relative else "image/delta1"]
            self._computed = {"loss": loss.mean(), "score": score, **errors}
        return dict(self._computed)

    def names(self) -> list[str]:
        """Return the names of what `compute` returns."""
        every = self._error_names()
        return ["loss", "score", *(f"{average}/{name}" for average in ("image", "pixel") for name in every)]

    def _error_names(self) -> list[str]:
        """Return the names of all errors, aligned ones last."""
        return [*NAMES, *(f"{name}/{each}" for each in self.alignments for name in NAMES)]

    def _gather(self) -> tuple[Tensor, Tensor]:
        """Return the loss (N,) and the sums (N, 1 + alignments, SUMS) of the images with a pixel, of all processes.

        They come in the order in which images were dealt, so that their sum does not depend on the number of processes.

        Raises:
            TrainingError: There is none.
        """
        width = 1 + SUMS * (1 + len(self.alignments))
        own = torch.stack(self._rows).cpu().double() if self._rows else torch.empty(0, width, dtype=torch.float64)
        shares = gather_rows(own.numpy())
        place = np.concatenate([np.arange(len(share)) * len(shares) + rank for rank, share in enumerate(shares)])
        rows = torch.from_numpy(np.concatenate(shares)[np.argsort(place, kind="stable")])
        rows = rows[rows[:, 1] > 0]
        if not len(rows):
            raise TrainingError(
                f"not one pixel was counted: no depth map that was looked at has a reading between {self.near} m and "
                f"{self.far} m{f' inside the crop {self.crop}' if self.crop else ''}: is its unit right?"
            )
        return rows[:, 0], rows[:, 1:].reshape(len(rows), -1, SUMS)
