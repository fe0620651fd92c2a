"""One file of COCO's JSON: its images, classes and boxes, as arrays, or everything that is wrong with it."""

import json
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from framework.data.annotations import SIDES, Annotations, Numbered
from framework.data.check import report
from framework.errors import DataError, suggest

KEYS = ("images", "annotations", "categories")
OTHER = -1  # the label of a class that is left out


class Category(NamedTuple):
    """A class, as the file states it."""

    id: int | str
    name: str
    supercategory: str


class COCOFile(NamedTuple):
    """What a file of COCO's JSON says.

    Args:
        path: The file.
        names: The image files, as written (N).
        sizes: Their height and width, int64 (N, 2); 0 where they are not stated.
        categories: The classes, in the order of their ids.
        images: The image of each object, int64 (M,); they rise.
        kinds: Which of the categories each object is of, int64 (M,).
        boxes: x1, y1, x2, y2 in pixels, float64 (M, 4).
        areas: Square pixels, float64 (M,); NaN where they are not stated.
        crowds: Which stand for any number of objects, bool (M,).
        places: What names each object in the file (M).
    """

    path: Path
    names: list[str]
    sizes: NDArray[np.int64]
    categories: list[Category]
    images: NDArray[np.int64]
    kinds: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowds: NDArray[np.bool_]
    places: Numbered

    def annotations(self, paths: list[Path], ids: list[str], labels: Sequence[int]) -> Annotations:
        """Return the annotations of these images.

        Args:
            paths: Where the image files are (N).
            ids: What to call them (N).
            labels: The class index of each category; `OTHER`: its objects are left out.
        """
        each = np.array(labels, np.int64)[self.kinds] if len(self.kinds) else self.kinds
        kept = each != OTHER
        return Annotations(
            paths=paths,
            ids=ids,
            sources=[self.path] * len(paths),
            sizes=self.sizes,
            first=np.searchsorted(self.images[kept], np.arange(len(paths) + 1)).astype(np.int64),
            boxes=self.boxes[kept],
            labels=each[kept],
            ignored=self.crowds[kept],
            areas=self.areas[kept],
            places=Numbered(self.places.unit, self.places.numbers[kept]),
            form=SIDES,
        )


def read_coco(path: Path) -> COCOFile:
    """Read a file of COCO's JSON.

    Raises:
        DataError: It is missing, is no JSON, or lacks something; or parts of it do not belong together.
    """
    found = _parse(path)
    problems: list[str] = []
    rows, names, sizes = _images(found["images"], problems)
    categories = _categories(found["categories"], problems)
    objects = _Objects(rows, {category.id: kind for kind, category in enumerate(categories)}, problems)
    for number, each in enumerate(found["annotations"]):
        objects.add(number, each)
    if problems:
        raise DataError(report([f"{path}: {problem}" for problem in problems], "mistake"))
    return objects.file(path, names, np.array(sizes, np.int64).reshape(-1, 2), categories)


def _parse(path: Path) -> dict[str, list[Any]]:
    """Parse a file as far as its three lists."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            found = json.load(file, object_hook=_without_outline)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}:{error.colno}: this is no JSON ({error.msg}): is it cut off?") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a number of too many digits
        raise DataError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise DataError(
            f"{path} holds a {type(found).__name__}, not an object with the keys {', '.join(KEYS)}: is it a file of "
            "results?"
        )
    for key in KEYS:
        if key not in found:
            hint = suggest(key, found)
            raise DataError(f"{path} has no '{key}'" + (f"; {hint}" if hint else ""))
        if not isinstance(found[key], list):
            raise DataError(f"{path}: '{key}' is a {type(found[key]).__name__}, not a list")
    return found


def _without_outline(found: dict[str, Any]) -> dict[str, Any]:
    """Drop an object's outline while the file is read: most of it, and of no use for boxes."""
    found.pop("segmentation", None)
    return found


def _images(entries: list[Any], problems: list[str]) -> tuple[dict[int | str, int], list[str], list[tuple[int, int]]]:
    """Return the row of each image id, and the names and sizes of the images."""
    rows: dict[int | str, int] = {}
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    for number, entry in enumerate(entries):
        try:
            id_, name = _whole(entry["id"]), entry["file_name"]
            size = (_pixels(entry, "height"), _pixels(entry, "width"))
            if not isinstance(id_, int | str) or not isinstance(name, str) or not name:
                raise ValueError(f"id {id_!r}, file_name {name!r}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"images[{number}]: {_why(error)}")
            continue
        if rows.setdefault(id_, len(names)) != len(names):
            problems.append(f"images[{number}] ({name}): {names[rows[id_]]} has the id {id_} already")
            continue
        names.append(name.replace("\\", "/"))
        sizes.append(size)
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(os.path.normpath(name), []).append(name)
    for name, each in spellings.items():
        if len(each) > 1:
            as_what = f" (as {', '.join(each)})" if len(set(each)) > 1 else ""
            problems.append(f"{name} is listed twice{as_what}, with several ids: merge these")
    return rows, names, sizes


def _pixels(entry: dict[str, Any], key: str) -> int:
    """Return a height or width; 0 if it is not stated."""
    stated = entry.get(key) or 0
    try:
        number = float(stated)
    except OverflowError:
        number = float("inf")
    if not (isfinite(number) and 0 <= number < 2**31):
        raise ValueError(f"{key} {stated!r:.40} is no number of pixels")
    return int(number)


def _whole(id_: Any) -> Any:
    """Return an id, 10 for 10.0."""
    return int(id_) if isinstance(id_, float) and id_.is_integer() else id_


def _categories(entries: list[Any], problems: list[str]) -> list[Category]:
    """Return the classes in the order of their ids; those whose ids are text in the order of the file."""
    found: dict[int | str, Category] = {}
    for number, entry in enumerate(entries):
        try:
            category = Category(_whole(entry["id"]), entry["name"], str(entry.get("supercategory", "")))
            if not isinstance(category.id, int | str):
                raise ValueError(f"id {category.id!r}")
            if not isinstance(category.name, str) or not category.name:
                raise ValueError(f"name {category.name!r} is no text: write it in quotes")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"categories[{number}]: {_why(error)}")
            continue
        other = found.setdefault(category.id, category)
        if other is not category:
            problems.append(f"categories[{number}] ({category.name}): '{other.name}' has the id {other.id} already")
    twice = [name for name, count in Counter(category.name for category in found.values()).items() if count > 1]
    problems += [f"several categories are called '{name}'" for name in twice]
    whole = all(isinstance(id_, int) for id_ in found)
    return sorted(found.values(), key=_number) if whole else list(found.values())


