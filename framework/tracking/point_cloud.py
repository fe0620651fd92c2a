"""Point clouds: depth, its image and the camera's intrinsics as a PLY file.

A pixel in column `u` and row `v` has its centre at `(u, v)`, so that the first one's is at (0, 0), as OpenCV, and the
calibrations of NYUv2, TUM, KITTI and Middlebury, have it.
"""

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from framework.errors import ConfigError
from framework.tracking.drawing import Picture

POINT = np.dtype([(axis, "<f4") for axis in "xyz"] + [(colour, "u1") for colour in ("red", "green", "blue")])
HEADER = """ply
format binary_little_endian 1.0
comment metres in the camera's axes: x right, y down, z forward
element vertex {count}
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
end_header
"""


def write_ply(
    path: str | PathLike[str], depth: Tensor | NDArray[Any], image: Picture, intrinsics: Tensor | NDArray[Any]
) -> int:
    """Write a point cloud as a binary PLY file; see `points_of` for what it takes and raises.

    Returns:
        How many points there are.
    """
    points = points_of(depth, image, intrinsics)
    Path(path).write_bytes(_ply(points))
    return len(points)


def point_cloud(depth: Tensor | NDArray[Any], image: Picture, intrinsics: Tensor | NDArray[Any]) -> bytes:
    """Return the content of a binary PLY file; see `points_of` for what it takes and raises."""
    return _ply(points_of(depth, image, intrinsics))


def points_of(depth: Tensor | NDArray[Any], image: Picture, intrinsics: Tensor | NDArray[Any]) -> NDArray[Any]:
    """Return the points of a depth map with their colours, in the camera's axes: x right, y down, z forward.

    Args:
        depth: (H, W), in metres along the optical axis; what is not finite or not above 0 gives no point.
        image: (H, W, 3) uint8.
        intrinsics: (3, 3), in pixels of a picture of this size: `[[fx, skew, cx], [0, fy, cy], [0, 0, 1]]`.

    Returns:
        (N,) records of x, y, z in metres, float32, and red, green, blue, uint8, row by row.

    Raises:
        ConfigError: `intrinsics` is of no camera.
        ValueError: Depth and image are not (H, W) and (H, W, 3) of one size.
    """
    metres, camera = _array(depth), check_intrinsics(intrinsics)
    if metres.ndim != 2 or image.shape != (*metres.shape, 3) or image.dtype != np.uint8:
        raise ValueError(f"a cloud needs depth (H, W) and an image (H, W, 3) uint8, got {metres.shape}, {image.shape}")
    rows, columns = np.nonzero(np.isfinite(metres) & (metres > 0))
    z = metres[rows, columns]
    y = (rows - camera[1, 2]) / camera[1, 1]
    x = (columns - camera[0, 2] - camera[0, 1] * y) / camera[0, 0]
    points = np.empty(len(z), POINT)
    points["x"], points["y"], points["z"] = x * z, y * z, z
    for channel, name in enumerate(("red", "green", "blue")):
        points[name] = image[rows, columns, channel]
    return points


def scale_intrinsics(
    intrinsics: Tensor | NDArray[Any], size: tuple[int, int], new_size: tuple[int, int]
) -> NDArray[np.float64]:
    """Return the intrinsics (3, 3) of a picture that was resized as a whole.

    Args:
        intrinsics: (3, 3), of the picture at its size.
        size: Its (height, width).
        new_size: The (height, width) to which it was resized: its borders stay where they are, not the centres of its
            corner pixels.

    Raises:
        ConfigError: `intrinsics` is of no camera.
    """
    (height, width), (new_height, new_width) = size, new_size
    scale = np.diag([new_width / width, new_height / height, 1.0])
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # from the first pixel's centre to its corner
    return np.asarray(np.linalg.inv(half) @ scale @ half @ check_intrinsics(intrinsics))


def check_intrinsics(intrinsics: Tensor | NDArray[Any]) -> NDArray[np.float64]:
    """Return intrinsics as an array (3, 3).

    Raises:
        ConfigError: They are of no camera.
    """
    camera = _array(intrinsics)
    whole = camera.shape == (3, 3) and bool(np.isfinite(camera).all())
    if not whole or camera[0, 0] <= 0 or camera[1, 1] <= 0 or camera[1, 0] or camera[2].tolist() != [0, 0, 1]:
        raise ConfigError(
            "intrinsics are [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], in pixels, with fx and fy above 0, not "
            f"{camera.tolist()}"
        )
    return camera


def _array(values: Tensor | NDArray[Any]) -> NDArray[np.float64]:
    """Return an array, or a tensor on whatever device, as an array."""
    return np.asarray(values.detach().double().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)


def _ply(points: NDArray[Any]) -> bytes:
    """Return points as the content of a binary little-endian PLY file."""
    return HEADER.format(count=len(points)).encode("ascii") + points.tobytes()
