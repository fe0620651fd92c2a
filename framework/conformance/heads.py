"""The rules of the contracts of heads, dense ones and classification heads, one check each."""

import inspect
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from math import lcm
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.backbone import Features, Level
from framework.conformance.check import Check, Maker, demand, demand_independent_copies, difference, weigh
from framework.errors import ConfigError
from framework.heads.dense import DenseHead

# What a check needs.


class Source(NamedTuple):
    """What some backbone returns."""

    name: str
    levels: tuple[Level, ...]
    prefix_tokens: int


def _pyramid(*strides: int) -> tuple[Level, ...]:
    return tuple(Level(8 + 4 * index, stride) for index, stride in enumerate(strides))


CNN = Source("a CNN of strides 4 to 32", _pyramid(4, 8, 16, 32), 0)
VIT = Source("a ViT of patch 14 with 5 prefix tokens", (Level(24, 14),) * 4, 5)
SOURCES = (
    CNN,
    Source("a CNN of strides 2 to 32", _pyramid(2, 4, 8, 16, 32), 0),
    VIT,
    Source("one level of stride 16", (Level(20, 16),), 0),
)


def _build(make: Maker, source: Source, outputs: int = 3) -> Any:
    """Build a head; layers that start at 0, as last ones may, are given values, so that what they read is seen."""
    head = make.anew(source.levels, source.prefix_tokens, outputs)
    with torch.no_grad():
        for parameter in head.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    return head


def _is_dense(head: Any) -> bool:
    """Tell a head that is told the size of the image from one that gives values per image."""
    return "size" in inspect.signature(head.forward).parameters


