"""Which depth file belongs to which image: by name, or as a list of frames says."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from framework.data.depth_files import DepthPair
from framework.data.depth_formats import DEPTH_SUFFIXES
from framework.data.images import IMAGE_SUFFIXES, find_images
from framework.errors import DataError

NAMED = 5  # files in a message

_IMAGE = r"rgb|colors?|colours?|image|img"
_DEPTH = r"sync_depth|depth|depths"
_AFFIX = re.compile(rf"^(?:{_IMAGE}|{_DEPTH})[_-]|[_-](?:{_IMAGE}|{_DEPTH})$", re.IGNORECASE)
_DIGITS = re.compile(r"(\d+)")


class Matched(NamedTuple):
    """What was found of some frames.

    Args:
        pairs: Images with their depth.
        problems: What is wrong, a line each.
        spare: How many depth files belong to no image.
    """

    pairs: list[DepthPair]
    problems: list[str]
    spare: int


def natural_order(path: Path) -> list[str | int]:
    """Return a key that sorts names as people count: frame 2 before frame 10."""
    return [int(part) if part.isdigit() else part for part in _DIGITS.split(path.stem)]


def frame_name(stem: str) -> str:
    """Return a stem without what says whether it is the image or the depth: `000_rgb` and `depth-000` are 000."""
    return _AFFIX.sub("", stem) or stem


def match_depths(images: Path, depths: Path) -> Matched:
    """Pair the images of one folder with the depths of another.

    The names are the same up to the suffix, or to `_rgb`, `_color`, `_colors`, `_image` or `_depth` at either end.

    Raises:
        DataError: A folder is missing or has no image, or several files may be meant.
    """
    for folder in (images, depths):
        if not folder.is_dir():
            raise DataError(f"{folder} is missing: this split needs images in {images} and depths in {depths}")
    found = find_images(images)
    if not found:
        inside = sorted(path.name for path in images.iterdir() if path.is_dir())
        nested = f"; folders in it ({', '.join(inside[:NAMED])}) are read only where a list names their frames"
        raise DataError(
            f"{images} has no image (a file that ends in {', '.join(IMAGE_SUFFIXES)}){nested if inside else ''}"
        )
    near = DepthNames(depths)
    pairs, lacking = [], []
    for path in sorted(found.values(), key=natural_order):
        depth = near.of(path.stem)
        if depth is None:
            lacking.append(path.name)
        else:
            pairs.append(DepthPair(path, depth, path.stem))
    twice = _twice(pairs)
    problems = [f"{images}: {_count(lacking, 'image')} no depth of the same name in {depths}"] if lacking else []
    return Matched(pairs, [*problems, *twice], len(set(near.exact.values()) - {pair.depth for pair in pairs}))


class DepthNames:
    """The depth files of one folder, by their names.

    Args:
        folder: The folder; one that does not exist has none.

    Raises:
        DataError: Two files have the same stem.
    """

    def __init__(self, folder: Path) -> None:
        self.exact: dict[str, Path] = {}
        self.loose: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix.lower() not in DEPTH_SUFFIXES or path.name.startswith("."):
                continue
            if path.stem in self.exact:
                raise DataError(f"{path} and {self.exact[path.stem].name} share a name: keep one of them")
            self.exact[path.stem] = path
            self.loose.setdefault(frame_name(path.stem), []).append(path)

    def of(self, stem: str) -> Path | None:
        """Return the depth of an image; None if there is none.

        Raises:
            DataError: Several files may be meant.
        """
        if stem in self.exact:
            return self.exact[stem]
        found = self.loose.get(frame_name(stem), [])
        if len(found) > 1:
            names = ", ".join(path.name for path in found[:NAMED])
            raise DataError(
                f"{found[0].parent}: {names} may all be the depth of image {stem}: rename them as it is named"
            )
        return found[0] if found else None


def _twice(pairs: list[DepthPair]) -> Iterator[str]:
    """Say which depth files would belong to several images."""
    owner: dict[Path, Path] = {}
    for pair in pairs:
        other = owner.setdefault(pair.depth, pair.image)
        if other != pair.image:
            yield f"{pair.depth} may be the depth of {other.name} and of {pair.image.name}: name it as its image"


def _count(names: list[str], what: str) -> str:
    """Say how many files there are and name them, five at most: `2 images have (a, b)`."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    named = f"({', '.join(names[:NAMED])}{more})"
    return f"1 {what} {named} has" if len(names) == 1 else f"{len(names)} {what}s {named} have"


