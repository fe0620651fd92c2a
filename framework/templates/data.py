"""NewPlugin: images with masks, to be replaced by yours."""

from typing import Any

import torch
from torchvision import tv_tensors

from framework.clock import key
from framework.data.datamodule import SplitName
from framework.data.loader import Sample
from framework.data.masks import SegmentationData


class NewPlugin(SegmentationData):
    """Bright discs on a dark ground, drawn when they are asked for.

    Args:
        count: Images in the training split; validation and test have a quarter each.
        size: Height and width of the images, in pixels.
    """

    def __init__(self, count: int = 64, size: int = 96, crop_size: int = 64, **options: Any) -> None:
        super().__init__(crop_size=crop_size, **options)
        self.count, self.size = count, size
        self.channels = 3
        self.state_classes(["ground", "disc"])  # their order is their index in the masks

    def split(self, name: SplitName) -> "Discs":
        """Return a split; None for `test` if there is none."""
        return Discs(name, self.count if name == "train" else max(1, self.count // 4), self.size)


class Discs:
    """One split: samples by index, without any randomness of its own.

    Args:
        split: Its name.
        count: Number of samples.
        size: Height and width, in pixels.
    """

    def __init__(self, split: str, count: int, size: int) -> None:
        self.split, self.count, self.size = split, count, size

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Sample:
        """Return `image`, `mask`, `id` and `original_size` of one sample: read your files here."""
        random = torch.Generator().manual_seed(key(self.split, index))
        row, column = (torch.rand(2, generator=random) * self.size).tolist()
        grid = torch.arange(self.size)
        mask = ((grid[:, None] - row) ** 2 + (grid - column) ** 2 < (self.size / 4) ** 2).to(torch.uint8)
        noise = torch.randint(0, 60, (3, self.size, self.size), generator=random, dtype=torch.uint8)
        return {
            "image": tv_tensors.Image(noise + 120 * mask),
            "mask": tv_tensors.Mask(mask),
            "id": f"{self.split}-{index}",
            "original_size": (self.size, self.size),
        }

    def problem(self, index: int) -> str | None:
        """Say what is wrong with one sample's files, naming them; None if nothing is."""
        return None

    def remarks(self) -> tuple[list[str], list[str]]:
        """Return what is wrong, and what is only odd, with the split as a whole."""
        return [], []

    def sources(self, index: int) -> list[str]:
        """Return the files behind one sample, the image first; none here."""
        return []
