"""Images of bright rectangles on black, one channel each, whose boxes can be found again from the pixels."""

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tv

from framework.data.detection import DetectionData

EACH = 3  # rectangles of an image


class Rectangles:
    """Images of three rectangles, which may overlap; the label of a rectangle is the channel that shows it."""

    def __init__(self, count=4, size=(90, 120), seed=0, shrink=1):
        self.count, self.size, self.seed, self.shrink = count, size, seed, shrink
        self.was_read = []

    def __len__(self):
        return self.count

    def boxes(self, index):
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        height, width = self.size
        corners = torch.rand(EACH, 2, generator=generator) * torch.tensor([width, height]) * 0.7
        sides = (0.08 + 0.2 * torch.rand(EACH, 2, generator=generator)) * torch.tensor([width, height])
        return torch.cat([corners, corners + sides], dim=1).div(self.shrink).round() * self.shrink

    def read(self, index):
        self.was_read.append(index)
        boxes, labels = self.boxes(index), torch.arange(EACH) + EACH * index
        image = torch.zeros(EACH * self.count, *self.size, dtype=torch.uint8)
        for label, (x1, y1, x2, y2) in zip(labels.tolist(), boxes.int().tolist(), strict=True):
            image[label, y1:y2, x1:x2] = 255
        if self.shrink > 1:  # as a JPEG is decoded at a fraction
            image = tv.resize(image, [-(-side // self.shrink) for side in self.size], antialias=True)
        return {
            "image": tv_tensors.Image(image),
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=self.size),
            "labels": labels,
            "ignored": torch.zeros(EACH, dtype=torch.bool),
            "area": (boxes[:, 2:] - boxes[:, :2]).prod(1),
            "id": str(index),
            "original_size": self.size,
        }

    def problem(self, index):
        return None

    def remarks(self):
        return [], []

    def sources(self, index):
        return []


class RectangleData(DetectionData):
    """Rectangles as a data set."""

    def __init__(self, samples=None, **options):
        super().__init__(num_workers=0, check=False, **options)
        self.samples = samples or Rectangles()
        self.channels = EACH * self.samples.count
        self.state_classes([f"channel {index}" for index in range(self.channels)])

    def split(self, name):
        return self.samples if name != "test" else None


def found_box(channel: Tensor, brightness: float = 255) -> list[float] | None:
    """Return the box around what is brighter than half in (H, W), with the place of its edges between pixels."""
    rows, columns = (channel.float() / brightness > 0.5).nonzero().unbind(1)
    if not len(rows):
        return None
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def worst_edge(image: Tensor, boxes: Tensor, labels: Tensor, brightness: float = 255) -> float:
    """Return by how many pixels an edge of a box lies off what is found in the picture, at worst.

    The boxes of a label are taken together.
    """
    worst = 0.0
    for label in labels.unique().tolist():
        mine = boxes[labels == label]
        stated = torch.cat([mine[:, :2].amin(0), mine[:, 2:].amax(0)])
        found = found_box(image[label], brightness)
        worst = max(worst, float((stated - torch.tensor(found)).abs().max()) if found is not None else float("inf"))
    return worst