class FrameList:
    """A text file that lists the frames of a split, one a line: `IMAGE`, or `IMAGE DEPTH`.

    Images and depths are paths within `root`, or within its folder of images or depths, with or without a suffix. Empty
    lines and those that begin with `#` are passed over.

    Args:
        path: The file.
        root: Folder of the data set.
        rgb: Its folder of images.
        depth: Its folder of depths.
    """

    def __init__(self, path: Path, root: Path, rgb: Path, depth: Path) -> None:
        self.path, self.root, self.rgb, self.depth = path, root, rgb, depth
        self._depths: dict[Path, DepthNames] = {}
        self._images: dict[Path, dict[str, Path]] = {}

    def read(self) -> Matched:
        """Return its frames in its order.

        Raises:
            DataError: The file cannot be read, or is empty.
        """
        try:
            lines = self.path.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            raise DataError(f"{self.path} is missing: write the frames of the split into it, one a line") from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path} cannot be read as UTF-8 text: {error}") from None
        stated = [(number, line.strip()) for number, line in enumerate(lines, 1)]
        stated = [(number, line) for number, line in stated if line and not line.startswith("#")]
        if not stated:
            raise DataError(f"{self.path} lists no frame")
        pairs, wrong = {}, []
        for number, line in stated:
            pair = self._pair(line)
            if isinstance(pair, str):
                wrong.append(f"line {number} {pair}")
            elif pair.image in pairs:
                wrong.append(f"line {number} lists {pair.image.name} again")
            else:
                pairs[pair.image] = pair
        more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        problems = [f"{self.path}: {len(wrong)} wrong: {'; '.join(wrong[:NAMED])}{more}"] if wrong else []
        return Matched(list(pairs.values()), problems, 0)

    def _pair(self, line: str) -> DepthPair | str:
        """Return the frame of a line, or what is wrong with it."""
        image, depth = self._image(line), None
        if image is None:  # a name with spaces is one name
            first, _, second = line.partition("\t") if "\t" in line else line.partition(" ")
            image = self._image(first)
            if image is None:
                return f"names no image: {first}"
            depth = self._stated_depth(second.strip())
            if depth is None:
                return f"names no depth file: {second.strip()}"
        else:
            depth = self._depth_of(image)
            if depth is None:
                return f"has no depth: {line}"
        return DepthPair(image, depth, self._id(image))

    def _image(self, entry: str) -> Path | None:
        for base in (self.rgb, self.root):
            path = base / entry
            if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
                return path
            if path.parent not in self._images:
                self._images[path.parent] = find_images(path.parent) if path.parent.is_dir() else {}
            if path.name in self._images[path.parent]:
                return self._images[path.parent][path.name]
        return None

    def _stated_depth(self, entry: str) -> Path | None:
        bases = (self.depth, self.root)
        candidates = (base / f"{entry}{suffix}" for base in bases for suffix in ("", *DEPTH_SUFFIXES))
        return next((path for path in candidates if entry and path.is_file()), None)

    def _depth_of(self, image: Path) -> Path | None:
        """Return the depth that lies in the folder of depths as its image does in that of images."""
        inside = image.parent.relative_to(self.rgb) if image.is_relative_to(self.rgb) else Path()
        folder = self.depth / inside
        if folder not in self._depths:
            self._depths[folder] = DepthNames(folder)
        return self._depths[folder].of(image.stem)

    def _id(self, image: Path) -> str:
        base = next((base for base in (self.rgb, self.root) if image.is_relative_to(base)), image.parent)
        return image.relative_to(base).with_suffix("").as_posix()


def listed(problems: Iterable[str]) -> str:
    """Write problems as the lines of one message."""
    lines = list(problems)
    return lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} things are wrong:", *lines])
