"""Boxes: what there is to find in an image, what was found, and where the images lie."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

Size = tuple[int, int]
"""Height and width, in pixels."""


class Frame(NamedTuple):
    """Where the images of a batch lie: each in the upper left corner of one padded canvas.

    Args:
        canvas: Size of what the backbone saw, padding included.
        sizes: Size of each image in it.
    """

    canvas: Size
    sizes: Sequence[Size]


class Objects(NamedTuple):
    """What there is to find in one image.

    Args:
        boxes: Float (N, 4), x1, y1, x2, y2 in pixels of the canvas; x1 < x2 and y1 < y2.
        labels: Long (N,), class indices from 0; no index is the background.
    """

    boxes: Tensor
    labels: Tensor


class Detections(NamedTuple):
    """What was found in one image, best first.

    Args:
        boxes: Float (N, 4), x1, y1, x2, y2 in pixels, inside the image.
        scores: Float (N,), in [0, 1].
        labels: Long (N,), class indices from 0.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def best_detections(
    boxes: Tensor, scores: Tensor, labels: Tensor, size: Size, iou_threshold: float, at_most: int
) -> Detections:
    """Clip candidates to their image, suppress the lesser of two of one class that overlap, and keep the best.

    What lies beside the image, in padding, has no area when clipped, and is dropped.

    Args:
        boxes: Float (N, 4), x1, y1, x2, y2 in pixels.
        scores: Float (N,).
        labels: Long (N,).
        size: Of the image.
        iou_threshold: Two boxes of one class that overlap by more than this are one object.
        at_most: How many are kept.
    """
    boxes = clip_boxes_to_image(boxes, list(size))
    inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    boxes, scores, labels = boxes[inside], scores[inside], labels[inside]
    kept = batched_nms(boxes.float(), scores.float(), labels, iou_threshold)[:at_most]
    return Detections(boxes[kept], scores[kept], labels[kept])


def scale_boxes(boxes: Tensor, size: Size, target: Size) -> Tensor:
    """Bring boxes (N, 4), x1, y1, x2, y2 in pixels, from an image of `size` to one of `target`."""
    if tuple(size) == tuple(target):
        return boxes
    vertical, horizontal = (new / old for old, new in zip(size, target, strict=True))
    return boxes * boxes.new_tensor([horizontal, vertical, horizontal, vertical])
