"""Image files with boxes: what a sample is made of, and what is wrong with the boxes of an image."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torchvision import tv_tensors

from framework.data.annotations import CORNERS, Annotations
from framework.data.image_folder import hold_out
from framework.data.images import read_image
from framework.data.loader import Sample
from framework.errors import DataError

BadBoxes = Literal["refuse", "drop"]
"""What is done about boxes that cannot be right: refuse them all, or drop those that nothing is left of."""

TOLERANCE = 2.0  # pixels by which a box may stick out: rounded, or counted from 1
SHOWN = 3  # bad boxes of an image, or classes, in a message
TINY = 32  # pixels: in an image of this size a box within [0, 1] may be meant
NOT_FINITE, REVERSED, NO_AREA, OUTSIDE, STICKS_OUT = range(1, 6)


class Judged(NamedTuple):
    """The boxes of one image, judged.

    Args:
        boxes: Clipped to the image, float32 (N, 4).
        faults: 0, or what is wrong with each, uint8 (N,).
        clipped: Which had to be clipped, bool (N,).
    """

    boxes: NDArray[np.float32]
    faults: NDArray[np.uint8]
    clipped: NDArray[np.bool_]


def judge_boxes(boxes: NDArray[np.float64], size: tuple[int, int]) -> Judged:
    """Clip boxes to their image, and tell what is wrong with them.

    Args:
        boxes: x1, y1, x2, y2 in pixels (N, 4), of any value.
        size: Height and width of the image.
    """
    height, width = size
    with np.errstate(over="ignore"):
        narrow = boxes.astype(np.float32)
    x1, y1, x2, y2 = narrow.T
    inside = narrow.clip(0, np.array([width, height, width, height], np.float32))
    tests = {
        NOT_FINITE: ~np.isfinite(narrow).all(1),
        REVERSED: (x2 < x1) | (y2 < y1),
        NO_AREA: (x2 == x1) | (y2 == y1),
        OUTSIDE: (x2 <= 0) | (y2 <= 0) | (x1 >= width) | (y1 >= height),
        STICKS_OUT: (np.abs(narrow - inside) > TOLERANCE).any(1),
    }
    faults = np.select(list(tests.values()), list(tests), 0).astype(np.uint8)
    return Judged(inside, faults, (narrow != inside).any(1))


def has_area(boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which boxes (N, 4) are finite, not reversed and not empty, bool (N,)."""
    with np.errstate(over="ignore"):
        narrow = boxes.astype(np.float32)
    rising = (narrow[:, 2:] > narrow[:, :2]).all(axis=1)
    return np.logical_and(rising, np.isfinite(narrow).all(axis=1))


def exif_orientation(path: Path) -> int:
    """Return how an image file is to be turned before it is shown, as EXIF numbers it: 1 for not at all."""
    with Image.open(path) as image:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))


