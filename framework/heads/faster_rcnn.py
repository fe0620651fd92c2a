"""Faster R-CNN: a network proposes regions, and a second one says what each holds, and where its box really is."""

from collections.abc import Sequence
from math import log2
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

from framework.backbone import Features, Level
from framework.boxes import Detections, Frame, Objects
from framework.errors import ConfigError
from framework.heads.anchors import GridAnchors, check_anchors
from framework.heads.dense import require_fraction, require_positive
from framework.heads.detection import DetectionHead, class_weight_tensor
from framework.losses.detection import fast_rcnn_losses
from framework.necks import FeaturePyramid

POOLED = 7  # cells of a pooled region, in height and width


class FasterRCNN(DetectionHead):
    """Two-stage detection on a feature pyramid. Ren et al., arXiv 1506.01497; Lin et al., arXiv 1612.03144.

    The modules are torchvision's, and so are losses and detections. Maps have strides 4 to 64, or what is nearest to
    them; regions are pooled from all but the last.

    Args:
        channels: Width of the pyramid.
        anchor_sizes: Square root of the area of the anchors of each of the five maps, in pixels; null: eight
            strides.
        aspect_ratios: Height over width of the anchors.
        train_proposals: How many proposals are kept in training: of each map before suppression, of each image after.
        proposals: The same where objects are looked for.
        box_batch_size: How many regions of each image the second stage learns from, objects and background.
        representation_size: Width of the two layers of the second stage.
        score_threshold: Detections whose score is not above it are dropped, in [0, 1).
        nms_iou: Two boxes of one class that overlap by more than this are one object, in (0, 1].
        max_detections: How many detections of an image are kept.
        class_weights: What regions of each class count in the cross entropy, above 0, background 1; null: 1.

    Raises:
        ConfigError: An option is out of range.
    """

    loss_names = ("objectness", "proposal_box", "classification", "box")
    trial: ClassVar[dict[str, Any]] = {
        "channels": 32,
        "representation_size": 64,
        "box_batch_size": 32,
        "train_proposals": (200, 100),
        "proposals": (200, 100),
    }
    class_weights: Tensor | None

    def __init__(
        self,
        levels: tuple[Level, ...],
        prefix_tokens: int,
        num_classes: int,
        *,
        channels: int = 256,
        anchor_sizes: list[float] | None = None,
        aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        train_proposals: tuple[int, int] = (2000, 2000),
        proposals: tuple[int, int] = (1000, 1000),
        box_batch_size: int = 512,
        representation_size: int = 1024,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
        max_detections: int = 100,
        class_weights: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.nms_iou = nms_iou
        require_positive(channels=channels, train_proposals=min(train_proposals), proposals=min(proposals))
        require_positive(box_batch_size=box_batch_size, representation_size=representation_size)
        require_positive(max_detections=max_detections)
        require_fraction(score_threshold=score_threshold)
        if not 0 < nms_iou <= 1:
            raise ConfigError(f"nms_iou must be above 0 and at most 1, got {nms_iou}")
        weights = class_weight_tensor(class_weights, num_classes)
        weights = None if weights is None else torch.cat([torch.ones(1), weights])
        self.register_buffer("class_weights", weights, persistent=False)
        self.pyramid = FeaturePyramid(levels, (4, 8, 16, 32), channels, "pool")
        self.multiple, self.used = self.pyramid.multiple, self.pyramid.used
        anchors = _anchors(self.pyramid.strides, anchor_sizes, aspect_ratios)
        self.rpn = _proposal_network(channels, anchors, train_proposals, proposals)
        self.roi_heads = RoIHeads(
            RegionPooling(self.pyramid.strides[:-1]),
            TwoMLPHead(channels * POOLED**2, representation_size),
            FastRCNNPredictor(representation_size, 1 + num_classes),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=box_batch_size,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=score_threshold,
            nms_thresh=nms_iou,
            detections_per_img=max_detections,
        )

    def losses(self, features: Features, frame: Frame, objects: Sequence[Objects]) -> dict[str, Tensor]:
        """Compute the two losses of each stage; which anchors and regions are learned from is drawn at random."""
        targets = [{"boxes": one.boxes.float(), "labels": 1 + one.labels} for one in objects]  # 0 is the background
        maps = self.pyramid(features.maps, frame.canvas)
        regions, terms = self._propose(maps, frame, targets)
        regions, _, labels, offsets = self.roi_heads.select_training_samples(regions, targets)
        logits, found = self._look_at(maps, regions)
        classification, box = fast_rcnn_losses(logits, found, torch.cat(labels), torch.cat(offsets), self.class_weights)
        proposal = {"objectness": terms["loss_objectness"], "proposal_box": terms["loss_rpn_box_reg"]}
        return {**proposal, "classification": classification, "box": box}

    def detect(self, features: Features, frame: Frame) -> list[Detections]:
        """Find the objects of each image."""
        maps = self.pyramid(features.maps, frame.canvas)
        regions, _ = self._propose(maps, frame)
        found = self.roi_heads.postprocess_detections(*self._look_at(maps, regions), regions, list(frame.sizes))
        return [Detections(boxes, scores, labels - 1) for boxes, scores, labels in zip(*found, strict=True)]

    def _propose(
        self, maps: list[Tensor], frame: Frame, targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the regions (N, 4) of each image, x1, y1, x2, y2 in pixels, and for given targets the losses."""
        images = ImageList(maps[0], list(frame.sizes))  # only the sizes are read
        regions, terms = self.rpn(images, {str(index): x for index, x in enumerate(maps)}, targets)
        return regions, terms

    def _look_at(self, maps: list[Tensor], regions: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return class logits (N, 1 + C) and box offsets (N, 4 * (1 + C)) of the regions of all images, in float32."""
        pooled = self.roi_heads.box_roi_pool(maps, regions)
        logits, offsets = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        return logits.float(), offsets.float()


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's region proposal network, which is told by its targets whether to learn, not by its mode."""

    training: bool

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return proposals (N, 4) for each image, x1, y1, x2, y2 in pixels, and for given targets the losses."""
        mode = self.training
        try:
            self.training = targets is not None
            out: tuple[list[Tensor], dict[str, Tensor]] = super().forward(images, features, targets)
            return out
        finally:
            self.training = mode


class ProposalHead(RPNHead):
    """torchvision's, whose boxes are decoded in the type of what it returns: 16 bits are off by pixels."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return for each map, in float32, objectness (B, A, h, w) and box offsets (B, 4 * A, h, w)."""
        objectness, offsets = super().forward(x)
        return [part.float() for part in objectness], [part.float() for part in offsets]


class RegionPooling(nn.Module):
    """Pool each region from the map that suits its size: torchvision's, with strides that are known, not guessed.

    He et al., arXiv 1703.06870, section 3 (RoIAlign); Lin et al., arXiv 1612.03144, equation 1, which map.

    Args:
        strides: Pixels per cell of each map, fine to coarse.
    """

    def __init__(self, strides: Sequence[float]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.choose = LevelMapper(round(log2(strides[0])), round(log2(strides[-1])))

    def forward(self, maps: Sequence[Tensor], regions: list[Tensor]) -> Tensor:
        """Return (N, C, 7, 7) of all regions, image by image.

        Args:
            maps: For each stride (B, C, h, w); further ones are not read.
            regions: For each image float (n, 4), x1, y1, x2, y2 in pixels.
        """
        rows = [boxes.new_full((len(boxes), 1), row) for row, boxes in enumerate(regions)]
        located = torch.cat([torch.cat(rows), torch.cat(regions)], dim=1)
        chosen = self.choose(regions)
        members = [(chosen == level).nonzero().squeeze(1) for level in range(len(self.strides))]
        pooled = [
            roi_align(x.float(), located[here], POOLED, 1 / stride, sampling_ratio=2)
            for x, stride, here in zip(maps, self.strides, members, strict=False)
        ]
        return torch.cat(pooled).index_select(0, torch.cat(members).argsort()).to(maps[0].dtype)


def _anchors(strides: Sequence[float], sizes: Sequence[float] | None, aspect_ratios: Sequence[float]) -> GridAnchors:
    """Build the anchors: one size on each map.

    Raises:
        ConfigError: There is not one size for each map, or a size or ratio is not above 0.
    """
    sizes = [8 * stride for stride in strides] if sizes is None else sizes
    check_anchors(len(strides), sizes, aspect_ratios)
    return GridAnchors(strides, [(size,) for size in sizes], aspect_ratios)


def _proposal_network(
    channels: int, anchors: GridAnchors, train_proposals: tuple[int, int], proposals: tuple[int, int]
) -> ProposalNetwork:
    """Build the first stage, with torchvision's thresholds."""
    counts: list[Any] = [
        {"training": train, "testing": test} for train, test in zip(train_proposals, proposals, strict=True)
    ]
    return ProposalNetwork(
        anchors,
        ProposalHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=counts[0],
        post_nms_top_n=counts[1],
        nms_thresh=0.7,
    )
