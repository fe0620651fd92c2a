"""The base of all data: what a data set states, its splits, and its loaders.

A batch is a dict. Every task's has

- `image`: uint8 (B, C, H, W), or float in [0, 1] after augmentation on the device;
- `id`: list of str, what to call a sample in pictures and reports;
- `is_pad`: bool (B,), a sample that only evens out the processes; metrics leave it out.

Evaluation batches have `size` and `original_size`, lists of (height, width): of each image as the network sees it, and
as stored. Smaller images of a batch are padded at the bottom and right. Targets: `mask` long (B, H, W), `depth` float
(B, H, W) in metres with 0 unknown, `label` long (B,), or, where images may have any number of classes, float (B, C),
1 for those that an image has; in training batches of mixed images, shares of the classes, float (B, C).

Detection has `size` in training too, and in evaluation `canvas`, a list of (height, width): of the tensor in which each
image lies at the upper left before images are padded to one another. Its targets are lists of one tensor per image:
`boxes` float (N, 4), x1, y1, x2, y2, in training in pixels of `image`, in evaluation of the image as stored; `labels`
long (N,), from 0, without a background; in evaluation also `ignored` bool (N,), objects that do not count, and `area`
float (N,), square pixels of the image as stored, which decide whether an object is small.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch import LightningDataModule
from torchvision import tv_tensors
from torchvision.transforms import v2

from framework.data.check import check_splits
from framework.data.images import distinct_names, images_to_predict, read_image
from framework.data.loader import (
    KeyedBatches,
    KeyedLoader,
    KeyedSamples,
    Sample,
    SampleKey,
    Samples,
    Transform,
    collate,
    heed_parent_alone,
    reading_problem,
)
from framework.data.progressive import Progressive, Stage, recount_batches
from framework.data.sampling import Labels, Sampling
from framework.data.transforms import EvalTransform, Photometric, TrainTransform
from framework.errors import ConfigError, DataError

SplitName = Literal["train", "val", "test"]


class VisionData(LightningDataModule, ABC):
    """Base of all data modules.

    Args:
        batch_size: Samples a step and process.
        num_workers: Loader processes; null: chosen from the cores.
        seed: Seed of order and augmentation; the command line links it to `seed_everything`.
        repeats: How often an epoch visits each training image, each time augmented anew.
        resize: Bring the shorter side of every image to this many pixels; null: as stored.
        train_transforms: torchvision v2 transforms for training, by class_path; null: the task's default.
        photometric: Brightness, contrast and saturation changes in training; null: none.
        predict_dir: Folder of images for `predict`.
        check: Look at every file before training.
        check_cache: Folder that remembers what was found in order.
    """

    classes: tuple[str, ...]
    channels: int
    ignore_index: int | None = None
    multi_label: bool = False  # whether images have any number of classes
    depth_range: tuple[float, float] | None = None  # nearest and farthest depth that counts, in metres
    progressive: Progressive | None = None  # the stages of training, if it goes by stages
    sampling: Sampling | None = None  # how often an epoch visits the images of each class; None: all equally often
    class_key: str = "class_indices"  # the attribute of a split's samples that says which image has which classes

    def __init__(
        self,
        batch_size: PositiveInt = 8,
        num_workers: NonNegativeInt | None = None,
        seed: int = 0,
        repeats: PositiveInt = 1,
        resize: PositiveInt | None = None,
        train_transforms: list[v2.Transform] | None = None,
        photometric: Photometric | None = None,
        predict_dir: str | None = None,
        check: bool = True,
        check_cache: str = "runs/.data_check",
    ) -> None:
        super().__init__()
        self.batch_size: int = batch_size
        self.num_workers: int | None = num_workers
        self.repeats: int = repeats
        self.seed = seed
        self.resize, self.photometric, self.predict_dir = resize, photometric, predict_dir
        self.train_transforms = train_transforms
        self.check, self.check_cache = check, Path(check_cache)
        self._splits: dict[str, Samples] = {}
        self._checked = False

    # What a data set says.

    @abstractmethod
    def split(self, name: SplitName) -> Samples | None:
        """Return a split, or None if the data set lacks it (only `test` may be lacking)."""

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def counts(self) -> dict[str, int]:
        """Samples by split, of the splits that there are."""
        return {name: len(samples) for name, samples in self.splits().items()}

    def default_transforms(self) -> list[v2.Transform]:
        """Return the training transforms used where the config names none."""
        return []

    def rules(self) -> str:
        """Return everything besides the files that the data check's verdict depends on."""
        return repr((type(self).__qualname__, self.classes, self.channels, self.ignore_index))

    # Splits and their check.

    def splits(self) -> dict[str, Samples]:
        """Return all splits there are.

        Raises:
            DataError: A split is missing or empty.
        """
        if not self._splits:
            names: tuple[SplitName, ...] = ("train", "val", "test")
            found = {name: self.split(name) for name in names}
            for name, samples in found.items():
                if samples is None and name != "test":
                    raise DataError(f"{type(self).__name__} has no {name} split")
                if samples is not None and not len(samples):
                    raise DataError(f"{type(self).__name__}: the {name} split is empty")
            self._splits = {name: samples for name, samples in found.items() if samples is not None}
        return self._splits

    def check_files(self) -> list[str]:
        """Look at every file of every split once; returns warnings.

        Raises:
            DataError: Files are wrong; or there are fewer training samples than a batch.
        """
        splits = self.splits()
        length = self.epoch_length()
        largest = max((self.progressive and self.progressive.batch_size) or [self.batch_size])
        if length < largest:
            where = "data.batch_size" if largest == self.batch_size else "the batch sizes of data.progressive"
            raise DataError(
                f"the train split gives {length} samples an epoch, fewer than one batch of {largest}, so "
                f"nothing would be trained: lower {where} to at most {length}, or raise data.repeats"
            )
        if self._checked or not self.check:
            return []
        warnings = check_splits(splits, self.rules(), self.check_cache)
        self._checked = True
        return warnings

    def prepare_data(self) -> None:
        """Check the files, in one process."""
        self.check_files()

    # Loaders.

    @cached_property
    def train_labels(self) -> Labels:
        """The classes of every training image.

        Raises:
            ConfigError: The data set does not say them without reading every image.
        """
        labels = getattr(self.splits()["train"], self.class_key, None)
        if labels is None:
            raise ConfigError(
                f"data.sampling: the samples of {type(self).__name__} have no `{self.class_key}` to go by"
            )
        return Labels.of(labels, self.num_classes)

    def epoch_length(self) -> int:
        """Return how many training samples an epoch visits, over all processes."""
        if self.sampling is None:
            return len(self.splits()["train"]) * self.repeats
        return self.sampling.epoch_length(self.train_labels, self.repeats)

    def epoch_order(self) -> Callable[[int], list[int]] | None:
        """Return what gives an epoch's training samples in order; None: a random permutation of all of them."""
        if self.sampling is None:
            return None
        return partial(self.sampling.order, self.train_labels, self.epoch_length(), self.seed)

    def train_batches(
        self, world_size: int = 1, epoch: int = 0, epochs: int | None = None, limit: int | float = 1.0
    ) -> int:
        """Return how many batches an epoch gives each of `world_size` processes.

        Args:
            world_size: All processes.
            epoch: The epoch; it matters only where training goes by stages.
            epochs: Epochs of the whole run; None: one for each stage.
            limit: The trainer's `limit_train_batches`: how many at most, or which share.
        """
        batch_size: int = self.batch_size
        if self.progressive is not None:
            batch_size = self.progressive.at(epoch, epochs or self.progressive.count).batch_size or batch_size
        batches = self.epoch_length() // (batch_size * world_size)
        return min(batches, limit) if isinstance(limit, int) else int(batches * limit)

    def stage_sizes(self) -> list[tuple[int, int]]:
        """Return the (height, width) of training images stage by stage; none where no stage changes it."""
        return list((self.progressive and self.progressive.image_size) or [])

    def train_transform(self) -> Transform:
        """Return what is done to each training sample in a worker."""
        transforms = self.train_transforms if self.train_transforms is not None else self.default_transforms()
        return TrainTransform(self.resize, transforms, self.photometric)

    def train_dataloader(self) -> KeyedLoader:
        """Return the training loader."""
        return self._loader(KeyedSamples(self.splits()["train"], self.train_transform(), self.seed), shuffle=True)

    def val_dataloader(self) -> KeyedLoader:
        """Return the validation loader."""
        return self._eval_loader(self.splits()["val"])

    def test_dataloader(self) -> KeyedLoader:
        """Return the test loader.

        Raises:
            DataError: There is no test split.
        """
        if "test" not in self.splits():
            raise DataError(f"{type(self).__name__} has no test split")
        return self._eval_loader(self.splits()["test"])

    def reference_dataloader(self) -> KeyedLoader:
        """Return a loader that gives the training split as evaluation sees it: in order, nothing drawn at random."""
        return self._eval_loader(self.splits()["train"])

    def predict_dataloader(self) -> KeyedLoader:
        """Return a loader over the images of `predict_dir`.

        Raises:
            ConfigError: `predict_dir` is not given, or no folder of images.
        """
        if self.predict_dir is None:
            raise ConfigError("predict needs images: give --data.predict_dir FOLDER")
        folder = Path(self.predict_dir)
        if not folder.is_dir():
            raise ConfigError(f"data.predict_dir: {folder} is no folder")
        return self._eval_loader(self.unlabelled(folder))

    def example(self, split: SplitName) -> Sample:
        """Return the first sample of a split as the network will see it."""
        loader = self.train_dataloader() if split == "train" else self._eval_loader(self.splits()[split])
        return loader.dataset[SampleKey(0, 0)]

    def unlabelled(self, folder: Path) -> Samples:
        """Return the images of a folder as samples without targets."""
        return ImageFiles(images_to_predict(folder), self.channels, self.resize)

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Finish a batch on the device: photometric augmentation, masks as long."""
        factors = batch.pop("photometric", None)
        if factors is not None:
            batch["image"] = Photometric.apply(batch["image"], factors)
        if "mask" in batch:
            batch["mask"] = batch["mask"].long()
        return batch

    def _eval_loader(self, samples: Samples) -> KeyedLoader:
        return self._loader(KeyedSamples(samples, EvalTransform(self.resize), self.seed), shuffle=False)

    def _loader(self, dataset: KeyedSamples, shuffle: bool) -> KeyedLoader:
        rank = self.trainer.global_rank if self.trainer is not None else 0
        world = self.trainer.world_size if self.trainer is not None else 1
        length, order = (self.epoch_length(), self.epoch_order()) if shuffle else (len(dataset.samples), None)
        reshuffle = self.trainer is None or not self.trainer.overfit_batches  # type: ignore[attr-defined]
        stage = self._stage if shuffle and self.progressive is not None else None
        began = self._epoch_began if stage is not None and self.trainer is not None else None
        batches = KeyedBatches(length, self.batch_size, self.seed, shuffle, rank, world, reshuffle, order, stage, began)
        workers = self.worker_count(world)
        return KeyedLoader(
            dataset,
            batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=heed_parent_alone,
            collate_fn=partial(collate, fills={"mask": self.ignore_index or 0}),
        )

    def _stage(self, epoch: int) -> Stage:
        assert self.progressive is not None
        return self.progressive.at(epoch, self._epochs() or self.progressive.count)

    def _epochs(self) -> int | None:
        return self.trainer.max_epochs if self.trainer is not None else None

    def _epoch_began(self, epoch: int) -> None:
        trainer = self.trainer
        if trainer is not None and self.progressive is not None and self.progressive.batch_size is not None:
            limit = trainer.limit_train_batches
            recount_batches(trainer, self.train_batches(trainer.world_size, epoch, self._epochs(), limit))

    def worker_count(self, world_size: int = 1) -> int:
        """Return the number of loader processes: as configured, else half the cores a process has, at most 8."""
        return self.num_workers if self.num_workers is not None else default_workers(world_size)


def default_workers(world_size: int = 1) -> int:
    """Return the number of loader processes of one process of several: half its cores, at most 8."""
    return min(8, max(1, (os.cpu_count() or 1) // (2 * world_size)))


class ImageFiles:
    """Images without targets.

    Args:
        paths: The files.
        channels: Channels they are brought to.
        resize: Shorter side they will be brought to, if any.
    """

    def __init__(self, paths: list[Path], channels: int, resize: int | None) -> None:
        if not paths:
            raise DataError("there are no images to predict")
        self.paths, self.channels, self.resize = paths, channels, resize

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Sample:
        """Return `image`, `id` and `original_size` of one file."""
        path = self.paths[index]
        values, size = read_image(path, self.channels, self.resize)
        image = tv_tensors.Image(torch.from_numpy(values).permute(2, 0, 1))
        return {"image": image, "id": self.name(index), "original_size": size}

    def name(self, index: int) -> str:
        """Return what to call one file."""
        return self._names[index]

    @cached_property
    def _names(self) -> list[str]:
        return distinct_names(self.paths)

    def problem(self, index: int) -> str | None:
        """Say what is wrong with one file."""
        return reading_problem(self, index)

    def remarks(self) -> tuple[list[str], list[str]]:
        """Return nothing."""
        return [], []

    def sources(self, index: int) -> list[str]:
        """Return the file."""
        return [str(self.paths[index])]
