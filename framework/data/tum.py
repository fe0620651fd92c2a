"""TUM RGB-D: sequences of a Kinect, whose images and depth maps are paired by their times."""

from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse.typing import PositiveFloat, PositiveInt
from numpy.typing import NDArray

from framework.data.check import report
from framework.data.datamodule import SplitName
from framework.data.depth import DepthData
from framework.data.depth_files import DepthPair
from framework.data.grouped_depth import GroupedDepthFiles, pinhole, require_files
from framework.errors import ConfigError, DataError, suggest

STEPS = 5000.0  # of the depth files, in a metre
PREFIX = "rgbd_dataset_"
CAMERAS = {  # as published, of the colour cameras, to which depth is registered
    "freiburg1": pinhole(517.3, 516.5, 318.6, 255.3),
    "freiburg2": pinhole(520.9, 521.0, 325.1, 249.7),
    "freiburg3": pinhole(535.4, 539.2, 320.1, 247.6),
}
DEFAULT = pinhole(525.0, 525.0, 319.5, 239.5)  # the driver's, for all others


class TUM(DepthData):
    """Sequences in the layout of TUM RGB-D: `rgb.txt` and `depth.txt`, a time and a file a line, in a folder each.

    An image gets the depth map nearest to it in time; none is used twice. Depth is 16-bit PNG with 5000 steps a metre,
    0 without a reading. Which sequences are for what is yours to say; those of one room in two splits make for a
    flattering result. Intrinsics are those published for freiburg1, 2 and 3; lens distortion is not undone.

    Args:
        root: The folder of the sequences.
        train: Sequences to train on, such as `rgbd_dataset_freiburg1_desk`, or `freiburg1_desk` for short.
        val: Sequences to validate on.
        test: Sequences to test on; null: no test split.
        stride: Take one pair of so many: sequences have 30 images a second, and neighbours look alike.
        max_difference: How far an image and its depth may be apart, in seconds.
        depth_range: Smallest and largest depth in metres, both included.

    Raises:
        ConfigError: The folder or a sequence is missing, or stands in two splits.
        DataError: A sequence's lists are wrong, or files are missing.
    """

    channels = 3

    def __init__(
        self,
        root: str,
        train: list[str],
        val: list[str],
        test: list[str] | None = None,
        stride: PositiveInt = 1,
        max_difference: PositiveFloat = 0.02,
        depth_range: tuple[float, float] = (0.001, 10.0),
        **options: Any,
    ) -> None:
        super().__init__(depth_range=depth_range, **options)
        self.root, self.stride, self.max_difference = Path(root), stride, max_difference
        if not self.root.is_dir():
            raise ConfigError(f"data.root: {self.root} is no folder")
        self.sequences: dict[SplitName, list[Path]] = {
            "train": self._find("train", train),
            "val": self._find("val", val),
            "test": self._find("test", test or []),
        }
        named = [folder for folders in self.sequences.values() for folder in folders]
        twice = sorted({folder.name for folder in named if named.count(folder) > 1})
        if twice:
            raise ConfigError(f"data.train, data.val and data.test: {', '.join(twice)} is named twice: use it once")

    def _find(self, option: str, names: list[str]) -> list[Path]:
        """Return the folders of sequences."""
        there = {path.parent.name: path.parent for path in sorted(self.root.glob("*/depth.txt"))}
        short = {name.removeprefix(PREFIX): folder for name, folder in there.items()}
        unknown = [name for name in names if name not in there and name not in short]
        if unknown:
            raise ConfigError(
                f"data.{option}: {self.root} has no sequence {unknown[0]} (a folder with rgb.txt and depth.txt); "
                f"{suggest(unknown[0], short) or f'it has {len(there)} others'}"
            )
        return [there.get(name) or short[name] for name in names]

    def split(self, name: SplitName) -> GroupedDepthFiles | None:
        """Return a split; None for `test` if no sequence is named for it."""
        folders = self.sequences[name]
        if not folders and name == "test":
            return None
        pairs = [pair for folder in folders for pair in self._pairs(folder)]
        groups = [pair.id.split("/")[0] for pair in pairs]
        return GroupedDepthFiles(
            pairs, groups, channels=3, depth_scale=STEPS, depth_range=self.depth_range, resize=self.resize
        )

    def _pairs(self, folder: Path) -> list[DepthPair]:
        """Return every `stride`-th pair of a sequence."""
        (times, images), (depth_times, depths) = read_times(folder / "rgb.txt"), read_times(folder / "depth.txt")
        found = associate(times, depth_times, self.max_difference)
        if not found:
            raise DataError(
                f"{folder}: no image of rgb.txt is within {self.max_difference:g} s of a depth map of depth.txt: are "
                "both of one recording? Else raise data.max_difference"
            )
        name = folder.name.removeprefix(PREFIX)
        camera = next((camera for key, camera in CAMERAS.items() if name.startswith(key)), DEFAULT)
        pairs = [
            DepthPair(folder / images[one], folder / depths[other], f"{name}/{Path(images[one]).stem}", camera)
            for one, other in found[:: self.stride]
        ]
        require_files(pairs, [f"{folder}/rgb.txt and depth.txt"] * len(pairs))
        return pairs


def read_times(path: Path) -> tuple[NDArray[np.float64], list[str]]:
    """Read a list of times in seconds and files, a pair a line; lines that begin with # are passed over.

    Raises:
        DataError: The list is missing, empty, or has lines that are no such pair; all of them are named.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): it lists a time and a file a line") from None
    found: list[tuple[float, str]] = []
    problems = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            time, file = words
            found.append((float(time), file))
        except ValueError:
            problems.append(f"{path}:{number}: {line.strip()!r} is no time and file")
    if problems:
        raise DataError(report(problems, "wrong line"))
    if not found:
        raise DataError(f"{path} lists no file")
    found.sort()
    return np.array([time for time, _ in found]), [file for _, file in found]


def associate(first: NDArray[np.float64], second: NDArray[np.float64], max_difference: float) -> list[tuple[int, int]]:
    """Pair two rising series of times: the nearest ones first, each of either series once at most.

    Args:
        first: Times in seconds (N,).
        second: Times in seconds (M,).
        max_difference: How far the times of a pair may be apart, in seconds; at this it is too far.

    Returns:
        The pairs, as places in both series, in the order of the first.
    """
    near: list[tuple[float, int, int]] = []
    starts = np.searchsorted(second, first - max_difference)
    ends = np.searchsorted(second, first + max_difference, side="right")
    for one, (time, start, end) in enumerate(zip(first, starts, ends, strict=True)):
        apart = np.abs(second[start:end] - time)
        near += [(float(apart[k]), one, int(start) + k) for k in range(len(apart)) if apart[k] < max_difference]
    pairs: dict[int, int] = {}
    used: set[int] = set()
    for _, one, other in sorted(near):
        if one not in pairs and other not in used:
            pairs[one] = other
            used.add(other)
    return sorted(pairs.items())
