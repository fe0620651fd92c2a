"""The embedded data set: ten real microscopy frames with masks, for a first run without any download."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from framework.data.datamodule import SplitName
from framework.data.images import MaskTable, find_images, read_grey16
from framework.data.masks import MaskFiles, Pair, SegmentationData, read_classes

ROOT = Path(__file__).with_name("cells")
WINDOWS = {"hoechst": (400, 2500), "oblique": (6700, 9700)}  # 16-bit values that become 0 and 255; see cells/README.md


class CellFrames(MaskFiles):
    """Frames of two 16-bit channels, a file each."""

    def read_image(self, path: Path) -> tuple[tv_tensors.Image, tuple[int, int]]:
        """Return the frame as uint8 (2, H, W), stain first, and its (height, width)."""
        channels = []
        for name, (low, high) in WINDOWS.items():
            values = read_grey16(path.with_name(f"{path.stem}.{name}.png")).astype(np.float32)
            channels.append(np.rint(255 * np.clip((values - low) / (high - low), 0, 1)).astype(np.uint8))
        image = np.stack(channels)
        return tv_tensors.Image(torch.from_numpy(image)), (image.shape[1], image.shape[2])

    def sources(self, index: int) -> list[str]:
        """Return the files of both channels and the mask."""
        image, mask, _ = self.pairs[index]
        return [*(str(image.with_name(f"{image.stem}.{name}.png")) for name in WINDOWS), str(mask)]


class SampleCells(SegmentationData):
    """Live-cell microscopy of a closing scratch, 576x210 pixels, two channels: background, cytoplasm, nucleus.

    Ten frames of the BSD-3 package ndev-sampledata, split forward in time: six to train, two to validate, two to test.
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
