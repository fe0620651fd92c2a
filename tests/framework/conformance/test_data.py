from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from framework.conformance import check_plugin
from framework.data.box_transforms import BoxEvalTransform
from framework.data.datamodule import SplitName, VisionData
from framework.data.depth import DepthData
from framework.data.detection import DetectionData
from framework.data.fit import Fit
from framework.data.loader import KeyedSamples, Sample
from framework.data.masks import SegmentationData
from framework.data.sample_cells import SampleCells, SampleCellsDetection
from framework.data.synthetic import SyntheticScenes, SyntheticScenesDetection
from framework.data.transforms import DepthMap

OURS = {
    "SampleCells": SampleCells,
    "SyntheticScenes": partial(SyntheticScenes, train=4, val=2, test=0, size=(48, 64), crop_size=32),
    "SampleCellsDetection": SampleCellsDetection,
    "mosaics of SampleCellsDetection": partial(SampleCellsDetection, mosaic=0.7, mixup=0.5, scale=(0.4, 3.0)),
    "whole SampleCellsDetection": partial(SampleCellsDetection, crop_size=None, resize=100, longest=200),
    "SyntheticScenesDetection": partial(SyntheticScenesDetection, train=4, val=2, test=0, size=(48, 64), letterbox=80),
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


class Squares:
    """Two bright squares on black; the second is a crowd."""

    def __len__(self) -> int:
        return 3

    def read(self, index: int) -> Sample:
        image = torch.zeros(1, 20, 24, dtype=torch.uint8)
        image[:, 2:8, 3 + index : 9 + index] = image[:, 10:18, 10:20] = 200
        boxes = torch.tensor([[3.0 + index, 2, 9 + index, 8], [10, 10, 20, 18]])
        return {
            "image": tv_tensors.Image(image),
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(20, 24)),
            "labels": torch.tensor([0, 1]),
            "ignored": torch.tensor([False, True]),
            "area": torch.tensor([36.0, 80.0]),
            "id": str(index),
            "original_size": (20, 24),
        }

    problem, remarks, sources = Noise.problem, Noise.remarks, Noise.sources


class RightBoxes(DetectionData):
    channels = 1
    samples: Callable[[], Any] = Squares

    def __init__(self, **options: Any) -> None:
        super().__init__(crop_size=16, min_visibility=0.0, **options)
        self.state_classes(["small", "large"])

    def split(self, name: SplitName) -> Any:
        return type(self).samples()


class Changed(Squares):
    """The mistake: a key of the sample is something else."""

    key, change = "", staticmethod(torch.clone)

    def read(self, index: int) -> Sample:
        sample = super().read(index)
        return {**sample, self.key: self.change(sample[self.key])}


def from_one(labels: Any) -> Any:
    return labels + 1


def shifted(boxes: Any) -> Any:
    return tv_tensors.wrap(boxes + 5, like=boxes)


def reversed_boxes(boxes: Any) -> Any:
    return tv_tensors.wrap(boxes[:, [2, 1, 0, 3]], like=boxes)


def as_centres(boxes: Any) -> Any:
    return tv_tensors.BoundingBoxes(boxes, format="CXCYWH", canvas_size=(20, 24))


def of_another_canvas(boxes: Any) -> Any:
    return tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(40, 48))


def first_alone(values: Any) -> Any:
    return values[:1]


def with_wrong(key: str, change: Callable[[Any], Any]) -> type[DetectionData]:
    samples = type("Samples", (Changed,), {"key": key, "change": staticmethod(change)})
    return type(f"{key}_{change.__name__}", (RightBoxes,), {"samples": samples})


class Unclipped(torch.nn.Module):
    def forward(self, sample: Sample) -> Sample:
        return {**sample, "boxes": sample["boxes"] + 15}


class BoxesBesideThePicture(RightBoxes):
    def train_transform(self) -> Any:
        return Chain([super().train_transform(), Unclipped()])


class TooLarge(torch.nn.Module):
    def forward(self, sample: Sample) -> Sample:
        return {**sample, "size": (99, 99)}


class SizeBeyondTheImage(RightBoxes):
    def train_transform(self) -> Any:
        return Chain([super().train_transform(), TooLarge()])


