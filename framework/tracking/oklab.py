"""OKLab: colours as lightness and two opponent axes, in which equal distances look equal.

Ottosson, A perceptual color space for image processing, 2020, https://bottosson.github.io/posts/oklab.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
AXES = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def linear_rgb(colours: NDArray[Any]) -> NDArray[np.float64]:
    """Return linear RGB in [0, 1] of sRGB in [0, 255], (..., 3)."""
    values = np.asarray(colours, dtype=np.float64) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def oklab(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return lightness, in [0, 1], and two opponent axes of linear RGB in [0, 1], (..., 3)."""
    return np.asarray(np.cbrt(linear @ CONES.T) @ AXES.T)


def srgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sRGB in [0, 255], not rounded, of OKLab (..., 3); what no screen can show is cut off."""
    linear = np.clip((lab @ np.linalg.inv(AXES).T) ** 3 @ np.linalg.inv(CONES).T, 0, 1)
    return np.asarray(255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))
