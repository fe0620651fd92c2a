"""The files of YOLO's format: `data.yaml`, lists of images, and a label file for each image."""

from collections.abc import Iterator
from math import isnan, nan
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from framework.data.annotations import Object
from framework.data.images import IMAGE_SUFFIXES
from framework.errors import DataError, suggest

EDGE = 1e-3  # by which numbers may be beyond [0, 1]: rounded
KEYS = ("path", "train", "val", "test", "nc", "names", "kpt_shape", "download")


class YOLODescription(NamedTuple):
    """What `data.yaml` says.

    Args:
        path: The file.
        base: Folder from which the images start.
        splits: What each split is made of: folders, lists and images.
        classes: Names of the classes.
        keypoints: Whether keypoints stand behind a box.
    """

    path: Path
    base: Path
    splits: dict[str, list[str]]
    classes: list[str]
    keypoints: bool


def read_description(path: Path) -> YOLODescription:
    """Read `data.yaml`.

    Raises:
        DataError: It is no YAML, lacks something, or contradicts itself.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark is not None else ""
        raise DataError(f"{path}{place}: this is no YAML ({error.problem})") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as YAML ({error})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no keys such as train, val and names")
    for key in ("names", "train"):
        if found.get(key) is None:
            hint = suggest(key, [str(other) for other in found if other not in KEYS])
            raise DataError(f"{path} has no '{key}'" + (f"; {hint}" if hint.startswith("did") else ""))
    stated = _existing(path.parent, str(found.get("path") or "."))
    base = stated if stated.is_dir() else path.parent  # a path of the machine that wrote it
    splits = {split: _parts(path, split, found[split]) for split in ("train", "val", "test") if found.get(split)}
    return YOLODescription(path, base, splits, _names(path, found), "kpt_shape" in found)


def _parts(path: Path, key: str, value: Any) -> list[str]:
    parts = value if isinstance(value, list) else [value]
    wrong = [part for part in parts if not isinstance(part, str)]
    if wrong:
        raise DataError(f"{path}: '{key}' must be a folder, a list of images, or several of these, got {value!r}")
    return parts


def _names(path: Path, found: dict[str, Any]) -> list[str]:
    """Return the names of the classes in the order of their indices."""
    names = found["names"]
    if isinstance(names, dict):
        numbers = [int(key) if isinstance(key, str) and key.isdecimal() else key for key in names]
        if len(set(numbers)) == len(names):  # '0' is a number as well
            names = dict(zip(numbers, names.values(), strict=True))
        if set(names) != set(range(len(names))):
            raise DataError(
                f"{path}: 'names' must number the classes from 0 without gaps, got {sorted(names, key=str)}"
            )
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list):
        raise DataError(f"{path}: 'names' must be a list of the classes, or each under its number, got {names!r}")
    if "nc" in found and found["nc"] != len(names):
        raise DataError(f"{path}: 'nc' is {found['nc']}, but 'names' has {len(names)} classes: one of them is wrong")
    wrong = [f"class {index} is {name!r}" for index, name in enumerate(names) if not isinstance(name, str)]
    if wrong:
        raise DataError(f"{path}: 'names' must be text, but to YAML {', '.join(wrong[:5])}: write it in quotes")
    return [str(name) for name in names]


def _existing(base: Path, written: str) -> Path:
    """Return what a path means: with slashes for backslashes, where there is nothing as it is written."""
    place = base / written
    return place if "\\" not in written or place.exists() else base / written.replace("\\", "/")


class Place(NamedTuple):
    """Where one part of a split is.

    Args:
        path: A folder, or a list of images.
        passed_over: What else it could have meant; None: nothing.
    """

    path: Path
    passed_over: Path | None


def find_place(description: YOLODescription, split: str, part: str) -> Place:
    """Return where a part of a split is.

    Roboflow starts from a folder beside `data.yaml`, and writes `../train/images` for `train/images`. So what lies
    inside the folder of `data.yaml` goes before what lies outside.

    Raises:
        DataError: It is not there.
    """
    outer = _existing(description.base, part)
    inside = part.replace("\\", "/")
    while inside.startswith("../"):
        inside = inside.removeprefix("../").lstrip("/")
    inner = description.base / inside
    if inside and inner != outer and inner.exists():
        other = outer.exists() and outer.resolve() != inner.resolve()
        return Place(inner, outer if other else None)
    if not outer.exists():
        machine = ": is it a path of another machine?" if part.startswith(("/", "~")) or ":" in part else ""
        raise DataError(
            f"{description.path}: '{split}' is {part}, but {outer} does not exist{machine or '.'} Write where these "
            f"images are from {description.base}, such as images/{split}"
        )
    return Place(outer, None)


def find_images_of(place: Path, base: Path) -> list[Path]:
    """Return the images of one part of a split, sorted by name or as listed.

    Args:
        place: A folder, which is searched to its depth, or a text file with a path a line, which start from the folder
            of the list or from `base`.
        base: Folder from which the description starts.

    Raises:
        DataError: It has no image.
    """
    if place.is_dir():
        found = sorted(path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        images = [path for path in found if not path.name.startswith(".")]
    else:
        images = list(_listed(place, base))
    if not images:
        raise DataError(f"{place} has no image (a file that ends in {', '.join(IMAGE_SUFFIXES)})")
    return images


def _listed(path: Path, base: Path) -> Iterator[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a list of images ({error})") from None
    for line in (line.strip() for line in lines):
        if line:
            beside = _existing(path.parent, line)
            yield beside if beside.is_file() else _existing(base, line)


def label_path(image: Path) -> Path:
    """Return where the label file of an image is: in `labels/` in place of the last `images/`, or else beside it."""
    parts = list(image.parts[:-1])
    if "images" not in parts:
        return image.with_suffix(".txt")
    last = len(parts) - 1 - parts[::-1].index("images")
    parts[last] = "labels"
    return Path(*parts, f"{image.stem}.txt")


class LabelLines(NamedTuple):
    """What one label file says.

    Args:
        objects: The objects, whose boxes are in shares of the image's width and height.
        outlines: How many of them are given by an outline.
        problems: What is wrong, with file and line.
    """

    objects: list[Object]
    outlines: int
    problems: list[str]


def read_labels(path: Path, num_classes: int, keypoints: bool) -> LabelLines:
    """Read a label file: `class cx cy w h` a line, or a class and the corners of an outline.

    Args:
        path: The file.
        num_classes: How many classes there are.
        keypoints: Whether what stands behind a box are keypoints.

    Raises:
        DataError: It cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    objects, outlines, problems = [], 0, []
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        try:
            label, numbers = _label(fields[0], num_classes), _numbers(fields[1:])
            box = _box(numbers[:4] if keypoints else numbers)
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
            continue
        outlines += len(numbers) > 4 and not keypoints
        objects.append(Object(box, label, f"line {number}"))
    return LabelLines(objects, outlines, problems)


