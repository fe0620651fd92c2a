"""Training pictures made of several images, with the boxes of all of them: mosaic and mixup."""

import torch
from torch import Tensor

from framework.boxes import Size
from framework.data.box_transforms import RandomView, View, Viewer
from framework.data.loader import Sample, Samples

NEAREST = 0.2  # share of a side by which the cut of a mosaic keeps off the edge; that of darknet


class Mosaic:
    """Cut a picture at a random point into four, each a random view of one image.

    Bochkovskiy et al., YOLOv4, arXiv 2004.10934, section 3.3. An image smaller than its quarter is enlarged until it
    fills it.

    Args:
        probability: How often; else the picture is that of `otherwise`.
        otherwise: What makes a picture of one image.
        view: What cuts each quarter.
        samples: Where the other three images come from.
        size: Height and width of the picture, at least 2.
    """

    def __init__(self, probability: float, otherwise: Viewer, view: RandomView, samples: Samples, size: Size) -> None:
        self.probability, self.otherwise, self.view = probability, otherwise, view
        self.samples, self.size = samples, size

    def __call__(self, sample: Sample) -> View:
        """Draw a picture in which one sample has a part, at least."""
        if torch.rand(()) >= self.probability:
            return self.otherwise(sample)
        (height, width), (row, column) = self.size, (_draw_cut(side) for side in self.size)
        quarters = [(0, 0, row, column), (0, column, row, width - column)]
        quarters += [(row, 0, height - row, column), (row, column, height - row, width - column)]
        own = int(torch.randint(4, ()).item())
        views = [
            self.view.cut(sample if place == own else draw_sample(self.samples), (rows, columns), cover=True)
            for place, (_, _, rows, columns) in enumerate(quarters)
        ]
        image = views[0].image.new_empty(views[0].image.shape[0], height, width)
        boxes: list[Tensor] = []
        for (top, left, rows, columns), view in zip(quarters, views, strict=True):
            image[:, top : top + rows, left : left + columns] = view.image
            boxes.append(view.boxes + view.boxes.new_tensor([left, top, left, top]))
        return View(image, torch.cat(boxes), torch.cat([view.labels for view in views]))


class MixUp:
    """Blend a picture with a random view of another image, each at one half, and keep the boxes of both.

    Zhang et al., arXiv 1710.09412, as YOLOX does it (Ge et al., arXiv 2107.08430): objects of both count in full.

    Args:
        probability: How often.
        picture: What makes the first picture.
        view: What cuts the other image; one smaller than the picture is enlarged until it fills it.
        samples: Where the other image comes from.
    """

    def __init__(self, probability: float, picture: Viewer, view: RandomView, samples: Samples) -> None:
        self.probability, self.picture, self.view, self.samples = probability, picture, view, samples

    def __call__(self, sample: Sample) -> View:
        """Draw a picture of a sample, and perhaps of another."""
        first = self.picture(sample)
        if torch.rand(()) >= self.probability:
            return first
        second = self.view.cut(draw_sample(self.samples), first.size, cover=True)
        image = ((first.image.short() + second.image + 1) >> 1).to(torch.uint8)
        return View(image, torch.cat([first.boxes, second.boxes]), torch.cat([first.labels, second.labels]))


def draw_sample(samples: Samples) -> Sample:
    """Read a random sample of a split."""
    return samples.read(int(torch.randint(len(samples), ()).item()))


def _draw_cut(side: int) -> int:
    nearest = max(1, round(NEAREST * side))
    return nearest + int(torch.randint(side - 2 * nearest + 1, ()).item())
