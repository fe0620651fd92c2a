"""Lists of images and their depth maps, a pair a line, as BTS and AdaBins write them: `IMAGE DEPTH FOCAL`."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from framework.data.check import report
from framework.errors import ConfigError, DataError

TRIED = 20  # of the files listed, to find the folder they are in


class ListedPair(NamedTuple):
    """A line of a list.

    Args:
        image: The image's path as written, without a slash in front.
        depth: The depth map's, likewise; None: the line says `None`, there is no ground truth.
        place: The list and the line, for messages.
    """

    image: str
    depth: str | None
    place: str


def read_list(path: Path) -> list[ListedPair]:
    """Read a list of pairs; empty lines and focal lengths, which calibrations give more exactly, are passed over.

    Raises:
        DataError: The list cannot be read, has no depth map, or has lines that are no pair; all of them are named.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    pairs, problems = [], []
    for number, line in enumerate(lines, 1):
        words, place = line.split(), f"{path}:{number}"
        if len(words) in (2, 3):
            image, depth = (word.lstrip("/") for word in words[:2])
            pairs.append(ListedPair(image, None if depth == "None" else depth, place))
        elif words:
            problems.append(f"{place}: {len(words)} words, but a line is `IMAGE DEPTH` or `IMAGE DEPTH FOCAL`")
    if problems:
        raise DataError(report(problems, "wrong line"))
    if not any(pair.depth for pair in pairs):
        raise DataError(f"{path} lists no image with a depth map")
    return pairs


def find_list(root: Path, given: str | None, option: str, names: Sequence[str], folders: Sequence[str]) -> Path:
    """Return the list that is given, by its path or its path in `root`, or the first of `names` in `folders` of it.

    Raises:
        ConfigError: There is no such file; the message says where it was looked for.
    """
    places = [root / folder / name for folder in folders for name in names]
    if given is not None:
        places = [Path(given), root / given]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        looked = ", ".join(dict.fromkeys(str(path) for path in places))
        raise ConfigError(f"data.{option}: the list of images and depth maps is missing; looked for {looked}")
    return found


def folder_of(files: Sequence[str], folders: Sequence[Path], what: str) -> Path:
    """Return the first of `folders` that has one of the first few files, which are paths in it.

    Raises:
        DataError: None of them has.
    """
    for folder in folders:
        if any((folder / file).is_file() for file in files[:TRIED]):
            return folder
    looked = ", ".join(str(folder / files[0]) for folder in folders)
    raise DataError(f"there is none of the {what} listed, such as {files[0]}; looked for {looked}")
