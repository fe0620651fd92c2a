"""7-Scenes: rooms seen by a Kinect, a folder a scene, with lists of its sequences."""

import re
from pathlib import Path
from typing import Any, ClassVar

from jsonargparse.typing import PositiveInt

from framework.data.check import report
from framework.data.depth_benchmark import BenchmarkDepth, Part
from framework.data.depth_files import MILLIMETRES, DepthPair
from framework.data.grouped_depth import GroupedDepthFiles, pinhole, require_files
from framework.errors import ConfigError, DataError, suggest

CAMERA = pinhole(585.0, 585.0, 320.0, 240.0)  # as published
LISTS: dict[Part, str] = {"train": "TrainSplit.txt", "test": "TestSplit.txt"}


class SevenScenes(BenchmarkDepth):
    """Microsoft's 7-Scenes: a folder a scene (`chess`, `fire`, ...), or the folder of one scene alone.

    `TrainSplit.txt` and `TestSplit.txt` of a scene list its sequences (`sequence1` is `seq-01/`), which hold
    `frame-000000.color.png` and `frame-000000.depth.png` (16 bits, millimetres; 0 and 65535 without a reading). As
    published, depth is not registered to the colour camera: it is off by a few pixels at the edges of things.

    Training and test sequences are of the same rooms. There is no validation split: see `val_fraction`.

    Args:
        root: The folder of the scenes, or of one.
        scenes: Which scenes; null: all there are.
        stride: Take one frame of so many: sequences have 30 a second, and neighbours look alike.
        depth_range: Smallest and largest depth in metres, both included.

    Raises:
        ConfigError: The folder or a scene is missing.
        DataError: A list is wrong, or files are missing.
    """

    group: ClassVar[str] = "sequence"

    def __init__(
        self,
        root: str,
        scenes: list[str] | None = None,
        stride: PositiveInt = 1,
        depth_range: tuple[float, float] = (0.001, 10.0),
        **options: Any,
    ) -> None:
        super().__init__(depth_range=depth_range, **options)
        self.root, self.stride = Path(root), stride
        if not self.root.is_dir():
            raise ConfigError(f"data.root: {self.root} is no folder")
        lists = [self.root / LISTS["train"], *sorted(self.root.glob(f"*/{LISTS['train']}"))]
        there = {path.parent.name: path.parent for path in lists if path.is_file()}
        if not there:
            raise ConfigError(f"data.root: {self.root} has no {LISTS['train']}, nor has any folder in it")
        unknown = [name for name in scenes or [] if name not in there]
        if unknown:
            raise ConfigError(f"data.scenes: {self.root} has no scene {unknown[0]}; {suggest(unknown[0], there)}")
        self.scenes = [there[name] for name in dict.fromkeys(scenes or there)]

    def published(self, part: Part) -> GroupedDepthFiles:
        """Return all frames to train on, or all to test on."""
        folders = [folder for scene in self.scenes for folder in read_sequences(scene / LISTS[part])]
        missing = [
            f"{folder} is missing, or has no frame-000000.color.png" for folder in folders if not _frames(folder)
        ]
        if missing:
            raise DataError(report(missing, "wrong sequence"))
        pairs = [pair for folder in folders for pair in self._pairs(folder)]
        require_files(pairs, [str(pair.image) for pair in pairs])
        groups = [pair.id.rsplit("/", 1)[0] for pair in pairs]
        return GroupedDepthFiles(
            pairs, groups, channels=3, depth_scale=MILLIMETRES, depth_range=self.depth_range, resize=self.resize
        )

    def _pairs(self, folder: Path) -> list[DepthPair]:
        place = f"{folder.parent.name}/{folder.name}"
        pairs = []
        for image in _frames(folder)[:: self.stride]:
            stem = image.name.removesuffix(".color.png")
            pairs.append(DepthPair(image, folder / f"{stem}.depth.png", f"{place}/{stem}", CAMERA))
        return pairs


def _frames(folder: Path) -> list[Path]:
    return sorted(folder.glob("frame-*.color.png"))


def read_sequences(path: Path) -> list[Path]:
    """Return the folders of the sequences that a list names.

    Raises:
        DataError: The list is missing or empty, or a line names no sequence.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): it lists sequences, such as sequence1") from None
    numbers = [re.fullmatch(r"(?:sequence|seq-?)(\d+)", line) for line in lines]
    wrong = [line for line, number in zip(lines, numbers, strict=True) if number is None]
    if wrong or not lines:
        raise DataError(f"{path} {f'has a line {wrong[0]!r}' if wrong else 'is empty'}: a line is such as sequence1")
    return [path.parent / f"seq-{int(number[1]):02d}" for number in numbers if number is not None]
