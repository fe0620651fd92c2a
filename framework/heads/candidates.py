"""From scores and boxes at every place of a pyramid to the detections of each image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from framework.boxes import Detections, Size, best_detections
from framework.errors import ConfigError
from framework.heads.dense import require_fraction, require_positive


@dataclass(frozen=True)
class Selection:
    """Keep the best candidates of each map, then those that no better one of their class overlaps.

    Args:
        score_threshold: Candidates whose score is not above it are dropped, in [0, 1).
        nms_iou: Two boxes of one class that overlap by more than this are one object, in (0, 1].
        topk_candidates: How many candidates of each map are looked at.
        max_detections: How many detections of an image are kept.

    Raises:
        ConfigError: An option is out of range.
    """

    score_threshold: float
    nms_iou: float
    topk_candidates: int
    max_detections: int

    def __post_init__(self) -> None:
        require_fraction(score_threshold=self.score_threshold)
        require_positive(topk_candidates=self.topk_candidates, max_detections=self.max_detections)
        if not 0 < self.nms_iou <= 1:
            raise ConfigError(f"nms_iou must be above 0 and at most 1, got {self.nms_iou}")

    def __call__(self, scores: Tensor, boxes: Tensor, places: Sequence[int], sizes: Sequence[Size]) -> list[Detections]:
        """Return the detections of each image.

        Args:
            scores: Float (B, N, C), in [0, 1].
            boxes: Float (B, N, 4), x1, y1, x2, y2 in pixels.
            places: How many of the N belong to each map.
            sizes: Of each image.
        """
        start, best = 0, []
        for part in torch.split(scores, list(places), dim=1):
            best.append(self._best_of_map(part, start))
            start += part.shape[1]
        values, rows, labels = (torch.cat(parts, dim=1) for parts in zip(*best, strict=True))
        boxes = boxes.gather(1, rows[..., None].expand(-1, -1, 4))
        kept = values > self.score_threshold
        return [
            best_detections(box[mask], value[mask], label[mask], size, self.nms_iou, self.max_detections)
            for box, value, label, mask, size in zip(boxes, values, labels, kept, sizes, strict=True)
        ]

    def _best_of_map(self, scores: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best scores (B, K) of a map's (B, N, C), their places counted from `start`, and their classes."""
        flat = scores.flatten(1)
        values, indices = flat.topk(min(self.topk_candidates, flat.shape[1]))
        return values, start + indices // scores.shape[2], indices % scores.shape[2]
