"""The rules of the contract of segmentation losses, one check each."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from framework.conformance.check import Check, Maker, demand, demand_independent_copies
from framework.errors import ConfigError

IGNORED = 255

# What a check needs.


def _fits(loss: Any, classes: int) -> bool:
    """Tell whether a loss takes a number of classes, which class weights fix."""
    try:
        loss.check(classes)
    except ConfigError:
        return False
    return True


def _counts(loss: Any) -> list[int]:
    """Return two numbers of classes, or the one that the loss was built for."""
    fitting = [classes for classes in range(2, 256) if _fits(loss, classes)]
    return [classes for classes in (2, 5) if classes in fitting] or fitting[:1]


def _cases(loss: Any, ignored: int = IGNORED) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits (2, C, 12, 10) and masks (2, 12, 10) that hold every class, the last two columns ignored."""
    for classes in _counts(loss):
        generator = torch.Generator().manual_seed(classes)
        logits = torch.randn(2, classes, 12, 10, generator=generator)
        mask = torch.arange(2 * 12 * 10).remainder(classes)[torch.randperm(240, generator=generator)].view(2, 12, 10)
        mask[..., 8:] = ignored
        yield logits, mask


def _gradient(loss: Any, logits: Tensor, mask: Tensor, ignored: int = IGNORED) -> tuple[Tensor, Tensor]:
    """Return a loss and its gradient by the logits."""
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, mask, ignored)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


def _answer(mask: Tensor, classes: int, off: int = 0) -> Tensor:
    """Return sure logits for the class of every pixel, or for the one `off` further."""
    right = (mask.clamp_max(classes - 1) + off) % classes
    return 8.0 * nn.functional.one_hot(right, classes).permute(0, 3, 1, 2)


# The rules.


def it_is_a_finite_scalar(make: Maker) -> None:
    """Forward of (logits, mask, ignore_index) returns one finite number, with a gradient by the logits."""
    loss = make()
    for logits, mask in _cases(loss):
        value = loss(logits.requires_grad_(), mask, IGNORED)
        described = f"{type(value).__name__} {value}"
        demand(
            isinstance(value, Tensor) and value.shape == () and bool(value.isfinite()) and value.requires_grad,
            f"a finite scalar that depends on the logits, for {logits.shape[1]} classes",
            described[:200],
            "return a tensor of shape (), averaged over the pixels that count, computed by torch from the logits",
        )


def right_is_better_than_wrong(make: Maker) -> None:
    """A right answer has a lower loss than one at random, and than a wrong one."""
    loss = make()
    for logits, mask in _cases(loss):
        classes = logits.shape[1]
        right, wrong = (float(loss(_answer(mask, classes, off), mask, IGNORED)) for off in (0, 1))
        chance = float(loss(logits, mask, IGNORED))
        demand(
            right < chance and right < wrong,
            f"the lowest loss where every pixel of {classes} classes is right",
            f"right {right:.4g}, at random {chance:.4g}, wrong {wrong:.4g}",
            "is a sign turned round, or are logits taken for probabilities? A loss falls as the answer gets better",
        )


def ignored_pixels_do_not_count(make: Maker) -> None:
    """Pixels of `ignore_index`, whichever number it is, change neither value nor gradient."""
    loss = make()
    for ignored in (IGNORED, 200):
        for logits, mask in _cases(loss, ignored):
            value, gradient = _gradient(loss, logits, mask, ignored)
            changed = logits.clone()
            changed[..., 8:] = 20 * changed[..., 8:].flip(1)
            other, without = (
                float(loss(x, y, ignored)) for x, y in ((changed, mask), (logits[..., :8], mask[..., :8]))
            )
            demand(
                max(abs(other - float(value)), abs(without - float(value))) <= 1e-5 * max(1.0, abs(float(value))),
                f"one value, whatever the logits are where the mask is ignore_index={ignored}",
                f"{float(value):.6g}, with other logits there {other:.6g}, with these pixels cut off {without:.6g}",
                "leave out pixels of `ignore_index`, and divide by the number of the others",
            )
            demand(
                not gradient[..., 8:].any(),
                f"no gradient where the mask is ignore_index={ignored}",
                f"up to {float(gradient[..., 8:].abs().max()):.2g}",
                "multiply by `mask != ignore_index` before anything is summed",
            )


