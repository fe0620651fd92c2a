import math
from copy import deepcopy

import pytest
import segmentation_models_pytorch.losses as smp
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits

from framework.errors import ConfigError
from framework.losses.segmentation import (
    CrossEntropy,
    Dice,
    Focal,
    Lovasz,
    SegmentationLoss,
    WeightedSum,
    cross_entropy,
    dice,
    focal,
    lovasz,
)
from tests.reference import segmentation_losses as reference

IGNORE = 255
WEIGHTS = [0.5, 2.0, 0.0, 1.5]
LOSSES = {
    "cross entropy": CrossEntropy(),
    "cross entropy, weighted and smoothed": CrossEntropy(WEIGHTS, label_smoothing=0.2),
    "focal": Focal(),
    "focal, flat": Focal(gamma=0.5, class_weights=WEIGHTS),
    "dice": Dice(),
    "dice, all classes": Dice(classes="all"),
    "dice, smooth, all classes": Dice(smooth=1.0, classes="all"),
    "lovasz": Lovasz(),
    "lovasz, all classes": Lovasz(classes="all"),
    "lovasz per image": Lovasz(per_image=True),
    "sum": WeightedSum([CrossEntropy(), Dice(), Lovasz()], [1.0, 0.5, 2.0]),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def batch(seed=0, classes=4, ignored=0.3, absent=None, dtype=torch.float64):
    """Random logits and a mask, of which a share is ignored and one class may be absent."""
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, classes, 5, 4, generator=g, dtype=torch.float64).to(dtype)
    mask = torch.randint(classes, (2, 5, 4), generator=g)
    if absent is not None:
        mask[mask == absent] = (absent + 1) % classes
    mask[torch.rand(mask.shape, generator=g) < ignored] = IGNORE
    return logits, mask


CASES = {
    "dense": {"ignored": 0.0},
    "ignored": {"seed": 1},
    "class absent": {"seed": 2, "absent": 1},
    "binary": {"seed": 3, "classes": 2},
    "all but one pixel ignored": {"seed": 4, "ignored": 0.97},
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@every_case
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_the_reference_and_torchs(case, smoothing, weighted):
    logits, mask = batch(**case)
    weights = [0.5, 2.0, 0.75, 1.5][: logits.shape[1]] if weighted else None
    tensor = None if weights is None else torch.tensor(weights)
    value = cross_entropy(logits, mask, IGNORE, tensor, smoothing)
    wanted = reference.cross_entropy(logits.numpy(), mask.numpy(), IGNORE, weights, smoothing)
    torchs = F.cross_entropy(
        logits, mask, None if tensor is None else tensor.double(), ignore_index=IGNORE, label_smoothing=smoothing
    )
    assert value.item() == pytest.approx(wanted, rel=1e-9)
    assert value.item() == pytest.approx(torchs.item(), rel=1e-9)


@every_case
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 0.75, 1.5]], ids=["equal", "weighted"])
def test_focal_is_the_reference(case, gamma, weights):
    logits, mask = batch(**case)
    weights = None if weights is None else weights[: logits.shape[1]]
    value = focal(logits, mask, IGNORE, gamma, None if weights is None else torch.tensor(weights))
    assert value.item() == pytest.approx(
        reference.focal(logits.numpy(), mask.numpy(), IGNORE, gamma, weights), rel=1e-6
    )


def test_focal_is_smps_softmax_focal_and_cross_entropy_at_gamma_0():
    logits, mask = batch(ignored=0.0)
    theirs = softmax_focal_loss_with_logits(logits, mask, gamma=1.7)
    torch.testing.assert_close(focal(logits, mask, IGNORE, 1.7), theirs)
    weights = torch.tensor([0.5, 2.0, 0.75, 1.5])
    torch.testing.assert_close(focal(logits, mask, IGNORE, 0.0, weights), cross_entropy(logits, mask, IGNORE, weights))


@every_case
@pytest.mark.parametrize("classes", ["present", "all"])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_dice_is_the_reference(case, classes, smooth):
    logits, mask = batch(**case)
    wanted = reference.dice(logits.numpy(), mask.numpy(), IGNORE, smooth, classes)
    assert dice(logits, mask, IGNORE, smooth, classes).item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("smooth", [0.0, 3.0])
