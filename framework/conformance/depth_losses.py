"""The rules of the contract of depth losses, one check each."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from framework.conformance.check import Check, Maker, demand, demand_independent_copies

READ = 8  # columns with readings; those behind have none
STEPS = (None, 0, 1000)

# What a check needs.


def _cases(nothing: float = 0.0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield predictions and targets (2, 12, 10) from 1 to 8 m, `nothing` where there is no reading."""
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        prediction, target = 1 + 7 * torch.rand(2, 2, 12, 10, generator=generator)
        target[..., READ:] = nothing
        yield prediction, target


def _gradient(loss: Any, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return a loss and its gradient by the prediction."""
    prediction = prediction.detach().clone().requires_grad_()
    value = loss(prediction, target)
    (gradient,) = torch.autograd.grad(value, prediction)
    return value.detach(), gradient


def _answer(target: Tensor) -> Tensor:
    """Return the right prediction, 1 m where there is no reading."""
    return target.where(target > 0, 1.0)


def _demand_finite(loss: Any, prediction: Tensor, target: Tensor, what: str, remedy: str) -> None:
    """Raise a `NonconformityError` unless value and gradient are finite."""
    value, gradient = _gradient(loss, prediction, target)
    broken = int((~gradient.isfinite()).sum())
    demand(
        bool(value.isfinite()) and not broken,
        f"a finite value and finite gradients for {what}",
        f"{float(value)}, {broken} of {gradient.numel()} gradients are not finite",
        remedy,
    )


# The rules.


def it_is_a_finite_scalar(make: Maker) -> None:
    """Forward of (prediction, target, step) returns one finite number, with a gradient by the prediction."""
    loss = make()
    for prediction, target in _cases():
        for step in STEPS:
            value = loss(prediction.requires_grad_(), target, step)
            described = f"{type(value).__name__} {value}"
            demand(
                isinstance(value, Tensor) and value.shape == () and bool(value.isfinite()) and value.requires_grad,
                f"a finite scalar that depends on the prediction, for step {step}",
                described[:200],
                "return a tensor of shape (), averaged over the readings, computed by torch from the prediction; "
                "`step` is None in evaluation",
            )


def right_is_better_than_wrong(make: Maker) -> None:
    """A right answer has a lower loss than one at random, and than a wrong one."""
    loss = make()
    for prediction, target in _cases():
        right, wrong, chance = (float(loss(x, target)) for x in (_answer(target), _answer(target.flip(1)), prediction))
        demand(
            right < chance and right < wrong,
            "the lowest loss where every depth is right",
            f"right {right:.4g}, at random {chance:.4g}, upside down {wrong:.4g}",
            "is a sign turned round? A loss falls as the answer gets better",
        )


def relative_is_as_declared(make: Maker) -> None:
    """Unless `relative` is True, depths of twice or half the size have a higher loss than right ones."""
    loss = make()
    for prediction, target in _cases():
        right, twice, half = (float(loss(factor * _answer(target), target)) for factor in (1, 2, 0.5))
        least = right + 1e-3 * (float(loss(prediction, target)) - right)  # what is more than rounding
        demand(
            loss.relative is True or (loss.relative is False and min(twice, half) > least),
            "`relative = True`, or a loss that tells right depths from those of another scale",
            f"relative = {loss.relative!r}; right {right:.4g}, times 2 {twice:.4g}, times 0.5 {half:.4g}",
            "write `relative = True` in the class where the scale is left free: such depths are evaluated after an "
            "alignment only",
        )


def pixels_without_a_reading_do_not_count(make: Maker) -> None:
    """Pixels whose target is 0, negative, NaN or infinite change neither value nor gradient."""
    loss = make()
    expected = [float(loss(x[..., :READ], y[..., :READ])) for x, y in _cases()]
    for nothing in (0.0, -1.0, torch.nan, torch.inf):
        for (prediction, target), without in zip(_cases(nothing), expected, strict=True):
            for there in (None, 1e6, torch.inf, torch.nan):
                changed = prediction.clone()
                if there is not None:
                    changed[..., READ:] = there
                value, gradient = _gradient(loss, changed, target)
                demand(
                    abs(float(value) - without) <= 1e-5 * max(1.0, abs(without)),
                    f"one value, whatever is predicted where the target is {nothing}",
                    f"{without:.6g} with these pixels cut off, and {float(value):.6g} with "
                    f"{'any prediction' if there is None else f'a prediction of {there}'} there",
                    "replace both by 1 with torch.where first (NaN * 0 is NaN), and divide by the number of readings",
                )
                demand(
                    bool((gradient[..., READ:] == 0).all()) and bool(gradient.isfinite().all()),
                    f"a gradient of 0 where the target is {nothing}",
                    f"up to {float(gradient[..., READ:].abs().max()):.2g}",
                    "replace the prediction by torch.where before anything is computed from it",
                )


def none_valid_is_zero(make: Maker) -> None:
    """Without any reading, value and gradient are 0."""
    loss = make()
    for prediction, target in _cases():
        value, gradient = _gradient(loss, prediction, torch.zeros_like(target))
        demand(
            float(value) == 0 and bool((gradient == 0).all()),
            "0 with a gradient of 0 for a batch without any reading",
            f"{float(value)}, gradients from {float(gradient.min())} to {float(gradient.max())}",
            "divide by `count.clamp_min(1)`: one such batch must not make every weight NaN",
        )


def one_reading_is_enough(make: Maker) -> None:
    """A single reading in the batch gives a finite value and finite gradients."""
    loss = make()
    for prediction, target in _cases():
        single = torch.zeros_like(target)
        single[0, 4, 4] = target[0, 4, 4]
        _demand_finite(
            loss, prediction, single, "a single reading", "an unbiased variance divides by N - 1: use `clamp_min(1)`"
        )


def gradients_are_finite_at_extremes(make: Maker) -> None:
    """Predictions of 0.1 mm and of 10 km, and one depth everywhere, give finite values and gradients."""
    loss = make()
    for prediction, target in _cases():
        far_and_near = torch.where(prediction > 4, 1e4, 1e-4)
        _demand_finite(
            loss, far_and_near, target, "depths of 0.1 mm and 10 km", "use logarithms in place of powers and ratios"
        )
        _demand_finite(
            loss, torch.full_like(target, 3.0), target, "3 m everywhere", "keep deviations that are divided by above 0"
        )


def a_right_answer_has_a_finite_gradient(make: Maker) -> None:
    """Where every depth is right, gradients are finite."""
    loss = make()
    for _, target in _cases():
        _demand_finite(
            loss,
            _answer(target),
            target,
            "right depths",
            "the slope of a root is infinite at 0: keep it away from there",
        )


def half_precision_works(make: Maker) -> None:
    """Predictions in bfloat16 give what the same predictions give in float32."""
    loss = make()
    for _, target in _cases():
        rounded = _answer(target).bfloat16()  # near the truth, where 16 bits differ most
        exact, _ = _gradient(loss, rounded.float(), target)
        value, gradient = _gradient(loss, rounded, target)
        gap = abs(float(value) - float(exact))
        demand(
            gap <= 0.02 * max(abs(float(exact)), 1e-6) and bool(gradient.isfinite().all()),
            f"{float(exact):.4g} within 2%, as in float32, and finite gradients",
            f"{float(value):.4g} from a prediction in bfloat16",
            "begin with `prediction = prediction.float()`",
        )


def the_input_is_not_written_to(make: Maker) -> None:
    """Prediction and target stay as they are."""
    loss = make()
    for prediction, target in _cases():
        before = prediction.clone(), target.clone()
        loss(prediction, target)
        pairs = zip(("prediction", "target"), (prediction, target), before, strict=True)
        changed = [name for name, x, y in pairs if not torch.equal(x, y)]
        demand(
            not changed,
            "prediction and target unchanged",
            f"{' and '.join(changed)} changed",
            "replace in-place operations (`target[target == 0] = 1`) by ones that return a new tensor",
        )


def it_is_deterministic(make: Maker) -> None:
    """The same prediction and target give the same loss."""
    loss = make()
    for prediction, target in _cases():
        values = [float(loss(prediction, target)) for _ in range(3)]
        demand(
            len(set(values)) == 1,
            "equal values for equal input",
            values,
            "random numbers, or state kept between calls? A run could not be repeated: `step` says how far it is",
        )


def copies_are_independent(make: Maker) -> None:
    """Copies and pickles give the same loss, and share nothing with the original."""
    loss = make.anew()
    demand_independent_copies(loss, lambda other: [other(prediction, target) for prediction, target in _cases()])


SCALAR = (it_is_a_finite_scalar,)
STEADY = (*SCALAR, the_input_is_not_written_to, it_is_deterministic)

CHECKS = (
    Check(it_is_a_finite_scalar),
    Check(the_input_is_not_written_to, SCALAR),
    Check(it_is_deterministic, STEADY[:2]),
    Check(right_is_better_than_wrong, STEADY),
    Check(relative_is_as_declared, (*STEADY, right_is_better_than_wrong)),
    Check(pixels_without_a_reading_do_not_count, STEADY),
    Check(one_reading_is_enough, STEADY),
    Check(a_right_answer_has_a_finite_gradient, STEADY),
    Check(
        none_valid_is_zero,
        (*STEADY, pixels_without_a_reading_do_not_count, a_right_answer_has_a_finite_gradient),
    ),
    Check(gradients_are_finite_at_extremes, STEADY),
    Check(half_precision_works, STEADY),
    Check(copies_are_independent, STEADY),
)
