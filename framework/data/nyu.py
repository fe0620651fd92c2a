"""NYU Depth v2: rooms seen by a Kinect, as the labelled .mat file or as folders with lists."""

from pathlib import Path
from typing import Any, Literal

from torchvision.transforms import v2

from framework.data.depth_benchmark import BenchmarkDepth, GroupedSamples, Part
from framework.data.depth_files import MILLIMETRES, DepthPair
from framework.data.depth_lists import find_list, folder_of, read_list
from framework.data.grouped_depth import GroupedDepthFiles, pinhole, require_files
from framework.data.nyu_labelled import LABELLED, LabelledFrames, open_mat, place_of, read_numbers, read_scenes
from framework.data.window import FixedCrop
from framework.errors import ConfigError, DataError

CAMERA = pinhole(518.8579, 519.4696, 325.5824, 253.7362)  # of 640x480, as the data set's toolbox has it
LISTS: dict[Part, tuple[str, ...]] = {
    "train": ("nyudepthv2_train_files_with_gt.txt", "nyu_train.txt"),
    "test": ("nyudepthv2_test_files_with_gt.txt", "nyu_test.txt"),
}
PLACES = (".", "train_test_inputs", "data_splits", "splits")  # where the lists are looked for
FOLDERS: dict[Part, tuple[str, ...]] = {  # where the files they name are looked for
    "train": ("sync", "official_splits/train", "train", "."),
    "test": ("official_splits/test", "test", "."),
}


