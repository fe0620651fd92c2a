"""Classification data: images with a class each, or with any number of classes."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from framework.data.augment import Mix, RandAugment
from framework.data.datamodule import ImageFiles, SplitName, VisionData
from framework.data.images import images_to_predict
from framework.data.loader import KeyedLoader, KeyedSamples, Sample, Samples, Transform
from framework.data.progressive import Progressive, Stage
from framework.data.sampling import Sampling
from framework.data.transforms import Photometric, TrainTransform
from framework.errors import ConfigError, DataError
from framework.preprocessing import fit_shorter_side, resize_image

DEFAULT_SIZE = 224
ASPECT = 4 / 3  # how much wider or narrower than what comes out a training crop may be; torchvision's own default


Interpolation = Literal["bilinear", "bicubic"]

ClassIndices = Sequence[int] | Sequence[Sequence[int]]
"""The class index of each image; of multi-label data, the class indices of each image, of any number."""


class LabelledSamples(Samples, Protocol):
    """One split of classification data, whose classes are known before an image is read."""

    @property
    def labels(self) -> ClassIndices:
        """The class index, or class indices, of each image."""


def target(label: int | Sequence[int], num_classes: int) -> Tensor:
    """Return a class as a long scalar; several classes as float (num_classes,), 1 where a class is among them."""
    if isinstance(label, int):
        return torch.tensor(label)
    return torch.zeros(num_classes).index_fill(0, torch.tensor(label, dtype=torch.long), 1.0)


def absent_classes(labels: ClassIndices, classes: Sequence[str]) -> list[str]:
    """Return the names of the classes that no image has."""
    present = {index for label in labels for index in ((label,) if isinstance(label, int) else label)}
    return [name for index, name in enumerate(classes) if index not in present]


class LabelledFiles(ImageFiles):
    """Image files with a class each, or with several.

    Args:
        paths: The files.
        labels: The class index of each; of multi-label data, its class indices.
        classes: Names of all classes.
        channels: Channels the images are brought to.
        at_least: Shorter side that the images will be needed at: much larger JPEGs are decoded at a fraction.
    """

    absence = "its folder is missing or empty"  # why a class may have no image

    def __init__(
        self, paths: list[Path], labels: ClassIndices, classes: tuple[str, ...], channels: int, at_least: int | None
    ) -> None:
        super().__init__(paths, channels, at_least)
        self.labels, self.classes = labels, classes

    def read(self, index: int) -> Sample:
        """Return `image`, `label`, `id` and `original_size` of one file.

        Raises:
            DataError: The file cannot be read.
        """
        label = target(self.labels[index], len(self.classes))
        return {**super().read(index), "label": label}

    def name(self, index: int) -> str:
        """Return what to call one file: `CLASS/FILE`, or, where it may have several classes, `FILE`."""
        label, file = self.labels[index], self.paths[index].name
        return f"{self.classes[label]}/{file}" if isinstance(label, int) else file

    def remarks(self) -> tuple[list[str], list[str]]:
        """Say which classes have no image: wrong in the training split, odd in others."""
        absent = absent_classes(self.labels, self.classes)
        return [f"no image of class {name} ({self.absence})" for name in absent], []


class CentreCrop:
    """Cut the centre out of one evaluation image and bring it to `size`: one resize, of no more than what is kept.

    Args:
        resize: Shorter side that images are brought to first, in pixels; None: as stored.
        size: Height and width of what comes out.
        kept: Share of the image's shorter side that is kept, in (0, 1].
        interpolation: Between pixels.
    """

    def __init__(
        self, resize: int | None, size: tuple[int, int], kept: float, interpolation: Interpolation = "bilinear"
    ) -> None:
        self.resize, self.size, self.kept = resize, size, kept
        self.interpolation = InterpolationMode(interpolation)

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample and add `size`, its image's (height, width) as the network sees it."""
        image = sample["image"]
        if self.resize is not None:
            image = resize_image(image, fit_shorter_side(sample["original_size"], self.resize))
        height, width = image.shape[-2:]
        scale = self.kept * min(height / self.size[0], width / self.size[1])
        rows, columns = (max(1, round(scale * side)) for side in self.size)
        top, left = (height - rows) // 2, (width - columns) // 2
        image = tv.resized_crop(
            image, top, left, rows, columns, list(self.size), interpolation=self.interpolation, antialias=True
        )
        return {**sample, "image": image, "size": self.size}