def image_size(head: Any, source: Source) -> tuple[int, int]:
    """Return a height and width, not equal, that the head and every level divide."""
    unit = lcm(getattr(head, "multiple", 1), *(level.stride for level in source.levels))
    side = unit * -(-64 // unit)
    return side, side + unit


def make_features(source: Source, size: tuple[int, int], batch: int = 2) -> Features:
    """Make up features of an image of `size`."""
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(batch, level.channels, size[0] // level.stride, size[1] // level.stride, generator=generator)
        for level in source.levels
    ]
    tokens = source.prefix_tokens
    prefix = [torch.randn(batch, tokens, level.channels, generator=generator) for level in source.levels if tokens]
    return Features(maps, prefix)


def _run(head: Any, features: Features, size: tuple[int, int]) -> Tensor:
    out: Tensor = head(features, size) if _is_dense(head) else head(features)
    return out


def _outputs(features: Features, size: tuple[int, int], head: Any) -> list[Tensor]:
    return [_run(head, features, size)]


def _is_choosy(make: Maker) -> bool:
    """Tell a head that says that it is for some backbones only: those it is not for, it refuses with a ConfigError."""
    for source in SOURCES:
        with suppress(Exception):  # this one it may not be for
            return not getattr(make.anew(source.levels, source.prefix_tokens, 3), "any_levels", True)
    return False


def _taken(make: Maker, *sources: Source) -> Iterator[tuple[Source, Any]]:
    """Yield every source that the head is for, with a head."""
    for source in sources:
        try:
            head = _build(make, source)
        except ConfigError:
            if _is_choosy(make):
                continue
            raise
        yield source, head


def _each(make: Maker, *sources: Source) -> Iterator[tuple[Source, Any, Features, tuple[int, int]]]:
    """Yield a head in eval mode for every source, with features and the size of their image."""
    for source, head in _taken(make, *sources):
        size = image_size(head, source)
        yield source, head.eval(), make_features(source, size), size


# The rules.


def it_builds_on_any_levels(make: Maker) -> None:
    """A head is built from (levels, prefix_tokens, outputs) of any backbone, and says what it reads and needs.

    One whose `any_levels` is False may refuse some with a ConfigError.
    """
    for source in SOURCES:
        remedy = "take the levels as they come: channels and strides from `levels`, their number from len(levels)"
        try:
            head = make.anew(source.levels, source.prefix_tokens, 3)
        except Exception as error:
            if isinstance(error, ConfigError) and _is_choosy(make):
                continue
            demand(False, f"a head for {source.name}", f"{type(error).__name__}: {str(error).strip()[:400]}", remedy)
        used = getattr(head, "used", None)
        demand(
            isinstance(head, nn.Module)
            and isinstance(used, tuple)
            and 0 < len(used) == len(set(used))
            and set(used) <= set(range(len(source.levels))),
            f"an nn.Module whose `used` names indices of the {len(source.levels)} levels",
            f"{type(head).__name__} with used={used!r}",
            "set `self.used` in __init__ to a tuple of the indices of the levels that are read",
        )
        multiple = getattr(head, "multiple", None)
        demand(
            not _is_dense(head) or (isinstance(multiple, int) and multiple >= 1),
            "`multiple`, what height and width must be divisible by",
            f"{multiple!r}",
            "set `self.multiple` in __init__, 1 if any size will do",
        )


def the_output_has_the_right_shape(make: Maker) -> None:
    """The result is (B, outputs, height, width) of a dense head, (B, outputs) of a classification head."""
    for source, _ in _taken(make, *SOURCES):
        for outputs in (1, 7):
            head = _build(make, source, outputs).eval()
            for size in (image_size(head, source), image_size(head, source)[::-1]):
                want = (2, outputs, *size) if _is_dense(head) else (2, outputs)
                got = _run(head, make_features(source, size), size)
                demand(
                    isinstance(got, Tensor) and tuple(got.shape) == want,
                    f"{want} for {source.name} and an image of {size[0]}x{size[1]}",
                    tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__,
                    "end with a layer of `outputs` channels; a dense head resizes to `size`, height first",
                )


def coarse_resized_is_forward(make: Maker) -> None:
    """What a dense head computes at its own resolution is, resized to the image, its result."""
    for source, head, features, size in _each(make, CNN, VIT):
        if not isinstance(head, DenseHead):
            continue
        result, coarse = _run(head, features, size), head.coarse(features, size)
        resized = F.interpolate(coarse.float(), size, mode="bilinear", align_corners=False)
        gap = difference([result], [resized]) if resized.shape == result.shape else float("inf")
        demand(
            gap <= 1e-5,  # not smaller if it is NaN
            f"`coarse`, resized bilinearly to {size[0]}x{size[1]}, to equal `forward`, for {source.name}",
            f"{tuple(coarse.shape)}, a relative difference of {gap:.2g}",
            "write one of the two alone: `forward`, or, in a subclass of CoarseHead, `coarse`",
        )


def it_reads_what_it_says(make: Maker) -> None:
    """The levels in `used` have an effect on the result, and no others."""
    for source, head, features, size in _each(make, *SOURCES):
        tensors = [*features.maps, *features.prefix]
        for x in tensors:
            x.requires_grad_()
        torch.autograd.backward(weigh([_run(head, features, size)]))
        seen = [index for index, x in enumerate(tensors) if x.grad is not None and bool(x.grad.any())]
        read = tuple(sorted({index % len(source.levels) for index in seen}))
        demand(
            read == tuple(sorted(head.used)),
            f"used={head.used} to be the levels that are read, of {source.name}",
            f"{read} have an effect",
            "set `used` to the indices that forward reads; what the backbone computes for others is never trained",
        )


def every_parameter_gets_a_gradient(make: Maker) -> None:
    """Every parameter has a part in the result."""
    for source, head, features, size in _each(make, *SOURCES):
        torch.autograd.backward(weigh([_run(head.train(), features, size)]))
        dead = [name for name, parameter in head.named_parameters() if parameter.grad is None]
        demand(
            not dead,
            f"a gradient for every parameter, for {source.name}",
            f"none for {', '.join(dead[:5])}",
            "build no layer that forward does not use: several processes stop on it",
        )


def eval_is_deterministic(make: Maker) -> None:
    """In eval mode the same features give the same result."""
    for _, head, features, size in _each(make, CNN, VIT):
        gap = difference([_run(head, features, size)], [_run(head, features, size)])
        demand(
            gap <= 1e-6,
            "two equal results in eval mode",
            f"a relative difference of {gap:.2g}",
            "dropout that ignores `self.training`, random numbers in forward, or state kept between calls?",
        )


def images_do_not_mix(make: Maker) -> None:
    """In eval mode an image's result does not depend on the other images of the batch."""
    for _, head, features, size in _each(make, CNN, VIT):
        together = _run(head, features, size)
        for row in range(2):
            one = Features([x[row : row + 1] for x in features.maps], [x[row : row + 1] for x in features.prefix])
            gap = difference([together[row : row + 1]], [_run(head, one, size)])
            demand(
                gap <= 1e-3,
                f"image {row} alone gives what it gives in a batch",
                f"a relative difference of {gap:.2g}",
                "statistics over the batch dimension in eval mode, or a reshape that mixes batch and channels?",
            )


def the_input_is_not_written_to(make: Maker) -> None:
    """Forward leaves the features, and the lists they come in, as they are."""
    for _, head, features, size in _each(make, CNN, VIT):
        own = Features([x.clone() for x in features.maps], [x.clone() for x in features.prefix])
        lists = [*own.maps], [*own.prefix]
        _run(head, own, size)
        demand(
            all(a is b for kept, now in zip(lists, own, strict=True) for a, b in zip(kept, now, strict=True)),
            "the lists `maps` and `prefix` unchanged after forward",
            "tensors were replaced in them",
            "begin with `maps = list(features.maps)`",
        )
        pairs = zip([*features.maps, *features.prefix], [*own.maps, *own.prefix], strict=True)
        changed = [index for index, (a, b) in enumerate(pairs) if not torch.equal(a, b)]
        demand(
            not changed,
            "features unchanged after forward",
            f"tensors {changed} of them are not",
            "replace in-place operations on the features (`add_`, nn.ReLU(inplace=True) as first layer)",
        )


def the_state_dict_holds_everything(make: Maker) -> None:
    """A second head that loads the first one's state dict gives the same result, after training too."""
    for source, first, features, size in _each(make, CNN, VIT):
        _run(first.train(), features, size)  # batch-norm statistics move
        torch.manual_seed(7)
        second = _build(make, source)
        second.load_state_dict(first.state_dict())
        gap = difference([_run(first.eval(), features, size)], [_run(second.eval(), features, size)])
        demand(
            gap <= 1e-5,
            "equal results from a head that was built again and loaded the state dict",
            f"a relative difference of {gap:.2g}",
            "register every tensor that matters: nn.Parameter, or `register_buffer` without persistent=False",
        )


def copies_are_independent(make: Maker) -> None:
    """Copies and pickles give the same result, and share nothing with the original."""
    for _, head, features, size in _each(make, CNN, VIT):
        demand_independent_copies(head, partial(_outputs, features, size))


def autocast_works(make: Maker) -> None:
    """Under autocast to bfloat16 the result is finite and near that of float32."""
    for _, head, features, size in _each(make, CNN, VIT):
        with torch.no_grad():
            exact = _run(head, features, size)
            with torch.autocast("cpu", torch.bfloat16):
                rounded = _run(head, features, size)
        error = float((exact - rounded.float()).norm() / exact.norm().clamp_min(1e-12))
        demand(
            error < 0.2,  # not smaller if it is NaN
            "a result within a fifth of that of float32",
            f"a relative error of {error:.2g}",
            "do not fix dtypes by hand (`.float()`, `.half()`, constants of another dtype)",
        )


BUILT = (it_builds_on_any_levels,)
SHAPED = (*BUILT, the_output_has_the_right_shape)
STEADY = (*SHAPED, the_input_is_not_written_to, eval_is_deterministic)

CHECKS = (
    Check(it_builds_on_any_levels),
    Check(the_output_has_the_right_shape, BUILT),
    Check(the_input_is_not_written_to, SHAPED),
    Check(eval_is_deterministic, STEADY[:3]),
    Check(images_do_not_mix, STEADY),
    Check(coarse_resized_is_forward, STEADY),
    Check(it_reads_what_it_says, SHAPED),
    Check(every_parameter_gets_a_gradient, SHAPED),
    Check(the_state_dict_holds_everything, STEADY),
    Check(copies_are_independent, (*STEADY, the_state_dict_holds_everything)),
    Check(autocast_works, STEADY),
)
