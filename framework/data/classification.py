"""Classification data: images with a class each."""

from abc import abstractmethod
from math import ceil, sqrt
from pathlib import Path
from typing import Any, ClassVar

import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from framework.data.datamodule import ImageFiles, SplitName, VisionData
from framework.data.images import find_images
from framework.data.loader import KeyedLoader, KeyedSamples, Sample, Samples
from framework.data.transforms import Photometric
from framework.errors import ConfigError, DataError
from framework.preprocessing import fit_shorter_side, resize_image

ASPECT = 4 / 3  # how much wider or narrower than what comes out a training crop may be; torchvision's own default


class LabelledFiles(ImageFiles):
    """Image files with a class each.

    Args:
        paths: The files.
        labels: The class index of each.
        classes: Names of all classes.
        channels: Channels the images are brought to.
        at_least: Shorter side that the images will be needed at: much larger JPEGs are decoded at a fraction.
    """

    def __init__(
        self, paths: list[Path], labels: list[int], classes: tuple[str, ...], channels: int, at_least: int | None
    ) -> None:
        super().__init__(paths, channels, at_least)
        self.labels, self.classes = labels, classes

    def read(self, index: int) -> Sample:
        """Return `image`, `label`, `id` (`CLASS/FILE`) and `original_size` of one file.

        Raises:
            DataError: The file cannot be read.
        """
        label = self.labels[index]
        name = f"{self.classes[label]}/{self.paths[index].name}"
        return {**super().read(index), "id": name, "label": torch.tensor(label)}

    def remarks(self) -> tuple[list[str], list[str]]:
        """Say which classes have no image: wrong in the training split, odd in others."""
        absent = sorted(set(range(len(self.classes))) - set(self.labels))
        return [f"no image of class {self.classes[label]} (its folder is missing or empty)" for label in absent], []


class CentreCrop:
    """Cut the centre out of one evaluation image and bring it to `size`: one resize, of no more than what is kept.

    Args:
        resize: Shorter side that images are brought to first, in pixels; None: as stored.
        size: Height and width of what comes out.
        kept: Share of the image's shorter side that is kept, in (0, 1].
    """

    def __init__(self, resize: int | None, size: tuple[int, int], kept: float) -> None:
        self.resize, self.size, self.kept = resize, size, kept

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample and add `size`, its image's (height, width) as the network sees it."""
        image = sample["image"]
        if self.resize is not None:
            image = resize_image(image, fit_shorter_side(sample["original_size"], self.resize))
        height, width = image.shape[-2:]
        scale = self.kept * min(height / self.size[0], width / self.size[1])
        rows, columns = (max(1, round(scale * side)) for side in self.size)
        top, left = (height - rows) // 2, (width - columns) // 2
        image = tv.resized_crop(image, top, left, rows, columns, list(self.size), antialias=True)
        return {**sample, "image": image, "size": self.size}


class ClassificationData(VisionData):
    """Base of classification data.

    Args:
        image_size: Height and width of what the network sees, in training and evaluation.
        crop_area: Smallest and largest share of an image's area that a training crop shows.
        eval_crop: Share of the shorter side that evaluation keeps, about the centre; 0.875 is the usual 224 of 256.
        hflip: Probability of a left-right flip.
        vflip: Probability of a top-down flip; for images without an up, such as microscopy and aerial ones.
        photometric: Brightness, contrast and saturation changes in training; null: none.

    Raises:
        ConfigError: `crop_area` or `eval_crop` is no share, or falls.
    """

    tasks: ClassVar[tuple[str, ...]] = ("Classification",)

    def __init__(
        self,
        image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 224,
        crop_area: tuple[PositiveFloat, PositiveFloat] = (0.25, 1.0),
        eval_crop: PositiveFloat = 0.875,
        hflip: ClosedUnitInterval = 0.5,
        vflip: ClosedUnitInterval = 0.0,
        photometric: Photometric | None = Photometric(),  # noqa: B008 - read only
        **options: Any,
    ) -> None:
        super().__init__(photometric=photometric, **options)
        if not 0 < crop_area[0] <= crop_area[1] <= 1:
            raise ConfigError(f"data.crop_area: shares of the area, rising and at most 1, got {list(crop_area)}")
        if not 0 < eval_crop <= 1:
            raise ConfigError(f"data.eval_crop: a share of the shorter side, at most 1, got {eval_crop}")
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        self.crop_area, self.eval_crop, self.hflip, self.vflip = crop_area, eval_crop, hflip, vflip

    @abstractmethod
    def split(self, name: SplitName) -> LabelledFiles | None:
        """Return a split, or None if the data set lacks it."""

    def default_transforms(self) -> list[v2.Transform]:
        """Return a random crop and flips."""
        aspect = self.image_size[1] / self.image_size[0]
        ratio = (aspect / ASPECT, aspect * ASPECT)
        transforms: list[v2.Transform] = [v2.RandomResizedCrop(self.image_size, self.crop_area, ratio, antialias=True)]
        transforms += [v2.RandomHorizontalFlip(self.hflip)] if self.hflip else []
        return transforms + ([v2.RandomVerticalFlip(self.vflip)] if self.vflip else [])

    @property
    def at_least(self) -> int:
        """Shorter side, in pixels, below which an image would have to be enlarged for one of the crops."""
        needed: int = ceil(max(self.image_size) / min(self.eval_crop, sqrt(self.crop_area[0] / ASPECT)))
        return self.resize or needed

    def unlabelled(self, folder: Path) -> Samples:
        """Return the images of a folder as samples without a class."""
        return ImageFiles(list(find_images(folder).values()), self.channels, self.at_least)

    def state_classes(self, classes: list[str]) -> None:
        """Set the class names.

        Raises:
            DataError: There are fewer than two.
        """
        if len(classes) < 2:
            raise DataError(f"classification needs at least 2 classes, got {len(classes)}: {', '.join(classes)}")
        self.classes = tuple(classes)

    def _eval_loader(self, samples: Samples) -> KeyedLoader:
        crop = CentreCrop(self.resize, self.image_size, self.eval_crop)
        return self._loader(KeyedSamples(samples, crop, self.seed), shuffle=False)
