"""The rules of the contract of detection heads, one check each."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from framework.backbone import Features
from framework.boxes import Detections, Frame, Objects
from framework.conformance.check import Check, Maker, demand, demand_independent_copies, difference
from framework.conformance.detection_cases import (
    Case,
    build_head,
    compute_losses,
    detect,
    each_case,
    make_case,
    missing,
    results,
    strangers,
    tables,
)
from framework.conformance.heads import CNN, SOURCES, VIT

STEPS, PATIENCE = 5, 40  # of training between two looks, and how often there is a look


def it_builds_on_any_levels(make: Maker) -> None:
    """A head is built from (levels, prefix_tokens, num_classes) of any backbone, and says what it reads and needs."""
    for source in SOURCES:
        try:
            head = make.anew(source.levels, source.prefix_tokens, 3)
        except Exception as error:
            demand(
                False,
                f"a head for {source.name}",
                f"{type(error).__name__}: {str(error).strip()[:400]}",
                "take the levels as they come; framework.necks.FeaturePyramid makes maps of any strides from them",
            )
        used, multiple = getattr(head, "used", None), getattr(head, "multiple", None)
        names = getattr(head, "loss_names", None)
        indices = set(range(len(source.levels)))
        good = isinstance(used, tuple) and 0 < len(used) == len(set(used)) and set(used) <= indices
        demand(
            isinstance(head, nn.Module) and good and isinstance(multiple, int) and multiple >= 1,
            f"an nn.Module whose `used` names indices of the {len(indices)} levels, and whose `multiple` is at least 1",
            f"{type(head).__name__} with used={used!r} and multiple={multiple!r}",
            "set both in __init__; `FeaturePyramid` has them",
        )
        demand(
            isinstance(names, tuple) and len(names) > 0 and all(isinstance(name, str) for name in names),
            "`loss_names`, a tuple of the names that `losses` returns",
            f"{names!r}",
            'write `loss_names = ("classification", "box")` in the class',
        )


def losses_are_named_finite_scalars(make: Maker) -> None:
    """Losses are finite scalars of the names in `loss_names`, for one class too, and whatever the mode."""
    for source in SOURCES:
        for num_classes in (1, 3):
            case = make_case(make, source, num_classes)
            for training in (True, False):
                case.head.train(training)
                terms = compute_losses(case)
                demand(
                    tuple(terms) == tuple(case.head.loss_names)
                    and all(x.shape == () and bool(x.isfinite()) for x in terms.values()),
                    f"finite scalars {', '.join(case.head.loss_names)} for {num_classes} classes on {source.name}, in "
                    f"{'train' if training else 'eval'} mode",
                    {name: x.tolist() for name, x in terms.items()},
                    "return a dict of scalars in the order of `loss_names`, whatever `self.training` is",
                )


def every_image_has_detections(make: Maker) -> None:
    """There is one Detections for each image: boxes (N, 4) and scores (N,), float32, labels (N,), int64."""
    for source in SOURCES:
        for training in (False, True):
            case = make_case(make, source)
            case.head.train(training)
            found = detect(case)
            good = isinstance(found, list) and len(found) == 2 and all(isinstance(one, Detections) for one in found)
            demand(
                good,
                f"a list of 2 Detections for 2 images, in {'train' if training else 'eval'} mode",
                f"{type(found).__name__} of {[type(one).__name__ for one in found]}",
                "end `detect` with one `Detections(boxes, scores, labels)` for each image",
            )
            for one in found:
                shapes, types = [tuple(x.shape) for x in one], [x.dtype for x in one]
                count = len(one.boxes)
                demand(
                    shapes == [(count, 4), (count,), (count,)] and types == [torch.float32, torch.float32, torch.int64],
                    "boxes (N, 4) float32, scores (N,) float32, labels (N,) int64",
                    f"{shapes}, {types}",
                    "bring outputs to float32 by `.float()` before boxes are decoded: 16 bits are off by pixels",
                )


def boxes_lie_in_their_image(make: Maker) -> None:
    """Every box has an area and lies inside its own image, which may be smaller than the canvas."""
    for case in each_case(make, CNN, VIT):
        for one, (height, width) in zip(detect(case), case.frame.sizes, strict=True):
            corner = torch.tensor([width, height, width, height])
            good = (one.boxes >= 0).all() and (one.boxes <= corner).all()
            demand(
                bool(good and (one.boxes[:, 2:] > one.boxes[:, :2]).all()),
                f"0 <= x1 < x2 <= {width} and 0 <= y1 < y2 <= {height} for an image of {height}x{width}",
                f"from {one.boxes.amin(0).tolist()} to {one.boxes.amax(0).tolist()}",
                "clip to `frame.sizes`, not to `frame.canvas`, and drop what has no area then: `best_detections` does",
            )


def scores_are_sorted_shares(make: Maker) -> None:
    """Scores are in [0, 1], the best first."""
    for case in each_case(make, CNN, VIT):
        for one in detect(case):
            scores = one.scores
            demand(
                bool(((scores >= 0) & (scores <= 1)).all() and (scores.diff() <= 0).all()),
                "scores in [0, 1] that never rise",
                f"{[round(x, 3) for x in scores[:5].tolist()]}, ...",
                "take `sigmoid` or `softmax` of logits, and sort; `best_detections` sorts",
            )


def labels_are_classes(make: Maker) -> None:
    """Labels are in [0, num_classes): no index is the background."""
    for num_classes in (1, 3):
        case = make_case(make, CNN, num_classes)
        for one in detect(case):
            demand(
                bool(((one.labels >= 0) & (one.labels < num_classes)).all()),
                f"labels from 0 to {num_classes - 1}",
                f"labels {sorted(set(one.labels.tolist()))}",
                "subtract the background's index, where a library counts it as 0",
            )


def the_input_is_not_written_to(make: Maker) -> None:
    """Features, and the lists they come in, and the objects stay as they are."""
    for case in each_case(make, CNN, VIT):
        features = case.features
        lists = [*features.maps], [*features.prefix]
        tensors = [*features.maps, *features.prefix, *(x for one in case.objects for x in one)]
        before = [x.clone() for x in tensors]
        results(case)
        demand(
            all(a is b for kept, now in zip(lists, features, strict=True) for a, b in zip(kept, now, strict=True)),
            "the lists `maps` and `prefix` unchanged",
            "tensors were replaced in them",
            "begin with `maps = list(features.maps)`",
        )
        changed = [index for index, (a, b) in enumerate(zip(before, tensors, strict=True)) if not torch.equal(a, b)]
        demand(
            not changed,
            "features, boxes and labels unchanged",
            f"tensors {changed} of them are not",
            "replace in-place operations (`labels += 1`, nn.ReLU(inplace=True) as first layer) by ones that are not",
        )


def eval_is_deterministic(make: Maker) -> None:
    """In eval mode the same features give the same detections."""
    for case in each_case(make, CNN, VIT):
        gap = difference(tables(detect(case)), tables(detect(case)))
        demand(
            gap <= 1e-6,
            "two equal results in eval mode",
            f"a relative difference of {gap:.2g}",
            "dropout that ignores `self.training`, regions drawn at random in `detect`, or state kept between calls?",
        )


def images_do_not_mix(make: Maker) -> None:
    """In eval mode an image's detections do not depend on the other images of the batch."""
    for case in each_case(make, CNN, VIT):
        together = detect(case)
        for row in range(2):
            maps, prefix = ([x[row : row + 1] for x in kind] for kind in case.features)
            frame = Frame(case.frame.canvas, case.frame.sizes[row : row + 1])
            (alone,) = detect(case._replace(features=Features(maps, prefix), frame=frame))
            share = max(strangers(alone, together[row]), strangers(together[row], alone))
            demand(
                share <= 0.05,  # two boxes that all but tie may be swapped
                f"image {row} alone gives what it gives in a batch",
                f"{share:.0%} of the detections are others",
                "statistics over the batch in eval mode, or one selection of candidates for all images?",
            )


