"""Pictures of depth: metres on one scale for all images and epochs, and by how much a prediction is off.

Depth is shown as the logarithm of `depth + far / 10`. A camera sees nearby things finely and distant ones coarsely, so
that equal steps in metres would spend most colours where nothing can be told apart; but by the plain logarithm, or by
disparity, a range such as 1 mm to 10 m would spend most of them on the first centimetres, where nothing is. So the
scale is nearly linear up to a tenth of the range, and nearly logarithmic from there on.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from framework.tracking.colour_scale import BLUSH, EMBER, WIDTH, colour_values, scale_bar
from framework.tracking.drawing import HATCH, Picture, hatch

SOFT = 0.1  # share of the farthest depth that is added before the logarithm is taken
SPARSE, SPREAD = 0.2, 5  # fewer readings than this share are drawn as blots, of so many pixels a side
WORST = 0.5  # relative error from which on the colour stays the same


def colour_depth(depth: Tensor | NDArray[Any], depth_range: tuple[float, float], unknown: float = 0.0) -> Picture:
    """Colour depth, near ones light, far ones dark; hatch what has no reading.

    Where hardly a pixel has one, as of a laser scanner, readings are drawn as blots of 5 x 5 pixels, or they could not
    be seen in a sheet; the nearest lies above the others.

    Args:
        depth: (H, W), in metres.
        depth_range: Nearest and farthest depth of the scale, in metres; what lies beyond has the colour of that end.
        unknown: Stands for no reading, as does what is not finite or not above 0.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: `depth` is not (H, W), or `depth_range` does not rise from 0 or more.
    """
    metres = _map(depth)
    known = np.isfinite(metres) & (metres > 0) & (metres != unknown)
    metres, known = _blots(metres, known)
    return hatch(colour_values(_share(metres, depth_range), EMBER), ~known)


def depth_error_map(
    prediction: Tensor | NDArray[Any], target: Tensor | NDArray[Any], worst: float = WORST, unknown: float = 0.0
) -> Picture:
    """Colour the relative error `|prediction - target| / target`: light is right, dark red is off by half or more.

    Few readings are drawn as blots, as by `colour_depth`; the least error lies above the others.

    Args:
        prediction: (H, W), in metres.
        target: (H, W), in metres; hatched where it has no reading.
        worst: Error at the end of the scale.
        unknown: Stands for no reading, as does what is not finite or not above 0.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: They are not (H, W) of one size.
    """
    predicted, true = _map(prediction), _map(target)
    if predicted.shape != true.shape:
        raise ValueError(f"a prediction {predicted.shape} and a target {true.shape} are not of one size")
    known = np.isfinite(true) & (true > 0) & (true != unknown)
    error = np.abs(predicted - np.where(known, true, 1)) / np.where(known, true, 1)
    error, known = _blots(np.where(np.isnan(error), worst, np.minimum(error, worst)), known)
    return hatch(colour_values(error / worst, BLUSH), ~known)


def depth_bar(depth_range: tuple[float, float], width: int = WIDTH) -> Picture:
    """Draw the scale of `colour_depth` with ticks at round metres, (H, width, 3) uint8."""
    near, far = depth_range
    tens = [10.0**power for power in range(5, -5, -1)]
    round_ones = [figure * ten for figure in (1, 5, 2, 3, 7) for ten in tens]
    ticks = [(metres, f"{metres:g}") for metres in (far, near, *round_ones) if near <= metres <= far]
    return scale_bar(EMBER, ticks, lambda metres: float(_share(metres, depth_range)), width)


def error_bar(worst: float = WORST, width: int = WIDTH) -> Picture:
    """Draw the scale of `depth_error_map` in percent, (H, width, 3) uint8."""
    ticks = [(0.0, "0 %"), (worst, f"{100 * worst:g} % or more"), (worst / 2, f"{50 * worst:g} %")]
    return scale_bar(BLUSH, ticks, lambda error: error / worst, width)


def depth_legend(depth_range: tuple[float, float]) -> list[tuple[str, Any]]:
    """Return what the colours of a row of depth pictures mean, for `contact_sheet`."""
    return [
        ("depth in metres", depth_bar(depth_range)),
        ("relative error", error_bar()),
        ("hatched: no reading", HATCH),
    ]


def _map(values: Tensor | NDArray[Any]) -> NDArray[np.float32]:
    """Return a map (H, W), array or tensor on whatever device, as an array."""
    array = values.detach().float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float32)
    if array.ndim != 2:
        raise ValueError(f"a depth map is (H, W), got {array.shape}")
    return np.asarray(array)


def _blots(values: NDArray[Any], known: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Spread values (H, W) over unknown pixels beside them, the least first, if few are known; unknown ones are 0."""
    if known.mean() < SPARSE:
        padded = np.pad(np.where(known, values, np.inf), SPREAD // 2, constant_values=np.inf)
        least = np.lib.stride_tricks.sliding_window_view(padded, (SPREAD, SPREAD)).min((-2, -1))
        values, known = np.where(known, values, least), np.isfinite(least)
    return np.where(known, values, 0), known


def _share(metres: Any, depth_range: tuple[float, float]) -> NDArray[np.float64]:
    """Return where on the scale depths lie: 0 at the nearest, 1 at the farthest."""
    near, far = depth_range
    if not 0 <= near < far:
        raise ValueError(f"a range of depths rises from 0 or more, got {near:g} to {far:g} m")
    soft = SOFT * far
    heights = np.log(np.clip(metres, near, far) + soft)
    return np.asarray((heights - np.log(near + soft)) / np.log((far + soft) / (near + soft)))