class Chain:
    """One after the other."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def __call__(self, sample: Sample) -> Sample:
        for part in self.parts:
            sample = part(sample)
        return sample


class Doubled:
    """The mistake: boxes are brought to the size of what the network sees."""

    def __call__(self, sample: Sample) -> Sample:
        sample = BoxEvalTransform(Fit(resize=40))(sample)
        return {**sample, "boxes": sample["boxes"] * 2}


class EvaluatesInAnotherFrame(RightBoxes):
    def _eval_loader(self, samples: Any) -> Any:
        return self._loader(KeyedSamples(samples, Doubled(), self.seed), shuffle=False)


class NoiseWithDepth(Noise):
    def read(self, index: int) -> Sample:
        sample = super().read(index)
        del sample["mask"]
        depth = sample["image"][0].float() / 64
        return {**sample, "depth": DepthMap(depth), "intrinsics": torch.eye(3)}


class RightDepth(DepthData):
    channels = 1
    samples: Callable[[], Any] = NoiseWithDepth

    def __init__(self, **options: Any) -> None:
        super().__init__(depth_range=(1.0, 3.0), crop_size=16, rotation=5.0, **options)

    def split(self, name: SplitName) -> Any:
        return type(self).samples()


def with_wrong_depth(change: Callable[[torch.Tensor], Any], key: str = "depth") -> type[RightDepth]:
    class Samples(NoiseWithDepth):
        def read(self, index: int) -> Sample:
            sample = super().read(index)
            return {**sample, key: change(sample[key])}

    return type(f"Wrong_{key}_{change.__name__}", (RightDepth,), {"samples": Samples})


def in_doubles(depth: torch.Tensor) -> Any:
    return DepthMap(depth.double())


def plain(depth: torch.Tensor) -> Any:
    return depth.as_subclass(torch.Tensor)


def negative(depth: torch.Tensor) -> Any:
    return DepthMap(depth - 1)


def with_gaps_of_nan(depth: torch.Tensor) -> Any:
    return DepthMap(depth.masked_fill(depth > 3, torch.nan))


def of_half_the_size(depth: torch.Tensor) -> Any:
    return DepthMap(depth[::2, ::2])


class DepthBeyondItsRange(RightDepth):
    def train_transform(self) -> Any:
        return Chain([super().train_transform(), InMillimetres()])


class InMillimetres:
    def __call__(self, sample: Sample) -> Sample:
        return {**sample, "depth": sample["depth"] * 1000}


class DepthResizedInEvaluation(RightDepth):
    def _eval_loader(self, samples: Any) -> Any:
        return self._loader(KeyedSamples(samples, HalvesDepth(), self.seed), shuffle=False)


class HalvesDepth:
    def __call__(self, sample: Sample) -> Sample:
        return {**sample, "depth": sample["depth"][::2, ::2].contiguous(), "size": (20, 24)}


WRONG_DEPTHS = [
    with_wrong_depth(in_doubles),
    with_wrong_depth(plain),
    with_wrong_depth(negative),
    with_wrong_depth(with_gaps_of_nan),
    with_wrong_depth(of_half_the_size),
    with_wrong_depth(in_doubles, "intrinsics"),
]

WRONG_OBJECTS = [
    with_wrong("boxes", torch.Tensor.double),
    with_wrong("boxes", torch.Tensor.contiguous),
    with_wrong("boxes", shifted),
    with_wrong("boxes", reversed_boxes),
    with_wrong("boxes", as_centres),
    with_wrong("boxes", of_another_canvas),
    with_wrong("labels", from_one),
    with_wrong("labels", torch.Tensor.float),
    with_wrong("labels", first_alone),
    with_wrong("ignored", torch.Tensor.float),
    with_wrong("ignored", first_alone),
    with_wrong("area", torch.Tensor.long),
    with_wrong("area", first_alone),
]

MISTAKES: dict[type[VisionData], str] = {
    BoxesBesideThePicture: "boxes_lie_where_the_network_looks",
    SizeBeyondTheImage: "boxes_lie_where_the_network_looks",
    EvaluatesInAnotherFrame: "boxes_lie_where_the_network_looks",
    DepthBeyondItsRange: "depth_goes_with_the_image",
    DepthResizedInEvaluation: "depth_goes_with_the_image",
    **dict.fromkeys(WRONG_DEPTHS, "samples_are_as_documented"),
    **dict.fromkeys(WRONG_OBJECTS, "samples_are_as_documented"),
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
def test_each_mistake_is_caught_by_the_check_that_names_it_and_no_other(kind: type[VisionData]):
    verdicts = check_plugin(kind, "data")
    assert {v.name: v.found for v in verdicts if v.outcome == "failed"}.keys() == {MISTAKES[kind]}


def test_there_is_a_mistake_for_every_check():
    assert set(MISTAKES.values()) == {verdict.name for verdict in check_plugin(Right, "data")}


@pytest.mark.parametrize(
    "make", [Right, RightBoxes, RightDepth, *OURS.values()], ids=["Right", "RightBoxes", "RightDepth", *OURS]
)
def test_right_ones_pass_every_check(make: Any):
    assert {v.name: v.found for v in check_plugin(make, "data") if v.outcome != "passed"} == {}
