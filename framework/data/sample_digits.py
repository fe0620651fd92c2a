"""The embedded data set for classification: 1,797 real handwritten digits, for a first run without any download."""

from typing import Any, Literal

import numpy as np
import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt

from framework.clock import key
from framework.data.arrays import LabelledArrays
from framework.data.classification import ClassificationData
from framework.data.datamodule import SplitName
from framework.data.transforms import Photometric
from framework.errors import ConfigError

WHITE = 16  # scikit-learn's largest value
HELD_OUT = 30  # images of each digit in the validation split, and as many in the test split


class SampleDigits(ClassificationData):
    """Handwritten digits of 8x8 pixels, bright on dark, one channel: 1,197 to train, 300 to validate, 300 to test.

    They are those that come with scikit-learn, the test part of UCI's "Optical Recognition of Handwritten Digits" (E.
    Alpaydin and C. Kaynak, 1998; CC BY 4.0). Which of them are for what is fixed; each digit has 30 images in `val` and
    30 in `test`. A writer may have images in several splits.

    Args:
        image_size: Height and width that they are enlarged to.
        crop_area: Smallest and largest share of an image's area that a training crop shows.
        eval_crop: Share of the shorter side that evaluation keeps.
        hflip: Probability of a left-right flip; mirrored digits are others, or none.
        photometric: Brightness and contrast changes in training; null: none.
    """

    channels: Literal[1] = 1

    def __init__(
        self,
        image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = 32,
        crop_area: tuple[PositiveFloat, PositiveFloat] = (0.9, 1.0),
        eval_crop: PositiveFloat = 1.0,
        hflip: ClosedUnitInterval = 0.0,
        photometric: Photometric | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            image_size=image_size,
            crop_area=crop_area,
            eval_crop=eval_crop,
            hflip=hflip,
            photometric=photometric,
            **options,
        )
        self.state_classes([str(digit) for digit in range(10)])
        self.parts = load_digits(self.classes)

    def split(self, name: SplitName) -> LabelledArrays:
        """Return a split."""
        return self.parts[name]


def load_digits(classes: tuple[str, ...]) -> dict[SplitName, LabelledArrays]:
    """Read scikit-learn's digits and divide them, digit by digit, by a hash of their numbers.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ConfigError(
            f'SampleDigits needs scikit-learn ({error}): pip install "vision-plugin-framework[samples]"'
        ) from error
    found = datasets.load_digits()
    images = torch.from_numpy(np.rint(found.images * (255 / WHITE)).astype(np.uint8))[:, None]
    labels = found.target.tolist()
    everything = LabelledArrays(images, labels, classes, [f"{index:04d}" for index in range(len(labels))])
    parts: dict[SplitName, list[int]] = {"train": [], "val": [], "test": []}
    for digit in range(len(classes)):
        own = [index for index, label in enumerate(labels) if label == digit]
        ranked = sorted(own, key=lambda index: key("sample-digits", index))
        parts["test"] += ranked[:HELD_OUT]
        parts["val"] += ranked[HELD_OUT : 2 * HELD_OUT]
        parts["train"] += ranked[2 * HELD_OUT :]
    return {name: everything.select(sorted(indices)) for name, indices in parts.items()}
