"""Images that are held in memory, with a class each."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors

from framework.data.classification import absent_classes, target
from framework.data.loader import Sample


class LabelledArrays:
    """Images of one size in memory. Loader processes share them with the process that forked them.

    Args:
        images: uint8 (N, C, H, W).
        labels: The class index of each.
        classes: Names of all classes.
        ids: What to call each.
    """

    def __init__(self, images: Tensor, labels: Sequence[int], classes: tuple[str, ...], ids: Sequence[str]) -> None:
        self.images, self.labels, self.classes, self.ids = images, labels, classes, ids

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Sample:
        """Return `image`, `label`, `id` (`CLASS/ID`) and `original_size` of one image."""
        image, label = self.images[index].clone(), self.labels[index]  # a copy: transforms may write into it
        return {
            "image": tv_tensors.Image(image),
            "label": target(label, len(self.classes)),
            "id": f"{self.classes[label]}/{self.ids[index]}",
            "original_size": (image.shape[1], image.shape[2]),
        }

    def select(self, indices: Sequence[int]) -> "LabelledArrays":
        """Return some of the images."""
        labels, ids = [self.labels[index] for index in indices], [self.ids[index] for index in indices]
        return LabelledArrays(self.images[torch.tensor(indices)], labels, self.classes, ids)

    def problem(self, index: int) -> str | None:
        """Images in memory are never wrong: they were looked at when they were loaded."""
        return None

    def remarks(self) -> tuple[list[str], list[str]]:
        """Say which classes have no image: wrong in the training split, odd in others."""
        return [f"no image of class {name}" for name in absent_classes(self.labels, self.classes)], []

    def sources(self, index: int) -> list[str]:
        """Return no files: none is an image's own."""
        return []