class StagedTransform:
    """Cut one training sample at the size of its stage, and draw what is done to it on the device.

    Args:
        cuts: What cuts, turns and draws, by the size that comes out; the last is that of samples without a stage.
        rand_augment: RandAugment, if any.
        mix: Mixup and CutMix, if any.
    """

    def __init__(
        self, cuts: dict[tuple[int, int], TrainTransform], rand_augment: RandAugment | None, mix: Mix | None
    ) -> None:
        self.cuts, self.rand_augment, self.mix = cuts, rand_augment, mix

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample whose image is a tv_tensor."""
        stage: Stage = sample.get("stage") or Stage()
        size = stage.image_size or next(reversed(self.cuts))
        sample = self.cuts[size]({name: value for name, value in sample.items() if name != "stage"})
        if self.rand_augment is not None:
            sample["rand_augment"] = self.rand_augment.draw(stage.magnitude)
        if self.mix is not None:
            sample["mix"] = self.mix.draw(stage.mixup, stage.cutmix)
        return sample


class ClassificationData(VisionData):
    """Base of classification data.

    Args:
        image_size: Height and width of what the network sees, in evaluation, and in training unless `progressive` says
            otherwise; null: the largest size of `progressive`, or 224.
        crop_area: Smallest and largest share of an image's area that a training crop shows.
        eval_crop: Share of the shorter side that evaluation keeps, about the centre; 0.875 is the usual 224 of 256.
        interpolation: Between pixels where crops are resized.
        hflip: Probability of a left-right flip.
        vflip: Probability of a top-down flip; for images without an up, such as microscopy and aerial ones.
        photometric: Brightness, contrast and saturation changes in training; null: none.
        sampling: How often an epoch visits the images of each class; null: every image `repeats` times.
        rand_augment: RandAugment in training; null: none, unless `progressive` has magnitudes for it.
        mix: Mixup and CutMix in training; null: none, unless `progressive` has alphas for them.
        progressive: Image size, augmentation and more in stages; null: the same in every epoch.

    Raises:
        ConfigError: `crop_area` or `eval_crop` is no share, or falls.
    """

    tasks: ClassVar[tuple[str, ...]] = ("Classification", "LinearProbes", "NearestNeighbours")
    class_key = "labels"

    def __init__(
        self,
        image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
        crop_area: tuple[PositiveFloat, PositiveFloat] = (0.25, 1.0),
        eval_crop: PositiveFloat = 0.875,
        interpolation: Interpolation = "bilinear",
        hflip: ClosedUnitInterval = 0.5,
        vflip: ClosedUnitInterval = 0.0,
        photometric: Photometric | None = Photometric(),  # noqa: B008 - read only
        sampling: Sampling | None = None,
        rand_augment: RandAugment | None = None,
        mix: Mix | None = None,
        progressive: Progressive | None = None,
        **options: Any,
    ) -> None:
        super().__init__(photometric=photometric, **options)
        if not 0 < crop_area[0] <= crop_area[1] <= 1:
            raise ConfigError(f"data.crop_area: shares of the area, rising and at most 1, got {list(crop_area)}")
        if not 0 < eval_crop <= 1:
            raise ConfigError(f"data.eval_crop: a share of the shorter side, at most 1, got {eval_crop}")
        self._plan(progressive, rand_augment, mix)
        size = image_size or next(reversed(self.stage_sizes()), DEFAULT_SIZE)
        self.image_size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.crop_area, self.eval_crop, self.hflip, self.vflip = crop_area, eval_crop, hflip, vflip
        self.interpolation: Interpolation = interpolation
        self.sampling = sampling

    def _plan(self, progressive: Progressive | None, rand_augment: RandAugment | None, mix: Mix | None) -> None:
        """Take the stages of training, and what augments in those."""
        if progressive is not None:
            progressive = progressive.with_batch_size(self.batch_size)
            rand_augment = rand_augment or (RandAugment() if progressive.magnitude else None)
            mix = mix or (Mix(mixup=0.0, cutmix=0.0) if progressive.mixup or progressive.cutmix else None)
        self.progressive, self.rand_augment, self.mix = progressive, rand_augment, mix

    @property
    def mixes(self) -> bool:
        """Whether the labels of training batches are shares of classes."""
        return self.mix is not None

    @abstractmethod
    def split(self, name: SplitName) -> LabelledSamples | None:
        """Return a split, or None if the data set lacks it."""

    def default_transforms(self, size: tuple[int, int] | None = None) -> list[v2.Transform]:
        """Return a random crop and flips.

        Args:
            size: Height and width of what comes out; None: `image_size`.
        """
        size = size or self.image_size
        aspect = size[1] / size[0]
        ratio = (aspect / ASPECT, aspect * ASPECT)
        interpolation = InterpolationMode(self.interpolation)
        transforms: list[v2.Transform] = [
            v2.RandomResizedCrop(size, self.crop_area, ratio, interpolation=interpolation, antialias=True)
        ]
        transforms += [v2.RandomHorizontalFlip(self.hflip)] if self.hflip else []
        return transforms + ([v2.RandomVerticalFlip(self.vflip)] if self.vflip else [])

    def train_transform(self) -> Transform:
        """Return what is done to each training sample in a worker, whatever the size of its stage."""
        cuts = {}
        for size in self.stage_sizes() or [self.image_size]:
            if self.train_transforms is None:
                transforms = self.default_transforms(size) if self.stage_sizes() else self.default_transforms()
            else:
                transforms = self.train_transforms + ([v2.Resize(list(size))] if self.stage_sizes() else [])
            cuts[size] = TrainTransform(self.resize, transforms, self.photometric)
        return StagedTransform(cuts, self.rand_augment, self.mix)

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Finish a batch on the device: photometric augmentation and RandAugment of each image, then mix them."""
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        drawn, mixed = batch.pop("rand_augment", None), batch.pop("mix", None)
        if drawn is not None:
            batch["image"] = RandAugment.apply(batch["image"], np.stack(drawn))
        if mixed is not None:
            batch["image"], batch["label"] = Mix.apply(batch["image"], batch["label"], mixed[0], self.num_classes)
        return batch

    @property
    def at_least(self) -> int:
        """Shorter side, in pixels, below which an image would have to be enlarged for one of the crops."""
        largest = max(max(size) for size in (self.image_size, *self.stage_sizes()))
        needed: int = ceil(largest / min(self.eval_crop, sqrt(self.crop_area[0] / ASPECT)))
        return self.resize or needed

    def unlabelled(self, folder: Path) -> Samples:
        """Return the images of a folder as samples without a class."""
        return ImageFiles(images_to_predict(folder), self.channels, self.at_least)

    def state_classes(self, classes: list[str]) -> None:
        """Set the class names.

        Raises:
            DataError: There are fewer than two, one stands twice, or one cannot be written down.
        """
        if len(classes) < 2:
            raise DataError(f"classification needs at least 2 classes, got {len(classes)}: {', '.join(classes)}")
        twice = {name for name in classes if classes.count(name) > 1} if len(set(classes)) < len(classes) else set()
        if twice:
            raise DataError(f"the classes must differ, but {', '.join(sorted(twice)[:5])} stand twice")
        strange = [name for name in classes if name != name.encode("utf-8", "replace").decode()]
        if strange:
            raise DataError(f"a class is named {strange[0]!r}, which is no UTF-8: rename it, or its folder")
        self.classes = tuple(classes)

    def rules(self) -> str:
        """Return everything besides the files that the data check's verdict depends on: the labels are not in them."""
        labels = [(name, getattr(samples, "labels", None)) for name, samples in self.splits().items()]
        digest = hashlib.blake2b(repr(labels).encode(errors="surrogateescape"), digest_size=16)
        return f"{super().rules()} {digest.hexdigest()}"

    def _eval_loader(self, samples: Samples) -> KeyedLoader:
        crop = CentreCrop(self.resize, self.image_size, self.eval_crop, self.interpolation)
        return self._loader(KeyedSamples(samples, crop, self.seed), shuffle=False)
