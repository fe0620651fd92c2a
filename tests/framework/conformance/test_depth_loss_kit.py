from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from framework.conformance import check_plugin
from framework.conformance.kits import kit
from framework.losses.depth import (
    L1,
    BerHu,
    DepthLoss,
    DepthLossSum,
    GradientMatching,
    LogL1,
    ScaleShiftInvariant,
    SILog,
)
from framework.losses.segmentation import CrossEntropy
from framework.templates.depth_loss import NewPlugin

OURS: dict[str, Any] = {
    "SILog": partial(SILog, warmup=10),
    "SILog without mean": partial(SILog, variance_focus=1.0, scale=10.0),
    "L1": L1,
    "LogL1": LogL1,
    "BerHu": BerHu,
    "GradientMatching": GradientMatching,
    "GradientMatching of disparity": partial(GradientMatching, space="disparity"),
    "ScaleShiftInvariant": ScaleShiftInvariant,
    "ScaleShiftInvariant by squares": partial(ScaleShiftInvariant, alignment="least_squares", trim=0.0),
    "DepthLossSum": partial(DepthLossSum, losses=[SILog(), GradientMatching()], weights=[1.0, 0.5]),
    "the template": NewPlugin,
}


class Right(DepthLoss):
    """Mean absolute difference of logarithms."""

    def gaps(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        counted = target.isfinite() & (target > 0)
        prediction, target = (torch.where(counted, x.float(), 1) for x in (prediction, target))
        return prediction.log() - target.log(), counted, counted.sum().clamp_min(1)

    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        gap, _, count = self.gaps(prediction, target)
        return gap.abs().sum() / count


class PerImage(Right):
    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        return super().forward(prediction, target).expand(len(target))


class NeedsAStep(Right):
    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        return super().forward(prediction, target) * min(1, 1 + step)  # type: ignore[operator]


class TurnedRound(Right):
    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        return -super().forward(prediction, target)


class LeavesTheScaleFree(Right):
    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        gap, counted, count = self.gaps(prediction, target)
        return ((gap - gap.sum() / count) * counted).abs().sum() / count


class DividesByAll(Right):
    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        return self.gaps(prediction, target)[0].abs().mean()


class MultipliesByTheMask(Right):
    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        counted = target > 0
        error = ((prediction.float() - target) * counted).abs()
        return error.sum() / counted.sum().clamp_min(1)


class CountsNegatives(Right):
    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        counted = target.isfinite() & (target != 0)
        prediction, target = (torch.where(counted, x.float(), 1) for x in (prediction, target))
        return (prediction - target).abs().sum() / counted.sum().clamp_min(1)


class DividesByNothing(Right):
    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        gap, counted, _ = self.gaps(prediction, target)
        return gap.abs().sum() / counted.sum()


class HasAnUnbiasedVariance(Right):
    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        gap, counted, count = self.gaps(prediction, target)
        mean = gap.sum() / count
        return ((gap - mean).square() * counted).sum() / (counted.sum() - 1) + mean.square()


class TakesTheRoot(Right):
    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        gap, _, count = self.gaps(prediction, target)
        return (gap.square().sum() / count).sqrt()


class Overflows(Right):
    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        counted = target.isfinite() & (target > 0)
        prediction, target = (torch.where(counted, x.float(), 1) for x in (prediction, target))
        return (prediction - target).cosh().log().sum() / counted.sum().clamp_min(1)


class DividesByTheDeviation(Right):
    relative = True

    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        counted = target.isfinite() & (target > 0)
        values = [torch.where(counted, x.float(), 1) for x in (prediction, target)]
        count = counted.sum().clamp_min(1)
        off = [(x - (x * counted).sum() / count) * counted for x in values]
        spread = [torch.where(count > 1, x.square().sum() / count, 1).sqrt() for x in off]
        return (off[0] / spread[0] - off[1] / spread[1]).abs().sum() / count


class TakesLogsOf16Bits(Right):
    def gaps(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        counted = target.isfinite() & (target > 0)
        prediction, target = torch.where(counted, prediction, 1), torch.where(counted, target, 1)
        return prediction.log() - target.log(), counted, counted.sum().clamp_min(1)


class WritesToTheTarget(Right):
    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        value = super().forward(prediction, target)
        target[~(target > 0)] = 0.5
        return value


class SamplesPixels(Right):
    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        return super().forward(prediction, target.masked_fill(torch.rand(target.shape) < 0.2, 0))


class HoldsALambda(Right):
    def __init__(self) -> None:
        super().__init__()
        self.after = lambda x: 2 * x

    def forward(self, prediction: Tensor, target: Tensor, step: int | None = None) -> Tensor:
        value: Tensor = self.after(super().forward(prediction, target))
        return value


MISTAKES: dict[type[DepthLoss], str] = {
    PerImage: "it_is_a_finite_scalar",
    NeedsAStep: "it_is_a_finite_scalar",
    TurnedRound: "right_is_better_than_wrong",
    LeavesTheScaleFree: "relative_is_as_declared",
    DividesByAll: "pixels_without_a_reading_do_not_count",
    MultipliesByTheMask: "pixels_without_a_reading_do_not_count",
    CountsNegatives: "pixels_without_a_reading_do_not_count",
    DividesByNothing: "none_valid_is_zero",
    HasAnUnbiasedVariance: "one_reading_is_enough",
    TakesTheRoot: "a_right_answer_has_a_finite_gradient",
    Overflows: "gradients_are_finite_at_extremes",
    DividesByTheDeviation: "gradients_are_finite_at_extremes",
    TakesLogsOf16Bits: "half_precision_works",
    WritesToTheTarget: "the_input_is_not_written_to",
    SamplesPixels: "it_is_deterministic",
    HoldsALambda: "copies_are_independent",
}


@pytest.mark.parametrize("kind", MISTAKES, ids=lambda kind: kind.__name__)
def test_each_mistake_is_caught_by_the_check_that_names_it_and_no_other(kind: type[DepthLoss]):
    verdicts = check_plugin(kind, "losses")
    assert {v.name: v.found for v in verdicts if v.outcome == "failed"}.keys() == {MISTAKES[kind]}


def test_there_is_a_mistake_for_every_check():
    assert set(MISTAKES.values()) == {verdict.name for verdict in check_plugin(Right, "losses")}


@pytest.mark.parametrize("make", [Right, *OURS.values()], ids=["Right", *OURS])
def test_right_ones_pass_every_check(make: Any):
    assert {v.name: v.found for v in check_plugin(make, "losses") if v.outcome != "passed"} == {}


def build_log_l1() -> DepthLoss:
    return LogL1()


def test_the_kit_is_that_of_what_is_built():
    for make in (LogL1, partial(SILog, scale=10.0), build_log_l1):
        assert "relative_is_as_declared" in [check.name for check in kit("losses", make=make)]
    for other in (CrossEntropy, partial(CrossEntropy, label_smoothing=0.1)):
        assert "ignored_pixels_do_not_count" in [check.name for check in kit("losses", make=other)]
