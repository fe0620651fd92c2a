"""Learning-rate schedules against their papers' formulas, written here anew, and against torch's own."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, OneCycleLR, PolynomialLR

from framework.errors import ConfigError
from framework.schedules import Constant, OneCycle, Polynomial, Steps, WarmupCosine

BASE = 0.02


def rates(make, steps):
    """The rate at each step under one of torch's schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    scheduler, found = make(optimizer), []
    for step in range(steps):
        if step:  # torch's OneCycleLR raises if it is stepped after the last step
            optimizer.step()
            scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


def ours(schedule, steps):
    return rates(lambda optimizer: LambdaLR(optimizer, lambda step: schedule.factor(step, steps)), steps)


def test_warmup_cosine_follows_its_equation():
    schedule = WarmupCosine(warmup=0.2, start=0.1, end=0.05)
    assert schedule.factor(0, 100) == pytest.approx(0.1)
    assert schedule.factor(10, 100) == pytest.approx(0.55)
    assert schedule.factor(20, 100) == pytest.approx(1.0)
    assert schedule.factor(60, 100) == pytest.approx(0.05 + 0.95 * (1 + math.cos(math.pi / 2)) / 2)
    assert schedule.factor(100, 100) == pytest.approx(0.05)
    assert schedule.factor(150, 100) == pytest.approx(0.05)


def test_warmup_cosine_is_the_recipe_of_shiftvit():
    # keras.io/examples/vision/shiftvit: batches of 256, 40 000 images, 100 epochs, lr_start 1e-5, lr_max 1e-3, 15 %.
    lr_start, lr_max, steps = 1e-5, 1e-3, 100 * (40_000 // 256)
    warmup_steps = int(0.15 * steps)
    schedule = WarmupCosine(warmup=0.15, start=lr_start / lr_max, end=0.0)
    for step in range(0, steps + 1, 7):
        slope = (lr_max - lr_start) / warmup_steps
        cosine = math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps))
        expected = lr_start + slope * step if step < warmup_steps else 0.5 * lr_max * (1 + cosine)
        assert lr_max * schedule.factor(step, steps) == pytest.approx(expected, abs=1e-12), step


@pytest.mark.parametrize(
    "schedule", [Constant(0.25, 0.2), Steps([0.5], warmup=0.25, start=0.2), Polynomial(1, 0, 0.25, 0.2)]
)
def test_every_schedule_warms_up_in_a_straight_line(schedule):
    assert [schedule.factor(step, 40) for step in range(11)] == pytest.approx([0.2 + 0.08 * step for step in range(11)])
    assert schedule.factor(11, 40) == pytest.approx(1, abs=0.04)


def test_constant_stays():
    assert {Constant().factor(step, 10) for step in range(12)} == {1.0}


@pytest.mark.parametrize("schedule", [Steps([30, 60], epochs=90), Steps([30 / 90, 60 / 90])])
def test_steps_are_those_of_torch(schedule):
    expected = rates(lambda optimizer: MultiStepLR(optimizer, [210, 420], 0.1), 630)  # 7 batches an epoch
    assert ours(schedule, 630) == pytest.approx(expected, rel=1e-9)


def test_steps_keep_their_course_in_a_shorter_run():
    long, short = (ours(Steps([30, 60, 80], 0.5, epochs=90), steps) for steps in (900, 90))
    assert long[::10] == short
    assert short.index(BASE / 8) == 80


@pytest.mark.parametrize("power", [0.9, 1.0, 2.0])
def test_polynomial_is_that_of_torch(power):
    expected = rates(lambda optimizer: PolynomialLR(optimizer, total_iters=123, power=power), 123)
    assert ours(Polynomial(power), 123) == pytest.approx(expected, rel=1e-9)


def test_polynomial_falls_to_its_end_over_the_steps_after_the_warmup():
    schedule = Polynomial(power=0.9, end=0.1, warmup=0.2)
    assert schedule.factor(20, 100) == 1.0
    assert schedule.factor(60, 100) == pytest.approx(0.1 + 0.9 * 0.5**0.9)
    assert schedule.factor(100, 100) == schedule.factor(120, 100) == pytest.approx(0.1)


@pytest.mark.parametrize("steps", [7, 100, 333])
@pytest.mark.parametrize(("anneal", "three_phase"), [("cosine", False), ("linear", False), ("linear", True)])
@pytest.mark.parametrize(("warmup", "start", "end"), [(0.3, 1 / 25, 1 / 25e4), (0.45, 0.1, 1e-3)])
def test_one_cycle_is_that_of_torch(steps, anneal, three_phase, warmup, start, end):
    def cycle(optimizer):
        torchs = {"cosine": "cos", "linear": "linear"}[anneal]
        return OneCycleLR(
            optimizer, BASE, steps, pct_start=warmup, anneal_strategy=torchs, cycle_momentum=False,
            div_factor=1 / start, final_div_factor=start / end, three_phase=three_phase,
        )  # fmt: skip

    expected = rates(cycle, steps)
    assert ours(OneCycle(warmup, start, end, anneal, three_phase), steps) == pytest.approx(expected, abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("warmup", [0.0, 0.3])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_one_cycle_of_a_few_steps_stays_between_its_ends(total, warmup, three_phase):
    found = [OneCycle(warmup, three_phase=three_phase).factor(step, total) for step in range(total + 2)]
    assert all(0 < factor <= 1 for factor in found)
    assert found[0] > 0.01


EVERY = [Constant, WarmupCosine, Polynomial, OneCycle, lambda **given: Steps([0.5], **given)]


@pytest.mark.parametrize("schedule", EVERY)
@pytest.mark.parametrize("warmup", [1.0, 1.5, -0.1, math.nan])
def test_a_warmup_out_of_range_is_refused(schedule, warmup):
    with pytest.raises(ConfigError, match=r"warmup is the fraction of all steps spent warming up, in \[0, 1\), got"):
        schedule(warmup=warmup)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WarmupCosine(start=1.5), r"start is a factor of the learning rate, in \[0, 1\], got 1\.5"),
        (lambda: WarmupCosine(end=-0.1), "end is a factor"),
        (lambda: Polynomial(end=2), "end is a factor"),
        (lambda: Polynomial(power=0), "power is positive, got 0"),
        (lambda: OneCycle(end=2), "end is a factor"),
        (lambda: OneCycle(anneal="cos"), "anneal is cosine or linear, got cos"),
        (lambda: OneCycle(0.5, three_phase=True), "below 0.5, got 0.5"),
        (lambda: Steps([]), "milestones are fractions of the run that rise"),
        (lambda: Steps([0.5, 0.5]), r"that rise, got \[0\.5, 0\.5\]"),
        (lambda: Steps([60, 30], epochs=90), "epochs of 90 that rise"),
        (lambda: Steps([0.5, 1.0]), r"in \(0, 1\), got \[0\.5, 1\.0\]"),
        (lambda: Steps([30, 60]), "give `epochs`"),
        (lambda: Steps([30, 90], epochs=90), r"epochs of 90, in \(0, 90\)"),
        (lambda: Steps([0.5], epochs=0), "epochs is how many"),
        (lambda: Steps([0.5], gamma=1.0), r"gamma shrinks .* in \(0, 1\), got 1\.0"),
        (lambda: Steps([0.1, 0.5], warmup=0.2), "the first milestone, 0.1, lies in the warmup"),
    ],
)
def test_arguments_out_of_range_are_refused_with_the_remedy(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
