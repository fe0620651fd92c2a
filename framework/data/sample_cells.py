"""The embedded data set: ten real microscopy frames with masks, or with boxes, for a first run without any download."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors

from framework.data.datamodule import ImageFiles, SplitName
from framework.data.detection import DetectionData
from framework.data.images import MaskTable, find_images, read_grey16
from framework.data.loader import Sample
from framework.data.masks import MaskFiles, Pair, SegmentationData, read_classes

ROOT = Path(__file__).with_name("cells")
WINDOWS = {"hoechst": (400, 2500), "oblique": (6700, 9700)}  # 16-bit values that become 0 and 255; see cells/README.md


def read_frame(path: Path) -> tuple[tv_tensors.Image, tuple[int, int]]:
    """Read the frame `NAME.png` stands for, from `NAME.hoechst.png` and `NAME.oblique.png`, 16-bit grey.

    Returns:
        The frame as uint8 (2, H, W), stain first, and its (height, width).
    """
    channels = []
    for name, (low, high) in WINDOWS.items():
        values = read_grey16(path.with_name(f"{path.stem}.{name}.png")).astype(np.float32)
        channels.append(np.rint(255 * np.clip((values - low) / (high - low), 0, 1)).astype(np.uint8))
    image = np.stack(channels)
    return tv_tensors.Image(torch.from_numpy(image)), (image.shape[1], image.shape[2])


class CellFrames(MaskFiles):
    """Frames of two channels, a file each, with masks."""

    def read_image(self, path: Path) -> tuple[tv_tensors.Image, tuple[int, int]]:
        """Return the frame as uint8 (2, H, W), and its (height, width)."""
        return read_frame(path)

    def sources(self, index: int) -> list[str]:
        """Return the files of both channels and the mask."""
        image, mask, _ = self.pairs[index]
        return [*(str(image.with_name(f"{image.stem}.{name}.png")) for name in WINDOWS), str(mask)]


class UnlabelledFrames(ImageFiles):
    """Frames of two channels, a file each, without masks."""

    def read(self, index: int) -> Sample:
        """Return `image`, `id` and `original_size` of one frame."""
        image, size = read_frame(self.paths[index])
        return {"image": image, "id": self.paths[index].stem, "original_size": size}


def frames_in(folder: Path) -> UnlabelledFrames:
    """Return the frames of a folder: `NAME.hoechst.png` with `NAME.oblique.png`."""
    stems = sorted(path.name.removesuffix(".hoechst.png") for path in folder.glob("*.hoechst.png"))
    return UnlabelledFrames([folder / f"{stem}.png" for stem in stems], 2, None)


class SampleCells(SegmentationData):
    """Live-cell microscopy of a closing scratch, 576x210 pixels, two channels: background, cytoplasm, nucleus.

    Ten frames of the BSD-3 package ndev-sampledata: six to train, two to validate, two to test. No test frame is next
    to a training frame.
    """

    channels = 2

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.state_classes(read_classes(ROOT / "classes.txt").classes)

    def split(self, name: SplitName) -> CellFrames:
        """Return a split."""
        masks = find_images(ROOT / "masks" / name)
        pairs = [Pair(ROOT / "images" / name / path.name, path, stem) for stem, path in masks.items()]
        return CellFrames(pairs, self.channels, MaskTable(self.num_classes, self.ignore_index))

    def unlabelled(self, folder: Path) -> UnlabelledFrames:
        """Return the frames of a folder: `NAME.hoechst.png` with `NAME.oblique.png`."""
        return frames_in(folder)


class NucleusFrames(UnlabelledFrames):
    """Frames of two channels, a file each, with a box around each nucleus.

    Args:
        split: Which split.
    """

    def __init__(self, split: SplitName) -> None:
        self.instances = sorted((ROOT / "instances" / split).glob("*.nuclei.png"))
        stems = [path.name.removesuffix(".nuclei.png") for path in self.instances]
        super().__init__([ROOT / "images" / split / f"{stem}.png" for stem in stems], 2, None)
        self.class_indices = [[0] for _ in self.instances]  # every frame shows nuclei

    def read(self, index: int) -> Sample:
        """Return `image`, `boxes`, `labels`, `ignored`, `area` in pixels of the nucleus, `id` and `original_size`."""
        sample = super().read(index)
        boxes, area = instance_boxes(read_grey16(self.instances[index]))
        return {
            **sample,
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=sample["original_size"]),
            "labels": torch.zeros(len(boxes), dtype=torch.long),
            "ignored": torch.zeros(len(boxes), dtype=torch.bool),
            "area": area,
        }

    def sources(self, index: int) -> list[str]:
        """Return the files of both channels and the instances."""
        path = self.paths[index]
        channels = [str(path.with_name(f"{path.stem}.{name}.png")) for name in WINDOWS]
        return [*channels, str(self.instances[index])]


def instance_boxes(instances: NDArray[np.uint16]) -> tuple[Tensor, Tensor]:
    """Return the tight boxes of all instances of a map, and how many pixels each has.

    Args:
        instances: Integers (H, W), 0 where there is none.

    Returns:
        Boxes, float32 (N, 4), x1, y1, x2, y2, where x2 and y2 are one past the last column and row, in the order of the
        numbers; areas, float32 (N,).
    """
    rows, columns = np.nonzero(instances)
    numbers, place, counts = np.unique(instances[rows, columns], return_inverse=True, return_counts=True)
    boxes = np.empty((len(numbers), 4), np.float32)
    boxes[:, :2], boxes[:, 2:] = np.inf, 0
    corners = np.stack([columns, rows], axis=1)
    np.minimum.at(boxes[:, :2], place, corners)
    np.maximum.at(boxes[:, 2:], place, corners + 1)
    return torch.from_numpy(boxes), torch.from_numpy(counts).float()


class SampleCellsDetection(DetectionData):
    """The nuclei of SampleCells as boxes: one class, 59 to 83 objects a frame, most of them 10 to 15 pixels a side.

    Frames, channels and splits are those of SampleCells.

    Args:
        crop_size: Height and width of training crops.
        vflip: Probability of a top-down flip: cells have no up.
    """

    channels = 2

    def __init__(
        self,
        crop_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = 192,
        vflip: ClosedUnitInterval = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(crop_size=crop_size, vflip=vflip, **options)
        self.state_classes(["nucleus"])

    def split(self, name: SplitName) -> NucleusFrames:
        """Return a split."""
        return NucleusFrames(name)

    def unlabelled(self, folder: Path) -> UnlabelledFrames:
        """Return the frames of a folder: `NAME.hoechst.png` with `NAME.oblique.png`."""
        return frames_in(folder)
