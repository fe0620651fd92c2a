"""Learning-rate schedules as pure functions of the step, and how anything else that is scheduled states its course."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Literal, NamedTuple

from framework.errors import ConfigError


class Schedule(ABC):
    """A learning-rate factor as a pure function of the step."""

    @abstractmethod
    def factor(self, step: int, total: int) -> float:
        """Return what the base rate is multiplied with at optimizer step `step`, from 0 on, of `total`."""


class Moment(NamedTuple):
    """A point of a run, of which everything that is scheduled is a pure function.

    Args:
        step: Optimizer step, from 0 on.
        steps: Optimizer steps of the whole run.
        epoch: Epoch, from 0 on.
        epochs: Epochs of the whole run.
    """

    step: int
    steps: int
    epoch: int
    epochs: int


Courses = Mapping[str, Callable[[Moment], float]]
"""What a task, a data module or a callback schedules, by name: the value at each moment of a run.

Whichever has a method `schedules() -> Courses` has its courses in `framework schedule show`.
"""


class WarmedUp(Schedule):
    """A linear warmup to the base rate, with something after it.

    Args:
        warmup: Fraction of all steps spent warming up, in [0, 1).
        start: Factor at the first step, if there is a warmup; in [0, 1].
        overlaid: Whether the fall begins at the first step and the warmup multiplies it, as in mmcv and what is built
            on it; else it begins after the warmup, at the base rate.

    Raises:
        ConfigError: An argument is out of range.
    """

    def __init__(self, warmup: float = 0.0, start: float = 0.01, overlaid: bool = False) -> None:
        _check_warmup(warmup)
        _check_factor(start=start)
        self.warmup, self.start, self.overlaid = warmup, start, overlaid

    def factor(self, step: int, total: int) -> float:
        """Return the factor at `step` of `total`."""
        warm = round(self.warmup * total)
        rise = self.start + (1 - self.start) * step / warm if step < warm else 1.0
        if step < warm and not self.overlaid:
            return rise
        return rise * self.after_warmup(min(step, total), 0 if self.overlaid else warm, total)

    @abstractmethod
    def after_warmup(self, step: int, warm: int, total: int) -> float:
        """Return the factor at `step` of `total`, of which the first `warm` are over."""


class Constant(WarmedUp):
    """The base rate, after a linear warmup if there is one.

    Args:
        warmup: Fraction of all steps spent warming up, in [0, 1).
        start: Factor at the first step, if there is a warmup; in [0, 1].

    Raises:
        ConfigError: An argument is out of range.
    """

    def after_warmup(self, step: int, warm: int, total: int) -> float:
        """Return 1."""
        return 1.0


class WarmupCosine(WarmedUp):
    """Linear warmup to the base rate, then half a cosine down to `end`.

    Loshchilov and Hutter, SGDR (arXiv 1608.03983), equation 5 without restarts. A recipe that gives two rates, as
    ShiftViT's `lr_start` 1e-5 and `lr_max` 1e-3, is written `lr: 1e-3` and `start: 0.01`, their ratio: then the start
    keeps its place when the rate, or that of the backbone alone, is changed.

    Args:
        warmup: Fraction of all steps spent warming up, in [0, 1).
        start: Factor at the first step; in [0, 1].
        end: Factor after the last step; in [0, 1].
        overlaid: Whether the fall begins at the first step and the warmup multiplies it, as in mmcv and what is built
            on it; else it begins after the warmup, at the base rate.

    Raises:
        ConfigError: An argument is out of range.
    """

    def __init__(self, warmup: float = 0.05, start: float = 0.01, end: float = 0.0, overlaid: bool = False) -> None:
        super().__init__(warmup, start, overlaid)
        _check_factor(end=end)
        self.end = end

    def after_warmup(self, step: int, warm: int, total: int) -> float:
        """Return the cosine's factor."""
        progress = (step - warm) / max(1, total - warm)
        return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * progress))


class Steps(WarmedUp):
    """The base rate, multiplied by `gamma` at each milestone, after a linear warmup if there is one.

    Milestones are fractions of the run, so that a shorter run has the same course; with `epochs` they are epochs of a
    run of that length: He et al. (arXiv 1512.03385) divide by 10 at epochs 30 and 60 of 90, `milestones: [30, 60]`,
    `epochs: 90`.

    Args:
        milestones: Rising; fractions of all steps in (0, 1), or epochs in (0, `epochs`).
        gamma: What the rate is multiplied by at each; in (0, 1).
        epochs: How many epochs the milestones are counted in; null: they are fractions.
        warmup: Fraction of all steps spent warming up, in [0, 1); it ends before the first milestone.
        start: Factor at the first step, if there is a warmup; in [0, 1].

    Raises:
        ConfigError: An argument is out of range, or the milestones do not rise.
    """

    def __init__(
        self,
        milestones: list[float],
        gamma: float = 0.1,
        epochs: int | None = None,
        warmup: float = 0.0,
        start: float = 0.01,
    ) -> None:
        super().__init__(warmup, start)
        if not 0 < gamma < 1:
            raise ConfigError(f"model.schedule: gamma shrinks the rate at each milestone: in (0, 1), got {gamma}")
        if epochs is not None and epochs < 1:
            raise ConfigError(f"model.schedule: epochs is how many the milestones are counted in, got {epochs}")
        _check_milestones(milestones, epochs, warmup)
        self.milestones, self.gamma, self.epochs = list(milestones), gamma, epochs

    def after_warmup(self, step: int, warm: int, total: int) -> float:
        """Return `gamma` to the power of the milestones passed."""
        passed = bisect_right([round(milestone * total / (self.epochs or 1)) for milestone in self.milestones], step)
        return self.gamma**passed


