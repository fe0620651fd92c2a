import numpy as np
import pytest
import torch

from framework.errors import ConfigError
from framework.losses.alignment import fit_line, masked_median
from framework.losses.depth import (
    L1,
    BerHu,
    DepthLoss,
    DepthLossSum,
    GradientMatching,
    LogL1,
    ScaleShiftInvariant,
    SILog,
    scale_shift_invariant,
)
from tests.reference import depth as reference

SSI = [("median", 0.2, 0.5, 4), ("median", 0.0, 0.0, 1), ("least_squares", 0.0, 0.5, 2), ("least_squares", 0.2, 0.0, 1)]
CASES = {
    "SILog": (SILog(), reference.si_log, ()),
    "SILog as BTS": (SILog(scale=10.0), reference.si_log, (0.85, 10.0)),
    "SILog without mean": (SILog(variance_focus=1.0), reference.si_log, (1.0,)),
    "L1": (L1(), reference.l1, ()),
    "LogL1": (LogL1(), reference.log_l1, ()),
    "BerHu": (BerHu(), reference.berhu, ()),
    "BerHu 0.5": (BerHu(0.5), reference.berhu, (0.5,)),
    **{
        f"GradientMatching {space}": (GradientMatching(scales, space), reference.gradient_matching, (scales, space))
        for scales, space in ((4, "log"), (1, "depth"), (3, "disparity"))
    },
    **{f"SSI {given}": (ScaleShiftInvariant(*given), reference.scale_shift_invariant, given) for given in SSI},
}
every_loss = pytest.mark.parametrize("name", CASES)


def batch(seed=0, size=(3, 11, 14), dtype=torch.float64):
    """Depths from 0.5 to 9 m; readings missing in all the ways there are; the last image has none."""
    rng = np.random.default_rng(seed)
    target = rng.uniform(0.5, 9, size)
    prediction = target * rng.lognormal(0.1, 0.4, size)
    missing = rng.random(size) < 0.3
    target[missing] = rng.choice([0.0, -1.0, np.nan, np.inf, -np.inf], missing.sum())
    target[-1] = 0
    return torch.from_numpy(prediction).to(dtype), torch.from_numpy(target).to(dtype)


def with_gradient(loss, prediction, target, *rest):
    prediction = prediction.clone().requires_grad_()
    value = loss(prediction, target, *rest)
    value.backward()
    return value.item(), prediction.grad


@every_loss
def test_it_is_the_reference(name):
    loss, by_hand, arguments = CASES[name]
    prediction, target = batch()
    wanted = by_hand(prediction.numpy(), target.numpy(), *arguments)
    assert wanted > 1e-3
    assert loss(prediction, target).item() == pytest.approx(wanted, rel=1e-9)
    assert loss(prediction.float(), target.float()).item() == pytest.approx(wanted, rel=2e-5)


@every_loss
def test_the_gradient_is_that_of_the_value(name):
    loss = CASES[name][0]
    prediction, target = batch(1, (2, 5, 6))
    if name.startswith("BerHu"):  # its threshold counts as a constant: the largest error is not moved
        target[0, 0, 0], prediction[0, 0, 0] = 1.0, 90.0
        fixed = prediction[0, 0, :1].clone()
        prediction = prediction.flatten()[1:].requires_grad_()
        assert torch.autograd.gradcheck(lambda x: loss(torch.cat([fixed, x]).view(2, 5, 6), target), prediction)
        return
    assert torch.autograd.gradcheck(lambda x: loss(x, target), prediction.requires_grad_())


@every_loss
@pytest.mark.parametrize("there", [0.0, -3.0, 1e30, np.inf, np.nan])
def test_what_is_predicted_without_a_reading_does_not_matter(name, there):
    loss = CASES[name][0]
    prediction, target = batch(2, dtype=torch.float32)
    value, gradient = with_gradient(loss, prediction, target)
    missing = ~(target.isfinite() & (target > 0))
    other, others = with_gradient(loss, prediction.masked_fill(missing, there), target)
    assert other == value
    assert torch.equal(others, gradient)
    assert not gradient[missing].any()
    assert gradient[~missing].any()


@every_loss
def test_few_readings_or_none_are_finite(name):
    loss = CASES[name][0]
    prediction, target = batch(3, dtype=torch.float32)
    value, gradient = with_gradient(loss, prediction, torch.full_like(target, torch.nan))
    assert value == 0
    assert not gradient.any()
    for readings in (1, 2):
        few = torch.zeros_like(target)
        few[1, 3, 2 : 2 + readings] = 4.0
        value, gradient = with_gradient(loss, prediction, few)
        assert np.isfinite(value)
        assert gradient.isfinite().all()
    value, gradient = with_gradient(loss, prediction[:, :1, :1], torch.full((3, 1, 1), 2.0))
    assert np.isfinite(value)
    assert gradient.isfinite().all()


def test_the_threshold_of_berhu_is_a_constant_of_the_largest_error():
    target = torch.ones(1, 1, 3)
    _, gradient = with_gradient(BerHu(0.2), target + torch.tensor([0.1, -0.5, 5.0]), target)
    assert gradient.flatten().tolist() == pytest.approx([1 / 3, -1 / 3, 5 / 3])  # x / c is 5


def test_si_log_is_metas_sig_loss():
    prediction, target = batch(4)
    g = torch.log(prediction + 0.001)[target > 0] - torch.log(target + 0.001)[target > 0]
    g = g[g.isfinite()]  # they have no infinite targets
    whole = torch.sqrt(torch.var(g) + 0.15 * g.mean() ** 2)
    first = torch.sqrt(0.15 * g.mean() ** 2)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        loss = SILog(warmup=100)
        given = prediction.to(dtype), target.to(dtype)
        assert loss(*given, 99).item() == pytest.approx(first.item(), rel=tolerance)
        assert loss(*given, 100).item() == pytest.approx(whole.item(), rel=tolerance)
        assert loss(*given).item() == pytest.approx(whole.item(), rel=tolerance)