class BoxFiles:
    """Image files with boxes, a class each.

    Images are shown upright, as their EXIF rotation says, and boxes are those of the upright image.

    Args:
        annotations: The files, and what is in them.
        classes: Names of all classes.
        channels: Channels the images are brought to.
        at_least: Shorter side that the images will be needed at: much larger JPEGs are decoded at a fraction.
        bad_boxes: "refuse": a box that is not finite, reversed, without area, outside its image, or that sticks out by
            more than two pixels is an error. "drop": the last are clipped, and the others left out.
        notes: What is odd with the split, as the reader of its files saw.
    """

    wrong_in_every_split: ClassVar[bool] = True  # what `remarks` calls wrong

    def __init__(
        self,
        annotations: Annotations,
        classes: tuple[str, ...],
        channels: int,
        at_least: int | None,
        bad_boxes: BadBoxes = "refuse",
        notes: Sequence[str] = (),
    ) -> None:
        self.annotations, self.classes, self.channels, self.at_least = annotations, classes, channels, at_least
        self.bad_boxes, self.notes = bad_boxes, list(notes)
        self._dropped = np.zeros(len(annotations.labels), np.bool_)
        self._clipped = np.zeros(len(annotations.labels), np.bool_)
        self._turned = np.zeros(len(annotations), np.bool_)

    def __len__(self) -> int:
        return len(self.annotations)

    def name(self, index: int) -> str:
        """Return what to call one image."""
        return self.annotations.ids[index]

    @cached_property
    def class_indices(self) -> list[list[int]]:
        """The classes of each image: those of the objects that count, each once, rising.

        What is dropped counts only if it takes the image's size to tell.
        """
        counted = ~self.annotations.ignored
        if self.bad_boxes == "drop":
            counted &= has_area(self.annotations.boxes)
        pairs = np.stack([self.annotations.images()[counted], self.annotations.labels[counted]], axis=1)
        pairs = np.unique(pairs, axis=0)
        ends = np.searchsorted(pairs[:, 0], np.arange(1, len(self)))
        return [part.tolist() for part in np.split(pairs[:, 1], ends)]

    def read(self, index: int) -> Sample:
        """Return one image and its objects.

        Its keys are `image` (uint8), `boxes` (tv_tensors.BoundingBoxes, float32 (N, 4), x1, y1, x2, y2 in pixels as
        stored, inside the image and with an area), `labels` (long (N,)), `ignored` (bool (N,)), `area` (float32 (N,),
        square pixels), `id` and `original_size`.

        Raises:
            DataError: The image cannot be read, has another size than stated, or boxes that cannot be right.
        """
        path, source, mine = (
            self.annotations.paths[index],
            self.annotations.sources[index],
            self.annotations.of_image(index),
        )
        if not path.is_file():
            by = f" by {source}" if source is not None else ""
            raise DataError(f"{path} does not exist, but it is listed{by}: add it, or remove it from there")
        values, size = read_image(path, self.channels, self.at_least)
        self._require_size(index, size)
        boxes, faults, _ = self._judge(index, size)
        kept = (faults == 0) | (faults == STICKS_OUT)
        boxes, stated = boxes[kept], self.annotations.areas[mine][kept].astype(np.float32)
        own = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return {
            "image": tv_tensors.Image(torch.from_numpy(values).permute(2, 0, 1)),
            "boxes": tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=size),
            "labels": torch.from_numpy(self.annotations.labels[mine][kept]),
            "ignored": torch.from_numpy(self.annotations.ignored[mine][kept]),
            "area": torch.from_numpy(np.where(stated > 0, stated, own)),  # NaN, and the 0 that some tools write, is not
            "id": self.name(index),
            "original_size": size,
        }

    def _source(self, index: int) -> Path:
        """Return the file to name where an image's annotation is wrong."""
        return self.annotations.sources[index] or self.annotations.paths[index]

    def _require_size(self, index: int, size: tuple[int, int]) -> None:
        """Refuse an image whose size is not the one stated."""
        height, width = self.annotations.sizes[index].tolist()
        if 0 in (height, width) or (height, width) == size:
            return
        path = self.annotations.paths[index]
        is_, stated = f"{size[1]}x{size[0]}", f"{width}x{height}"
        if (height, width) != size[::-1]:
            why = f"{path} is {is_}: was it resized after it was annotated? Its boxes must be those of this image"
        elif exif_orientation(path) >= 5:
            why = (
                f"{path} is {is_} once turned by 90° as its EXIF rotation says: images are shown upright, and boxes "
                "must be those of the upright image. If these are not, remove the EXIF rotation from the file"
            )
        else:
            why = f"{path} is {is_}: it was turned by 90° after it was annotated"
        raise DataError(f"{self._source(index)}: the size stated is {stated}, but {why}")

    def _judge(self, index: int, size: tuple[int, int]) -> Judged:
        """Judge the boxes of one image, and refuse those that cannot be right."""
        boxes = self.annotations.boxes_in(index, size)
        where = f"{self._source(index)} (image {self.annotations.paths[index].name}, {size[1]}x{size[0]})"
        if len(boxes) and not self.annotations.relative and min(size) > TINY and (np.abs(boxes) <= 1).all():
            raise DataError(
                f"{where}: all coordinates are within 0 and 1, so its boxes look normalised: give them in pixels"
            )
        judged = judge_boxes(boxes, size)
        bad = np.flatnonzero(judged.faults)
        if len(bad) and self.bad_boxes == "refuse":
            said = "; ".join(self._describe(index, int(each), boxes[each], judged.faults[each]) for each in bad[:SHOWN])
            more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
            raise DataError(f"{where}: {said}{more}: mend this, or set data.bad_boxes to drop")
        return judged

    def _describe(self, index: int, each: int, box: NDArray[np.float64], fault: int) -> str:
        """Say what is wrong with one box."""
        corners = self.annotations.form == CORNERS
        faults = {
            NOT_FINITE: "is not finite",
            REVERSED: "is reversed (x2 < x1 or y2 < y1: are they x, y, width, height?)"
            if corners
            else "has a negative width or height",
            NO_AREA: "has no area",
            OUTSIDE: "lies outside",
            STICKS_OUT: "sticks out" if corners else "sticks out (are they x1, y1, x2, y2?)",
        }
        mine = self.annotations.of_image(index).start + each
        x1, y1, x2, y2 = box.tolist()
        numbers = (x1, y1, x2, y2) if corners else (x1, y1, x2 - x1, y2 - y1)
        place, name = self.annotations.places[mine], self.classes[self.annotations.labels[mine]]
        values = ", ".join(f"{number:.10g}" for number in numbers)
        return f"{place} ({name}): the box {self.annotations.form} = {values} {faults[fault]}"

    def problem(self, index: int) -> str | None:
        """Say what is wrong with one image and its boxes, naming the files and places; None if nothing is."""
        try:
            size = self.read(index)["original_size"]
        except DataError as error:
            return str(error)
        mine, judged = self.annotations.of_image(index), self._judge(index, size)
        self._dropped[mine] = (judged.faults != 0) & (judged.faults != STICKS_OUT)
        self._clipped[mine] = judged.clipped & ~self._dropped[mine]
        orientation, square = exif_orientation(self.annotations.paths[index]), size[0] == size[1]
        settled = orientation >= 5 and not square and self.annotations.sizes[index].all()
        self._turned[index] = orientation != 1 and not settled
        return None

    def remarks(self) -> tuple[list[str], list[str]]:
        """Say that no image has an object, which is wrong; and what is odd, such as classes without an object."""
        counted = ~self.annotations.ignored & ~self._dropped
        if not counted.any():
            return [f"no image has an object to learn from or to measure{self._none_because()}"], []
        present = set(self.annotations.labels[counted].tolist())
        absent = [name for index, name in enumerate(self.classes) if index not in present]
        odd = [f"no object of class {_listed(absent)}"] if absent else []
        held = np.bincount(self.annotations.images()[~self._dropped], minlength=len(self))
        negatives = int((held == 0).sum())
        if negatives:
            odd.append(f"{negatives} of {len(self)} images have no object: they are kept as negatives")
        return [], odd + self._bad_boxes() + self._turned_images() + self.notes

    def _none_because(self) -> str:
        ignored, dropped = int(self.annotations.ignored.sum()), int(self._dropped.sum())
        reasons = [f"{ignored} are ignored"] if ignored else []
        reasons += [f"{dropped} were dropped"] if dropped else []
        return f" ({', '.join(reasons)})" if reasons else ": are the annotations where they should be?"

    def _bad_boxes(self) -> list[str]:
        """Count the boxes that were left out, clipped, or that stand twice."""
        dropped, clipped = int(self._dropped.sum()), int(self._clipped.sum())
        rows = np.column_stack([self.annotations.images(), self.annotations.labels, self.annotations.boxes])
        twice = len(rows) - len(np.unique(rows, axis=0))
        by = " by up to 2 pixels" if self.bad_boxes == "refuse" else ""
        said = {
            f"left out, as data.bad_boxes says: {_first(self, self._dropped)}": dropped,
            f"clipped, as they stick out of their image{by}: {_first(self, self._clipped)}": clipped,
            "there twice, the same class in the same image": twice,
        }
        return [
            f"{count} boxes are {what}" if count > 1 else f"1 box is {what}" for what, count in said.items() if count
        ]

    def _turned_images(self) -> list[str]:
        """Name the images of which nobody can know which way up they were annotated."""
        turned = np.flatnonzero(self._turned)
        if not len(turned):
            return []
        count = f"{len(turned)} images carry" if len(turned) > 1 else "1 image carries"
        return [
            f"{count} an EXIF rotation, and nothing says which way up it was annotated "
            f"({self.annotations.paths[turned[0]]}): boxes must be those of the upright image, as which it is shown"
        ]

    def sources(self, index: int) -> list[str]:
        """Return the image file, and the one that annotates it, if one does."""
        source = self.annotations.sources[index]
        return [str(self.annotations.paths[index]), *([str(source)] if source is not None else [])]


def _first(files: BoxFiles, marked: NDArray[np.bool_]) -> str:
    """Name the first of several boxes."""
    if not marked.any():
        return ""
    each = int(np.argmax(marked))
    source = files.annotations.sources[int(files.annotations.images()[each])]
    return f"{source} {files.annotations.places[each]}" + (" is the first" if marked.sum() > 1 else "")


def _count(number: int, noun: str, plural: str) -> str:
    return f"{number} {noun}{plural} are" if number > 1 else f"1 {noun} is"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def image_ids(paths: Sequence[Path], root: Path) -> list[str]:
    """Return what to call each image: its stem, or, where two have the same, its path as seen from the root."""
    names = [path.stem for path in paths]
    if len(set(names)) == len(names):
        return names
    return [str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in paths]


def hold_out_images(annotations: Annotations, fraction: float) -> NDArray[np.bool_]:
    """Choose a fixed share of the images for validation, by their names alone, bool (N,)."""
    held_out = hold_out(annotations.paths, fraction)
    return np.array([path in held_out for path in annotations.paths], np.bool_)
