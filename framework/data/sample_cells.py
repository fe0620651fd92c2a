"""The embedded data set: ten real microscopy frames with masks, for a first run without any download."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from framework.data.datamodule import ImageFiles, SplitName
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
        stems = sorted(path.name.removesuffix(".hoechst.png") for path in folder.glob("*.hoechst.png"))
        return UnlabelledFrames([folder / f"{stem}.png" for stem in stems], self.channels, self.resize)