class Polynomial(WarmedUp):
    """Falls from the base rate to `end` as a power of the steps left, after a linear warmup if there is one.

    DeepLab's "poly" policy has the power 0.9 (arXiv 1706.05587, section 4.1); 1 is a straight line.

    Args:
        power: Of the share of steps that are left; positive.
        end: Factor after the last step; in [0, 1].
        warmup: Fraction of all steps spent warming up, in [0, 1).
        start: Factor at the first step, if there is a warmup; in [0, 1].
        overlaid: Whether the fall begins at the first step and the warmup multiplies it, as in mmcv and what is built
            on it; else it begins after the warmup, at the base rate.

    Raises:
        ConfigError: An argument is out of range.
    """

    def __init__(
        self,
        power: float = 0.9,
        end: float = 0.0,
        warmup: float = 0.0,
        start: float = 0.01,
        overlaid: bool = False,
    ) -> None:
        super().__init__(warmup, start, overlaid)
        if not 0 < power < math.inf:
            raise ConfigError(f"model.schedule: power is positive, got {power}")
        _check_factor(end=end)
        self.power, self.end = power, end

    def after_warmup(self, step: int, warm: int, total: int) -> float:
        """Return the power of the steps left."""
        left = 1 - (step - warm) / max(1, total - warm)
        return self.end + (1 - self.end) * math.pow(left, self.power)


class OneCycle(Schedule):
    """One rise to the base rate and one long fall far below where it began.

    Smith and Topin, Super-convergence (arXiv 1708.07120), section 3. The rate alone goes through the cycle: momentum,
    which the paper lowers while the rate rises, stays as the optimizer has it, as nothing but the rate is scheduled by
    the step here. The base rate is the highest one. Values are those of torch's `OneCycleLR` with
    `pct_start = warmup`, `div_factor = 1 / start` and `final_div_factor = start / end`.

    Args:
        warmup: Fraction of all steps that the rise takes, in [0, 1).
        start: Factor at the first step; in [0, 1].
        end: Factor at the last step; in [0, 1].
        anneal: How it rises and falls: `cosine`, or `linear` as in the paper.
        three_phase: As in the paper: the fall to `start` is as long as the rise, and the rest goes on to `end`.

    Raises:
        ConfigError: An argument is out of range.
    """

    def __init__(
        self,
        warmup: float = 0.3,
        start: float = 0.04,
        end: float = 4e-6,
        anneal: Literal["cosine", "linear"] = "cosine",
        three_phase: bool = False,
    ) -> None:
        _check_warmup(warmup)
        _check_factor(start=start, end=end)
        if three_phase and warmup >= 0.5:
            raise ConfigError(
                f"model.schedule: with three_phase the fall is as long as the rise: warmup is below 0.5, got {warmup}"
            )
        if anneal not in ("cosine", "linear"):
            raise ConfigError(f"model.schedule: anneal is cosine or linear, got {anneal}")
        self.warmup, self.start, self.end, self.anneal, self.three_phase = warmup, start, end, anneal, three_phase

    def factor(self, step: int, total: int) -> float:
        """Return the factor at `step` of `total`."""
        top, last = self.warmup * total - 1, max(1, total - 1)
        knots = [(top, 1.0), (last, self.end)]
        if top > 0:
            knots = [(0.0, self.start), knots[0], *([(2 * top, self.start)] if self.three_phase else []), knots[1]]
        return _interpolate(knots, min(step, last), _cosine if self.anneal == "cosine" else float)


def _interpolate(knots: list[tuple[float, float]], place: float, shape: Callable[[float], float]) -> float:
    """Return the value at a place between knots (place, value), of which at least two rise in place."""
    index = min(max(1, bisect_left(knots, place, key=lambda knot: knot[0])), len(knots) - 1)
    (left, value), (right, following) = knots[index - 1], knots[index]
    return value + (following - value) * shape((place - left) / (right - left))


def _cosine(progress: float) -> float:
    """Go from 0 to 1 along half a cosine."""
    return 0.5 * (1 - math.cos(math.pi * progress))


def _check_warmup(warmup: float) -> None:
    if not 0 <= warmup < 1:
        raise ConfigError(
            f"model.schedule: warmup is the fraction of all steps spent warming up, in [0, 1), got {warmup}"
        )


def _check_factor(**named: float) -> None:
    for name, value in named.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"model.schedule: {name} is a factor of the learning rate, in [0, 1], got {value}")


def _check_milestones(milestones: list[float], epochs: int | None, warmup: float) -> None:
    whole, unit = epochs or 1, "fractions of the run" if epochs is None else f"epochs of {epochs}"
    if not milestones or not all(first < second for first, second in pairwise(milestones)):
        raise ConfigError(f"model.schedule: milestones are {unit} that rise, got {milestones}")
    if not all(0 < milestone < whole for milestone in milestones):
        remedy = "" if epochs is not None else ": give `epochs`, the length of the run that they are epochs of"
        raise ConfigError(f"model.schedule: milestones are {unit}, in (0, {whole}), got {milestones}{remedy}")
    if milestones[0] / whole < warmup:
        raise ConfigError(
            f"model.schedule: the first milestone, {milestones[0]}, lies in the warmup, which takes {warmup} of the "
            "run: shorten it, or move the milestone"
        )