def _label(field: str, num_classes: int) -> int:
    try:
        value = float(field)
    except ValueError:
        raise ValueError(f"a line begins with the number of a class, not '{field}'") from None
    if value not in range(num_classes):
        raise ValueError(f"class {field} is none of 0 to {num_classes - 1}, which data.yaml names")
    return int(value)


def _numbers(fields: list[str]) -> list[float]:
    try:
        return [float(field) for field in fields]
    except ValueError as error:
        raise ValueError(f"{error}: a class and four numbers are wanted, cx cy w h") from None


def _box(values: list[float]) -> tuple[float, float, float, float]:
    """Return x1, y1, x2, y2 of a box given by centre and size, or around an outline."""
    if len(values) == 5:
        raise ValueError("6 fields, where 5 are wanted (class cx cy w h): is the last a score?")
    if len(values) < 4 or len(values) % 2:
        raise ValueError(f"{len(values) + 1} fields, where 5 are wanted (class cx cy w h), or a class and an outline")
    beyond = [value for value in values if not (-EDGE <= value <= 1 + EDGE or isnan(value))]
    if beyond:
        hint = ": are they pixels?" if max(values) > 2 else ""
        raise ValueError(f"{beyond[0]:g} is outside of 0 to 1, shares of the image's width and height{hint}")
    if len(values) == 4:
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if any(map(isnan, values)):
        return nan, nan, nan, nan
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