class NYUv2(BenchmarkDepth):
    """NYU Depth v2, in either layout; which one is found out.

    Folders, as BTS and AdaBins have them: `sync/` or `official_splits/train/`, and `official_splits/test/`, with a
    folder a scene, of `rgb_00045.jpg` and `sync_depth_00045.png` (16 bits, millimetres, 0 without a reading). The
    images are those that `nyudepthv2_train_files_with_gt.txt` and `nyudepthv2_test_files_with_gt.txt` name, in `root`
    or in `train_test_inputs/`; without these lists, all in `official_splits/train/` and `official_splits/test/`.

    Labelled: `nyu_depth_v2_labeled.mat`, with `splits.mat` beside it (795 images to train, 654 to test); needs the
    extra `nyu`.

    NYU has no validation split: see `val_fraction`. Images have a white border, or a black one in `official_splits/`,
    where little can be seen: `model.crop: nyu_eigen` leaves it out of what is measured.

    Args:
        root: The folder of all, or the .mat file.
        train_list: List of the training images, `IMAGE DEPTH FOCAL` a line; for the .mat file a number a line, from 1.
            Null: the published one.
        test_list: List of the test images, likewise.
        mat_depth: Which depth of the .mat file: `raw` is what the camera read, on which BTS and all after it are
            measured; in `filled` the holes are filled.
        border: Whether training images keep their border, or it is cut off before anything else: rows 45 to 471 and
            columns 43 to 607 of 480x640 are left, as in BTS and DINOv2.
        depth_range: Smallest and largest depth in metres, both included.

    Raises:
        ConfigError: Neither layout is there, or a list or a package is missing.
        DataError: A list is wrong, or files are missing.
    """

    def __init__(
        self,
        root: str,
        train_list: str | None = None,
        test_list: str | None = None,
        mat_depth: Literal["raw", "filled"] = "raw",
        border: Literal["keep", "cut"] = "keep",
        depth_range: tuple[float, float] = (0.001, 10.0),
        **options: Any,
    ) -> None:
        super().__init__(depth_range=depth_range, **options)
        self.root = Path(root)
        self.lists: dict[Part, str | None] = {"train": train_list, "test": test_list}
        self.mat_depth: Literal["raw", "filled"] = mat_depth
        self.border: Literal["keep", "cut"] = border
        if border == "cut" and self.train_transforms is not None:
            raise ConfigError("data.border: data.train_transforms take the place of all that is done in training")
        self.mat: Path | None = None
        if not self.root.exists():
            raise ConfigError(f"data.root: {self.root} does not exist")
        mat = self.root / LABELLED if self.root.is_dir() else self.root
        if self._find_published("train") is None and not (self.root / "official_splits").is_dir():
            if mat.is_file():
                self.mat = mat
            elif train_list is None:
                raise ConfigError(self._nothing_there())

    def published(self, part: Part) -> GroupedSamples:
        """Return all images to train on, or all to test on."""
        if self.mat is not None:
            return self._labelled(self.mat, part)
        given = self.lists[part]
        folder = self.root / "official_splits" / part
        if given is None and self._find_published(part) is None and folder.is_dir():
            return self._whole(folder)
        return self._listed(part, find_list(self.root, given, f"{part}_list", LISTS[part], PLACES))

    def default_transforms(self) -> list[v2.Transform]:
        """Return what is asked for, on what is left when the border is cut off."""
        inside = [FixedCrop((45, 472), (43, 608), (480, 640))] if self.border == "cut" else []
        return [*inside, *super().default_transforms()]

    def rules(self) -> str:
        """Return everything besides the files that the data check's verdict depends on: the .mat file, too."""
        if self.mat is None:
            return super().rules()
        stat = self.mat.stat()
        numbers = [getattr(samples, "numbers", None) for samples in self.splits().values()]
        return f"{super().rules()} {self.mat} {stat.st_size} {stat.st_mtime_ns} {self.mat_depth} {numbers}"

    def _find_published(self, part: Part) -> Path | None:
        places = [self.root / place / name for place in PLACES for name in LISTS[part]]
        return next((path for path in places if path.is_file()), None)

    def _listed(self, part: Part, path: Path) -> GroupedDepthFiles:
        """Return the images that a list names."""
        lines = read_list(path)
        there = [(line.image, line.depth, line.place) for line in lines if line.depth is not None]
        base = folder_of([image for image, _, _ in there], [self.root / name for name in FOLDERS[part]], "images")
        pairs = [DepthPair(base / image, base / depth, _name(image), CAMERA) for image, depth, _ in there]
        require_files(pairs, [place for _, _, place in there])
        left_out = f"{path}: {len(lines) - len(there)} of {len(lines)} images have no depth and are left out"
        return self._files(pairs, left_out if len(there) < len(lines) else None)

    def _whole(self, folder: Path) -> GroupedDepthFiles:
        """Return all images of a folder of scenes.

        Raises:
            DataError: There is none, or depth is missing.
        """
        images = sorted(folder.glob("*/rgb_*.jpg"))
        if not images:
            raise DataError(f"{folder} has no images SCENE/rgb_00045.jpg")
        depths = [image.with_name(f"sync_depth_{image.stem.removeprefix('rgb_')}.png") for image in images]
        pairs = [
            DepthPair(image, depth, _name(str(image.relative_to(folder))), CAMERA)
            for image, depth in zip(images, depths, strict=True)
        ]
        require_files(pairs, [str(image) for image in images])
        return self._files(pairs, None)

    def _files(self, pairs: list[DepthPair], left_out: str | None) -> GroupedDepthFiles:
        scenes = [place_of(pair.image.parent.name) for pair in pairs]
        files = {"channels": 3, "depth_scale": MILLIMETRES, "depth_range": self.depth_range, "resize": self.resize}
        return GroupedDepthFiles(pairs, scenes, left_out, **files)

    def _labelled(self, mat: Path, part: Part) -> LabelledFrames:
        with open_mat(mat) as file:
            scenes = read_scenes(file)
        numbers = read_numbers(mat, part, self.lists[part], len(scenes))
        return LabelledFrames(mat, numbers, [scenes[number] for number in numbers], self.mat_depth, CAMERA)

    def _nothing_there(self) -> str:
        """Say what was looked for."""
        found = [*self.root.glob("*/**/official_splits"), *self.root.glob(f"*/**/{LABELLED}")]
        if found:
            return f"data.root: {self.root} is no NYU Depth v2: did you mean {found[0].parent}?"
        return (
            f"data.root: {self.root} is no NYU Depth v2: it has no {LISTS['train'][0]} (looked for in "
            f"{', '.join(PLACES)}), no folder official_splits, and no {LABELLED}"
        )


def _name(image: str) -> str:
    """Return what to call an image: its scene and its number."""
    path = Path(image)
    return f"{path.parent.name}_{path.stem.removeprefix('rgb_')}"
