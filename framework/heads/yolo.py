"""YOLO: every cell of three grids tells, for each of its anchors, a box, whether there is one, and what it is."""

from collections.abc import Sequence
from math import log
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from framework.backbone import Features, Level
from framework.boxes import Detections, Frame, Objects
from framework.errors import ConfigError
from framework.heads.candidates import Selection
from framework.heads.dense import require_positive
from framework.heads.detection import DetectionHead, class_weight_tensor
from framework.losses.detection import complete_iou
from framework.necks import FeaturePyramid

ANCHORS = (  # YOLOv3's, width and height in strides of their map: made for COCO
    ((1.25, 1.625), (2.0, 3.75), (4.125, 2.875)),
    ((1.875, 3.8125), (3.875, 2.8125), (3.6875, 7.4375)),
    ((3.625, 2.8125), (4.875, 6.1875), (11.65625, 10.1875)),
)
FITTING = 4.0  # an anchor learns boxes whose width and height are less than this many times its own, and more than 1/4
BALANCE = (4.0, 1.0, 0.4)  # of the objectness loss: fine maps hold more cells, and less in each
AREA = 640**2  # YOLOv5's image, in pixels, and its classes: what its loss weights were found on
CLASSES = 80


class _Matches(NamedTuple):
    """K places of a map that learn an object each; an object may have several, and a place several objects.

    Args:
        place: Indices of image, anchor, row and column, each long (K,).
        object: Which object, long (K,).
        boxes: Float (K, 4), centre x and y, width and height in cells, from the corner of the place's cell.
    """

    place: tuple[Tensor, Tensor, Tensor, Tensor]
    object: Tensor
    boxes: Tensor


