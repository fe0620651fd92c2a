"""KITTI with the Eigen split: streets seen from a car, with sparse depth of a laser."""

from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torchvision import tv_tensors

from framework.data.depth_benchmark import BenchmarkDepth, Part
from framework.data.depth_files import DepthPair, to_metres
from framework.data.depth_formats import Stored
from framework.data.depth_lists import find_list, folder_of, read_list
from framework.data.grouped_depth import GroupedDepthFiles, pinhole, require_files
from framework.errors import ConfigError, DataError

STEPS = 256.0  # of the depth files, in a metre
KB_CROP = (352, 1216)  # height and width
LISTS: dict[Part, tuple[str, ...]] = {
    "train": ("eigen_train_files_with_gt.txt", "kitti_eigen_train.txt"),
    "test": ("eigen_test_files_with_gt.txt", "kitti_eigen_test.txt"),
}
PLACES = (".", "train_test_inputs", "data_splits", "splits")  # where the lists are looked for
RAW = (".", "raw", "raw_data", "kitti_raw", "input")  # where the images are looked for
DEPTH = ("data_depth_annotated", "gt_depth", "gts", ".")  # where depth is looked for, and in train/ and val/ of each


class KBCropFiles(GroupedDepthFiles):
    """Files of which only 352x1216 pixels count, in the middle of the bottom, as in KITTI's own depth benchmark."""

    def depth(self, index: int) -> NDArray[np.float32]:
        """Return all readings of what is left of one depth file, in metres, float32 (352, 1216)."""
        return to_metres(self._load(self.pairs[index])[2], self.depth_scale)

    def _load(self, pair: DepthPair) -> tuple[tv_tensors.Image, tuple[int, int], Stored]:
        image, (height, width), stored = super()._load(pair)
        if height < KB_CROP[0] or width < KB_CROP[1]:
            raise DataError(f"{pair.image} is {width}x{height}, too small for data.kb_crop: leave it out")
        left, top = kb_corner(width, height)
        window = slice(top, top + KB_CROP[0]), slice(left, left + KB_CROP[1])
        return tv_tensors.Image(image[(slice(None), *window)]), KB_CROP, stored[window]


def kb_corner(width: int, height: int) -> tuple[int, int]:
    """Return the column and row at which the crop of KITTI's depth benchmark begins."""
    return (width - KB_CROP[1]) // 2, height - KB_CROP[0]


class KITTIEigen(BenchmarkDepth):
    """KITTI in the split of Eigen et al. (2014), with the depth of KITTI's depth benchmark, improved and annotated.

    Images are those of the raw recordings, such as
    `2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png`, in `root`, `raw/`, `raw_data/` or `input/`.
    Depth is in `data_depth_annotated/` (or `gt_depth/`), with or without `train/` and `val/` in it, such as
    `2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02/0000000069.png`: 16 bits, 256 steps a metre, 0 where the
    laser saw nothing, which is most pixels. Lists as BTS has them, `eigen_train_files_with_gt.txt` and
    `eigen_test_files_with_gt.txt`, in `root` or in `train_test_inputs/`; lines with `None` for depth are left out, and
    counted by the data check. Intrinsics are those of `calib_cam_to_cam.txt` in the folder of the day, where it is.

    The split has no validation images: see `val_fraction`. What is published is measured with `model.crop: garg` or
    `kitti_eigen`.

    Args:
        root: The folder of all.
        train_list: List of the training images, `IMAGE DEPTH FOCAL` a line. Null: the published one.
        test_list: List of the test images, likewise.
        kb_crop: Cut every image to 352x1216 pixels, in the middle of the bottom, in training and evaluation, as BTS and
            DINOv2 do.
        depth_range: Smallest and largest depth in metres, both included.

    Raises:
        ConfigError: The folder or a list is missing.
        DataError: A list is wrong, or files are missing.
    """

    group: ClassVar[str] = "drive"

    def __init__(
        self,
        root: str,
        train_list: str | None = None,
        test_list: str | None = None,
        kb_crop: bool = False,
        depth_range: tuple[float, float] = (0.001, 80.0),
        **options: Any,
    ) -> None:
        super().__init__(depth_range=depth_range, **options)
        self.root, self.kb_crop = Path(root), kb_crop
        if not self.root.is_dir():
            raise ConfigError(f"data.root: {self.root} is no folder")
        given: dict[Part, str | None] = {"train": train_list, "test": test_list}
        self.lists = {part: find_list(self.root, given[part], f"{part}_list", LISTS[part], PLACES) for part in given}

    def rules(self) -> str:
        """Return everything besides the files that the data check's verdict depends on."""
        return f"{super().rules()} {self.kb_crop}"

    def published(self, part: Part) -> GroupedDepthFiles:
        """Return all images to train on, or all to test on."""
        lines = read_list(self.lists[part])
        there = [(line.image, line.depth, line.place) for line in lines if line.depth is not None]
        raw = folder_of([image for image, _, _ in there], [self.root / name for name in RAW], "images")
        depths = [self.root / name for name in DEPTH]
        depths = [folder for name in depths for folder in (name, name / "train", name / "val")]
        calibrated = cache(self._calibrated)  # a day's file is read once
        folder = depths[0]
        pairs = []
        for image, depth, _ in there:
            folder = next((each for each in (folder, *depths) if (each / depth).is_file()), depths[0])
            camera = calibrated(raw / Path(image).parts[0])
            pairs.append(DepthPair(raw / image, folder / depth, _name(image), camera))
        require_files(pairs, [place for _, _, place in there])
        left_out = (
            f"{self.lists[part]}: {len(lines) - len(there)} of {len(lines)} images have no depth, and are left out"
        )
        return self._files(pairs, left_out if len(there) < len(lines) else None)

    def _files(self, pairs: list[DepthPair], left_out: str | None) -> GroupedDepthFiles:
        drives = [pair.id.rsplit("/", 1)[0] for pair in pairs]
        kind = KBCropFiles if self.kb_crop else GroupedDepthFiles
        resize = None if self.kb_crop else self.resize  # a JPEG is cropped at its full size
        return kind(pairs, drives, left_out, channels=3, depth_scale=STEPS, depth_range=self.depth_range, resize=resize)

    def _calibrated(self, day: Path) -> NDArray[np.float64] | None:
        """Return the intrinsics of the left colour camera on a day, as its images are cut; None: they are not there."""
        path = day / "calib_cam_to_cam.txt"
        if not path.is_file():
            return None
        try:
            rows = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
            fx, _, cx, _, _, fy, cy = map(float, rows["P_rect_02"].split()[:7])
            width, height = map(float, rows["S_rect_02"].split())
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path} has no P_rect_02 and S_rect_02 to read ({error}): fetch it anew") from None
        left, top = kb_corner(int(width), int(height)) if self.kb_crop else (0, 0)
        return pinhole(fx, fy, cx - left, cy - top)


def _name(image: str) -> str:
    """Return what to call an image: its drive, its camera if it is the right one, and its number."""
    parts = Path(image).parts
    drive = next((part for part in parts if "_drive_" in part), Path(image).parent.name)
    side = "_03" if "image_03" in parts else ""
    return f"{drive}{side}/{Path(image).stem}"
