"""FCOS: every cell that lies near the middle of an object tells its class and how far its four edges are."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.fcos import FCOSHead

from framework.backbone import Features, Level
from framework.boxes import Detections, Frame, Objects
from framework.errors import ConfigError
from framework.heads.anchors import GridAnchors
from framework.heads.candidates import Selection
from framework.heads.dense import require_positive
from framework.heads.detection import DetectionHead, class_weight_tensor
from framework.losses.detection import (
    binary_cross_entropy,
    centerness,
    focal,
    generalized_iou_loss,
    mean_over_processes,
    one_hot,
)
from framework.necks import FeaturePyramid


class _Outputs(NamedTuple):
    """What is predicted at the cells of all maps, fine to coarse, in float32.

    Args:
        logits: (B, N, num_classes).
        boxes: (B, N, 4), x1, y1, x2, y2 in pixels.
        centerness: (B, N), logits.
        anchors: For each map (h * w, 4), a square of one stride around the point that a cell stands for.
    """

    logits: Tensor
    boxes: Tensor
    centerness: Tensor
    anchors: list[Tensor]


class FCOS(DetectionHead):
    """Fully convolutional one-stage detection: no anchors, five maps. Tian et al., arXiv 1904.01355, 2006.09214.

    The modules are torchvision's, and so are losses and detections: focal loss, GIoU loss, and centerness, whose
    geometric mean with the class's probability is the score. Maps have strides 8 to 128, or what is nearest to them.

    Args:
        channels: Width of the pyramid and of the convolutions on it, 64 or another multiple of 32 (their group norm).
        convolutions: How many convolutions precede the outputs, in each of two branches.
        center_sampling_radius: Cells this near to the middle of an object learn it, in strides.
        score_threshold: Candidates whose score is not above it are dropped, in [0, 1).
        nms_iou: Two boxes of one class that overlap by more than this are one object, in (0, 1].
        topk_candidates: How many candidates of each map are looked at.
        max_detections: How many detections of an image are kept.
        class_weights: What the focal loss of each class counts, above 0; null: 1.

    Raises:
        ConfigError: An option is out of range.
    """

    loss_names = ("classification", "box", "centerness")
    trial: ClassVar[dict[str, Any]] = {"channels": 64, "convolutions": 1}
    class_weights: Tensor | None

    def __init__(
        self,
        levels: tuple[Level, ...],
        prefix_tokens: int,
        num_classes: int,
        *,
        channels: int = 256,
        convolutions: int = 4,
        center_sampling_radius: float = 1.5,
        score_threshold: float = 0.05,
        nms_iou: float = 0.6,
        topk_candidates: int = 1000,
        max_detections: int = 100,
        class_weights: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.nms_iou = nms_iou
        require_positive(channels=channels, convolutions=convolutions)
        if channels % 32 or channels == 32:  # a group of one channel would be normalised to nothing on a map of 1x1
            raise ConfigError(f"channels must be divisible by 32 and at least 64, got {channels}")
        if center_sampling_radius <= 0:
            raise ConfigError(f"center_sampling_radius must be above 0, got {center_sampling_radius}")
        self.radius = center_sampling_radius
        self.selection = Selection(score_threshold, nms_iou, topk_candidates, max_detections)
        self.register_buffer("class_weights", class_weight_tensor(class_weights, num_classes), persistent=False)
        self.pyramid = FeaturePyramid(levels, channels=channels, extra="convolutions")
        self.multiple, self.used = self.pyramid.multiple, self.pyramid.used
        strides = self.pyramid.strides
        self.anchors = GridAnchors(strides, [(stride,) for stride in strides], (1.0,), rounded=False)
        self.branches = FCOSHead(channels, 1, num_classes, convolutions)
        nn.init.constant_(self.branches.regression_head.bbox_reg.bias, 2.0)  # in strides: a ReLU that begins at 0 dies
        self.coder = BoxLinearCoder(normalize_by_size=True)

    def losses(self, features: Features, frame: Frame, objects: Sequence[Objects]) -> dict[str, Tensor]:
        """Compute the three losses, each a sum over cells divided by the number of cells that learn an object."""
        logits, boxes, centers, anchors = self._predict(features, frame)
        with torch.no_grad():
            positive, labels, targets = (
                torch.stack(values) for values in zip(*(self._assign(anchors, one) for one in objects), strict=True)
            )
            places = torch.cat(anchors)
            distances = self.coder.encode(places.expand_as(targets), targets)
            count = mean_over_processes(positive.sum()).clamp_min(1)
        weights = positive.float()
        classification = focal(logits, one_hot(labels, positive, logits.shape[-1]), self.class_weights).sum()
        box = (weights * generalized_iou_loss(boxes, targets)).sum()
        center = binary_cross_entropy(centers, centerness(distances), weights)
        return {"classification": classification / count, "box": box / count, "centerness": center / count}

    def detect(self, features: Features, frame: Frame) -> list[Detections]:
        """Find the objects of each image."""
        logits, boxes, centers, anchors = self._predict(features, frame)
        scores = (logits.sigmoid() * centers.sigmoid()[..., None]).sqrt()
        return self.selection(scores, boxes, [len(places) for places in anchors], frame.sizes)

    def _predict(self, features: Features, frame: Frame) -> _Outputs:
        maps = self.pyramid(features.maps, frame.canvas)
        outputs = {name: values.float() for name, values in self.branches(maps).items()}
        anchors = self.anchors.per_level(maps)
        distances = outputs["bbox_regression"]
        boxes: Tensor = self.coder.decode(distances, torch.cat(anchors).expand_as(distances))
        return _Outputs(outputs["cls_logits"], boxes, outputs["bbox_ctrness"].squeeze(-1), anchors)

    def _assign(self, anchors: Sequence[Tensor], objects: Objects) -> tuple[Tensor, Tensor, Tensor]:
        """Choose what each cell learns: of the objects that it may learn, the smallest (paper, section 3.2).

        A cell may learn an object that holds its point, whose middle is near to it, and whose farthest edge is as far
        as the cell's map is for.

        Returns:
            Whether a cell learns one, bool (N,), its class, long (N,), and its box, float (N, 4).
        """
        places = torch.cat(list(anchors))
        if not len(objects.boxes):
            return places.new_zeros(len(places), dtype=torch.bool), places.new_zeros(len(places)).long(), places
        boxes = objects.boxes.float()
        allowed = self._allowed(places, boxes, [len(part) for part in anchors])
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        smallest, index = torch.where(allowed, areas, torch.inf).min(dim=1)
        return smallest < torch.inf, objects.labels[index], boxes[index]

    def _allowed(self, places: Tensor, boxes: Tensor, counts: Sequence[int]) -> Tensor:
        """Return which cell may learn which object, bool (N, M)."""
        size = (places[:, 2] - places[:, 0])[:, None]
        x, y = ((places[:, side] + places[:, side + 2])[:, None] / 2 for side in (0, 1))
        left, top, right, bottom = x - boxes[:, 0], y - boxes[:, 1], boxes[:, 2] - x, boxes[:, 3] - y
        nearest = torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom))
        farthest = torch.maximum(torch.maximum(left, right), torch.maximum(top, bottom))
        off_center = torch.maximum((left - right).abs(), (top - bottom).abs()) / 2
        low, high = 4 * size, 8 * size
        low[: counts[0]] = 0
        high[-counts[-1] :] = torch.inf
        return (nearest > 0) & (off_center < self.radius * size) & (farthest > low) & (farthest < high)
