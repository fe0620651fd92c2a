"""CIFAR-10 and CIFAR-100 as they are published: Python pickles, which are read without trusting them."""

import pickle
from abc import abstractmethod
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from numpy.typing import NDArray
from torchvision import datasets

from framework.data.arrays import LabelledArrays
from framework.data.classification import ClassificationData
from framework.data.datamodule import SplitName
from framework.errors import ConfigError, DataError

SHAPE = (3, 32, 32)
ARRAY = {  # all that a pickled array needs, under the names of NumPy 1 and 2
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and plain values; anything else that a pickle names is refused, so that no code of it can run."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what builds an array.

        Raises:
            UnpicklingError: Something else is wanted.
        """
        if (module, name) not in ARRAY:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, and only arrays are read")
        return ARRAY[module, name]


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dict of arrays and plain values.

    Raises:
        DataError: The file is missing or damaged, or holds something else.
    """
    try:
        found = ArrayUnpickler(BytesIO(path.read_bytes()), encoding="latin1").load()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: unpack the whole archive") from None
    except Exception as error:  # a damaged pickle raises anything
        raise DataError(f"{path} is damaged ({error}): unpack the archive anew") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no dict: unpack the archive anew")
    return found


class CIFAR(ClassificationData):
    """Base of CIFAR-10 and CIFAR-100 (Krizhevsky, "Learning multiple layers of features from tiny images", 2009).

    60,000 colour photographs of 32x32 pixels, of which 10,000 are the test split. The last `val_count` of the other
    50,000, in the published order, are the validation split.

    Args:
        root: Folder that holds, or will hold, the data set's folder.
        download: Fetch the data set (about 170 MB) if it is not there. Without this nothing touches the network.
        val_count: Images of the published training split that validate.
        image_size: Height and width of what the network sees.
        crop_area: Smallest and largest share of an image's area that a training crop shows.
        eval_crop: Share of the shorter side that evaluation keeps.
    """

    channels = 3
    published: ClassVar[Any]  # torchvision's class, which knows the files and fetches them
    label_key: ClassVar[str]  # of the class indices in a file

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        val_count: PositiveInt = 10_000,
        image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = 32,
        crop_area: tuple[PositiveFloat, PositiveFloat] = (0.5, 1.0),
        eval_crop: PositiveFloat = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(image_size=image_size, crop_area=crop_area, eval_crop=eval_crop, **options)
        self.folder, self.val_count = Path(root) / self.published.base_folder, val_count
        if not self.folder.is_dir():
            self._fetch(root, download)
        self.state_classes(self.class_names())

    @abstractmethod
    def class_names(self) -> list[str]:
        """Return the names of the classes."""

    def _fetch(self, root: str, download: bool) -> None:
        archive = self.published.filename
        if not download:
            raise ConfigError(
                f"data.root: {self.folder} is not there: add --data.download true to fetch it (170 MB), or unpack "
                f"{archive} into {root}"
            )
        try:
            self.published(root, download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{archive} could not be fetched from {self.published.url} ({error}): unpack it into {root} yourself"
            ) from error

    def rules(self) -> str:
        """Return everything besides image files that the data check's verdict depends on: sizes and times of ours."""
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(self.folder.iterdir())]
        return f"{super().rules()} {self.val_count} {self.folder.absolute()} {stats}"

    def split(self, name: SplitName) -> LabelledArrays:
        """Return a split.

        Raises:
            ConfigError: `val_count` leaves nothing to train.
            DataError: A file is missing or damaged.
        """
        if name == "test":
            return self._read([file for file, _ in self.published.test_list])
        whole = self._read([file for file, _ in self.published.train_list])
        count = len(whole) - self.val_count
        if count < 1:
            raise ConfigError(f"data.val_count: {self.val_count} of {len(whole)} images leave none to train")
        return whole.select(range(count) if name == "train" else range(count, len(whole)))

    def _read(self, files: list[str]) -> LabelledArrays:
        images, labels, ids = [], [], []
        for file in files:
            pixels, classes = self._read_file(self.folder / file)
            images.append(pixels)
            labels += classes
            ids += [f"{file}-{row}" for row in range(len(classes))]
        return LabelledArrays(torch.from_numpy(np.concatenate(images)), labels, self.classes, ids)

    def _read_file(self, path: Path) -> tuple[NDArray[np.uint8], list[int]]:
        """Read the images (N, 3, 32, 32) and classes of one file."""
        found = read_pickle(path)
        pixels, labels = found.get("data"), found.get(self.label_key)
        if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (prod(SHAPE),)):
            raise DataError(f"{path}: `data` are no images")
        if not isinstance(labels, list) or len(labels) != len(pixels):
            raise DataError(f"{path}: `{self.label_key}` are no classes of {len(pixels)} images")
        if not all(isinstance(label, int) and 0 <= label < self.num_classes for label in labels):
            raise DataError(f"{path}: `{self.label_key}` holds classes outside 0 to {self.num_classes - 1}")
        return pixels.reshape(-1, *SHAPE), labels


class CIFAR10(CIFAR):
    """CIFAR-10 (https://www.cs.toronto.edu/~kriz/cifar.html), in `cifar-10-batches-py`: 10 classes.

    60,000 colour photographs of 32x32 pixels (Krizhevsky, "Learning multiple layers of features from tiny images",
    2009): 40,000 to train, 10,000 to validate, the published 10,000 to test.
    """

    published, label_key = datasets.CIFAR10, "labels"

    def class_names(self) -> list[str]:
        """Return the names of the classes."""
        return _names(self.folder / "batches.meta", "label_names", 10)


class CIFAR100(CIFAR):
    """CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html), in `cifar-100-python`: its 100 fine classes.

    60,000 colour photographs of 32x32 pixels (Krizhevsky, "Learning multiple layers of features from tiny images",
    2009): 40,000 to train, 10,000 to validate, the published 10,000 to test.
    """

    published, label_key = datasets.CIFAR100, "fine_labels"

    def class_names(self) -> list[str]:
        """Return the names of the classes."""
        return _names(self.folder / "meta", "fine_label_names", 100)


def _names(path: Path, key: str, count: int) -> list[str]:
    names = read_pickle(path).get(key)
    if not (isinstance(names, list) and len(set(names)) == count and all(isinstance(name, str) for name in names)):
        raise DataError(f"{path}: `{key}` are no {count} names of classes")
    return names