def it_reads_what_it_says(make: Maker) -> None:
    """The levels in `used` have an effect on the losses, and no others."""
    for case in each_case(make, *SOURCES):
        tensors = [*case.features.maps, *case.features.prefix]
        for x in tensors:
            x.requires_grad_()
        torch.autograd.backward(torch.stack(list(compute_losses(case).values())).sum())
        seen = [index for index, x in enumerate(tensors) if x.grad is not None and bool(x.grad.any())]
        read = tuple(sorted({index % len(case.source.levels) for index in seen}))
        demand(
            read == tuple(sorted(case.head.used)),
            f"used={case.head.used} to be the levels that are read, of {case.source.name}",
            f"{read} have an effect",
            "set `used` to the indices that are read; what the backbone computes for others is never trained",
        )


def _demand_gradients(case: Case, objects: Sequence[Objects], when: str) -> None:
    """Raise a `NonconformityError` unless losses are finite and give every parameter a finite gradient."""
    case.head.train().zero_grad()
    terms = compute_losses(case, objects)
    torch.autograd.backward(torch.stack(list(terms.values())).sum())
    gradients = {name: parameter.grad for name, parameter in case.head.named_parameters()}
    dead = [name for name, gradient in gradients.items() if gradient is None]
    demand(
        not dead,
        f"a gradient for every parameter {when}, for {case.source.name}",
        f"none for {', '.join(dead[:5])}",
        "let every output have a part in a loss in every step, times 0 if need be: several processes stop on it",
    )
    broken = [name for name, gradient in gradients.items() if gradient is not None and not gradient.isfinite().all()]
    demand(
        not broken and all(bool(x.isfinite()) for x in terms.values()),
        f"finite losses and gradients {when}, for {case.source.name}",
        f"losses {[x.tolist() for x in terms.values()]}, and not finite: {', '.join(broken[:5]) or 'no gradient'}",
        "divide by `count.clamp_min(1)`",
    )