def _number(category: Category) -> int:
    return int(category.id)


def _why(error: Exception) -> str:
    """Say why an entry is of no use."""
    return f"it has no {error}" if isinstance(error, KeyError) else f"it is not what it should be ({error})"


class _Objects:
    """Gathers objects one by one: what they are is kept in arrays alone.

    Args:
        rows: The row of each image id.
        kinds: The place of each category id.
        problems: Takes what is wrong.
    """

    def __init__(self, rows: dict[int | str, int], kinds: dict[int | str, int], problems: list[str]) -> None:
        self.rows, self.kinds, self.problems = rows, kinds, problems
        self.images, self.labels, self.numbers, self.crowds = array("q"), array("q"), array("q"), array("b")
        self.boxes, self.areas = array("d"), array("d")
        self.numbered = True  # whether all ids are whole numbers

    def add(self, number: int, entry: Any) -> None:
        """Add one object, or what is wrong with it."""
        try:
            image, kind = self.rows.get(entry["image_id"]), self.kinds.get(entry["category_id"])
            x, y, width, height = map(float, entry["bbox"])
            area, crowd, id_ = entry.get("area"), entry.get("iscrowd"), _whole(entry.get("id"))
            area = float("nan") if area is None else float(area)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            self.problems.append(f"{_place(number, entry)}: {self._why(error, entry)}")
            return
        if image is None or kind is None:
            key, of = ("image_id", "image") if image is None else ("category_id", "category")
            hint = _kind_hint(entry[key], self.rows if image is None else self.kinds)
            self.problems.append(f"{_place(number, entry)}: {key} {entry[key]!r} is the id of no {of}{hint}")
            return
        if crowd is not None and not (isinstance(crowd, int | float) and crowd in (0, 1)):
            self.problems.append(f"{_place(number, entry)}: iscrowd is {crowd!r}, neither 0 nor 1")
            return
        self.numbered = self.numbered and isinstance(id_, int) and abs(id_) < 2**63
        self.numbers.append(id_ if self.numbered else number)
        self.images.append(image)
        self.labels.append(kind)
        self.boxes.extend((x, y, x + width, y + height))
        self.areas.append(area)
        self.crowds.append(bool(crowd))

    def _why(self, error: Exception, entry: Any) -> str:
        if isinstance(error, KeyError) and error.args[0] == "bbox" and "caption" in entry:
            return "it has a caption and no bbox: take the file that starts with instances_"
        if isinstance(entry, dict) and "bbox" in entry and not isinstance(error, KeyError):
            return f"its bbox must be four numbers, x, y, width, height, and its area one: {entry['bbox']!r} ({error})"
        return _why(error)

    def file(self, path: Path, names: list[str], sizes: NDArray[np.int64], categories: list[Category]) -> COCOFile:
        """Return all of it, image by image."""
        images = np.array(self.images, np.int64)
        order = np.argsort(images, kind="stable")
        numbers = np.array(self.numbers, np.int64) if self.numbered else np.arange(len(images))
        return COCOFile(
            path=path,
            names=names,
            sizes=sizes,
            categories=categories,
            images=images[order],
            kinds=np.array(self.labels, np.int64)[order],
            boxes=np.array(self.boxes, np.float64).reshape(-1, 4)[order],
            areas=np.array(self.areas, np.float64)[order],
            crowds=np.array(self.crowds, np.bool_)[order],
            places=Numbered("annotation" if self.numbered else "entry", numbers[order]),
        )


def _kind_hint(id_: Any, known: Iterable[int | str]) -> str:
    """Say that ids are text on one side and numbers on the other."""
    text = isinstance(id_, str)
    if isinstance(next(iter(known), id_), str) == text:  # the first: all are of one kind, and there may be many
        return ""
    return ": ids are numbers there and text here" if text else ": ids are text there and numbers here"


def _place(number: int, entry: Any) -> str:
    """Name one object: by its id, or by its place in the list."""
    return f"annotation {entry['id']}" if isinstance(entry, dict) and "id" in entry else f"annotations[{number}]"
