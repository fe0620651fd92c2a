"""What the depth of a sample has to be, as read and as the network gets it."""

from typing import Any

import torch
from torch import Tensor

from framework.data.loader import Sample
from framework.data.transforms import DepthMap


def is_of_depth(data: Any) -> bool:
    """Tell data with depth from others."""
    return "Depth" in getattr(data, "tasks", ())


def wrong_depth(sample: Sample) -> list[str]:
    """Say what is wrong with the depth, and the camera, of a sample as read."""
    depth, size, matrix = sample.get("depth"), sample.get("original_size"), sample.get("intrinsics")
    if not isinstance(depth, DepthMap) or depth.dtype != torch.float32:
        return [f"depth is {type(depth).__name__} {getattr(depth, 'dtype', '')}, no float32 DepthMap"]
    wrong = [] if tuple(depth.shape) == size else [f"depth is {tuple(depth.shape)}, its image {size} as stored"]
    plain = depth.as_subclass(Tensor)
    if not torch.isfinite(plain).all() or (plain < 0).any():
        wrong.append("depth is negative, NaN or infinite somewhere, where 0 says that there is no reading")
    if matrix is not None and not (
        isinstance(matrix, Tensor) and matrix.dtype == torch.float32 and matrix.shape == (3, 3)
    ):
        wrong.append(f"intrinsics is {type(matrix).__name__}, no float32 tensor (3, 3)")
    return wrong


def wrong_shown_depth(sample: Sample, size: tuple[int, ...], depth_range: tuple[float, float]) -> list[str]:
    """Say what is wrong with the depth of a sample as the network gets it.

    Args:
        sample: The sample.
        size: Height and width that its depth should have.
        depth_range: Smallest and largest depth that counts.
    """
    depth = sample.get("depth")
    if not isinstance(depth, Tensor) or depth.dtype != torch.float32 or tuple(depth.shape) != tuple(size):
        shown = f"{depth.dtype} {tuple(depth.shape)}" if isinstance(depth, Tensor) else type(depth).__name__
        return [f"depth is {shown}, no float32 {tuple(size)}"]
    plain = depth.as_subclass(Tensor)
    inside = (plain >= depth_range[0]) & (plain <= depth_range[1])
    return [] if (inside | (plain == 0)).all() else [f"depth is neither 0 nor in depth_range {list(depth_range)}"]