def all_ignored_is_zero(make: Maker) -> None:
    """Without any pixel that counts, value and gradient are 0."""
    loss = make()
    for logits, mask in _cases(loss):
        value, gradient = _gradient(loss, logits, torch.full_like(mask, IGNORED))
        demand(
            float(value) == 0 and not gradient.any(),
            "0 with a gradient of 0 for a mask that is ignored everywhere",
            f"{float(value)}, gradients from {float(gradient.min())} to {float(gradient.max())}",
            "divide by `count.clamp_min(1)`: one such batch must not make every weight NaN",
        )


def gradients_are_finite_at_extremes(make: Maker) -> None:
    """Logits of 10 000 and -10 000 give a finite value and finite gradients."""
    loss = make()
    for logits, mask in _cases(loss):
        value, gradient = _gradient(loss, 1e4 * logits.sign(), mask)
        broken = int((~gradient.isfinite()).sum())
        demand(
            bool(value.isfinite()) and not broken,
            "finite value and gradients for logits of 10 000 and -10 000",
            f"{float(value)}, {broken} of {gradient.numel()} gradients are not finite",
            "use log_softmax and logsumexp in place of log(softmax) and exp, and keep roots and powers away from 0",
        )


def half_precision_works(make: Maker) -> None:
    """Logits in bfloat16 give what the same logits give in float32."""
    loss = make()
    for logits, mask in _cases(loss):
        rounded = logits.bfloat16()
        exact, _ = _gradient(loss, rounded.float(), mask)
        value, gradient = _gradient(loss, rounded, mask)
        gap = abs(float(value) - float(exact))
        demand(
            gap <= 0.02 * max(abs(float(exact)), 1e-3) and bool(gradient.isfinite().all()),
            f"{float(exact):.4g} within 2%, as in float32, and finite gradients",
            f"{float(value):.4g} from logits in bfloat16",
            "begin with `logits = logits.float()`: sums over many pixels need 32 bits",
        )


def the_input_is_not_written_to(make: Maker) -> None:
    """Logits and mask stay as they are."""
    loss = make()
    for logits, mask in _cases(loss):
        before = logits.clone(), mask.clone()
        loss(logits, mask, IGNORED)
        changed = [
            name for name, x, y in zip(("logits", "mask"), (logits, mask), before, strict=True) if not torch.equal(x, y)
        ]
        demand(
            not changed,
            "logits and mask unchanged",
            f"{' and '.join(changed)} changed",
            "replace in-place operations (`mask[mask == ignore_index] = 0`) by ones that return a new tensor",
        )


def it_is_deterministic(make: Maker) -> None:
    """The same logits and mask give the same loss."""
    loss = make()
    for logits, mask in _cases(loss):
        values = [float(loss(logits, mask, IGNORED)) for _ in range(3)]
        demand(
            len(set(values)) == 1,
            "equal values for equal input",
            values,
            "random numbers, or state kept between calls? A run could not be repeated",
        )


def copies_are_independent(make: Maker) -> None:
    """Copies and pickles give the same loss, and share nothing with the original."""
    loss = make.anew()
    cases = list(_cases(loss))
    demand_independent_copies(loss, lambda other: [other(logits, mask, IGNORED) for logits, mask in cases])


SCALAR = (it_is_a_finite_scalar,)
STEADY = (*SCALAR, the_input_is_not_written_to, it_is_deterministic)

CHECKS = (
    Check(it_is_a_finite_scalar),
    Check(the_input_is_not_written_to, SCALAR),
    Check(it_is_deterministic, STEADY[:2]),
    Check(right_is_better_than_wrong, STEADY),
    Check(ignored_pixels_do_not_count, STEADY),
    Check(all_ignored_is_zero, (*STEADY, ignored_pixels_do_not_count)),
    Check(gradients_are_finite_at_extremes, STEADY),
    Check(half_precision_works, STEADY),
    Check(copies_are_independent, STEADY),
)
