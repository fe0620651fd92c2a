"""How often each of several classifiers of the same images is right."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

TOP = 5


class RivalAccuracy(Metric):
    """The shares of images that each of several classifiers gets right, over batches and processes.

    `accuracy/NAME` is that of the classifier NAME, and `top5/NAME` the share of images whose class is among its best
    five, if there are more classes than that; a class of score 0 or less, which nobody voted for, is never among them
    where scores are `votes`. All in [0, 1].

    Args:
        names: What the classifiers are called.
        num_classes: Number of classes.
        votes: Whether scores are votes rather than logits: then 0 is none.
    """

    full_state_update = False

    hits: Tensor
    images: Tensor

    def __init__(self, names: Sequence[str], num_classes: int, votes: bool = False) -> None:
        super().__init__()
        self.rivals, self.top, self.votes = list(names), min(TOP, num_classes), votes
        self.kinds = ["accuracy", f"top{TOP}"] if num_classes > TOP else ["accuracy"]
        self.add_state("hits", torch.zeros(2, len(self.rivals), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, label: Tensor) -> None:
        """Count images, or none: scores (B, classifiers, classes) and classes (B,), long."""
        best = scores.topk(self.top, dim=2)
        right = best.indices == label[:, None, None]
        if self.votes:
            right &= best.values > 0
        self.hits += torch.stack([right[..., 0].sum(0), right.any(2).sum(0)])
        self.images += len(label)

    def compute(self) -> Tensor:
        """Return the shares (2, classifiers), float64: right at once, and among the best five; NaN without images."""
        return self.hits / self.images

    def named(self, shares: Tensor) -> dict[str, Tensor]:
        """Name what `compute` returned."""
        return dict(zip(self.names(), shares[: len(self.kinds)].flatten().unbind(), strict=True))

    def names(self) -> list[str]:
        """Return the names of all shares."""
        return [f"{kind}/{name}" for kind in self.kinds for name in self.rivals]
