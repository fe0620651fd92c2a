"""NewPlugin: a detection head that asks every cell of three maps, to be replaced by yours."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.backbone import Features, Level
from framework.boxes import Detections, Frame, Objects
from framework.heads.candidates import Selection
from framework.heads.detection import DetectionHead
from framework.losses.detection import focal, generalized_iou_loss, one_hot
from framework.necks import FeaturePyramid


class Cells(NamedTuple):
    """What is predicted at the N cells of all maps.

    Args:
        logits: Float (B, N, num_classes).
        boxes: Float (B, N, 4), x1, y1, x2, y2 in pixels.
        centers: Float (N, 2), x and y of each cell in pixels.
        maps: Long (N,), which map each cell belongs to.
    """

    logits: Tensor
    boxes: Tensor
    centers: Tensor
    maps: Tensor


class NewPlugin(DetectionHead):
    """Every cell near the middle of an object tells its class and how far its edges are; larger ones on coarser maps.

    The first three arguments come from the backbone and the task; what follows can be set in an experiment.

    Args:
        levels: What the backbone returns, fine to coarse.
        prefix_tokens: Tokens that the backbone returns beside each map; 0 for a CNN.
        num_classes: Number of classes, without a background.
        channels: Width of the maps.
        score_threshold: Candidates whose score is not above it are dropped.
        nms_iou: Two boxes of one class that overlap by more than this are one object.
        max_detections: How many detections of an image are kept.
    """

    loss_names = ("classification", "box")  # what `losses` returns

    def __init__(
        self,
        levels: tuple[Level, ...],
        prefix_tokens: int,
        num_classes: int,
        *,
        channels: int = 64,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.pyramid = FeaturePyramid(levels, (8, 16, 32), channels)  # from any levels to three maps of one width
        self.used = self.pyramid.used  # which levels are read
        self.multiple = self.pyramid.multiple  # what the canvas must be divisible by
        self.mix = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        self.classify = nn.Conv2d(channels, num_classes, 1)
        self.edges = nn.Conv2d(channels, 4, 1)
        nn.init.constant_(self.classify.bias, -4.6)  # type: ignore[arg-type]  # 0.01: most cells hold no object
        self.selection = Selection(score_threshold, nms_iou, 1000, max_detections)

    def losses(self, features: Features, frame: Frame, objects: Sequence[Objects]) -> dict[str, Tensor]:
        """Compute the terms of the loss, scalars."""
        cells = self.predict(features, frame)
        assigned = [self.assign(cells, one) for one in objects]
        positive, labels, boxes = (torch.stack(values) for values in zip(*assigned, strict=True))
        count = positive.sum().clamp_min(1)
        classes = focal(cells.logits, one_hot(labels, positive, cells.logits.shape[-1]))
        return {
            "classification": classes.sum() / count,
            "box": (positive * generalized_iou_loss(cells.boxes, boxes)).sum() / count,
        }

    def detect(self, features: Features, frame: Frame) -> list[Detections]:
        """Find the objects of each image."""
        cells = self.predict(features, frame)
        places = [int((cells.maps == index).sum()) for index in range(3)]
        return self.selection(cells.logits.sigmoid(), cells.boxes, places, frame.sizes)

    def predict(self, features: Features, frame: Frame) -> Cells:
        """Compute the outputs of all cells."""
        parts = []
        for index, x in enumerate(self.pyramid(features.maps, frame.canvas)):
            stride, mixed = self.pyramid.strides[index], self.mix(x)
            rows, columns = ((torch.arange(side, device=x.device) + 0.5) * stride for side in x.shape[-2:])
            centers = torch.cartesian_prod(rows, columns).flip(-1)
            reach = 4 * stride * F.softplus(self.edges(mixed).float()).flatten(2).mT
            boxes = torch.cat([centers - reach[..., :2], centers + reach[..., 2:]], dim=-1)
            maps = torch.full((len(centers),), index, device=x.device)
            parts.append(Cells(self.classify(mixed).float().flatten(2).mT, boxes, centers, maps))
        logits, all_boxes, all_centers, all_maps = zip(*parts, strict=True)
        return Cells(torch.cat(logits, 1), torch.cat(all_boxes, 1), torch.cat(all_centers), torch.cat(all_maps))

    def assign(self, cells: Cells, objects: Objects) -> tuple[Tensor, Tensor, Tensor]:
        """Return whether each cell learns an object of an image, bool (N,), its class, (N,), and its box, (N, 4)."""
        if not len(objects.boxes):
            nothing = torch.zeros_like(cells.maps)
            return nothing.bool(), nothing, cells.boxes.new_ones(len(nothing), 4)
        strides = cells.boxes.new_tensor(self.pyramid.strides)
        boxes = objects.boxes.float()
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        suited = (areas.sqrt() / (4 * strides[0])).log2().round().clamp(0, 2)  # the map for objects of this size
        off = (cells.centers[:, None] - (boxes[:, :2] + boxes[:, 2:]) / 2).abs().amax(-1)
        allowed = (cells.maps[:, None] == suited) & (off < strides[cells.maps][:, None])
        smallest, index = torch.where(allowed, areas, torch.inf).min(1)
        return smallest < torch.inf, objects.labels[index], boxes[index]