def test_dice_is_smps_where_every_class_is_present(smooth):
    logits, mask = batch(seed=1)
    assert set(mask.unique().tolist()) == {0, 1, 2, 3, IGNORE}
    theirs = smp.DiceLoss("multiclass", ignore_index=IGNORE, smooth=smooth)(logits, mask)
    torch.testing.assert_close(dice(logits, mask, IGNORE, 2 * smooth), theirs)  # they halve both sides of the fraction


@every_case
@pytest.mark.parametrize("classes", ["present", "all"])
@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_is_the_reference(case, classes, per_image):
    logits, mask = batch(**case)
    wanted = reference.lovasz(logits.numpy(), mask.numpy(), IGNORE, classes, per_image)
    assert lovasz(logits, mask, IGNORE, classes, per_image).item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    ("case", "per_image"),
    [*((case, False) for case in CASES), *((case, True) for case in CASES if case != "all but one pixel ignored")],
)
def test_lovasz_and_its_gradient_are_smps(case, per_image):  # which counts an image without any pixel, as 0
    logits, mask = batch(**CASES[case], dtype=torch.float32)
    logits.requires_grad_()
    theirs = smp.LovaszLoss("multiclass", per_image=per_image, ignore_index=IGNORE)(logits, mask)
    ours = lovasz(logits, mask, IGNORE, per_image=per_image)
    torch.testing.assert_close(ours, theirs.reshape(()))
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, theirs)))


def test_a_perfect_prediction_costs_nothing():
    mask = torch.tensor([[[0, 1], [2, IGNORE]]])
    logits = 200.0 * F.one_hot(mask.where(mask != IGNORE, 0), 3).permute(0, 3, 1, 2)
    for loss in (CrossEntropy(), Focal(), Dice(), Lovasz()):
        assert loss(logits, mask, IGNORE).item() == pytest.approx(0, abs=1e-6)


def test_lovasz_of_a_hard_prediction_is_one_minus_mean_iou():
    mask = torch.tensor([[[0, 0, 1, 1], [2, 2, 2, IGNORE]]])
    predicted = torch.tensor([[[0, 1, 1, 1], [2, 2, 0, 0]]])
    logits = 1000.0 * F.one_hot(predicted, 3).permute(0, 3, 1, 2)
    iou = (1 / 3 + 2 / 3 + 2 / 3) / 3
    assert lovasz(logits, mask, IGNORE).item() == pytest.approx(1 - iou, abs=1e-6)


@every_loss
@pytest.mark.parametrize("ignore_index", [IGNORE, -100, 1], ids=["255", "-100", "a class"])
def test_ignored_pixels_change_neither_value_nor_gradient(loss, ignore_index):
    logits, mask = batch(seed=5, absent=1)
    ignored = mask == IGNORE
    wanted = loss(logits, mask, IGNORE)
    mask = mask.masked_fill(ignored, ignore_index)
    other = logits.clone()
    other.movedim(1, -1)[ignored] = torch.randn(int(ignored.sum()), 4, dtype=torch.float64) * 50
    values, gradients = [], []
    for x in (logits, other):
        x.requires_grad_()
        values.append(loss(x, mask, ignore_index))
        gradients.append(torch.autograd.grad(values[-1], x)[0])
    torch.testing.assert_close(values, [wanted, wanted], rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-15)
    assert values[0] > 0
    assert gradients[0].movedim(1, -1)[ignored].eq(0).all()
    assert gradients[0].movedim(1, -1)[~ignored].abs().sum() > 0


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_fully_ignored_batch_gives_0_and_gradients_of_0(loss, dtype):
    logits = (50 * torch.randn(2, 4, 5, 4)).to(dtype).requires_grad_()
    value = loss(logits, torch.full((2, 5, 4), IGNORE), IGNORE)
    value.backward()
    assert value.shape == ()
    assert value.item() == 0
    assert logits.grad.eq(0).all()


