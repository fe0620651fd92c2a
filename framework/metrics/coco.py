"""COCO's evaluation of boxes, in C++ by faster-coco-eval: the same numbers as pycocotools'."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from framework.metrics.matching import Found, Numbers, Truth

PAIRS = 1 << 15  # of an image and a class, that are evaluated together
AREAS = ("all", "small", "medium", "large")  # up to 32 x 32 and 96 x 96 pixels


class Evaluation(NamedTuple):
    """What COCO's evaluation finds; -1: a class that is not there.

    Args:
        precision: (10, 101, C, 4, 3), at intersections over union of 0.5, 0.55, ... 0.95; recalls of 0, 0.01, ... 1;
            classes; areas of any, small, medium and large size; the best 1, 10 and all detections of a class.
        recall: (10, C, 4, 3), the greatest, likewise.
    """

    precision: Numbers
    recall: Numbers

    def average_precision(self, area: str = "all", overlap: int | slice = slice(None)) -> float:
        """Return the mean over thresholds (all, or the index of one), recalls and classes that are there, or NaN."""
        return _mean(self.precision[overlap, ..., AREAS.index(area), -1])

    def average_recall(self, area: str = "all", most: int = -1) -> float:
        """Return the mean over thresholds and classes that are there, or NaN; `most`: 0, 1, -1 for 1, 10, all."""
        return _mean(self.recall[..., AREAS.index(area), most])

    def class_precision(self) -> list[float]:
        """Return each class's average precision, NaN for one that is not there."""
        return [_mean(self.precision[:, :, index, 0, -1]) for index in range(self.precision.shape[2])]


def evaluate(found: Found, truth: Truth, classes: int) -> Evaluation:
    """Evaluate the detections of a split.

    A few classes at a time, for none depends on another: the evaluation keeps something for every pair of an image and
    a class, of which most have nothing to compare.

    Args:
        found: The detections.
        truth: The objects.
        classes: Number of classes.
    """
    step = 1 + PAIRS // (1 + int(truth.image.max()))
    with _no_collection():
        parts = [
            _evaluate(
                found.subset((found.labels >= first) & (found.labels < first + step)),
                truth.subset((truth.labels >= first) & (truth.labels < first + step)),
                range(first, min(first + step, classes)),
            )
            for first in range(0, classes, step)
        ]
    return Evaluation(np.concatenate([p.precision for p in parts], 2), np.concatenate([p.recall for p in parts], 1))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from looking through the very many objects made here: none is part of a cycle."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _evaluate(found: Found, truth: Truth, classes: range) -> Evaluation:
    """Evaluate the detections of some classes."""
    images = np.union1d(found.image, truth.image).tolist()
    evaluator = COCOeval_faster(
        _dataset(_true_annotations(truth), images, classes),
        _dataset(_found_annotations(found), images, classes),
        iouType="bbox",
        print_function=_quiet,
    )
    evaluator.params.maxDets = [1, 10, max(100, len(found.scores))]  # all that there are
    evaluator.evaluate()
    evaluator.accumulate()
    shape = (10, 101, len(classes), len(AREAS), 3)
    precision, recall = (np.asarray(evaluator.eval[name], np.float64) for name in ("precision", "recall"))
    return Evaluation(precision.reshape(shape), recall.reshape(shape[:1] + shape[2:]))


def _mean(values: Numbers) -> float:
    """Return the mean of what is there, or NaN."""
    there = values[values > -1]
    return float(there.mean()) if there.size else float("nan")


def _dataset(annotations: list[dict[str, Any]], images: list[int], classes: range) -> Any:
    """Return annotations as faster-coco-eval takes them."""
    coco = COCO()
    coco.print_function = _quiet
    coco.dataset = {
        "images": [{"id": image} for image in images],
        "categories": [{"id": label} for label in classes],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _true_annotations(truth: Truth) -> list[dict[str, Any]]:
    """Return the objects as COCO annotations; their ids begin at 1, for COCO's evaluation takes 0 for no match."""
    columns = zip(*(values.tolist() for values in truth), strict=True)
    return [
        {"id": index, "image_id": image, "bbox": box, "category_id": label, "iscrowd": int(ignored), "area": area}
        for index, (image, box, label, ignored, area) in enumerate(columns, start=1)
    ]


def _found_annotations(found: Found) -> list[dict[str, Any]]:
    """Return the detections as COCO annotations."""
    columns = zip(*(values.tolist() for values in found), found.boxes[:, 2:].prod(1).tolist(), strict=True)
    return [
        {"id": index, "image_id": image, "bbox": box, "score": score, "category_id": label, "area": area, "iscrowd": 0}
        for index, (image, box, score, label, area) in enumerate(columns, start=1)
    ]


def _quiet(*_: object) -> None:
    """Print nothing."""
