"""Segmentation data: images with a mask of class indices each."""

import re
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt
from torchvision import tv_tensors
from torchvision.transforms import v2

from framework.data.datamodule import SplitName, VisionData
from framework.data.images import IMAGE_SUFFIXES, MaskTable, find_images, read_image
from framework.data.loader import Sample, Samples
from framework.data.transforms import Photometric, RandomScaleCrop, fill_masks
from framework.errors import ConfigError, DataError

Value = int | tuple[int, int, int]


class Pair(NamedTuple):
    """An image file, its mask file, and what to call them."""

    image: Path
    mask: Path
    id: str


class MaskFiles:
    """Image files with mask files.

    Args:
        pairs: The files.
        channels: Channels the images are brought to.
        table: What the values in the masks mean.
        resize: Shorter side the images will be brought to, if any.
    """

    def __init__(self, pairs: list[Pair], channels: int, table: MaskTable, resize: int | None = None) -> None:
        self.pairs, self.channels, self.table, self.resize = pairs, channels, table, resize
        self._present: set[int] = set()

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> Sample:
        """Return `image`, `mask`, `id` and `original_size`.

        Raises:
            DataError: A file cannot be read, or image and mask differ in size.
        """
        pair = self.pairs[index]
        image, size = self.read_image(pair.image)
        mask = torch.from_numpy(self.table.read(pair.mask))
        if tuple(mask.shape) != size:
            turned = (
                " (turned by 90°: does one of them carry an EXIF rotation?)" if tuple(mask.shape) == size[::-1] else ""
            )
            raise DataError(
                f"{pair.mask} is {mask.shape[1]}x{mask.shape[0]} but its image {pair.image.name} is "
                f"{size[1]}x{size[0]}{turned}: make them the same size"
            )
        return {"image": image, "mask": tv_tensors.Mask(mask), "id": pair.id, "original_size": size}

    def read_image(self, path: Path) -> tuple[tv_tensors.Image, tuple[int, int]]:
        """Return the image as uint8 (C, H, W), and its (height, width) as stored."""
        values, size = read_image(path, self.channels, self.resize)
        return tv_tensors.Image(torch.from_numpy(values).permute(2, 0, 1)), size

    def problem(self, index: int) -> str | None:
        """Say what is wrong with one pair of files."""
        try:
            sample = self.read(index)
        except DataError as error:
            return str(error)
        present = set(sample["mask"].unique().tolist()) - {self.table.ignore_index}
        self._present |= present
        if not present:
            return (
                f"{self.pairs[index].mask}: every pixel is ignored, so nothing can be learned from it: remove the pair"
            )
        return None

    def remarks(self) -> tuple[list[str], list[str]]:
        """Say which classes have no pixel; a training split of one class only is wrong, others may be small."""
        absent = sorted(set(range(self.table.num_classes)) - self._present)
        if len(self._present) == 1:
            only = min(self._present)
            return [
                f"all masks hold class {only} alone, beside ignored pixels ({self.table.ignore_index}), so there is "
                "nothing to tell apart. For masks of 0 and 255 write `background = 0` and `foreground = 255` in "
                "classes.txt, or set another data.ignore_index"
            ], []
        return [], [f"no pixel of class {', '.join(map(str, absent))}"] if absent else []

    def sources(self, index: int) -> list[str]:
        """Return the image and mask files."""
        return [str(self.pairs[index].image), str(self.pairs[index].mask)]


