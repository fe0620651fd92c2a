"""What is in a data set: samples, classes and box sizes of each split, counted without an image being kept."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from framework.boxes import Size
from framework.data.box_files import STICKS_OUT, BoxFiles, exif_orientation, judge_boxes
from framework.data.datamodule import VisionData
from framework.data.depth_files import DepthFiles
from framework.data.depth_spread import DepthSpread
from framework.data.loader import Samples
from framework.data.masks import MaskFiles

KEYS = {"Detection": "boxes", "Segmentation": "mask", "Classification": "label", "Depth": "depth"}
"""The target of each task's samples."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ObjectTable:
    """All objects of a split that can be used, those to be ignored too.

    Args:
        sizes: Height and width of each image as stored, int64 (N, 2).
        images: Index of each object's image, int64 (M,).
        labels: Class indices, int64 (M,).
        sides: Width and height in pixels of the image as stored, float64 (M, 2).
        areas: Square pixels that decide whether an object is small, float64 (M,).
        counted: Which objects count, bool (M,).
    """

    sizes: NDArray[np.int64]
    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    sides: NDArray[np.float64]
    areas: NDArray[np.float64]
    counted: NDArray[np.bool_]

    def sides_at(self, shown: Callable[[Size], Size]) -> NDArray[np.float64]:
        """Return width and height of the objects that count, float64 (K, 2), where images are shown at another size."""
        scales = np.array([[new / old for new, old in zip(shown(size), size, strict=True)] for size in self._sizes()])
        factors: NDArray[np.float64] = scales.reshape(-1, 2)[self.images[self.counted]][:, ::-1]
        return self.sides[self.counted] * factors

    def _sizes(self) -> Iterator[Size]:
        yield from map(tuple, self.sizes.tolist())


def kind_of(data: VisionData) -> str | None:
    """Return the task that data are made for, the first of several; None if nobody can tell."""
    made_for = next((task for task in getattr(data, "tasks", ()) if task in KEYS), None)
    if made_for is not None:
        return str(made_for)
    sample = data.splits()["train"].read(0)
    return next((task for task, key in KEYS.items() if key in sample), None)


def object_table(samples: Samples) -> ObjectTable:
    """Gather the objects of a split; where the files state them, no image is decoded for that."""
    read = _annotated if isinstance(samples, BoxFiles) else _sampled
    parts = each(lambda index: read(samples, index), len(samples))
    sizes, labels, sides, areas, counted = zip(*parts, strict=True)
    return ObjectTable(
        np.array(sizes, np.int64).reshape(-1, 2),
        np.repeat(np.arange(len(labels)), [len(part) for part in labels]),
        np.concatenate(labels).astype(np.int64),
        np.concatenate(sides).astype(np.float64),
        np.concatenate(areas).astype(np.float64),
        np.concatenate(counted).astype(np.bool_),
    )


def _annotated(samples: Any, index: int) -> tuple[Any, ...]:
    """Return size, labels, sides, areas and what counts of one image, from its annotation."""
    annotations = samples.annotations
    mine, size = annotations.of_image(index), tuple(annotations.sizes[index].tolist())
    if 0 in size:
        path = annotations.paths[index]
        with Image.open(path) as image:
            size = image.size if exif_orientation(path) >= 5 else image.size[::-1]
    judged = judge_boxes(annotations.boxes_in(index, size), size)
    kept = (judged.faults == 0) | (judged.faults == STICKS_OUT)
    sides = judged.boxes[kept, 2:] - judged.boxes[kept, :2]
    stated = annotations.areas[mine][kept]
    areas = np.where(stated > 0, stated, sides.prod(1))
    return size, annotations.labels[mine][kept], sides, areas, ~annotations.ignored[mine][kept]


def _sampled(samples: Samples, index: int) -> tuple[Any, ...]:
    """Return the same of one image, from its sample."""
    sample = samples.read(index)
    boxes = np.asarray(sample["boxes"]).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    area, ignored = sample.get("area"), sample.get("ignored")
    areas = sides.prod(1) if area is None else np.asarray(area)
    counted = np.ones(len(boxes), np.bool_) if ignored is None else ~np.asarray(ignored)
    return sample["original_size"], np.asarray(sample["labels"]), sides, areas, counted


def pixel_counts(samples: Samples, num_classes: int) -> NDArray[np.int64]:
    """Return how many pixels of each mask have each class, int64 (N, num_classes); ignored pixels have none."""

    def count(index: int) -> NDArray[np.int64]:
        mask = _mask(samples, index).ravel()
        return np.bincount(mask[mask < num_classes], minlength=num_classes)

    return np.stack(each(count, len(samples)))


def _mask(samples: Samples, index: int) -> NDArray[np.int64]:
    if isinstance(samples, MaskFiles):
        return np.asarray(samples.table.read(samples.pairs[index].mask))
    return np.asarray(samples.read(index)["mask"])


def image_classes(samples: Samples, num_classes: int, kind: str | None, indices: Sequence[int]) -> list[list[int]]:
    """Return the distinct classes of some samples, as far as they say; without reading an image where that can be."""
    stated: Any = getattr(samples, "class_indices", getattr(samples, "labels", None))
    if stated is not None and kind in ("Detection", "Classification"):
        found = [stated[index] for index in indices]
        return [[label] if isinstance(label, int) else sorted(set(label)) for label in found]
    if kind == "Segmentation":
        masks = each(lambda position: np.unique(_mask(samples, indices[position])), len(indices))
        return [[int(value) for value in values if value < num_classes] for values in masks]
    return each(lambda position: _classes_of(samples.read(indices[position])), len(indices))


def _classes_of(sample: dict[str, Any]) -> list[int]:
    """Return the distinct classes of a sample with objects or with a label."""
    if "labels" in sample:
        ignored = sample.get("ignored")
        labels = np.asarray(sample["labels"])
        return sorted(set(labels[~np.asarray(ignored)].tolist() if ignored is not None else labels.tolist()))
    label = np.asarray(sample.get("label", []))
    return [int(label)] if label.ndim == 0 else np.flatnonzero(label).tolist()


def depth_spread(samples: Samples, depth_range: tuple[float, float]) -> tuple[DepthSpread, NDArray[np.int64]]:
    """Return how the depths of a split are spread, and the height and width of each map as stored, int64 (N, 2)."""
    spread, adding = DepthSpread(depth_range), Lock()

    def add(index: int) -> tuple[int, ...]:
        depth = samples.depth(index) if isinstance(samples, DepthFiles) else samples.read(index)["depth"]
        metres = np.asarray(depth)
        with adding:
            spread.add(metres)
        return metres.shape

    return spread, np.array(each(add, len(samples)), np.int64)


def each(function: Callable[[int], T], count: int) -> list[T]:
    """Return what a function makes of 0 to `count` - 1; files are decoded by all cores."""
    with ThreadPoolExecutor(cpu_count()) as pool:  # Pillow decodes without the interpreter lock
        return list(pool.map(function, range(count)))
