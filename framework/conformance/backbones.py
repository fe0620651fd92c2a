"""The rules of the backbone contract, one check each."""

import copy
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import pairwise
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves  # private, but what torch.export hands out trees with

from framework.backbone import Backbone, Features, Level
from framework.conformance.check import Check, Maker, demand, demand_independent_copies, difference, weigh
from framework.conformance.training import build_task, heads_by_task, predict_once, train_once

# What a check needs.


def _unit(backbone: Backbone) -> int:
    """Return the pixels that every stride and the multiple divide."""
    return lcm(backbone.multiple, *(level.stride for level in backbone.levels))


def _images(backbone: Backbone, batch: int = 2, height: int | None = None, width: int | None = None) -> Tensor:
    """Return images (batch, C, H, W) in [0, 1], not square, of at least 64 pixels a side."""
    unit = _unit(backbone)
    side = unit * -(-64 // unit)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, backbone.in_channels, height or side, width or side + unit, generator=generator)


def _shapes(tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]


def _declared(levels: Sequence[Level], images: Tensor) -> list[tuple[int, ...]]:
    batch, _, height, width = images.shape
    return [(batch, x.channels, -(-height // x.stride), -(-width // x.stride)) for x in levels]


def _tensors(features: Features) -> list[Tensor]:
    return [*features.maps, *features.prefix]


def _loss(features: Features) -> Tensor:
    return weigh(_tensors(features))


def _difference(one: Features, other: Features) -> float:
    """Return the largest difference between two features, relative to the largest value."""
    return difference(_tensors(one), _tensors(other))


def _names(backbone: Backbone, parameters: Sequence[nn.Parameter]) -> list[str]:
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    return [names.get(id(parameter), "a parameter of no module") for parameter in parameters]


def _step(backbone: Backbone, optimizer: torch.optim.Optimizer) -> None:
    loss = _loss(backbone(_images(backbone)))
    optimizer.zero_grad()
    if loss.requires_grad:
        torch.autograd.backward(loss)
    optimizer.step()


# Construction and shapes.


def it_builds(make: Maker) -> None:
    """A backbone is built from its arguments and has what the contract names."""
    backbone = make()
    demand(
        isinstance(backbone, Backbone),
        "a subclass of framework.backbone.Backbone",
        type(backbone).__name__,
        "write `class MyNet(Backbone)` and call `super().__init__(levels=[Level(channels, stride), ...])`",
    )
    for name in ("levels", "multiple", "prefix_tokens", "in_channels", "mean", "std"):
        demand(
            hasattr(backbone, name),
            f"an attribute {name}",
            f"{type(backbone).__name__} without it",
            "call `super().__init__(levels=..., multiple=..., ...)` in __init__: it sets all of them",
        )


def it_returns_features(make: Maker) -> None:
    """Forward returns Features(maps, prefix), always."""
    backbone = make().eval()
    features = backbone(_images(backbone))
    demand(
        isinstance(features, Features) and all(isinstance(x, Tensor) for x in _tensors(features)),
        "Features(maps=[Tensor, ...], prefix=[Tensor, ...])",
        f"{type(features).__name__} of {', '.join(type(x).__name__ for x in tree_leaves(features)) or 'nothing'}",
        "end `extract` with `return Features(maps=[...], prefix=[])`",
    )


def levels_run_fine_to_coarse(make: Maker) -> None:
    """Levels are ordered by stride, the finest first."""
    strides = [level.stride for level in make().levels]
    demand(
        strides == sorted(strides),
        "strides that never fall",
        strides,
        "turn levels and maps round: the finest map, of the smallest stride, comes first",
    )


def shapes_are_as_declared(make: Maker) -> None:
    """Maps have the channels and strides that `levels` declares: (B, channels, H/stride, W/stride)."""
    backbone = make().eval()
    images = _images(backbone)
    demand(
        (got := _shapes(backbone(images).maps)) == (want := _declared(backbone.levels, images)),
        f"maps of {want} for images of {tuple(images.shape)}",
        got,
        "set `levels` to what `extract` returns: batch, channels, height, width in this order, one Level for each map",
    )


def prefix_is_as_declared(make: Maker) -> None:
    """There are `prefix_tokens` tokens beside every map: (B, prefix_tokens, channels), or none at all."""
    backbone = make().eval()
    images = _images(backbone)
    tokens = backbone.prefix_tokens
    want = [(len(images), tokens, level.channels) for level in backbone.levels] if tokens else []
    demand(
        (got := _shapes(backbone(images).prefix)) == want,
        f"prefix tokens of {want}, as prefix_tokens={tokens} promises",
        got,
        "set `prefix_tokens` to the class and register tokens that `extract` returns for every level, 0 for a CNN",
    )


def any_multiple_is_accepted(make: Maker) -> None:
    """Every image size that `multiple` divides is taken, and gives maps of the size over the stride, rounded up."""
    backbone = make().eval()
    multiple = backbone.multiple
    base = multiple * -(-64 // multiple)
    for height, width in ((base + multiple, base + 2 * multiple), (base + 3 * multiple, base)):
        images = _images(backbone, 1, height, width)
        remedy = f"take any height and width divisible by {multiple}, or declare the multiple that is needed"
        try:
            got = _shapes(backbone(images).maps)
        except Exception as error:
            demand(False, f"{height}x{width} accepted, as multiple={multiple} promises", error, remedy)
        want = _declared(backbone.levels, images)
        demand(got == want, f"maps of {want} for an image of {height}x{width}", got, remedy)


def other_sizes_are_refused(make: Maker) -> None:
    """A size that `multiple` does not divide is refused with a ValueError that names the multiple."""
    backbone = make().eval()
    if backbone.multiple == 1:
        return
    images = _images(backbone)[..., :-1]
    try:
        backbone(images)
        found = "it was accepted"
    except Exception as error:
        if isinstance(error, ValueError) and str(backbone.multiple) in str(error):
            return
        found = f"{type(error).__name__}: {error}"
    demand(
        False,
        f"a ValueError that names {backbone.multiple}, for an image of {tuple(images.shape[-2:])}",
        found,
        "leave `forward` to Backbone, which refuses such sizes, and write `extract` instead",
    )


def other_channels_are_refused(make: Maker) -> None:
    """Images of another channel count than `in_channels` are refused with a ValueError that says so."""
    backbone = make().eval()
    images = _images(backbone)
    images = torch.cat([images, images[:, :1]], dim=1)
    try:
        backbone(images)
        found = "they were accepted"
    except Exception as error:
        if isinstance(error, ValueError) and "channels" in str(error):
            return
        found = f"{type(error).__name__}: {error}"
    demand(
        False,
        f"a ValueError about channels, for images of {images.shape[1]} where in_channels is {backbone.in_channels}",
        found,
        "leave `forward` to Backbone, and hand `in_channels` to `super().__init__`",
    )


def other_channel_counts_can_be_built(make: Maker) -> None:
    """The argument `in_channels` builds the network for any number of channels."""
    for channels in (1, 5):
        remedy = "take `in_channels: int = 3`, give it to the first layer and to `super().__init__`"
        try:
            backbone = make.anew(in_channels=channels).eval()
            images = _images(backbone)
            got = _shapes(backbone(images).maps)
        except Exception as error:
            demand(False, f"a network for in_channels={channels}", f"{type(error).__name__}: {error}", remedy)
        demand(backbone.in_channels == channels, f"in_channels {channels}", backbone.in_channels, remedy)
        want = _declared(backbone.levels, images)
        demand(got == want, f"maps of {want} with in_channels={channels}", got, remedy)


# What comes out depends on the image, all of it, and on nothing else.


def eval_is_deterministic(make: Maker) -> None:
    """In eval mode the same images give the same features."""
    backbone = make().eval()
    images = _images(backbone)
    difference = _difference(backbone(images), backbone(images))
    demand(
        difference <= 1e-6,
        "two equal results in eval mode",
        f"a relative difference of {difference:.2g}",
        "dropout that ignores `self.training`, random numbers in `extract`, or state kept between calls?",
    )


def images_do_not_mix(make: Maker) -> None:
    """In eval mode an image's features do not depend on the other images of the batch."""
    backbone = make().eval()
    images = _images(backbone)
    maps, prefix = backbone(images)
    for row in range(len(images)):
        alone = backbone(images[row : row + 1])
        difference = _difference(Features([x[row : row + 1] for x in maps], [x[row : row + 1] for x in prefix]), alone)
        demand(
            difference <= 1e-3,
            f"image {row} alone gives what it gives in a batch",
            f"a relative difference of {difference:.2g}",
            "statistics over the batch dimension in eval mode, or a reshape that mixes batch and channels?",
        )


def the_input_is_not_written_to(make: Maker) -> None:
    """Forward leaves its images as they are."""
    backbone = make().eval()
    images = _images(backbone)
    before = images.clone()
    backbone(images)
    demand(
        torch.equal(images, before),
        "images unchanged after forward",
        f"{int((images != before).sum())} values changed",
        "replace in-place operations on the input (`sub_`, `mul_`, `x[...] =`) by ones that return a new tensor",
    )


def the_whole_image_counts(make: Maker) -> None:
    """Every part of the image has a say: nothing is cropped away."""
    backbone = make().eval()
    backbone.freeze(0)
    coarsest = max(level.stride for level in backbone.levels)
    multiple = backbone.multiple
    sides = [multiple * -(-(64 + extra) // multiple) for extra in (0, multiple)]
    images = _images(backbone, 1, *sides).requires_grad_()
    torch.autograd.backward(_loss(backbone(images)))
    gradient = torch.zeros_like(images) if images.grad is None else images.grad
    cells = nn.functional.max_pool2d(gradient.abs().amax(1, keepdim=True), coarsest, coarsest, ceil_mode=True)
    dead = (cells[0, 0] == 0).nonzero().tolist()
    demand(
        not dead,
        f"every {coarsest}x{coarsest} cell of a {sides[0]}x{sides[1]} image has an effect on the features",
        f"{len(dead)} cells without any, at (row, column) {dead[:4]}",
        "does `extract` crop, resize with a fixed factor, or floor a size? Use the whole of the image, or refuse it "
        "through `multiple`",
    )


# Parameters and stages.


def stages_are_a_partition(make: Maker) -> None:
    """Every parameter is in exactly one stage."""
    backbone = make()
    flat = [parameter for stage in backbone.stages() for parameter in stage]
    identities = {id(parameter) for parameter in flat}
    missing = [name for name, parameter in backbone.named_parameters() if id(parameter) not in identities]
    demand(
        not missing,
        "every parameter in a stage",
        f"in none: {', '.join(missing[:5])}",
        "add them to the stage that they are used in, or remove them if nothing uses them",
    )
    own = {id(parameter) for parameter in backbone.parameters()}
    twice = _names(backbone, [flat[i] for i in range(len(flat)) if any(flat[i] is x for x in flat[:i])])
    strange = sum(identity not in own for identity in identities)
    demand(
        not twice and not strange,
        "no parameter in two stages, and none from elsewhere",
        f"in two: {', '.join(twice[:5])}" if twice else f"{strange} that are no parameters of the backbone",
        "name each parameter once, and take it from the module itself",
    )


class _LastUse(TorchFunctionMode):
    """Notes when each of some tensors is last an argument of a torch function."""

    def __init__(self, watched: Sequence[Tensor]) -> None:
        super().__init__()
        self.watched = {id(tensor) for tensor in watched}
        self.last: dict[int, int] = {}
        self.calls = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        for leaf in tree_leaves((args, kwargs)):
            if id(leaf) in self.watched:
                self.last[id(leaf)] = self.calls
        return function(*args, **(kwargs or {}))


def stages_run_from_input_to_output(make: Maker) -> None:
    """The first stage is nearest to the image: freezing the first ones must leave what comes after them trainable."""
    backbone = make().eval()
    stages = backbone.stages()
    with _LastUse(list(backbone.parameters())) as use:
        backbone(_images(backbone, 1))
    reached = [max((use.last.get(id(parameter), 0) for parameter in stage), default=0) for stage in stages]
    order = [index for index, last in enumerate(reached) if last]  # a stage that is not seen in use says nothing
    late = next(((a, b) for a, b in pairwise(order) if reached[a] > reached[b]), None)
    demand(
        late is None,
        "stages in the order in which the forward pass is through with them",
        f"stage {late and late[0]} is still used after stage {late and late[1]}",
        "list the stages from the image to the last map; a final norm belongs to the last stage",
    )


def every_parameter_gets_a_gradient(make: Maker) -> None:
    """Every parameter has a part in the features."""
    backbone = make().train()
    backbone.freeze(0)
    torch.autograd.backward(_loss(backbone(_images(backbone))))
    dead = [name for name, parameter in backbone.named_parameters() if parameter.grad is None]
    demand(
        not dead,
        "a gradient for every parameter",
        f"none for {', '.join(dead[:5])}{f' and {len(dead) - 5} more' if len(dead) > 5 else ''}",
        "remove what no map needs (classifiers, poolers, layers after the last map): several processes stop on it",
    )


# Freezing.


def freezing_is_exact(make: Maker) -> None:
    """`freeze(n)` freezes the first n stages and no others, whatever was frozen before."""
    backbone = make()
    count = len(backbone.stages())
    for frozen in (0, min(1, count), count, count // 2, 0):  # up, then down again
        backbone.freeze(frozen)
        wrong = [
            name
            for index, stage in enumerate(backbone.stages())
            for name, parameter in zip(_names(backbone, stage), stage, strict=True)
            if parameter.requires_grad != (index >= frozen)
        ]
        demand(
            not wrong,
            f"freeze({frozen}) of {count} stages trains the last {count - frozen} and no others",
            f"wrong: {', '.join(wrong[:5])}",
            "leave `freeze` to Backbone, and set `requires_grad` nowhere else",
        )


def frozen_layers_rest(make: Maker) -> None:
    """Frozen layers stay in eval mode whatever `train()` is told."""
    backbone = make()
    for frozen in range(1, len(backbone.stages()) + 1):
        backbone.freeze(frozen)
        backbone.train()
        restless = [
            name
            for name, module in backbone.named_modules()
            if name and module.training and (own := list(module.parameters())) and not any(p.requires_grad for p in own)
        ]
        demand(
            not restless,
            f"after freeze({frozen}) and train(), the frozen layers in eval mode",
            f"in training mode: {', '.join(restless[:5])}",
            "leave `train` to Backbone, or call `super().train(mode)` in yours",
        )


def thawing_is_complete(make: Maker) -> None:
    """After `freeze(0)` everything trains as if it had never been frozen."""
    backbone = make().train()
    modes = {name: module.training for name, module in backbone.named_modules()}
    backbone.freeze("all")
    backbone.freeze(0)
    backbone.train()
    stuck = [name or "the backbone" for name, module in backbone.named_modules() if module.training != modes[name]]
    stuck += [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
    demand(
        not stuck,
        "the same modes and trainable parameters as before freezing",
        f"still frozen: {', '.join(stuck[:5])}",
        "leave `freeze` and `train` to Backbone",
    )


def frozen_means_constant(make: Maker) -> None:
    """A frozen backbone gives the same features in training, and neither its parameters nor its buffers change."""
    backbone = make().train()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    _step(backbone, optimizer)  # so that there is momentum that could go on
    backbone.freeze("all")
    backbone.train()
    before = copy.deepcopy(backbone.state_dict())
    images = _images(backbone)
    first = backbone(images)
    _step(backbone, optimizer)
    changed = [name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])]
    demand(
        not changed,
        "parameters and buffers bit-equal after a step with everything frozen",
        f"changed: {', '.join(changed[:5])}",
        "use modules such as nn.BatchNorm2d, which rest with their layer, and not `self.training` of the backbone, "
        "which stays what was asked for",
    )
    difference = _difference(first, backbone(images))
    demand(
        difference <= 1e-6,
        "equal features of equal images from a frozen backbone in training",
        f"a relative difference of {difference:.2g}",
        "use nn.Dropout, which rests with its layer, and not F.dropout with `self.training` of the backbone",
    )


def a_frozen_backbone_builds_no_graph(make: Maker) -> None:
    """A frozen backbone keeps no activations: its features have no gradient, even of the image."""
    backbone = make().train()
    backbone.freeze("all")
    kept: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    images = _images(backbone).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = backbone(images)
    tracked = sum(x.requires_grad for x in _tensors(features))
    demand(
        not kept and not tracked,
        "no graph",
        f"{len(kept)} tensors kept for a backward pass, {tracked} features with a gradient",
        "leave `forward` to Backbone, which runs a frozen `extract` without a graph; do not call torch.enable_grad",
    )


# State.


def the_state_dict_holds_everything(make: Maker) -> None:
    """A second network that loads the first one's state dict gives the same features, after training too."""
    first = make().train()
    first.freeze(0)
    first(_images(first))  # batch-norm statistics move, as does whatever else a forward pass in training leaves behind
    torch.manual_seed(7)  # other random numbers than the first one's
    second = make.anew()
    second.load_state_dict(first.state_dict())
    images = _images(first)
    difference = _difference(first.eval()(images), second.eval()(images))
    demand(
        difference <= 1e-5,
        "equal features from a network that was built again and loaded the state dict",
        f"a relative difference of {difference:.2g}",
        "register every tensor that matters: nn.Parameter, or `register_buffer` without persistent=False",
    )


def copies_are_independent(make: Maker) -> None:
    """Copies and pickles give the same features, and share nothing with the original."""
    first = make.anew().eval()
    images = _images(first)
    demand_independent_copies(first, lambda backbone: _tensors(backbone(images)))


# How it is run.


def autocast_works(make: Maker) -> None:
    """Under autocast to bfloat16 the features are finite and near those of float32."""
    backbone = make().eval()
    images = _images(backbone)
    with torch.no_grad():
        exact = backbone(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = backbone(images)
    for a, b in zip(_tensors(exact), _tensors(rounded), strict=True):
        error = float((a - b.float()).norm() / a.norm().clamp_min(1e-12))
        demand(
            error < 0.2,  # not smaller if it is NaN
            "features within a fifth of those of float32",
            f"a relative error of {error:.2g}",
            "do not fix dtypes by hand (`.float()`, `.half()`, constants of another dtype); norms and softmax are "
            "kept in float32 by autocast itself",
        )


def channels_last_gives_the_same(make: Maker) -> None:
    """The memory layout of images and weights does not matter."""
    backbone = make().eval()
    images = _images(backbone)
    expected = backbone(images)
    backbone.to(memory_format=torch.channels_last)
    difference = _difference(expected, backbone(images.contiguous(memory_format=torch.channels_last)))
    demand(
        difference <= 1e-3,
        "equal features in the layout channels_last",
        f"a relative difference of {difference:.2g}",
        "use `reshape` or `flatten` in place of `view` and `as_strided`, which read memory as it lies",
    )


@contextmanager
def _quiet_thread() -> Iterator[None]:
    """Run on one thread, and keep back what torch.export prints beside the error it raises."""
    threads, disabled = torch.get_num_threads(), logging.root.manager.disable
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
        torch.set_num_threads(threads)


def it_exports(make: Maker) -> None:
    """torch.export takes the network whole, and what it gives is equal."""
    backbone = make().eval()
    images = _images(backbone)
    with torch.no_grad(), _quiet_thread():
        exported = torch.export.export(backbone, (images,), strict=False).module()
        other = torch.rand(images.shape, generator=torch.Generator().manual_seed(3))
        difference = _difference(backbone(other), Features(*exported(other)))
    demand(
        difference <= 1e-4,
        "equal features from the exported network",
        f"a relative difference of {difference:.2g}",
        "let no value of a tensor decide what is computed (`if x.sum() > 0`, `.item()`), nor numpy or Python numbers "
        "take part in it",
    )


def it_trains_under_every_head(make: Maker) -> None:
    """A training step and a prediction work under every head of every task."""
    unit = _unit(make())
    side = unit * -(-64 // unit)
    for task, head in heads_by_task():
        backbone = make()
        try:
            built = build_task(task, head, backbone)
            train_once(built, side, side + unit)
            predict_once(built, side, side + unit)
        except Exception as error:
            demand(
                False,
                f"{task.name} trains and predicts under {head.name}",
                f"{type(error).__name__}: {str(error).strip()[:400]}",
                f"try it alone: framework plugins show {head.name}, then build the head on the backbone's levels",
            )


BUILT = (it_builds,)
SHAPED = (it_builds, it_returns_features, levels_run_fine_to_coarse, shapes_are_as_declared, prefix_is_as_declared)
STEADY = (*SHAPED, the_input_is_not_written_to, eval_is_deterministic)
STAGED = (*BUILT, stages_are_a_partition)

CHECKS = (
    Check(it_builds),
    Check(it_returns_features, BUILT),
    Check(levels_run_fine_to_coarse, BUILT),
    Check(shapes_are_as_declared, SHAPED[:3]),
    Check(prefix_is_as_declared, SHAPED[:2]),
    Check(any_multiple_is_accepted, SHAPED),
    Check(other_sizes_are_refused, SHAPED[:2]),
    Check(other_channels_are_refused, SHAPED[:2]),
    Check(other_channel_counts_can_be_built, SHAPED),
    Check(the_input_is_not_written_to, SHAPED[:2]),
    Check(eval_is_deterministic, (*SHAPED[:2], the_input_is_not_written_to)),
    Check(images_do_not_mix, STEADY),
    Check(the_whole_image_counts, (*STEADY, any_multiple_is_accepted)),
    Check(stages_are_a_partition, BUILT),
    Check(stages_run_from_input_to_output, (*STAGED, it_returns_features)),
    Check(every_parameter_gets_a_gradient, (*STAGED, it_returns_features)),
    Check(freezing_is_exact, STAGED),
    Check(frozen_layers_rest, (*STAGED, freezing_is_exact)),
    Check(thawing_is_complete, (*STAGED, freezing_is_exact)),
    Check(frozen_means_constant, (*STEADY, *STAGED, freezing_is_exact, frozen_layers_rest)),
    Check(a_frozen_backbone_builds_no_graph, (*STEADY, *STAGED, freezing_is_exact)),
    Check(the_state_dict_holds_everything, STEADY),
    Check(copies_are_independent, (*STEADY, the_state_dict_holds_everything)),
    Check(autocast_works, STEADY),
    Check(channels_last_gives_the_same, STEADY),
    Check(it_exports, STEADY),
    Check(it_trains_under_every_head, (*STEADY, every_parameter_gets_a_gradient, any_multiple_is_accepted)),
)