@pytest.mark.parametrize("step", [None, 0])
def test_the_root_of_si_log_has_a_finite_slope_at_0(step):
    _, target = batch(5, dtype=torch.float32)
    target = target.nan_to_num(0, 0, 0).clamp_min(0)
    value, gradient = with_gradient(SILog(warmup=10), target, target, step)
    assert value == 0
    assert not gradient.any()
    _, near = with_gradient(SILog(warmup=10), target * (1 + 1e-6), target, step)
    assert near.isfinite().all()


@pytest.mark.parametrize("given", SSI)
def test_scale_and_shift_of_disparity_are_free(given):
    prediction, target = batch(6)
    value = scale_shift_invariant(prediction, target, *given)
    moved = 1 / (3 / prediction + 0.7)
    assert scale_shift_invariant(moved, target, *given).item() == pytest.approx(value.item(), rel=1e-9)
    right = target.where(target > 0, 1.0)
    assert scale_shift_invariant(1 / (0.2 / right + 0.1), target, *given).item() == pytest.approx(0, abs=1e-9)
    _, gradient = with_gradient(ScaleShiftInvariant(*given), torch.full_like(prediction, 3.0), target)
    assert gradient.isfinite().all()


def test_a_sum_weighs_its_losses_and_hands_the_step_on():
    prediction, target = batch(7)
    terms = [SILog(warmup=5), GradientMatching()]
    both = DepthLossSum(terms, [2.0, 0.5])
    for step in (None, 0, 5):
        wanted = 2 * terms[0](prediction, target, step) + 0.5 * terms[1](prediction, target)
        torch.testing.assert_close(both(prediction, target, step), wanted)
    assert both(prediction, target, 0) != both(prediction, target, 5)


def test_which_losses_leave_the_scale_free():
    free = [GradientMatching(), ScaleShiftInvariant(), SILog(variance_focus=1.0)]
    bound = [SILog(), L1(), LogL1(), BerHu()]
    assert [loss.relative for loss in free + bound] == [True] * 3 + [False] * 4
    assert DepthLossSum(free).relative
    assert not DepthLossSum([free[0], bound[0]]).relative
    assert DepthLossSum([free[0], bound[0]], [1.0, 0.0]).relative
    assert all(loss.tasks == ("Depth",) for loss in free + bound)


@pytest.mark.parametrize("name", ["SILog", "L1", "BerHu", f"SSI {SSI[0]}"])
def test_16_bits_are_computed_in_32(name):
    loss = CASES[name][0]
    prediction, target = batch(8, dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        value, gradient = with_gradient(loss, prediction.to(dtype), target)
        assert value == loss(prediction.to(dtype).float(), target).item()
        assert gradient.dtype == dtype


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"must both be \(B, H, W\), got \(2, 1, 3, 4\) and \(2, 3, 4\)"):
        L1()(torch.ones(2, 1, 3, 4), torch.ones(2, 3, 4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SILog(variance_focus=1.5), r"variance_focus must be in \[0, 1\], got 1.5"),
        (lambda: SILog(scale=0.0), "scale must be above 0, got 0"),
        (lambda: SILog(scale=float("nan")), "scale must be at least 0, got nan"),
        (lambda: SILog(warmup=-1), "warmup must be at least 0, got -1"),
        (lambda: SILog(variance_focus=1.0, warmup=5), "set warmup to 0, or variance_focus below 1"),
        (lambda: BerHu(0.0), "threshold must be above 0 and at most 1, got 0"),
        (lambda: GradientMatching(0), "scales must be at least 1, got 0"),
        (lambda: ScaleShiftInvariant(trim=1.0), "trim must be at least 0 and less than 1, got 1"),
        (lambda: ScaleShiftInvariant(gradient_weight=-1.0), "gradient_weight must be at least 0, got -1"),
        (lambda: DepthLossSum([]), "at least one loss"),
        (lambda: DepthLossSum([L1()], [1.0, 2.0]), "1 losses and 2 weights"),
        (lambda: DepthLossSum([L1(), LogL1()], [0.0, 0.0]), "needs one weight above 0"),
    ],
)
def test_what_is_out_of_range_is_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_medians_and_lines_are_numpys():
    rng = np.random.default_rng(9)
    x, y = rng.normal(5, 2, (2, 4, 6, 7))
    counted = rng.random(x.shape) < 0.6
    counted[1] = False
    counted[2].flat[:] = np.arange(42) < 8  # an even number
    counted[3].flat[:] = np.arange(42) < 9
    given = (torch.from_numpy(each) for each in (x, y, counted))
    x_torch, y_torch, counted_torch = given
    median = masked_median(x_torch, counted_torch)
    line = fit_line(x_torch, y_torch, counted_torch, 1e-9)
    assert median.shape == line.scale.shape == (4, 1, 1)
    assert median[1] == line.scale[1] == line.shift[1] == 0
    for image in (0, 2, 3):
        chosen = x[image][counted[image]], y[image][counted[image]]
        assert median[image].item() == np.median(chosen[0])
        np.testing.assert_allclose([line.scale[image].item(), line.shift[image].item()], np.polyfit(*chosen, 1))


def test_nothing_waits_for_the_device():
    """A meta tensor has no values: whoever asks for one fails."""
    prediction, target = (torch.ones(2, 8, 8, device="meta") for _ in range(2))
    losses: list[DepthLoss] = [loss for loss, _, _ in CASES.values()]
    for loss in losses:
        assert loss(prediction.requires_grad_(), target, 3).shape == ()
