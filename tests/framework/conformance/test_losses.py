from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from framework.conformance import check_plugin
from framework.losses.classification import BinaryCrossEntropy, BinaryFocal
from framework.losses.segmentation import CrossEntropy, Dice, Focal, Lovasz, SegmentationLoss, WeightedSum

OURS: dict[str, Any] = {
    "CrossEntropy": CrossEntropy,
    "CrossEntropy smoothed": partial(CrossEntropy, label_smoothing=0.1),
    "CrossEntropy of three classes": partial(CrossEntropy, class_weights=[1.0, 2.0, 3.0]),
    "Focal": Focal,
    "Focal below 1": partial(Focal, gamma=0.5),
    "Dice": Dice,
    "Dice of all classes": partial(Dice, smooth=1.0, classes="all"),
    "Lovasz": Lovasz,
    "Lovasz per image": partial(Lovasz, per_image=True),
    "BinaryCrossEntropy": BinaryCrossEntropy,
    "BinaryCrossEntropy smoothed": partial(BinaryCrossEntropy, label_smoothing=0.1),
    "BinaryFocal": BinaryFocal,
    "BinaryFocal below 1": partial(BinaryFocal, gamma=0.5, alpha=0.25),
    "WeightedSum": partial(WeightedSum, losses=[CrossEntropy(), Dice()], weights=[1.0, 0.5]),
}


class Right(SegmentationLoss):
    """Cross entropy."""

    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        logits = logits.float()
        count = (mask != ignore_index).sum().clamp_min(1)
        return F.cross_entropy(logits, mask, ignore_index=ignore_index, reduction="sum") / count


class PerImage(Right):
    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        return super().forward(logits, mask, ignore_index).expand(len(logits))


class TurnedRound(Right):
    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        return super().forward(-logits, mask, ignore_index)


class DividesByAll(Right):
    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        return F.cross_entropy(logits.float(), mask, ignore_index=ignore_index, reduction="none").mean()


class FixesTheIndex(Right):
    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        inside = mask.where(mask != ignore_index, 0) if ignore_index != 255 else mask
        return super().forward(logits, inside, 255)


class DividesByNothing(Right):
    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        return F.cross_entropy(logits.float(), mask, ignore_index=ignore_index)


class LogOfSoftmax(Right):
    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        logs = logits.float().softmax(1).log()
        count = (mask != ignore_index).sum().clamp_min(1)
        return F.nll_loss(logs, mask, ignore_index=ignore_index, reduction="sum") / count


class WeighsIn32Bits(Right):
    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        weights = torch.ones(logits.shape[1])
        total = F.cross_entropy(logits, mask, weights, ignore_index=ignore_index, reduction="sum")
        return total / (mask != ignore_index).sum().clamp_min(1)


class WritesToTheMask(Right):
    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        value = super().forward(logits, mask, ignore_index)
        mask[mask == ignore_index] = 0
        return value


class SamplesPixels(Right):
    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        return super().forward(logits, mask.masked_fill(torch.rand(mask.shape) < 0.2, ignore_index), ignore_index)


class HoldsALambda(Right):
    def __init__(self) -> None:
        super().__init__()
        self.after = lambda x: 2 * x

    def forward(self, logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
        value: Tensor = self.after(super().forward(logits, mask, ignore_index))
        return value


MISTAKES: dict[type[SegmentationLoss], str] = {
    PerImage: "it_is_a_finite_scalar",
    TurnedRound: "right_is_better_than_wrong",
    DividesByAll: "ignored_pixels_do_not_count",
    FixesTheIndex: "ignored_pixels_do_not_count",
    DividesByNothing: "all_ignored_is_zero",
    LogOfSoftmax: "gradients_are_finite_at_extremes",
    WeighsIn32Bits: "half_precision_works",
    WritesToTheMask: "the_input_is_not_written_to",
    SamplesPixels: "it_is_deterministic",
    HoldsALambda: "copies_are_independent",
}


@pytest.mark.parametrize("kind", MISTAKES, ids=lambda kind: kind.__name__)
def test_each_mistake_is_caught_by_the_check_that_names_it_and_no_other(kind: type[SegmentationLoss]):
    verdicts = check_plugin(kind, "losses")
    assert {v.name: v.found for v in verdicts if v.outcome == "failed"}.keys() == {MISTAKES[kind]}


def test_there_is_a_mistake_for_every_check():
    assert set(MISTAKES.values()) == {verdict.name for verdict in check_plugin(Right, "losses")}


@pytest.mark.parametrize("make", [Right, *OURS.values()], ids=["Right", *OURS])
def test_right_ones_pass_every_check(make: Any):
    assert {v.name: v.found for v in check_plugin(make, "losses") if v.outcome != "passed"} == {}
