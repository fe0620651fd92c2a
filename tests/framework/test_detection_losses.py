import pytest
import torch
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from framework.losses.detection import binary_cross_entropy, centerness, focal, generalized_iou_loss, one_hot


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def boxes_of(count, seed):
    low = rand(count, 2, seed=seed) * 50
    return torch.cat([low, low + rand(count, 2, seed=seed + 1) * 50], dim=1)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.9, 3.5)])
def test_focal_loss_is_torchvisions(alpha, gamma):
    logits = ((rand(3, 40, 5) - 0.5) * 30).requires_grad_()
    targets = (rand(3, 40, 5, seed=1) > 0.7).float()
    ours, theirs = focal(logits, targets, None, alpha, gamma), sigmoid_focal_loss(logits, targets, alpha, gamma)
    torch.testing.assert_close(ours, theirs.sum(-1))
    weights = rand(3, 40, seed=2)
    one, other = (torch.autograd.grad((weights * x).sum(), logits)[0] for x in (ours, theirs.sum(-1)))
    torch.testing.assert_close(one, other)


def test_focal_loss_weighs_classes():
    logits, targets = (rand(7, 3) - 0.5) * 8, (rand(7, 3, seed=1) > 0.5).float()
    weights = torch.tensor([0.5, 1.0, 3.0])
    wanted = (sigmoid_focal_loss(logits, targets) * weights).sum(-1)
    torch.testing.assert_close(focal(logits, targets, weights), wanted)


def test_focal_loss_of_extreme_and_of_16_bit_logits_is_finite():
    logits = torch.tensor([[-1e4, 1e4], [1e4, -1e4]], requires_grad=True)
    loss = focal(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    torch.testing.assert_close(loss, torch.tensor([0.25e4 + 0.75e4, 0.0]))
    assert torch.autograd.grad(loss.sum(), logits)[0].isfinite().all()
    assert focal(logits.bfloat16(), torch.zeros(2, 2)).dtype == torch.float32


def test_giou_loss_is_torchvisions():
    boxes, targets = boxes_of(500, 0).requires_grad_(), boxes_of(500, 5)
    ours, theirs = generalized_iou_loss(boxes, targets), generalized_box_iou_loss(boxes, targets)
    torch.testing.assert_close(ours, theirs)
    one, other = (torch.autograd.grad(x.sum(), boxes)[0] for x in (ours, theirs))
    torch.testing.assert_close(one, other)


def test_giou_loss_of_boxes_without_area_is_finite():
    boxes = torch.tensor([[5.0, 5.0, 5.0, 5.0]], requires_grad=True)
    loss = generalized_iou_loss(boxes, boxes.detach())
    assert torch.autograd.grad(loss.sum(), boxes)[0].isfinite().all()
    assert loss.isfinite().all()


def test_centerness_is_that_of_the_paper():
    points = rand(200, 2, seed=7) * 100
    boxes = boxes_of(200, 3)
    wanted = []
    for (x, y), (x1, y1, x2, y2) in zip(points.tolist(), boxes.tolist(), strict=True):
        left, right, top, bottom = x - x1, x2 - x, y - y1, y2 - y
        inside = min(left, right, top, bottom) > 0
        ratio = min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
        wanted.append(ratio**0.5 if inside else 0.0)
    anchors = torch.cat([points - 4, points + 4], dim=1)
    distances = BoxLinearCoder(normalize_by_size=True).encode(anchors, boxes)
    assert 5 < sum(value > 0 for value in wanted) < 200
    torch.testing.assert_close(centerness(distances), torch.tensor(wanted), rtol=1e-4, atol=1e-5)


def test_one_hot_is_0_where_nothing_is():
    out = one_hot(torch.tensor([[2, 0, 1]]), torch.tensor([[True, False, True]]), 3)
    assert out.tolist() == [[[0, 0, 1], [0, 0, 0], [0, 1, 0]]]


def test_cross_entropy_counts_places_by_weight():
    logits, targets = torch.tensor([0.3, -2.0, 9.0]), torch.tensor([0.2, 1.0, 0.0])
    p = logits.sigmoid()
    each = -(targets * p.log() + (1 - targets) * (1 - p).log())
    weights = torch.tensor([1.0, 0.5, 0.0])
    torch.testing.assert_close(binary_cross_entropy(logits, targets, weights), (weights * each).sum())
