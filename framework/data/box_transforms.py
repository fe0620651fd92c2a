"""Geometric augmentation of images with boxes, in the workers, and the one way that evaluation shows an image.

Boxes of a crop are computed by arithmetic, unclipped, because torchvision's kernels clip them as they crop, and nothing
is left to tell how much of an object is still to be seen.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from framework.boxes import Size, scale_boxes
from framework.data.fit import Fit, pad_to_size
from framework.data.loader import Sample
from framework.data.transforms import Photometric
from framework.errors import DataError
from framework.preprocessing import resize_image

MIN_SIDE = 1.0  # pixels of what is shown, below which nothing is left to learn from


class View(NamedTuple):
    """What a network is shown of one image.

    Args:
        image: (C, H, W), uint8, or float in [0, 1].
        boxes: Float (N, 4), x1, y1, x2, y2 in pixels of `image`.
        labels: Long (N,), class indices.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor

    @property
    def size(self) -> Size:
        """Height and width."""
        return int(self.image.shape[-2]), int(self.image.shape[-1])


Viewer = Callable[[Sample], View]
"""What makes a picture to train on of a sample; boxes and labels lie in it."""


class Window(NamedTuple):
    """A part of an image, in whole pixels of it."""

    top: int
    left: int
    height: int
    width: int


def counted_objects(sample: Sample) -> tuple[Tensor, Tensor]:
    """Return the boxes (N, 4), in pixels of the image as stored, and labels (N,) of all objects not to be ignored."""
    kept = ~sample["ignored"]
    return sample["boxes"].as_subclass(Tensor)[kept], sample["labels"][kept]


def cut_boxes(boxes: Tensor, window: Window, size: Size) -> Tensor:
    """Return where boxes (N, 4) lie once a window of their image is cut out and brought to `size`; none is clipped."""
    corner = boxes.new_tensor([window.left, window.top, window.left, window.top])
    return scale_boxes(boxes - corner, (window.height, window.width), size)


def flip_boxes(boxes: Tensor, size: Size, horizontal: bool, vertical: bool) -> Tensor:
    """Return where boxes (N, 4) lie once their image of `size` is flipped left to right, top down, or both."""
    left, top, right, bottom = boxes.unbind(1)
    if horizontal:
        left, right = size[1] - right, size[1] - left
    if vertical:
        top, bottom = size[0] - bottom, size[0] - top
    return torch.stack([left, top, right, bottom], dim=1)


def clip_boxes(boxes: Tensor, size: Size) -> Tensor:
    """Return boxes (N, 4) without what lies outside an image of `size`."""
    return boxes.clamp(min=0).minimum(boxes.new_tensor([size[1], size[0], size[1], size[0]]))


def clip_objects(view: View, min_visibility: float) -> View:
    """Clip boxes to their image, and drop objects of which too little is left, together with their labels.

    Args:
        view: Boxes may reach beyond the image.
        min_visibility: Share of its box that an object shows at least, in [0, 1]. One of which less than a pixel a side
            is left goes in any case.
    """
    clipped = clip_boxes(view.boxes, view.size)
    sides, whole = clipped[:, 2:] - clipped[:, :2], view.boxes[:, 2:] - view.boxes[:, :2]
    kept = (sides >= MIN_SIDE).all(1) & (sides.prod(1) >= min_visibility * whole.prod(1))
    return View(view.image, clipped[kept], view.labels[kept])


class RandomView:
    """Show a random part of an image at a random scale, perhaps flipped: one resize, of no more than what is kept.

    Args:
        fit: The size at which evaluation shows an image; scale 1 is that size.
        scale: Smallest and largest scale, drawn log-uniformly.
        hflip: Probability of a left-right flip.
        vflip: Probability of a top-down flip.
        min_visibility: Share of its box that an object shows at least; others are dropped.
        crop: Height and width of the view; where the image is smaller, so is the view. None: the whole image.
    """

    def __init__(
        self,
        fit: Fit,
        scale: tuple[float, float] = (1.0, 1.0),
        hflip: float = 0.0,
        vflip: float = 0.0,
        min_visibility: float = 0.0,
        crop: Size | None = None,
    ) -> None:
        self.fit, self.scale, self.hflip, self.vflip = fit, scale, hflip, vflip
        self.min_visibility, self.crop = min_visibility, crop

    def __call__(self, sample: Sample) -> View:
        """Draw one view."""
        return self.cut(sample, self.crop)

    def cut(self, sample: Sample, crop: Size | None, cover: bool = False) -> View:
        """Draw one view of any size.

        Args:
            sample: Its image may have been decoded smaller than stored; its boxes are in pixels of the stored one.
            crop: Height and width of the view; where the image is smaller, so is the view. None: the whole image.
            cover: Enlarge an image that is smaller than `crop` until it fills it.
        """
        image, original = sample["image"].as_subclass(Tensor), sample["original_size"]
        decoded = (int(image.shape[-2]), int(image.shape[-1]))
        target = self._draw_size(original, crop if cover else None)
        size = target if crop is None else (min(crop[0], target[0]), min(crop[1], target[1]))
        window = draw_window(decoded, target, size)
        boxes, labels = counted_objects(sample)
        view = View(
            tv.resized_crop(image, *window, size=list(size), antialias=True),
            cut_boxes(scale_boxes(boxes, original, decoded), window, size),
            labels,
        )
        return clip_objects(self._flip(view), self.min_visibility)

    def _draw_size(self, original: Size, covered: Size | None) -> Size:
        """Draw the (height, width) of the whole image at a random scale."""
        low, high = math.log(self.scale[0]), math.log(self.scale[1])
        scale = math.exp(low + (high - low) * torch.rand(()).item())
        height, width = (side * scale for side in self.fit.size(original))
        if covered is not None:
            enlarged = max(1.0, covered[0] / height, covered[1] / width)
            return max(covered[0], round(height * enlarged)), max(covered[1], round(width * enlarged))
        return max(1, round(height)), max(1, round(width))

    def _flip(self, view: View) -> View:
        horizontal, vertical = (torch.rand(2) < torch.tensor([self.hflip, self.vflip])).tolist()
        axes = [axis for axis, flipped in ((-1, horizontal), (-2, vertical)) if flipped]
        if not axes:
            return view
        return View(view.image.flip(axes), flip_boxes(view.boxes, view.size, horizontal, vertical), view.labels)