class YOLO(DetectionHead):
    """You only look once: a grid with anchors at strides 8, 16 and 32, or what is nearest to them.

    Architecture of Redmon & Farhadi (YOLOv3, arXiv 1804.02767); decoding, assignment, loss and its weights of YOLOv5
    (github.com/ultralytics/yolov5, its documentation's "Architecture description", sections 4.1 to 4.4); complete IoU
    of Zheng et al., arXiv 1911.08287. Group norm stands for batch norm: batches of large images are small. An object
    that no anchor fits is learned by the one that fits it best.

    Args:
        channels: Width of the pyramid and of the convolutions on it.
        depth: How many convolutions precede the output of each map.
        anchors: Width and height in pixels of the anchors of each of the three maps, fine to coarse, as many for each;
            `framework data show` suggests some. null: YOLOv3's, made for COCO.
        score_threshold: Candidates whose score is not above it are dropped, in [0, 1).
        nms_iou: Two boxes of one class that overlap by more than this are one object, in (0, 1].
        topk_candidates: How many candidates of each map are looked at.
        max_detections: How many detections of an image are kept.
        class_weights: What objects of each class count in the classification loss, above 0; null: 1.
        box_weight: Weight of the box loss.
        objectness_weight: Weight of the objectness loss, on images of 640x640 pixels; it grows with their area.
        classification_weight: Weight of the classification loss, with 80 classes; it grows with their number.

    Raises:
        ConfigError: An option is out of range.
    """

    loss_names = ("box", "objectness", "classification")
    trial: ClassVar[dict[str, Any]] = {"channels": 32, "depth": 1}
    anchors: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        levels: tuple[Level, ...],
        prefix_tokens: int,
        num_classes: int,
        *,
        channels: int = 256,
        depth: int = 2,
        anchors: list[list[tuple[float, float]]] | None = None,
        score_threshold: float = 0.05,
        nms_iou: float = 0.6,
        topk_candidates: int = 1000,
        max_detections: int = 100,
        class_weights: list[float] | None = None,
        box_weight: float = 1.0,
        objectness_weight: float = 20.0,
        classification_weight: float = 10.0,
    ) -> None:
        super().__init__()
        self.nms_iou = nms_iou
        require_positive(channels=channels, depth=depth)
        weights = {"box": box_weight, "objectness": objectness_weight, "classification": classification_weight}
        if min(weights.values()) <= 0:
            raise ConfigError(f"weights of the losses must be above 0, got {weights}")
        self.weights = weights
        self.selection = Selection(score_threshold, nms_iou, topk_candidates, max_detections)
        self.register_buffer("class_weights", class_weight_tensor(class_weights, num_classes), persistent=False)
        self.pyramid = FeaturePyramid(levels, channels=channels)
        self.multiple, self.used, self.strides = self.pyramid.multiple, self.pyramid.used, self.pyramid.strides
        self.register_buffer("anchors", _anchor_tensor(anchors, self.strides), persistent=False)  # (3, A, 2), pixels
        self.outputs = (self.anchors.shape[1], 5 + num_classes)
        self.branches = nn.ModuleList(_branch(channels, depth, *self.outputs) for _ in self.strides)

    def losses(self, features: Features, frame: Frame, objects: Sequence[Objects]) -> dict[str, Tensor]:
        """Compute the three losses: means over places, summed over maps, times their weights.

        Objectness learns the IoU of the predicted box, where there is an object.
        """
        images = torch.cat([one.labels.new_full((len(one.labels),), row) for row, one in enumerate(objects)])
        boxes = box_convert(torch.cat([one.boxes for one in objects]).float(), "xyxy", "cxcywh")
        labels, fits = torch.cat([one.labels for one in objects]), self._fits(boxes[:, 2:])
        sums = dict.fromkeys(self.loss_names, boxes.new_zeros(()))
        for level, outputs in enumerate(self._predict(features, frame)):
            matches = _match(images, boxes / self.strides[level], fits[:, level], outputs)
            terms = self._losses_of_map(level, outputs, matches, labels[matches.object])
            sums = {name: total + terms[name] for name, total in sums.items()}
        scale = {
            "box": 1.0,
            "objectness": frame.canvas[0] * frame.canvas[1] / AREA,
            "classification": (self.outputs[1] - 5) / CLASSES,
        }
        return {name: self.weights[name] * scale[name] * total for name, total in sums.items()}

    def detect(self, features: Features, frame: Frame) -> list[Detections]:
        """Find the objects of each image."""
        boxes, scores = [], []
        for outputs, anchors, stride in zip(self._predict(features, frame), self.anchors, self.strides, strict=True):
            decoded = decode(outputs[..., :4], anchors / stride)
            decoded[..., :2] += _cells(outputs)
            boxes.append(box_convert(decoded * stride, "cxcywh", "xyxy").flatten(1, 3))
            scores.append((outputs[..., 4:5].sigmoid() * outputs[..., 5:].sigmoid()).flatten(1, 3))
        places = [part.shape[1] for part in boxes]
        return self.selection(torch.cat(scores, dim=1), torch.cat(boxes, dim=1), places, frame.sizes)

    def _predict(self, features: Features, frame: Frame) -> list[Tensor]:
        """Return for each map float32 (B, A, h, w, 4 + 1 + C): raw box, objectness and class logits."""
        maps = self.pyramid(features.maps, frame.canvas)
        outputs = [branch(x).float() for branch, x in zip(self.branches, maps, strict=True)]
        return [x.unflatten(1, self.outputs).permute(0, 1, 3, 4, 2) for x in outputs]

    def _fits(self, sizes: Tensor) -> Tensor:
        """Tell which anchors learn boxes of sizes (M, 2), in pixels; bool (M, maps, A)."""
        ratios = sizes[:, None, None] / self.anchors
        worst = torch.maximum(ratios, 1 / ratios).amax(-1)
        return (worst < FITTING) | (worst == worst.amin((1, 2), keepdim=True))

    def _losses_of_map(self, level: int, outputs: Tensor, matches: _Matches, labels: Tensor) -> dict[str, Tensor]:
        chosen, count = outputs[matches.place], max(len(labels), 1)
        anchors = self.anchors[level] / self.strides[level]
        boxes = decode(chosen[:, :4], anchors[matches.place[1]])
        iou, complete = complete_iou(boxes, matches.boxes)
        objectness = F.binary_cross_entropy_with_logits(outputs[..., 4], _soft_target(outputs, matches.place, iou))
        truth = F.one_hot(labels, outputs.shape[-1] - 5).float()
        classes = F.binary_cross_entropy_with_logits(chosen[:, 5:], truth, reduction="none").mean(1)
        if self.class_weights is not None:
            weights = self.class_weights[labels]
            classes = classes * weights / weights.mean()
        return {
            "box": (1 - complete).sum() / count,
            "objectness": BALANCE[level] * objectness,
            "classification": classes.sum() / count,
        }


def decode(raw: Tensor, anchors: Tensor) -> Tensor:
    """Decode raw boxes as YOLOv5 does: centre 2 sigmoid - 0.5 from the corner of the cell, size anchor (2 sigmoid)^2.

    Args:
        raw: Float (B, A, h, w, 4) or (K, 4).
        anchors: Width and height in cells, (A, 2) or (K, 2).

    Returns:
        Centre x and y, width and height in cells, of raw's shape.
    """
    x = 2 * raw.sigmoid()
    anchors = anchors[:, None, None] if raw.dim() == 5 else anchors
    return torch.cat([x[..., :2] - 0.5, x[..., 2:].square() * anchors], dim=-1)


