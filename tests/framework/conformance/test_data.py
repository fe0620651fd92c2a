from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from framework.conformance import check_plugin
from framework.data.datamodule import SplitName
from framework.data.loader import Sample
from framework.data.masks import SegmentationData
from framework.data.sample_cells import SampleCells
from framework.data.synthetic import SyntheticScenes

OURS = {
    "SampleCells": SampleCells,
    "SyntheticScenes": partial(SyntheticScenes, train=4, val=2, test=0, size=(48, 64), crop_size=32),
}


class Noise:
    """Random images whose mask is where they are bright."""

    def __len__(self) -> int:
        return 3

    def read(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (1, 20, 24), generator=generator, dtype=torch.uint8)
        mask = tv_tensors.Mask((image[0] > 127).to(torch.uint8))
        return {"image": tv_tensors.Image(image), "mask": mask, "id": str(index), "original_size": (20, 24)}

    def problem(self, index: int) -> str | None:
        return None

    def remarks(self) -> tuple[list[str], list[str]]:
        return [], []

    def sources(self, index: int) -> list[str]:
        return []


class Right(SegmentationData):
    channels = 1
    samples: Callable[[], Any] = Noise

    def __init__(self, **options: Any) -> None:
        super().__init__(crop_size=16, **options)
        self.state_classes(["dark", "bright"])

    def split(self, name: SplitName) -> Any:
        return type(self).samples()


class NoValidation(Right):
    def split(self, name: SplitName) -> Any:
        return super().split(name) if name == "train" else None


class ClassesNamedTwice(Right):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.classes = ("bright", "bright")


class Bright255(Noise):
    def read(self, index: int) -> Sample:
        sample = super().read(index)
        return {**sample, "mask": tv_tensors.Mask(sample["mask"] * 200)}


class Masks255(Right):
    samples = Bright255


class Floats(Noise):
    def read(self, index: int) -> Sample:
        sample = super().read(index)
        return {**sample, "image": tv_tensors.Image(sample["image"] / 255)}


class FloatImages(Right):
    samples = Floats


class Flips(Noise):
    def read(self, index: int) -> Sample:
        sample = super().read(index)
        return {**sample, "image": tv_tensors.Image(sample["image"].roll(int(torch.randint(20, ())), 1))}


class RandomReads(Right):
    samples = Flips


class NumpyNoise(torch.nn.Module):
    def forward(self, sample: Sample) -> Sample:
        shift = int(np.random.randint(1, 9))
        return {**sample, "image": tv_tensors.Image(sample["image"].roll(shift, 1))}


class UnkeyedTransform(Right):
    def default_transforms(self) -> list[Any]:
        return [*super().default_transforms(), NumpyNoise()]


class OddKeys(Noise):
    def read(self, index: int) -> Sample:
        sample = super().read(index)
        return {**sample, "depth": torch.zeros(20, 24)} if index == 0 else sample


class KeysThatDiffer(Right):
    samples = OddKeys


class OpenFile(Noise):
    def __init__(self) -> None:
        self.file = open(__file__)  # noqa: SIM115 - the mistake

    def __del__(self) -> None:
        self.file.close()


class HoldsAFile(Right):
    samples = OpenFile


class NowhereToBeFound(Noise):
    def sources(self, index: int) -> list[str]:
        return [f"{index}.png"]


class NamesNoFile(Right):
    samples = NowhereToBeFound


MISTAKES: dict[type[SegmentationData], str] = {
    NoValidation: "it_has_splits",
    ClassesNamedTwice: "classes_are_stated",
    Masks255: "samples_are_as_documented",
    FloatImages: "samples_are_as_documented",
    RandomReads: "reading_is_pure",
    UnkeyedTransform: "augmentation_is_keyed",
    KeysThatDiffer: "batches_fit_together",
    HoldsAFile: "it_can_be_pickled",
    NamesNoFile: "files_can_be_checked",
}


@pytest.mark.parametrize("kind", MISTAKES, ids=lambda kind: kind.__name__)
def test_each_mistake_is_caught_by_the_check_that_names_it_and_no_other(kind: type[SegmentationData]):
    verdicts = check_plugin(kind, "data")
    assert {v.name: v.found for v in verdicts if v.outcome == "failed"}.keys() == {MISTAKES[kind]}


def test_there_is_a_mistake_for_every_check():
    assert set(MISTAKES.values()) == {verdict.name for verdict in check_plugin(Right, "data")}


@pytest.mark.parametrize("make", [Right, *OURS.values()], ids=["Right", *OURS])
def test_right_ones_pass_every_check(make: Any):
    assert {v.name: v.found for v in check_plugin(make, "data") if v.outcome != "passed"} == {}