class SegmentationData(VisionData):
    """Base of segmentation data.

    Args:
        crop_size: Height and width of training crops, in pixels after `resize`.
        crop_scale: Smallest and largest scale of training crops.
        hflip: Probability of a left-right flip.
        vflip: Probability of a top-down flip; for images without an up, such as microscopy and aerial ones.
        ignore_index: Class index of pixels that count neither in the loss nor in any metric.
        photometric: Brightness, contrast and saturation changes in training; null: none.
    """

    tasks: ClassVar[tuple[str, ...]] = ("Segmentation",)

    def __init__(
        self,
        crop_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 256,
        crop_scale: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.5),
        hflip: ClosedUnitInterval = 0.5,
        vflip: ClosedUnitInterval = 0.0,
        ignore_index: int = 255,
        photometric: Photometric | None = Photometric(),  # noqa: B008 - read only
        **options: Any,
    ) -> None:
        super().__init__(photometric=photometric, **options)
        self.crop_size, self.crop_scale, self.hflip, self.vflip = crop_size, crop_scale, hflip, vflip
        self.ignore_index: int = ignore_index
        if self.train_transforms is not None:
            fill_masks(self.train_transforms, ignore_index)

    @abstractmethod
    def split(self, name: SplitName) -> Samples | None:
        """Return a split, or None if the data set lacks it."""

    def default_transforms(self) -> list[v2.Transform]:
        """Return a random crop and flips."""
        transforms: list[v2.Transform] = [RandomScaleCrop(self.crop_size, self.crop_scale)]
        transforms += [v2.RandomHorizontalFlip(self.hflip)] if self.hflip else []
        transforms += [v2.RandomVerticalFlip(self.vflip)] if self.vflip else []
        fill_masks(transforms, self.ignore_index)
        return transforms

    def state_classes(self, classes: list[str]) -> None:
        """Set the class names.

        Raises:
            DataError: Too many, doubled, or none.
            ConfigError: The ignore index is one of the classes.
        """
        doubled = sorted({name for name in classes if classes.count(name) > 1})
        if doubled:
            raise DataError(f"classes are named twice: {', '.join(doubled)}")
        if not 2 <= len(classes) <= 255:
            raise DataError(f"segmentation needs 2 to 255 classes, background included, got {len(classes)}: {classes}")
        if not 0 <= self.ignore_index <= 255:
            raise ConfigError(f"data.ignore_index: masks hold 0 to 255, so {self.ignore_index} never occurs in them")
        if 0 <= self.ignore_index < len(classes):
            raise ConfigError(
                f"data.ignore_index: {self.ignore_index} is also the class '{classes[self.ignore_index]}': "
                f"use a number from {len(classes)} to 255"
            )
        self.classes = tuple(classes)


class ClassTable(NamedTuple):
    """Class names, and the mask values that stand for them; None: the line number is the value."""

    classes: list[str]
    values: list[Value] | None
    ignore: list[Value]


_LINE = re.compile(r"^(?P<name>.*?)(?:\s*[=:\t]\s*(?P<value>#[0-9a-fA-F]{6}|\d+(?:[\s,]+\d+[\s,]+\d+)?))?$")


def read_classes(path: Path) -> ClassTable:
    """Read `classes.txt`: a class a line, `name`, `name = VALUE`, `name = R G B` or `name = #rrggbb`.

    A line `ignore = ...` gives a value or colour of pixels that do not count.

    Raises:
        DataError: The file is missing or empty, or only some classes have a value.
    """
    if not path.is_file():
        raise DataError(
            f"{path} is missing: write one class name a line, background included, in the order of the indices"
        )
    names: list[str] = []
    values: list[Value | None] = []
    ignore: list[Value] = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("# "):
            continue
        match = _LINE.match(line.strip())
        assert match is not None  # the pattern takes any line
        value = _parse_value(match["value"])
        if match["name"] == "ignore" and value is not None:
            ignore.append(value)
        else:
            names.append(match["name"])
            values.append(value)
    known = [value for value in values if value is not None]
    if known and len(known) < len(names):
        lacking = [name for name, value in zip(names, values, strict=True) if value is None]
        raise DataError(f"{path}: some classes have a mask value, but these have none: {', '.join(lacking)}")
    doubled = [value for value in [*known, *ignore] if [*known, *ignore].count(value) > 1]
    if doubled:
        raise DataError(f"{path}: the mask value {doubled[0]} stands for two classes")
    if not names:
        raise DataError(f"{path} names no class")
    return ClassTable(names, known or None, ignore)


def _parse_value(text: str | None) -> Value | None:
    if text is None:
        return None
    if text.startswith("#"):
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
    numbers = [int(number) for number in re.split(r"[\s,]+", text)]
    if max(numbers) > 255:
        raise DataError(f"classes.txt: {text} is no mask value: they are 0 to 255")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])


def match_masks(images: Path, masks: Path) -> list[Pair]:
    """Pair the images of one folder with the masks of another by file stem.

    Raises:
        DataError: A folder is missing, or images have no mask (all of them are named, up to five).
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataError(f"{folder} is missing: this split needs images in {images} and masks in {masks}")
    found, labels = find_images(images), find_images(masks)
    if not found:
        raise DataError(f"{images} is empty: it has no file that ends in {', '.join(IMAGE_SUFFIXES)}")
    lacking = [path.name for stem, path in found.items() if stem not in labels]
    if lacking:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise DataError(
            f"{images}: {len(lacking)} images have no mask of the same name in {masks}: {', '.join(lacking[:5])}{more}"
        )
    return [Pair(path, labels[stem], stem) for stem, path in found.items()]