def draw_window(image: Size, target: Size, size: Size) -> Window:
    """Draw the part of an image that becomes a view of `size` once the whole would be of size `target`.

    Args:
        image: Height and width of the image as decoded.
        target: Height and width to which the whole would be brought.
        size: Height and width of the view, no more than `target`.
    """
    height, width = (max(1, round(side * part / whole)) for side, part, whole in zip(image, size, target, strict=True))
    top, left = (
        int(torch.randint(0, side - part + 1, ()).item()) for side, part in zip(image, (height, width), strict=True)
    )
    return Window(top, left, height, width)


class GivenView:
    """Show an image as evaluation does, changed by a user's own torchvision transforms.

    Args:
        fit: The size at which evaluation shows an image.
        transforms: They get `image`, `boxes` and `labels`.
    """

    def __init__(self, fit: Fit, transforms: Sequence[v2.Transform]) -> None:
        self.fit, self.transforms = fit, v2.Compose(list(transforms)) if transforms else None

    def __call__(self, sample: Sample) -> View:
        """Transform one sample; what lies outside of the image afterwards is clipped and dropped.

        Raises:
            DataError: The transforms dropped boxes and kept their labels.
        """
        size = self.fit.size(sample["original_size"])
        boxes, labels = counted_objects(sample)
        boxes = scale_boxes(boxes, sample["original_size"], size)
        given = {
            "image": tv_tensors.Image(resize_image(sample["image"].as_subclass(Tensor), size)),
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": labels,
        }
        if self.transforms is not None:
            given = self.transforms(given)
        if isinstance(given["boxes"], tv_tensors.BoundingBoxes):  # ConvertBoundingBoxFormat is a transform, too
            xyxy = tv_tensors.BoundingBoxFormat.XYXY
            given["boxes"] = tv.convert_bounding_box_format(given["boxes"], new_format=xyxy)
        if len(given["boxes"]) != len(given["labels"]):
            raise DataError(
                f"data.train_transforms: {len(given['boxes'])} boxes are left of {sample['id']}, and "
                f"{len(given['labels'])} labels: a transform that drops boxes drops their labels too, as "
                "SanitizeBoundingBoxes does"
            )
        return clip_objects(View(*(given[name].as_subclass(Tensor) for name in View._fields)), 0.0)


class BoxTrainTransform:
    """Make the picture of one training sample, and draw its photometric factors.

    Args:
        view: What makes the picture.
        canvas: Height and width up to which smaller pictures are padded; None: as they are.
        photometric: Brightness, contrast and saturation, applied on the device; None: none.
    """

    def __init__(self, view: Viewer, canvas: Size | None, photometric: Photometric | None) -> None:
        self.view, self.canvas, self.photometric = view, canvas, photometric

    def __call__(self, sample: Sample) -> Sample:
        """Return `image`, `boxes`, `labels`, `size`, the (height, width) that the picture fills, and what names it."""
        view = self.view(sample)
        image = view.image if self.canvas is None else pad_to_size(view.image, self.canvas)
        kept = {name: sample[name] for name in ("id", "original_size")}
        out = {**kept, "image": image, "boxes": view.boxes, "labels": view.labels, "size": view.size}
        return out if self.photometric is None else {**out, "photometric": self.photometric.draw()}


class BoxEvalTransform:
    """Show the image alone as the network will see it: targets stay in pixels of the image as stored.

    Args:
        fit: How large it is shown.
    """

    def __init__(self, fit: Fit) -> None:
        self.fit = fit

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample; adds `size`, the image's (height, width), and `canvas`, that of the tensor it lies in."""
        size = self.fit.size(sample["original_size"])
        canvas = self.fit.canvas(size)
        image = pad_to_size(resize_image(sample["image"].as_subclass(Tensor), size), canvas)
        plain = {name: value.as_subclass(Tensor) for name, value in sample.items() if isinstance(value, Tensor)}
        return {**sample, **plain, "image": image, "size": size, "canvas": canvas}
