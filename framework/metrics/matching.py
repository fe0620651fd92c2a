"""Matching detections with objects as COCO does, for all images at once."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]

CHUNK = 1 << 16  # detections whose overlaps are computed together


class Found(NamedTuple):
    """The detections of a split, image by image.

    Args:
        image: (N,), ascending.
        boxes: (N, 4), x, y, width, height in pixels.
        scores: (N,).
        labels: (N,), class indices.
    """

    image: Indices
    boxes: Numbers
    scores: Numbers
    labels: Indices

    def best(self, most: int) -> "Found":
        """Return the best detections of each class in each image, at most so many."""
        return self.subset(_turns(self.group(), self.place(), np.arange(len(self.scores))) < most)

    def subset(self, kept: Flags) -> "Found":
        """Return the detections that are marked (N,)."""
        return Found(self.image[kept], self.boxes[kept], self.scores[kept], self.labels[kept])

    def group(self) -> Indices:
        """Return a number for the image and class of each detection (N,)."""
        return np.asarray(self.image * (1 + self.labels.max(initial=0)) + self.labels)

    def place(self) -> Indices:
        """Return how many detections are better, of all (N,); of equal ones the first is the better."""
        place = np.empty(len(self.scores), np.int64)
        place[np.argsort(-self.scores, kind="stable")] = np.arange(len(place))
        return place


class Truth(NamedTuple):
    """The objects of a split, image by image.

    Args:
        image: (M,), ascending.
        boxes: (M, 4), x, y, width, height in pixels.
        labels: (M,), class indices.
        ignored: (M,), regions in which detections do not count.
        area: (M,), in square pixels, as annotated.
    """

    image: Indices
    boxes: Numbers
    labels: Indices
    ignored: Flags
    area: Numbers

    def subset(self, kept: Flags) -> "Truth":
        """Return the objects that are marked (M,)."""
        return Truth(self.image[kept], self.boxes[kept], self.labels[kept], self.ignored[kept], self.area[kept])


def match(found: Found, truth: Truth, threshold: float, across_classes: bool = False) -> Indices:
    """Match detections with objects greedily, the best detection first.

    A detection takes the object that it overlaps most and that no better one has taken; an ignored region only if it
    has no object, of its own class, and as many detections as like share it. The same as pycocotools' `evaluateImg`.

    Args:
        found: The detections.
        truth: The objects.
        threshold: Least intersection over union; with an ignored region, over the area of the detection.
        across_classes: An object may be taken by a detection of another class.

    Returns:
        (N,), the object of each detection; -1: none.
    """
    first, second, overlap = _candidates(found, truth, threshold, across_classes)
    place, group = found.place(), found.image if across_classes else found.group()
    rounds = _turns(group, place, np.unique(first))[first]
    order = np.lexsort((-second, -overlap, truth.ignored[second], place[first], rounds))
    first, second, rounds = first[order], second[order], rounds[order]
    out, taken = np.full(len(place), -1), np.zeros(len(truth.labels), bool)
    # Detections that have their turn together are of different groups: they do not compete.
    borders = np.searchsorted(rounds, np.arange(rounds.max(initial=-1) + 2))
    for begin, end in pairwise(borders.tolist()):
        detection, candidate = first[begin:end], second[begin:end]
        free = ~taken[candidate]
        detection, candidate = detection[free], candidate[free]
        best = np.diff(detection, prepend=-1) != 0
        out[detection[best]] = candidate[best]
        taken[candidate[best]] = ~truth.ignored[candidate[best]]
    return out


def _candidates(found: Found, truth: Truth, threshold: float, across_classes: bool) -> tuple[Indices, Indices, Numbers]:
    """Return all pairs of a detection and an object that may be matched, with their overlaps."""
    parts = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for begin in range(0, len(found.image), CHUNK):
        image = found.image[begin : begin + CHUNK]
        start, stop = np.searchsorted(truth.image, image), np.searchsorted(truth.image, image, side="right")
        count = stop - start
        first = begin + np.repeat(np.arange(len(image)), count)
        second = np.arange(count.sum()) + np.repeat(start - count.cumsum() + count, count)
        fitting = found.labels[first] == truth.labels[second]
        if across_classes:
            fitting |= ~truth.ignored[second]
        first, second = first[fitting], second[fitting]
        overlap = _overlap(found.boxes[first], truth.boxes[second], truth.ignored[second])
        near = overlap >= threshold
        parts.append((first[near], second[near], overlap[near]))
    first, second, overlap = (np.concatenate(each) for each in zip(*parts, strict=True))
    return first, second, overlap


def _overlap(one: Numbers, other: Numbers, ignored: Flags) -> Numbers:
    """Return intersection over union of boxes (P, 4) with others; over the area of the first with ignored ones."""
    low = np.maximum(one[:, :2], other[:, :2])
    high = np.minimum(one[:, :2] + one[:, 2:], other[:, :2] + other[:, 2:])
    common = (high - low).clip(0).prod(1)
    own = one[:, 2:].prod(1)
    whole = np.where(ignored, own, own + other[:, 2:].prod(1) - common)
    return np.asarray(common / np.where(whole > 0, whole, 1))


def _turns(group: Indices, place: Indices, able: Indices) -> Indices:
    """Return (N,) when each detection has its turn in its group, from 0, the best first; those in `able` alone."""
    ordered = able[np.lexsort((place[able], group[able]))]
    starts = np.diff(group[ordered], prepend=-1) != 0
    position = np.arange(len(ordered))
    turns = np.zeros(len(group), np.int64)
    turns[ordered] = position - np.maximum.accumulate(np.where(starts, position, 0))
    return turns