@every_loss
def test_gradients_are_those_of_finite_differences(loss):
    logits, mask = batch(seed=6, absent=2)
    assert torch.autograd.gradcheck(lambda x: loss(x, mask, IGNORE), logits.requires_grad_())


@every_loss
def test_certain_pixels_right_or_wrong_have_finite_values_and_gradients(loss):
    _, mask = batch(seed=7)
    for sign in (1, -1):
        logits = sign * 1e4 * F.one_hot(mask.where(mask != IGNORE, 0), 4).permute(0, 3, 1, 2).float()
        logits.requires_grad_()
        value = loss(logits, mask, IGNORE)
        value.backward()
        assert value.isfinite()
        assert logits.grad.isfinite().all()


@every_loss
def test_16_bit_logits_give_the_32_bit_loss(loss):
    logits, mask = batch(seed=8)
    half = logits.to(torch.bfloat16)
    torch.testing.assert_close(loss(half, mask, IGNORE), loss(half.float(), mask, IGNORE))


@every_loss
def test_nothing_waits_for_the_device(loss):
    """Meta tensors have no values: `.item()`, and sizes or branches that depend on data, raise on them."""
    logits = torch.empty(2, 4, 5, 4, device="meta", requires_grad=True)
    value = deepcopy(loss).to("meta")(logits, torch.empty(2, 5, 4, dtype=torch.long, device="meta"), IGNORE)
    value.backward()
    assert value.shape == ()


def test_lovasz_keeps_its_precision_on_many_pixels():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 1024, 1024, generator=g)
    mask = torch.randint(3, (1, 1024, 1024), generator=g)
    logits.requires_grad_()
    narrow = torch.autograd.grad(lovasz(logits, mask, IGNORE), logits)[0]
    wide = torch.autograd.grad(lovasz(logits.double(), mask, IGNORE), logits)[0]
    assert ((narrow - wide).abs().sum() / wide.abs().sum()).item() < 1e-4


def test_weighted_sum_adds_what_it_is_told():
    logits, mask = batch()
    parts = [CrossEntropy(WEIGHTS), Dice(), Focal(gamma=1.0)]
    values = [part(logits, mask, IGNORE).item() for part in parts]
    assert WeightedSum(parts)(logits, mask, IGNORE).item() == pytest.approx(sum(values))
    wanted = 2.0 * values[1] + 0.25 * values[2]
    assert WeightedSum(parts, [0.0, 2.0, 0.25])(logits, mask, IGNORE).item() == pytest.approx(wanted)


def test_class_weights_move_with_the_loss_and_stay_out_of_checkpoints():
    loss = WeightedSum([CrossEntropy([1.0, 2.0]), Focal(class_weights=[1.0, 2.0])])
    assert loss.state_dict() == {}
    assert all(buffer.device.type == "meta" for buffer in loss.to("meta").buffers())
    assert len(list(loss.buffers())) == 2


@pytest.mark.parametrize(
    "build",
    [
        lambda: CrossEntropy([1.0, -1.0]),
        lambda: CrossEntropy([0.0, 0.0]),
        lambda: CrossEntropy([]),
        lambda: CrossEntropy([1.0, math.nan]),
        lambda: CrossEntropy(label_smoothing=1.0),
        lambda: CrossEntropy(label_smoothing=-0.1),
        lambda: Focal(gamma=-1.0),
        lambda: Focal(class_weights=[math.inf]),
        lambda: Dice(smooth=-1.0),
        lambda: WeightedSum([]),
        lambda: WeightedSum([Dice()], [1.0, 2.0]),
        lambda: WeightedSum([Dice()], []),
        lambda: WeightedSum([Dice(), Lovasz()], [1.0, -2.0]),
        lambda: WeightedSum([Dice()], [0.0]),
    ],
)
def test_bad_options_are_refused_at_construction(build):
    with pytest.raises(ConfigError):
        build()


def test_class_weights_of_another_length_are_refused_at_the_door():
    loss: SegmentationLoss = WeightedSum([Dice(), WeightedSum([Focal(class_weights=[1.0, 2.0, 3.0])])])
    loss.check(3)
    with pytest.raises(ConfigError, match="Focal has 3 class_weights and the data has 4 classes"):
        loss.check(4)
