"""`train/rgb` and `train/depth`, `rgb/train` and `depth/train`, or `rgb` and `depth`: plain layouts of depth data."""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import ClosedUnitInterval, OpenUnitInterval, PositiveFloat

from framework.clock import permutation
from framework.data.datamodule import SplitName
from framework.data.depth import DepthData
from framework.data.depth_files import DepthFiles, DepthPair
from framework.data.depth_pairs import FrameList, Matched, listed, match_depths
from framework.errors import ConfigError, DataError

SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
BLOCKS = 20  # of consecutive frames, that a folder without splits is cut into


class DepthFolder(DepthData):
    """A folder of images and depth maps of the same names.

    Depth is 16-bit PNG, PGM or TIFF, or floats as TIFF, npy, npz, PFM or EXR (`pip install
    "vision-plugin-framework[exr]"`); 0, NaN and infinity are no reading, nor is 65535 of whole numbers. The names of an
    image and its depth are the same up to the suffix, and to `_rgb`, `_color`, `_image` or `_depth` at either end.

    Splits are folders, `train/rgb` and `train/depth` or `rgb/train` and `depth/train`, likewise `val` and `test`; or
    there are `rgb` and `depth` alone, with `train.txt`, `val.txt` and `test.txt` in the root, which list frames, one a
    line: an image, or an image and its depth. The test split may be missing. Without any of that, the frames in the
    order of their names, in which neighbours may be those of a video, are cut into 20 blocks; two of these are for
    validation and two for test, always the same ones of as many frames, whatever the run's seed.

    Args:
        root: The folder.
        rgb: Name of the folders of images.
        depth: Name of the folders of depths.
        depth_scale: Stored units of a metre: 1000 for millimetres, 256 in KITTI, 5000 in TUM RGB-D. Null: 1000 for
            whole numbers, 1 for floats.
        depth_key: Name of the array in npz files, or of the channel in EXR files. Null: the only one, or `depth` or
            `Z`.
        channels: 1 for grey images, 3 for colour, 4 for colour with alpha.
        train_list: File that lists the training frames, within the root. Null: `train.txt` if there is one.
        val_list: File that lists the validation frames, likewise.
        test_list: File that lists the test frames, likewise.
        val_share: Share of the blocks for validation, where neither folders nor lists say what is.
        test_share: Share of the blocks for test, likewise; 0 for no test split.
    """

    def __init__(
        self,
        root: str,
        rgb: str = "rgb",
        depth: str = "depth",
        depth_scale: PositiveFloat | None = None,
        depth_key: str | None = None,
        channels: Literal[1, 3, 4] = 3,
        train_list: str | None = None,
        val_list: str | None = None,
        test_list: str | None = None,
        val_share: OpenUnitInterval = 0.1,
        test_share: ClosedUnitInterval = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root, self.rgb, self.depth, self.channels = Path(root), rgb, depth, channels
        self.depth_scale: float | None = depth_scale
        self.depth_key: str | None = depth_key
        self.lists: dict[SplitName, str | None] = {"train": train_list, "val": val_list, "test": test_list}
        self.shares: dict[SplitName, float] = {"val": val_share, "test": test_share}
        if not self.root.is_dir():
            raise ConfigError(f"data.root: {self.root} is no folder")
        if val_share + test_share >= 1:
            raise ConfigError(
                f"data.val_share: {val_share} and data.test_share: {test_share} leave nothing to train on"
            )

    def split(self, name: SplitName) -> DepthFiles | None:
        """Return a split; None for `test` if there is none.

        Raises:
            DataError: Folders are missing, or images have no depth, of any split.
        """
        matched = self._matched.get(name)
        if matched is None:
            return None
        notes = [self._note] if name == "train" and self._note else []
        if matched.spare:
            notes += [f"{matched.spare} depth files have no image of their name, and are left out"]
        return DepthFiles(
            matched.pairs, self.channels, self.depth_scale, self.depth_range, self.resize, self.depth_key, notes
        )

    def rules(self) -> str:
        """Return everything besides the files that the data check's verdict depends on."""
        return f"{super().rules()} {self.depth_scale} {self.depth_key}"

    # Where the frames are.

    @cached_property
    def _matched(self) -> dict[SplitName, Matched]:
        """The frames of each split."""
        lists = dict(self._list_files())
        folders = {} if any(self.lists.values()) else {name: self._folders(name) for name in SPLITS}
        by_folder = {name: found for name, found in folders.items() if found is not None}
        if not by_folder and not lists:
            return self._divide(match_depths(*self._flat()))
        if by_folder:
            found = {name: _attempt(match_depths, *pair) for name, pair in by_folder.items()}
        else:
            rgb, depth = self._flat()
            found = {name: _attempt(FrameList(path, self.root, rgb, depth).read) for name, path in lists.items()}
        problems = [f"{name}: {each}" for name, matched in found.items() for each in matched.problems]
        for name in SPLITS[:2]:
            problems += (
                [] if name in found else [f"{self.root} has no {name} split: {self._remedy(name, bool(by_folder))}"]
            )
        if problems:
            raise DataError(listed(problems))
        return found

    def _remedy(self, name: SplitName, by_folder: bool) -> str:
        """Say how to make a split that is missing."""
        if not by_folder:
            return f"write {name}.txt into {self.root}, or say which file lists its frames by data.{name}_list"
        by_split = any((self.root / split / self.rgb).is_dir() for split in SPLITS)
        wanted = (
            f"{name}/{self.rgb} and {name}/{self.depth}" if by_split else f"{self.rgb}/{name} and {self.depth}/{name}"
        )
        inside = self.root if by_split else self.root / self.rgb
        others = sorted(path.name for path in inside.iterdir() if path.is_dir() and path.name not in SPLITS)
        there = f" (or is it {', '.join(others[:5])}?)" if others else ""
        return f"make {wanted}, of frames that are in no other split{there}"

    def _folders(self, name: SplitName) -> tuple[Path, Path] | None:
        """Return the folders of images and depths of a split; None if there are none."""
        for rgb, depth in (
            (f"{name}/{self.rgb}", f"{name}/{self.depth}"),
            (f"{self.rgb}/{name}", f"{self.depth}/{name}"),
        ):
            if (self.root / rgb).is_dir() or (self.root / depth).is_dir():
                return self.root / rgb, self.root / depth
        return None

    def _list_files(self) -> Iterator[tuple[SplitName, Path]]:
        for name in SPLITS:
            stated = self.lists[name]
            if stated is not None or (self.root / f"{name}.txt").is_file():
                yield name, self.root / (stated or f"{name}.txt")

    def _flat(self) -> tuple[Path, Path]:
        """Return the folders of all images and of all depths."""
        rgb, depth = self.root / self.rgb, self.root / self.depth
        for name, folder in (("rgb", rgb), ("depth", depth)):
            if not folder.is_dir():
                there = sorted(path.name for path in self.root.iterdir() if path.is_dir())
                if "train" in there:  # with folders of other names in it
                    there += sorted(f"train/{path.name}" for path in (self.root / "train").iterdir() if path.is_dir())
                raise DataError(
                    f"{folder} is missing: data.root has {', '.join(there[:8]) or 'no folder'}; it needs {self.rgb} "
                    f"and {self.depth}, or train/{self.rgb} and train/{self.depth}; data.{name} is another name for it"
                )
        return rgb, depth

    def _divide(self, matched: Matched) -> dict[SplitName, Matched]:
        """Divide frames in their order into blocks, some of which are for validation and test."""
        if matched.problems:
            raise DataError(listed(matched.problems))
        count = min(BLOCKS, len(matched.pairs))
        held = {name: max(1, round(share * count)) if share else 0 for name, share in self.shares.items()}
        if sum(held.values()) >= count:
            raise DataError(f"{self.root}: {count} frames are too few to be divided: 3 at least")
        order = permutation(count, "depth folder")
        names: list[SplitName] = [name for name in ("val", "test") for _ in range(held[name])]
        names += ["train" for _ in range(count - len(names))]
        block = dict(zip(order, names, strict=True))
        parts: dict[SplitName, list[DepthPair]] = {name: [] for name in SPLITS if name in names}
        for index, pair in enumerate(matched.pairs):
            parts[block[index * count // len(matched.pairs)]].append(pair)
        return {name: Matched(pairs, [], matched.spare if name == "train" else 0) for name, pairs in parts.items()}

    @property
    def _note(self) -> str | None:
        """Say how frames were divided that nobody had divided."""
        if any(self._folders(name) for name in SPLITS) or dict(self._list_files()):
            return None
        sizes = ", ".join(f"{len(matched.pairs)} {name}" for name, matched in self._matched.items())
        return (
            "neither folders nor lists say what is trained on, so blocks of consecutive frames were held out "
            f"({sizes}): write train.txt and val.txt into {self.root} to choose"
        )


def _attempt(find: Callable[..., Matched], *arguments: Path) -> Matched:
    """Return the frames of a split, or why there are none, so that what is wrong with others is said too."""
    try:
        return find(*arguments)
    except DataError as error:
        return Matched([], [str(error)], 0)
