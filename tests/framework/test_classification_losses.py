"""Binary losses, and soft targets under every loss that takes them, against torch, torchvision and one-hot masks."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torchvision.ops import sigmoid_focal_loss

from framework.errors import ConfigError
from framework.losses.classification import BinaryCrossEntropy, BinaryFocal, binary_cross_entropy, binary_focal
from framework.losses.segmentation import CrossEntropy, Dice, Focal, Lovasz, WeightedSum

WEIGHTS = [0.5, 2.0, 0.0, 1.5]
SOFT = {
    "cross entropy": CrossEntropy(),
    "cross entropy, weighted and smoothed": CrossEntropy(WEIGHTS, label_smoothing=0.2),
    "focal": Focal(),
    "focal, flat and weighted": Focal(gamma=0.5, class_weights=WEIGHTS),
    "binary cross entropy": BinaryCrossEntropy(),
    "binary, weighted and smoothed": BinaryCrossEntropy(WEIGHTS, [3.0, 1.0, 2.0, 1.0], 0.1),
    "binary focal": BinaryFocal(),
    "binary focal, weighted": BinaryFocal(0.5, 0.25, WEIGHTS),
    "sum": WeightedSum([CrossEntropy(), Focal()], [1.0, 0.5]),
}
every_soft_loss = pytest.mark.parametrize("loss", SOFT.values(), ids=SOFT.keys())


def batch(dtype=torch.float64):
    logits = 3 * torch.randn(6, 4, 1, 1, dtype=torch.float64).to(dtype)
    return logits, torch.randint(4, (6, 1, 1)), torch.rand(6, 4, 1, 1, dtype=torch.float64)


@every_soft_loss
def test_shares_of_one_class_are_that_class(loss):
    logits, mask, _ = batch()
    shares = F.one_hot(mask, 4).permute(0, 3, 1, 2)
    assert loss.takes_shares
    for dtype in (torch.float64, torch.float32):
        assert_close(loss(logits, shares.to(dtype), -1), loss(logits, mask, -1))


@every_soft_loss
def test_16_bit_logits_are_computed_with_in_32(loss):
    logits, _, shares = batch(torch.bfloat16)
    value = loss(logits, shares.float(), -1)
    assert value.dtype == torch.float32
    assert_close(value, loss(logits.float(), shares.float(), -1))


def test_soft_cross_entropy_is_that_of_torch():
    logits, _, shares = batch()
    shares = shares / shares.sum(1, keepdim=True)
    expected = F.cross_entropy(logits[..., 0, 0], shares[..., 0, 0], label_smoothing=0.1)
    assert_close(CrossEntropy(label_smoothing=0.1)(logits, shares, -1), expected)


def test_a_mixed_image_has_the_mean_of_both_losses():
    logits, mask, _ = batch()
    other = mask.flip(0)
    one, two = (F.one_hot(ids, 4).permute(0, 3, 1, 2).double() for ids in (mask, other))
    for loss in (CrossEntropy(), Focal()):
        mixed = loss(logits, 0.3 * one + 0.7 * two, -1)
        assert_close(mixed, 0.3 * loss(logits, mask, -1) + 0.7 * loss(logits, other, -1))


def test_binary_cross_entropy_is_that_of_torch():
    logits, _, shares = batch()
    positive = torch.tensor([3.0, 1.0, 2.0, 1.0], dtype=torch.float64)
    flat = F.binary_cross_entropy_with_logits(logits[..., 0, 0], shares[..., 0, 0], pos_weight=positive)
    assert_close(binary_cross_entropy(logits, shares, -1, positive_weights=positive), flat)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    each = F.binary_cross_entropy_with_logits(logits[..., 0, 0], shares[..., 0, 0], reduction="none")
    assert_close(binary_cross_entropy(logits, shares, -1, weights), (each * weights).sum() / (6 * weights.sum()))


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.5), (3.5, 0.9)])
def test_binary_focal_is_that_of_torchvision(gamma, alpha):
    logits, _, shares = batch()
    several = shares.round()
    expected = sigmoid_focal_loss(logits, several, alpha, gamma, reduction="mean")
    assert_close(binary_focal(logits, several, -1, gamma, alpha), expected)
    flat = binary_focal(logits, several, -1, 0.0)
    assert_close(flat, binary_cross_entropy(logits, several, -1))


def test_what_a_loss_is_for():
    assert BinaryCrossEntropy().several_classes
    assert BinaryFocal().several_classes
    assert WeightedSum([BinaryCrossEntropy(), BinaryFocal()]).several_classes
    assert not WeightedSum([BinaryCrossEntropy(), CrossEntropy()]).several_classes
    assert not WeightedSum([CrossEntropy(), Dice()]).takes_shares
    assert not any(loss.takes_shares for loss in (Dice(), Lovasz()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BinaryCrossEntropy(label_smoothing=1.0), "label_smoothing must be at least 0 and less than 1"),
        (lambda: BinaryCrossEntropy(positive_weights=[1.0, -1.0]), r"positive_weights\[1\] must be at least 0"),
        (lambda: BinaryFocal(alpha=1.0), "alpha must be more than 0 and less than 1, got 1.0"),
        (lambda: BinaryFocal(gamma=-1.0), "gamma must be at least 0"),
        (lambda: BinaryCrossEntropy(positive_weights=[1.0, 2.0]).check(3), "2 positive_weights and the data has 3"),
    ],
)
def test_what_is_out_of_range_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
