"""RetinaNet: every cell has nine anchors, and tells of each whether it holds an object, and where its box really is."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import Conv2dNormActivation, box_iou

from framework.backbone import Features, Level
from framework.boxes import Detections, Frame, Objects
from framework.heads.anchors import GridAnchors, check_anchors
from framework.heads.candidates import Selection
from framework.heads.dense import require_positive
from framework.heads.detection import DetectionHead, class_weight_tensor
from framework.losses.detection import focal, one_hot
from framework.necks import FeaturePyramid

CHUNK = 1 << 14  # anchors whose overlap with all objects is computed at once: it takes many times the memory it fills


class _Outputs(NamedTuple):
    """What is predicted for the anchors of all maps, fine to coarse, in float32.

    Args:
        logits: (B, N, num_classes).
        offsets: (B, N, 4), of box centres and log sizes, relative to the anchors.
        anchors: For each map (h * w * sizes * ratios, 4), x1, y1, x2, y2 in pixels.
    """

    logits: Tensor
    offsets: Tensor
    anchors: list[Tensor]


class RetinaNet(DetectionHead):
    """One-stage detection with anchors and the focal loss, on five maps. Lin et al., arXiv 1708.02002.

    The modules are torchvision's, and so are losses and detections. Maps have strides 8 to 128, or what is nearest.

    Args:
        channels: Width of the pyramid and of the convolutions on it.
        convolutions: How many convolutions precede the outputs, in each of two branches.
        anchor_sizes: Square root of the area of the smallest anchors of each of the five maps, in pixels; there are
            also anchors 2^(1/3) and 2^(2/3) times as large. null: four strides.
        aspect_ratios: Height over width of the anchors.
        score_threshold: Candidates whose score is not above it are dropped, in [0, 1).
        nms_iou: Two boxes of one class that overlap by more than this are one object, in (0, 1].
        topk_candidates: How many candidates of each map are looked at.
        max_detections: How many detections of an image are kept.
        class_weights: What the focal loss of each class counts, above 0; null: 1.

    Raises:
        ConfigError: An option is out of range.
    """

    loss_names = ("classification", "box")
    trial: ClassVar[dict[str, Any]] = {"channels": 32, "convolutions": 1}
    class_weights: Tensor | None

    def __init__(
        self,
        levels: tuple[Level, ...],
        prefix_tokens: int,
        num_classes: int,
        *,
        channels: int = 256,
        convolutions: int = 4,
        anchor_sizes: list[float] | None = None,
        aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
        topk_candidates: int = 1000,
        max_detections: int = 100,
        class_weights: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.nms_iou = nms_iou
        require_positive(channels=channels, convolutions=convolutions)
        self.selection = Selection(score_threshold, nms_iou, topk_candidates, max_detections)
        self.register_buffer("class_weights", class_weight_tensor(class_weights, num_classes), persistent=False)
        self.pyramid = FeaturePyramid(levels, channels=channels, extra="convolutions")
        self.multiple, self.used = self.pyramid.multiple, self.pyramid.used
        self.anchors = _anchors(self.pyramid.strides, anchor_sizes, aspect_ratios)
        self.branches = RetinaNetHead(channels, self.anchors.num_anchors_per_location()[0], num_classes)
        for branch in (self.branches.classification_head, self.branches.regression_head):
            branch.conv = _tower(channels, convolutions)
        self.matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

    def losses(self, features: Features, frame: Frame, objects: Sequence[Objects]) -> dict[str, Tensor]:
        """Compute the two losses: of each image a sum divided by the number of anchors on objects, then the mean."""
        logits, offsets, per_level = self._predict(features, frame)
        anchors = torch.cat(per_level)
        with torch.no_grad():
            matched = torch.stack([self._match(anchors, one.boxes) for one in objects])
            positive, counted = matched >= 0, matched != Matcher.BETWEEN_THRESHOLDS
            labels = torch.stack([_take(one.labels, index) for one, index in zip(objects, matched, strict=True)])
            boxes = torch.stack([_take(one.boxes, index) for one, index in zip(objects, matched, strict=True)])
            boxes = torch.where(positive[..., None], boxes.float(), anchors)
            targets = self.coder.encode_single(boxes.flatten(0, 1), anchors.repeat(len(boxes), 1)).view_as(offsets)
            count = positive.sum(dim=1).clamp_min(1)
        terms = focal(logits, one_hot(labels, positive, logits.shape[-1]), self.class_weights)
        errors = F.l1_loss(offsets, targets, reduction="none").sum(-1)
        return {
            "classification": ((counted * terms).sum(dim=1) / count).mean(),
            "box": ((positive * errors).sum(dim=1) / count).mean(),
        }

    def detect(self, features: Features, frame: Frame) -> list[Detections]:
        """Find the objects of each image."""
        logits, offsets, anchors = self._predict(features, frame)
        everywhere = torch.cat(anchors).repeat(len(offsets), 1)
        boxes = self.coder.decode_single(offsets.flatten(0, 1), everywhere).view_as(offsets)
        return self.selection(logits.sigmoid(), boxes, [len(places) for places in anchors], frame.sizes)

    def _predict(self, features: Features, frame: Frame) -> _Outputs:
        maps = self.pyramid(features.maps, frame.canvas)
        outputs = self.branches(maps)
        return _Outputs(outputs["cls_logits"].float(), outputs["bbox_regression"].float(), self.anchors.per_level(maps))

    def _match(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Return the object of each anchor, long (N,): the one that it overlaps most, -1 for none, -2 if in doubt.

        In doubt is an IoU from 0.4 to 0.5; the anchors that overlap an object most are not, however little that is.
        """
        if not len(boxes):
            return torch.full((len(anchors),), Matcher.BELOW_LOW_THRESHOLD, device=anchors.device)
        overlap = anchors.new_empty(len(boxes), len(anchors))
        for part, some in zip(torch.split(overlap, CHUNK, dim=1), torch.split(anchors, CHUNK), strict=True):
            part.copy_(box_iou(boxes.float(), some))
        matched: Tensor = self.matcher(overlap)
        return matched


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Return values[index], and something where there are no values or the index is negative."""
    return values[index.clamp_min(0)] if len(values) else values.new_zeros(len(index), *values.shape[1:])


def _anchors(strides: Sequence[float], sizes: Sequence[float] | None, aspect_ratios: Sequence[float]) -> GridAnchors:
    """Build the anchors: three sizes in each octave, whole as torchvision's are.

    Raises:
        ConfigError: There is not one size for each map, or a size or ratio is not above 0.
    """
    smallest = [4 * stride for stride in strides] if sizes is None else sizes
    check_anchors(len(strides), smallest, aspect_ratios)
    octave = [(size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))) for size in smallest]
    return GridAnchors(strides, octave, aspect_ratios)


def _tower(channels: int, convolutions: int) -> nn.Sequential:
    """Build the convolutions before an output, initialised as in the paper (section 4.1)."""
    layers = [Conv2dNormActivation(channels, channels, norm_layer=None) for _ in range(convolutions)]
    for layer in layers:
        nn.init.normal_(layer[0].weight, std=0.01)
        nn.init.zeros_(layer[0].bias)
    return nn.Sequential(*layers)
