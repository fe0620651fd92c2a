"""Detection losses: pure functions of what was predicted at every place, and of what should have been.

Nothing waits for the device: places that do not count are given the weight 0 instead of being left out. 16-bit values
are computed with in 32 bits.
"""

from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import all_reduce, get_world_size, is_available, is_initialized


def mean_over_processes(count: Tensor) -> Tensor:
    """Return the mean of a count over all processes, so that several share one normaliser; a float scalar.

    Then the loss of two processes is that of one with the images of both.
    """
    count = count.detach().float()
    if is_available() and is_initialized() and get_world_size() > 1:
        all_reduce(count)
        count = count / get_world_size()
    return count


def one_hot(labels: Tensor, positive: Tensor, num_classes: int) -> Tensor:
    """Return float (..., num_classes): 1 at the label of each positive place, 0 everywhere else.

    Args:
        labels: Long (...), class indices where positive, anything in [0, num_classes) elsewhere.
        positive: Bool (...).
        num_classes: C.
    """
    zeros = torch.zeros(*labels.shape, num_classes, device=labels.device)
    return zeros.scatter_(-1, labels[..., None], positive[..., None].float())


def focal(
    logits: Tensor, targets: Tensor, class_weights: Tensor | None = None, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Compute the focal loss of every place, summed over its classes, each of which counts by its weight; (...).

    Lin et al., arXiv 1708.02002, equation 5: -alpha_t (1 - p_t)^gamma log p_t for every class by itself.

    Args:
        logits: Float (..., C), unbounded.
        targets: Float (..., C), 1 where there is an object of the class, 0 elsewhere.
        class_weights: Float (C,), above 0.
        alpha: What a 1 counts, in [0, 1]; a 0 counts 1 - alpha.
        gamma: How strongly easy places are played down, at least 0.
    """
    wrong = logits.float() * (1 - 2 * targets)  # the logit of the wrong answer: its probability is 1 - p_t
    losses = torch.where(targets > 0, alpha, 1 - alpha) * wrong.sigmoid() ** gamma * F.softplus(wrong)
    return (losses if class_weights is None else losses * class_weights).sum(-1)


def generalized_iou_loss(boxes: Tensor, targets: Tensor, epsilon: float = 1e-7) -> Tensor:
    """Compute 1 - GIoU of each pair of boxes; (...), in [0, 2].

    Rezatofighi et al., arXiv 1902.09630, algorithm 1: GIoU is IoU less the share of the smallest enclosing box that
    neither box covers.

    Args:
        boxes: Float (..., 4), x1, y1, x2, y2; x1 <= x2 and y1 <= y2.
        targets: Float (..., 4), likewise.
        epsilon: Keeps divisions finite for boxes of no area, in square pixels.
    """
    boxes, targets = boxes.float(), targets.float()
    overlap = _area(torch.maximum(boxes[..., :2], targets[..., :2]), torch.minimum(boxes[..., 2:], targets[..., 2:]))
    union = _area(boxes[..., :2], boxes[..., 2:]) + _area(targets[..., :2], targets[..., 2:]) - overlap
    around = _area(torch.minimum(boxes[..., :2], targets[..., :2]), torch.maximum(boxes[..., 2:], targets[..., 2:]))
    return 1 - overlap / (union + epsilon) + (around - union) / (around + epsilon)


def centerness(distances: Tensor) -> Tensor:
    """Compute how near a place is to the middle of its box: 1 there, 0 at the edge; (...).

    Tian et al., arXiv 1904.01355, equation 3; 0 outside the box.

    Args:
        distances: Float (..., 4), to the left, upper, right and lower edge, in any unit; negative outside.
    """
    one, other = distances[..., :2], distances[..., 2:]  # left and upper, right and lower
    tiny = torch.finfo(distances.dtype).tiny
    shares = torch.minimum(one, other).clamp_min(0) / torch.maximum(one, other).clamp_min(tiny)
    return (shares[..., 0] * shares[..., 1]).sqrt()


def binary_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum the cross entropy of every place by itself, each times its weight; a scalar.

    Args:
        logits: Float (...), unbounded.
        targets: Float (...), in [0, 1].
        weights: Float (...).
    """
    return F.binary_cross_entropy_with_logits(logits.float(), targets, weights, reduction="sum")


def complete_iou(boxes: Tensor, targets: Tensor, epsilon: float = 1e-7) -> tuple[Tensor, Tensor]:
    """Compute IoU, in [0, 1], and complete IoU, in (-2, 1], of each pair of boxes; both (...).

    Zheng et al., arXiv 1911.08287, equations 10 and 11: IoU, less the squared distance of the centres over that of the
    smallest enclosing box's corners, less what the aspect ratios differ by.

    Args:
        boxes: Float (..., 4), centre x and y, width and height, in any unit; sides may be 0.
        targets: Float (..., 4), likewise; sides are above 0.
        epsilon: Keeps divisions finite for boxes of no area, in square units.
    """
    boxes, targets = boxes.float(), targets.float()
    centers, sizes = boxes[..., :2], boxes[..., 2:]
    true_centers, true_sizes = targets[..., :2], targets[..., 2:]
    low, high = centers - sizes / 2, centers + sizes / 2
    true_low, true_high = true_centers - true_sizes / 2, true_centers + true_sizes / 2
    overlap = _area(torch.maximum(low, true_low), torch.minimum(high, true_high))
    iou = overlap / (sizes.prod(-1) + true_sizes.prod(-1) - overlap + epsilon)
    diagonal = (torch.maximum(high, true_high) - torch.minimum(low, true_low)).square().sum(-1)
    distance = (centers - true_centers).square().sum(-1) / (diagonal + epsilon)
    aspect = 4 / pi**2 * (_angle(true_sizes) - _angle(sizes + epsilon)).square()
    alpha = (aspect / (1 - iou + aspect + epsilon)).detach()  # equation 11; no gradient, as its authors have it
    return iou, iou - distance - alpha * aspect


def fast_rcnn_losses(
    logits: Tensor, offsets: Tensor, labels: Tensor, targets: Tensor, class_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the cross entropy and the box loss of Faster R-CNN's second stage; both scalars, 0 without any region.

    Ren et al., arXiv 1506.01497, equation 1, as torchvision has it: the smooth L1 loss (beta 1/9) of the offsets of
    regions that hold an object is summed, and divided by the number of all regions.

    Args:
        logits: Float (N, 1 + C), the background first.
        offsets: Float (N, 4 * (1 + C)), of the box of every class, the background's first.
        labels: Long (N,), 0 for background.
        targets: Float (N, 4), the right offsets; they only count where there is an object.
        class_weights: Float (1 + C,), above 0; the cross entropy is then a weighted mean.
    """
    logits, count = logits.float(), max(len(labels), 1)
    offsets = offsets.float().view(len(labels), logits.shape[1], 4)
    if class_weights is None:
        classification = F.cross_entropy(logits, labels, reduction="sum") / count
    else:
        total = F.cross_entropy(logits, labels, class_weights, reduction="sum")
        classification = total / class_weights[labels].sum().clamp_min(torch.finfo(total.dtype).tiny)
    chosen = offsets[torch.arange(len(labels), device=labels.device), labels]
    targets = torch.where(labels[:, None] > 0, targets, chosen.detach())  # where there is none they may be infinite
    box = F.smooth_l1_loss(chosen, targets, beta=1 / 9, reduction="sum") / count
    return classification, box


def _area(low: Tensor, high: Tensor) -> Tensor:
    """Return the areas (...) of boxes from corners (..., 2); 0 where a corner lies beyond the other."""
    width, height = (high - low).clamp_min(0).unbind(-1)
    return width * height


def _angle(sizes: Tensor) -> Tensor:
    """Return the angles (...) of the diagonals of boxes of sizes (..., 2), finite and with a finite slope at 0."""
    width, height = sizes.unbind(-1)
    return torch.atan2(width, height)
