"""What is done to images with depth in the workers: crops that heed the camera, and the range of depths that count."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from framework.data.loader import Sample
from framework.data.transforms import DepthMap, EvalTransform, Photometric, RandomScaleCrop, TrainTransform


class DepthScaleCrop(RandomScaleCrop):
    """Cut a window of random scale, as RandomScaleCrop does, and divide its depths by that scale if asked to.

    Args:
        size: Height and width of what comes out; one number for a square.
        scale: Smallest and largest scale, drawn log-uniformly.
        divide_depth: Divide depths by the scale that was drawn: what is shown twice as large is half as far from a
            camera of the same focal length. Else they stay, as if the focal length had changed with the scale.
    """

    def __init__(
        self, size: int | tuple[int, int], scale: tuple[float, float] = (1.0, 1.0), divide_depth: bool = False
    ) -> None:
        super().__init__(size, scale)
        self.divide_depth = divide_depth

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pad, crop and resize one image or target."""
        moved = super().transform(inpt, params)
        if self.divide_depth and isinstance(moved, DepthMap):
            moved = tv_tensors.wrap(moved.as_subclass(Tensor) / params["scale"], like=moved)
        return moved


def keep_readings(depth: Tensor, depth_range: tuple[float, float]) -> DepthMap:
    """Return depth with 0 where there is no reading, or none within the range, both ends included."""
    plain = depth.as_subclass(Tensor)
    counts = (plain >= depth_range[0]) & (plain <= depth_range[1])  # false for NaN
    return DepthMap(torch.where(counts, plain, plain.new_zeros(())))


class DepthTrainTransform(TrainTransform):
    """Resize and augment one training sample, and leave only depths within the range in it.

    Args:
        resize: Shorter side; None: as stored.
        transforms: Augmentation.
        photometric: What is changed on the device; None: nothing.
        depth_range: Smallest and largest depth in metres, once it is augmented.
    """

    def __init__(
        self,
        resize: int | None,
        transforms: Sequence[v2.Transform],
        photometric: Photometric | None,
        depth_range: tuple[float, float],
    ) -> None:
        super().__init__(resize, transforms, photometric)
        self.depth_range = depth_range

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample; its intrinsics, which a crop or flip would make wrong, are left out."""
        sample = super().__call__({name: value for name, value in sample.items() if name != "intrinsics"})
        return {**sample, "depth": keep_readings(sample["depth"], self.depth_range)}


class DepthEvalTransform(EvalTransform):
    """Resize the image alone; depth stays as stored, of which only what is within the range is left.

    Args:
        resize: Shorter side; None: as stored.
        depth_range: Smallest and largest depth in metres.
    """

    def __init__(self, resize: int | None, depth_range: tuple[float, float]) -> None:
        super().__init__(resize)
        self.depth_range = depth_range

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample, with depth or, as in prediction, without."""
        sample = super().__call__(sample)
        return sample if "depth" not in sample else sample | {"depth": keep_readings(sample["depth"], self.depth_range)}
