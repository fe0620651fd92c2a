"""What the checks of detection heads need: heads with what they are given, what comes out, and what is right."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from framework.backbone import Features
from framework.boxes import Detections, Frame, Objects
from framework.conformance.check import Maker
from framework.conformance.heads import Source, image_size, make_features


class Case(NamedTuple):
    """A head with what it is given: two images on one canvas, the second smaller than it."""

    source: Source
    head: Any
    features: Features
    frame: Frame
    objects: list[Objects]


def make_objects(size: tuple[int, int], num_classes: int) -> list[Objects]:
    """Return two objects in the first of two images, one in the second, larger and smaller ones."""
    side = torch.tensor([size[1], size[0]] * 2)
    shares = [torch.tensor([[0.1, 0.1, 0.35, 0.5], [0.5, 0.3, 0.9, 0.95]]), torch.tensor([[0.2, 0.2, 0.6, 0.7]])]
    labels = [torch.tensor([0, 1]) % num_classes, torch.tensor([2]) % num_classes]
    return [Objects(share * side, label) for share, label in zip(shares, labels, strict=True)]


def draw_objects(features: Features, objects: Sequence[Objects], size: tuple[int, int]) -> None:
    """Add to every map a pattern where an object is, one for each class."""
    rows, columns = torch.arange(size[0])[:, None] + 0.5, torch.arange(size[1]) + 0.5
    generator = torch.Generator().manual_seed(2)
    for x in features.maps:
        codes = 2 * torch.randn(3, x.shape[1], generator=generator)
        for row, one in enumerate(objects):
            for (x1, y1, x2, y2), label in zip(one.boxes, one.labels, strict=True):
                mask = ((rows > y1) & (rows < y2) & (columns > x1) & (columns < x2)).float()[None, None]
                share = nn.functional.adaptive_avg_pool2d(mask, (int(x.shape[2]), int(x.shape[3])))[0]
                x[row] += codes[label][:, None, None] * share


def build_head(make: Maker, source: Source, num_classes: int = 3) -> Any:
    """Build a head whose biases are random: those that make a new head find nothing give way."""
    head = make.anew(source.levels, source.prefix_tokens, num_classes)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if name.endswith("bias") or not parameter.any():
                nn.init.normal_(parameter, std=0.3)
    return head


def make_case(make: Maker, source: Source, num_classes: int = 3) -> Case:
    """Build a head, in eval mode, and what it is given."""
    head = build_head(make, source, num_classes)
    height, width = image_size(head, source)
    features, objects = make_features(source, (height, width)), make_objects((height, width), num_classes)
    draw_objects(features, objects, (height, width))
    frame = Frame((height, width), [(height, width), (height - 8, width - 20)])
    return Case(source, head.eval(), features, frame, objects)


def each_case(make: Maker, *sources: Source) -> Iterator[Case]:
    """Yield a case, its head in eval mode, for every source."""
    for source in sources:
        yield make_case(make, source)


def compute_losses(case: Case, objects: Sequence[Objects] | None = None) -> dict[str, Tensor]:
    """Compute the losses; what is drawn at random is the same every time."""
    torch.manual_seed(3)
    terms: dict[str, Tensor] = case.head(case.features, case.frame, case.objects if objects is None else objects)
    return terms


@torch.no_grad()
def detect(case: Case) -> list[Detections]:
    """Find the objects."""
    found: list[Detections] = case.head(case.features, case.frame)
    return found


def tables(found: Sequence[Detections]) -> list[Tensor]:
    """Return for each image boxes, scores and labels as one table, of a length that does not depend on how many."""
    tables = [torch.cat([one.boxes, one.scores[:, None], one.labels[:, None]], dim=1) for one in found]
    return [nn.functional.pad(table, (0, 0, 0, max(1000 - len(table), 0))) for table in tables]


def results(case: Case, head: Any = None) -> list[Tensor]:
    """Return everything that a head computes, as tensors of the same shape every time."""
    case = case._replace(head=head or case.head)
    return [torch.stack(list(compute_losses(case).values())), *tables(detect(case))]


def strangers(found: Detections, others: Detections) -> float:
    """Return the share of detections without a like among others: one of its class, in its place, of its score."""
    if not len(found.boxes) or not len(others.boxes):
        return float(len(found.boxes) > 0)
    same = (box_iou(found.boxes, others.boxes) > 0.99) & (found.labels[:, None] == others.labels)
    near = (found.scores[:, None] - others.scores).abs() < 1e-3
    return float(1 - (same & near).any(1).float().mean())


def missing(found: Sequence[Detections], objects: Sequence[Objects]) -> str:
    """Say which objects are not found, or that the best detection is none of them; empty if all is well."""
    problems = []
    for row, (one, truth) in enumerate(zip(found, objects, strict=True)):
        if not len(one.boxes):
            problems.append(f"nothing in image {row}")
            continue
        hits = (box_iou(one.boxes, truth.boxes) > 0.5) & (one.labels[:, None] == truth.labels)
        lost = (~hits.any(0)).nonzero().flatten().tolist()
        if lost:
            problems.append(f"objects {lost} of image {row} not found among {len(one.boxes)} detections")
        elif not hits[0].any():
            problems.append(f"the best detection in image {row} is no object")
    return "; ".join(problems)
