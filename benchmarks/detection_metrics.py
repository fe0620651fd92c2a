"""What evaluating detections costs: our COCO table against torchmetrics' default, on the same simulated detections.

    python benchmarks/detection_metrics.py --images 5000

Both run in this process, one after the other; what is timed is counting all images and computing the metrics. The
processor time is what counts where other work goes on.
"""

import argparse
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

sys.path.insert(0, str(Path(__file__).parents[1]))

from framework.metrics.detection import DetectionMetrics

CLASSES = 80
SIDE = 640
OBJECTS, FALSE = 7.3, 53.0  # an image, on average: COCO has 7.3 objects
FIGURES = {"ap": "map", "ap50": "map_50", "ap75": "map_75", "ar1": "mar_1", "ar10": "mar_10", "ar100": "mar_100"} | {
    f"{ours}_{size}": f"{theirs}_{size}" for ours, theirs in (("ap", "map"), ("ar", "mar"))
    for size in ("small", "medium", "large")
}  # fmt: skip


class Image(NamedTuple):
    """What an image has, and what was found in it: boxes x1, y1, x2, y2 in pixels, scores, class indices."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    true_boxes: Tensor
    true_labels: Tensor
    ignored: Tensor
    area: Tensor


def simulate(images: int, seed: int = 0) -> Iterator[Image]:
    """Make up images with objects of many sizes, found with errors of place and class, among false detections."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(images):
        objects = int(torch.poisson(torch.tensor(OBJECTS), generator=draw))
        true_boxes, true_labels = _boxes(objects, draw), torch.randint(0, CLASSES, (objects,), generator=draw)
        near = true_boxes.repeat(2, 1)  # objects are found twice, or not
        side = (near[:, 2:] - near[:, :2]).repeat(1, 2)
        near = near + 0.1 * side * torch.randn(near.shape, generator=draw)
        wrong = torch.rand(2 * objects, generator=draw) < 0.2
        labels = torch.where(wrong, torch.randint(0, CLASSES, wrong.shape, generator=draw), true_labels.repeat(2))
        there = torch.rand(2 * objects, generator=draw) < 0.7
        false = int(torch.poisson(torch.tensor(FALSE), generator=draw))
        boxes = torch.cat([near[there], _boxes(false, draw)])
        labels = torch.cat([labels[there], torch.randint(0, CLASSES, (false,), generator=draw)])
        scores = torch.rand(len(boxes), generator=draw)
        scores[int(there.sum()) :] *= 0.6
        best = scores.argsort(descending=True)[:100]
        boxes = torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:] - 1), boxes[:, 2:]], 1)[best]
        area = (true_boxes[:, 2:] - true_boxes[:, :2]).prod(1)
        nothing = torch.zeros(objects, dtype=torch.bool)
        yield Image(boxes, scores[best], labels[best], true_boxes, true_labels, nothing, area)


def _boxes(count: int, draw: torch.Generator) -> Tensor:
    """Draw boxes (count, 4) with sides of 8 to 320 pixels, evenly on a logarithmic scale."""
    side = 8 * 40 ** torch.rand(count, 2, generator=draw)
    corner = torch.rand(count, 2, generator=draw) * (SIDE - side)
    return torch.cat([corner, corner + side], 1)


class Cost(NamedTuple):
    """Seconds by the clock, and of the processor."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> "Cost":
        """Return what has passed since some moment."""
        return cls(time.perf_counter(), time.process_time())

    def spent(self) -> "Cost":
        """Return what has passed since this one was taken."""
        now = self.now()
        return Cost(now.wall - self.wall, now.processor - self.processor)

    def __str__(self) -> str:
        return f"{self.wall:7.1f} s, {self.processor:.1f} s of the processor"


def time_ours(images: list[Image]) -> tuple[Cost, dict[str, Tensor]]:
    """Return what our metrics cost, and their figures."""
    metrics = DetectionMetrics([str(index) for index in range(CLASSES)])
    start = Cost.now()
    for image in images:
        metrics.update(*image)
    figures = metrics.compute()
    metrics.confusion()
    return start.spent(), figures


def time_torchmetrics(images: list[Image]) -> tuple[Cost, dict[str, Tensor]]:
    """Return what torchmetrics costs with its defaults, and its figures."""
    # Its own recalls are rounded to float32, which moves AP by up to 0.0003; all else is its default.
    metric = MeanAveragePrecision(rec_thresholds=np.linspace(0, 1, 101).tolist())
    start = Cost.now()
    for image in images:
        found = {"boxes": image.boxes, "scores": image.scores, "labels": image.labels}
        metric.update([found], [{"boxes": image.true_boxes, "labels": image.true_labels}])
    figures = metric.compute()
    return start.spent(), figures


def main() -> None:
    """Print both times, and how far the figures are apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    count = parser.parse_args().images
    images = list(simulate(count))
    detections, objects = (sum(len(image[index]) for image in images) for index in (0, 3))
    print(f"{count} images, {CLASSES} classes: {detections} detections, {objects} objects")
    before = _peak()
    ours, figures = time_ours(images)
    print(f"ours                {ours}, threshold and confusion included; {_peak() - before:.0f} MB more at the peak")
    theirs, other = time_torchmetrics(images)
    print(f"torchmetrics        {theirs}")
    print(f"as long             {theirs.wall / ours.wall:7.1f} times, {theirs.processor / ours.processor:.1f} times")
    apart = max(abs(float(figures[name]) - float(other[their])) for name, their in FIGURES.items())
    print(f"largest difference  {apart:7.1e} of {len(FIGURES)} figures; AP {float(figures['ap']):.4f}")


def _peak() -> float:
    """Return the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