def every_parameter_gets_a_gradient(make: Maker) -> None:
    """Every parameter has a part in the losses of images with objects."""
    for case in each_case(make, *SOURCES):
        _demand_gradients(case, case.objects, "with objects")


def images_without_objects_train_everything(make: Maker) -> None:
    """Where no image has an object, losses are finite and every parameter gets a gradient."""
    nothing = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    for case in each_case(make, *SOURCES):
        _demand_gradients(case, [nothing, nothing], "without any object")
        _demand_gradients(case, [case.objects[0], nothing], "with objects in one of two images")


def the_state_dict_holds_everything(make: Maker) -> None:
    """A second head that loads the first one's state dict gives the same result, after training too."""
    for case in each_case(make, CNN, VIT):
        case.head.train()
        compute_losses(case)  # batch-norm statistics move
        torch.manual_seed(7)
        second = build_head(make, case.source).eval()
        second.load_state_dict(case.head.state_dict())
        case.head.eval()
        gap = difference(results(case), results(case, second))
        demand(
            gap <= 1e-5,
            "equal results from a head that was built again and loaded the state dict",
            f"a relative difference of {gap:.2g}",
            "register every tensor that matters: nn.Parameter, or `register_buffer` without persistent=False",
        )


def copies_are_independent(make: Maker) -> None:
    """Copies and pickles give the same result, and share nothing with the original."""
    for case in each_case(make, CNN, VIT):
        demand_independent_copies(case.head, partial(results, case))


def autocast_works(make: Maker) -> None:
    """Under autocast to bfloat16 the losses are near those of float32, and detections are float32."""
    for case in each_case(make, CNN, VIT):
        exact = torch.stack(list(compute_losses(case).values())).detach().sum()
        with torch.autocast("cpu", torch.bfloat16):
            rounded = torch.stack([x.float() for x in compute_losses(case).values()]).detach().sum()
            types = {x.dtype for one in detect(case) for x in (one.boxes, one.scores)}
        error = float((exact - rounded).abs() / exact.abs().clamp_min(1e-12))
        demand(
            error < 0.2 and types == {torch.float32},  # the error is not smaller if it is NaN
            "losses within a fifth of those of float32, and boxes and scores in float32",
            f"a relative error of {error:.2g}, and {', '.join(map(str, types))}",
            "bring outputs to float32 by `.float()`, and fix no other dtypes by hand",
        )


def it_learns(make: Maker) -> None:
    """Trained on two images, it finds their objects: right class, and boxes of IoU above 0.5, the best one included."""
    source, classes = CNN, 3
    case = make_case(make, source, classes)
    case = case._replace(head=make.anew(source.levels, source.prefix_tokens, classes))
    optimizer = torch.optim.AdamW(case.head.parameters(), lr=1e-3)
    problem = ""
    for _ in range(PATIENCE):
        case.head.train()
        for _ in range(STEPS):
            loss = torch.stack(list(case.head(case.features, case.frame, case.objects).values())).sum()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        case.head.eval()
        problem = missing(detect(case), case.objects)
        if not problem or not math.isfinite(float(loss.detach())):
            break
    demand(
        not problem,
        f"all three objects found after {PATIENCE * STEPS} steps on two images",
        problem,
        "are labels counted from 0 in `losses` and in `detect`, x before y, and boxes in pixels of the canvas in both?",
    )


BUILT = (it_builds_on_any_levels,)
SOUND = (*BUILT, losses_are_named_finite_scalars, every_image_has_detections)
STEADY = (*SOUND, the_input_is_not_written_to, eval_is_deterministic)

CHECKS = (
    Check(it_builds_on_any_levels),
    Check(losses_are_named_finite_scalars, BUILT),
    Check(every_image_has_detections, SOUND[:2]),
    Check(boxes_lie_in_their_image, SOUND),
    Check(scores_are_sorted_shares, SOUND),
    Check(labels_are_classes, SOUND),
    Check(the_input_is_not_written_to, SOUND),
    Check(eval_is_deterministic, STEADY[:-1]),
    Check(images_do_not_mix, STEADY),
    Check(it_reads_what_it_says, SOUND),
    Check(every_parameter_gets_a_gradient, SOUND),
    Check(images_without_objects_train_everything, (*SOUND, every_parameter_gets_a_gradient)),
    Check(the_state_dict_holds_everything, STEADY),
    Check(copies_are_independent, (*STEADY, the_state_dict_holds_everything)),
    Check(autocast_works, STEADY),
    Check(it_learns, (*STEADY, scores_are_sorted_shares, labels_are_classes)),
)