def fit_anchors(sizes: Tensor, count: int) -> Tensor:
    """Return the `count` sizes that fit given ones best, (count, 2) from small to large, by k-means on IoU.

    Redmon & Farhadi, arXiv 1612.08242, section 2: the distance of two sizes is 1 - IoU of boxes of one centre. The
    start is not random: sizes at even steps of area.

    Args:
        sizes: Widths and heights of boxes, float (N, 2), above 0, in any unit.
        count: How many, at least 1.

    Raises:
        ValueError: There are no sizes.
    """
    if not len(sizes):
        raise ValueError("anchors are fitted to the sizes of boxes, and there are none")
    ordered = sizes.float()[sizes.prod(1).argsort()]
    centers = ordered[((torch.arange(count) + 0.5) / count * len(sizes)).long()]
    for _ in range(100):
        overlap = torch.minimum(ordered[:, None], centers).prod(-1)
        iou = overlap / (ordered.prod(1)[:, None] + centers.prod(1) - overlap)
        members = F.one_hot(iou.argmax(1), count).float()
        numbers = members.sum(0)[:, None]
        moved = torch.where(numbers > 0, members.T @ ordered / numbers.clamp_min(1), centers)
        if torch.equal(moved, centers):
            break
        centers = moved
    return centers[centers.prod(1).argsort()]


def _match(images: Tensor, boxes: Tensor, fits: Tensor, outputs: Tensor) -> _Matches:
    """Choose the places of a map that learn objects: the cell of the centre, and those beside it that are near.

    A cell is near if the centre is less than a cell from its middle in both directions: as far as it can reach.

    Args:
        images: Which image each object is in, long (M,).
        boxes: Float (M, 4), centre x and y, width and height in cells.
        fits: Which anchors may learn each, bool (M, A).
        outputs: Of the map, (B, A, h, w, ...).
    """
    grid = boxes.new_tensor([outputs.shape[3], outputs.shape[2]])
    steps = boxes.new_tensor([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])
    cells = torch.minimum(boxes[:, :2].floor(), grid - 1)[:, None] + steps  # (M, 5, 2)
    near = ((boxes[:, None, :2] - cells - 0.5).abs() < 1).all(-1) & ((cells >= 0) & (cells < grid)).all(-1)
    index, step, anchor = (near[:, :, None] & fits[:, None]).nonzero(as_tuple=True)
    corner = cells[index, step]
    column, row = corner.long().unbind(-1)
    relative = torch.cat([boxes[index, :2] - corner, boxes[index, 2:]], dim=-1)
    return _Matches((images[index], anchor, row, column), index, relative)


def _soft_target(outputs: Tensor, place: tuple[Tensor, ...], iou: Tensor) -> Tensor:
    """Return what objectness learns, (B, A, h, w): the IoU at matched places, the best of several; 0 elsewhere."""
    shape = outputs.shape[:4]
    index = torch.zeros_like(place[0])
    for size, part in zip(shape, place, strict=True):
        index = index * size + part
    target = outputs.new_zeros(shape.numel())
    return target.scatter_reduce(0, index, iou.detach(), "amax").view(shape)


def _cells(outputs: Tensor) -> Tensor:
    """Return the corner of every cell of a map (B, A, h, w, ...), x and y in cells, (h, w, 2)."""
    rows, columns = (torch.arange(outputs.shape[axis], device=outputs.device) for axis in (2, 3))
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)


def _anchor_tensor(anchors: Sequence[Sequence[tuple[float, float]]] | None, strides: Sequence[float]) -> Tensor:
    """Return the anchors in pixels, float (3, A, 2).

    Raises:
        ConfigError: There are not as many for each map, or one is no size.
    """
    if anchors is None:
        return torch.tensor(ANCHORS) * torch.tensor(strides)[:, None, None]
    counts = [len(part) for part in anchors]
    if len(counts) != len(strides) or len(set(counts)) != 1 or not counts[0]:
        raise ConfigError(
            f"anchors: as many (width, height) are needed for each of {len(strides)} maps, got {counts} of them"
        )
    if min(min(size) for part in anchors for size in part) <= 0:
        raise ConfigError(f"anchors have a width and a height above 0, in pixels, got {anchors}")
    return torch.tensor(anchors, dtype=torch.float32)


def _branch(channels: int, depth: int, anchors: int, values: int) -> nn.Sequential:
    """Build what predicts `values` for each of `anchors` on one map: a box, objectness, and classes."""
    fit = (number for number in (32, 16, 8, 4, 2) if channels % number == 0 and channels >= 4 * number)
    groups = next(fit, 1)  # a group of one channel would be constant on a map of one cell
    layers: list[nn.Module] = []
    for _ in range(depth):
        convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        layers += [convolution, nn.GroupNorm(groups, channels), nn.SiLU()]
    last = nn.Conv2d(channels, anchors * values, 1)
    nn.init.normal_(last.weight, std=0.01)
    bias = torch.zeros(anchors, values)
    bias[:, 4] = -log(99)  # a probability of 0.01: most places hold nothing (RetinaNet, section 3.3)
    bias[:, 5:] = -log(max(values - 6, 1))  # of one in the number of classes
    last.bias = nn.Parameter(bias.flatten())
    return nn.Sequential(*layers, last)
