"""Geometric augmentation in the workers (torchvision v2 on tv_tensors), photometric augmentation on the device."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from framework.data.loader import Sample
from framework.preprocessing import fit_shorter_side, resize_image, to_unit


class DepthMap(tv_tensors.Mask):
    """Depth (H, W) in metres, 0 unknown: moved like a mask, but filled with 0 where a mask is filled with a class."""


@tv.register_kernel(functional="resize", tv_tensor_cls=DepthMap)  # type: ignore[untyped-decorator]
def _resize_depth(depth: DepthMap, size: list[int] | None, max_size: int | None = None, **_: Any) -> DepthMap:
    """Resize depth (..., H, W) without mixing what is near with what is far: each pixel takes one reading.

    It is that at its own centre; `nearest`, which masks get, takes one at the upper left, half a reading off.
    """
    plain = depth.as_subclass(Tensor)
    meta = torch.empty(plain.shape, device="meta")
    height, width = tv.resize_mask(meta, size, max_size=max_size).shape[-2:]  # torchvision's rule for one number
    maps = plain.reshape(1, -1, *plain.shape[-2:])
    resized = F.interpolate(maps, size=(height, width), mode="nearest-exact")
    return DepthMap(resized.reshape(*plain.shape[:-2], height, width))


@tv.register_kernel(functional="resized_crop", tv_tensor_cls=DepthMap)  # type: ignore[untyped-decorator]
def _resize_cropped_depth(
    depth: DepthMap, top: int, left: int, height: int, width: int, size: list[int], **_: Any
) -> DepthMap:
    """Cut a window from depth (..., H, W) and resize it likewise."""
    cut = tv.crop_mask(depth.as_subclass(Tensor), top, left, height, width)
    resized: DepthMap = _resize_depth(DepthMap(cut), size)
    return resized


class RandomScaleCrop(v2.Transform):
    """Cut a window of random scale and bring it to `size`: one resize, of no more than what is kept.

    A scale of 2 shows the image at twice its size. Where the window is larger than the image, images are filled
    with 0 and masks with the ignore index.

    Args:
        size: Height and width of what comes out; one number for a square.
        scale: Smallest and largest scale, drawn log-uniformly.
    """

    def __init__(self, size: int | tuple[int, int], scale: tuple[float, float] = (0.75, 1.5)) -> None:
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be positive and rising, got {scale}")
        self.scale = scale
        self.fill: Any = 0
        self._fill: dict[Any, Any] = {"others": 0}

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the scale and place of the window."""
        height, width = tv.get_size(next(x for x in flat_inputs if isinstance(x, tv_tensors.Image)))
        low, high = math.log(self.scale[0]), math.log(self.scale[1])
        scale = math.exp(low + (high - low) * torch.rand(()).item())
        window = [max(1, round(side / scale)) for side in self.size]
        slack = [window[0] - height, window[1] - width]  # positive: the window is larger than the image
        place = [int(torch.randint(0, abs(extra) + 1, ()).item()) for extra in slack]
        before = [offset if extra > 0 else 0 for offset, extra in zip(place, slack, strict=True)]
        after = [extra - offset if extra > 0 else 0 for offset, extra in zip(place, slack, strict=True)]
        corner = [0 if extra > 0 else offset for offset, extra in zip(place, slack, strict=True)]
        padding = [before[1], before[0], after[1], after[0]]
        return {"padding": padding, "corner": corner, "window": window, "scale": scale}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pad, crop and resize one image, mask or set of boxes."""
        if any(params["padding"]):
            fill = self._fill.get(type(inpt), self._fill["others"])
            inpt = self._call_kernel(tv.pad, inpt, padding=params["padding"], fill=fill)
        (top, left), (height, width) = params["corner"], params["window"]
        return self._call_kernel(tv.resized_crop, inpt, top, left, height, width, size=list(self.size), antialias=True)


def fill_masks(transforms: Sequence[v2.Transform], fill: int, kind: type[tv_tensors.Mask] = tv_tensors.Mask) -> None:
    """Make every transform that pads or rotates fill masks of a kind with `fill`.

    Of masks of classes that is the ignore index, where 0 would be a class; of depth it is 0, whatever images get.
    """
    for transform in transforms:
        fill_masks(getattr(transform, "transforms", ()), fill, kind)  # what Compose and its kin contain
        if isinstance(getattr(transform, "_fill", None), dict):
            transform._fill = {**transform._fill, kind: fill}


class Photometric:
    """Brightness, contrast and saturation, drawn per sample in the worker and applied to the batch on the device.

    Args:
        brightness: Images are multiplied with a factor in [1 - brightness, 1 + brightness].
        contrast: Likewise, about the image's mean luminance.
        saturation: Likewise, about each pixel's luminance; only three-channel images have it.
    """

    LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601

    def __init__(self, brightness: float = 0.2, contrast: float = 0.2, saturation: float = 0.2) -> None:
        for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        self.spread = torch.tensor([brightness, contrast, saturation])

    def draw(self) -> Tensor:
        """Draw one sample's factors, float (3,)."""
        return 1 + self.spread * (2 * torch.rand(3) - 1)

    @classmethod
    def apply(cls, images: Tensor, factors: Tensor) -> Tensor:
        """Change images (B, C, H, W), uint8 or float in [0, 1], by factors (B, 3); returns floats in [0, 1]."""
        brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
        images = to_unit(images) * brightness
        colour = images.shape[1] == 3
        weights = cls.LUMINANCE if colour else [1 / images.shape[1]] * images.shape[1]
        luminance = (images * images.new_tensor(weights).view(-1, 1, 1)).sum(1, keepdim=True)
        mean = luminance.mean((2, 3), keepdim=True)
        images = mean + contrast * (images - mean)
        if colour:
            grey = mean + contrast * (luminance - mean)
            images = grey + saturation * (images - grey)
        return images.clamp_(0, 1)


class TrainTransform:
    """Resize, augment, and draw the photometric factors of one training sample."""

    def __init__(self, resize: int | None, transforms: Sequence[v2.Transform], photometric: Photometric | None) -> None:
        self.resize, self.photometric = resize, photometric
        self.augment = v2.Compose(list(transforms)) if transforms else None

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample whose images and targets are tv_tensors."""
        if self.resize is not None:
            size = fit_shorter_side(sample["original_size"], self.resize)
            sample = v2.Resize(list(size), antialias=True)(sample)
        if self.augment is not None:
            sample = self.augment(sample)
        if self.photometric is not None:
            sample["photometric"] = self.photometric.draw()
        return sample


class EvalTransform:
    """Resize the image alone: targets stay as stored, and predictions are brought to their size."""

    def __init__(self, resize: int | None) -> None:
        self.resize = resize

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample and add `size`, its image's (height, width) as the network sees it."""
        original = sample["original_size"]
        size = original if self.resize is None else fit_shorter_side(original, self.resize)
        return {**sample, "image": resize_image(sample["image"], size), "size": size}
