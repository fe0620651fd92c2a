"""What is annotated in the images of a split: all boxes in a few arrays, each with the place that it was read from."""

import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

CORNERS = "x1, y1, x2, y2"
SIDES = "x, y, width, height"

T = TypeVar("T")


class Object(NamedTuple):
    """One annotated object, as its file states it.

    Args:
        box: x1, y1, x2, y2 in pixels of the upright image, from its upper left corner, as floats; or in shares of its
            width and height.
        label: Class index.
        place: What names it within the image's annotation file: `line 12`, `annotation 4711`, `object 3`.
        ignored: A crowd, or too hard: neither trained on nor counted.
        area: Area in square pixels that decides whether it is small; None: that of the box.
    """

    box: tuple[float, float, float, float]
    label: int
    place: str
    ignored: bool = False
    area: float | None = None


class AnnotatedImage(NamedTuple):
    """One image with its objects; none: a negative.

    Args:
        path: The image file.
        id: What to call it.
        source: The file that annotates it; None: none does.
        objects: What is in it.
        size: Height and width that the annotation states; None: it states none.
    """

    path: Path
    id: str
    source: Path | None
    objects: Sequence[Object]
    size: tuple[int, int] | None = None


class Numbered(Sequence[str]):
    """Places that only their numbers tell apart, such as `annotation 4711`: text is made of those asked for.

    Args:
        unit: What is numbered, such as `annotation`.
        numbers: The numbers, int64 (M,).
    """

    def __init__(self, unit: str, numbers: NDArray[np.int64]) -> None:
        self.unit, self.numbers = unit, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Numbered": ...
    def __getitem__(self, index: int | slice) -> "str | Numbered":
        """Return one place, or several."""
        if isinstance(index, slice):
            return Numbered(self.unit, self.numbers[index])
        return f"{self.unit} {self.numbers[index]}"


@dataclass(frozen=True, slots=True)
class Annotations:
    """All images of a split with all of their objects, in arrays: a million objects take few objects of Python.

    Args:
        paths: The image files (N).
        ids: What to call them (N).
        sources: The file that annotates each (N).
        sizes: Height and width that the annotation states, int64 (N, 2); 0 where it states none.
        first: Index of each image's first object, int64 (N + 1,); the last is M.
        boxes: x1, y1, x2, y2 in pixels, or in shares of the image's width and height, float64 (M, 4).
        labels: Class indices, int64 (M,).
        ignored: Which are neither trained on nor counted, bool (M,).
        areas: Square pixels, float64 (M,); NaN where the box's own area counts.
        places: What names each object within its annotation file (M).
        form: What the four numbers of a box are in the files, such as `x, y, width, height`.
        relative: Whether boxes are in shares, to be known in pixels once the image's size is.
    """

    paths: list[Path]
    ids: list[str]
    sources: list[Path | None]
    sizes: NDArray[np.int64]
    first: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    areas: NDArray[np.float64]
    places: Sequence[str]
    form: str = CORNERS
    relative: bool = False

    @classmethod
    def of(cls, images: Iterable[AnnotatedImage], form: str = CORNERS, relative: bool = False) -> "Annotations":
        """Gather annotated images; of an iterator, one image's objects are held at a time."""
        paths, ids, sources, sizes, first = [], [], [], array("q"), array("q", [0])
        boxes, labels, ignored, areas = array("d"), array("q"), array("b"), array("d")
        places = []
        for image in images:
            paths.append(image.path)
            ids.append(image.id)
            sources.append(image.source)
            sizes.extend(image.size or (0, 0))
            for each in image.objects:
                boxes.extend(each.box)
                labels.append(each.label)
                ignored.append(each.ignored)
                areas.append(float("nan") if each.area is None else each.area)
                places.append(sys.intern(each.place))
            first.append(len(labels))
        return cls(
            paths=paths,
            ids=ids,
            sources=sources,
            sizes=np.array(sizes, np.int64).reshape(-1, 2),
            first=np.array(first, np.int64),
            boxes=np.array(boxes, np.float64).reshape(-1, 4),
            labels=np.array(labels, np.int64),
            ignored=np.array(ignored, np.bool_),
            areas=np.array(areas, np.float64),
            places=places,
            form=form,
            relative=relative,
        )

    def __len__(self) -> int:
        return len(self.paths)

    def of_image(self, index: int) -> slice:
        """Return which objects are those of an image."""
        return slice(int(self.first[index]), int(self.first[index + 1]))

    def boxes_in(self, index: int, size: tuple[int, int]) -> NDArray[np.float64]:
        """Return the boxes of an image of this height and width in pixels, float64 (n, 4)."""
        boxes = self.boxes[self.of_image(index)]
        return boxes * np.array([size[1], size[0], size[1], size[0]]) if self.relative else boxes

    def images(self) -> NDArray[np.int64]:
        """Return the index of each object's image, int64 (M,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.first))

    def take(self, chosen: NDArray[np.bool_]) -> "Annotations":
        """Return only the chosen images, bool (N,), with their objects."""
        each = np.repeat(chosen, np.diff(self.first))
        counts = np.diff(self.first)[chosen]
        places = self.places
        kept = Numbered(places.unit, places.numbers[each]) if isinstance(places, Numbered) else _chosen(places, each)
        return Annotations(
            paths=_chosen(self.paths, chosen),
            ids=_chosen(self.ids, chosen),
            sources=_chosen(self.sources, chosen),
            sizes=self.sizes[chosen],
            first=np.concatenate([[0], counts.cumsum()]).astype(np.int64),
            boxes=self.boxes[each],
            labels=self.labels[each],
            ignored=self.ignored[each],
            areas=self.areas[each],
            places=kept,
            form=self.form,
            relative=self.relative,
        )


def _chosen(values: Sequence[T], chosen: NDArray[np.bool_]) -> list[T]:
    return list(compress(values, chosen.tolist()))
