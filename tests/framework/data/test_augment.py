"""RandAugment, mixup and CutMix against torchvision, and against what their papers say."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from framework.data.augment import OPERATIONS, Mix, RandAugment
from framework.data.image_folder import ImageFolder
from framework.errors import ConfigError
from tests.folders import write_image_folder

BILINEAR = InterpolationMode.BILINEAR


def photographs(count=3, size=(37, 52), channels=3):
    """Smooth uint8 images with noise, of every level, whose channels differ."""
    rows, columns = torch.meshgrid(*(torch.linspace(0, 1, side) for side in size), indexing="ij")
    generator = torch.Generator().manual_seed(1)
    images = [
        128 + 70 * torch.sin(3 * rows * (1 + i) + c) + 60 * torch.cos(5 * columns + i * c)
        for i in range(count)
        for c in range(channels)
    ]
    noise = 12 * torch.randn(count, channels, *size, generator=generator)
    return (torch.stack(images).view(count, channels, *size) + noise).clamp(0, 255).round().to(torch.uint8)


def degrees(slope):
    return math.degrees(math.atan(slope))


def shift(share, side):
    return int(150 / 331 * share * side)


TORCHVISION = {
    "identity": lambda x, s: x,
    "shear_x": lambda x, s: tv.affine(x, 0, [0, 0], 1, [degrees(0.3 * s), 0], BILINEAR, center=[0, 0]),
    "shear_y": lambda x, s: tv.affine(x, 0, [0, 0], 1, [0, degrees(0.3 * s)], BILINEAR, center=[0, 0]),
    "translate_x": lambda x, s: tv.affine(x, 0, [shift(s, x.shape[-1]), 0], 1, [0, 0]),
    "translate_y": lambda x, s: tv.affine(x, 0, [0, shift(s, x.shape[-2])], 1, [0, 0]),
    "rotate": lambda x, s: tv.rotate(x, 30 * s, BILINEAR),
    "brightness": lambda x, s: tv.adjust_brightness(x, 1 + 0.9 * s),
    "colour": lambda x, s: tv.adjust_saturation(x, 1 + 0.9 * s),
    "contrast": lambda x, s: tv.adjust_contrast(x, 1 + 0.9 * s),
    "sharpness": lambda x, s: tv.adjust_sharpness(x, 1 + 0.9 * s),
    "posterize": lambda x, s: tv.posterize(x, round(8 - 4 * abs(s))),
    "solarize": lambda x, s: tv.solarize(x, 255 * (1 - abs(s)) if x.dtype == torch.uint8 else 1 - abs(s)),
    "auto_contrast": lambda x, s: tv.autocontrast(x),
    "equalize": lambda x, s: tv.equalize(x),
}
IN_BYTES = ("posterize", "equalize", "solarize")  # torchvision means other levels where images are floats


def augmented(images, name, strength):
    draws = np.tile([[[OPERATIONS.index(name), strength]]], (len(images), 1, 1)).astype(float)
    return RandAugment.apply(images, draws)


@pytest.mark.parametrize("strength", [0.3, -0.5, 1.0, -1.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_torchvisions(name, strength):
    """To 1e-3 of the range of values; to a level of 255 against torchvision in bytes, which rounds in between."""
    images = photographs()
    got = augmented(images, name, strength)
    assert got.dtype == torch.float32
    exact = TORCHVISION[name](images if name in IN_BYTES else images / 255, strength)
    exact = exact / 255 if name in IN_BYTES else exact
    assert torch.allclose(got, exact, atol=1e-3), float((got - exact).abs().max())
    in_bytes = TORCHVISION[name](images, strength) / 255
    assert float((got - in_bytes).abs().max()) < 2.5 / 255
    assert torch.allclose(augmented(images / 255, name, strength), got, atol=1e-6)  # bytes or floats
    if name not in ("identity", "auto_contrast"):
        assert float((got - images / 255).abs().max()) > 0.7 / 255


def test_the_operations_and_their_ranges_are_those_of_torchvisions_randaugment():
    from torchvision.transforms.v2 import RandAugment as Theirs

    space = Theirs()._AUGMENTATION_SPACE
    ours = [name.replace("_", "").replace("colour", "color") for name in OPERATIONS]
    assert sorted(ours) == sorted(name.lower() for name in space)
    for magnitude in (0, 9, 15, 30):
        (drawn,) = RandAugment(1, magnitude).draw()
        assert math.isclose(abs(drawn[1]), magnitude / 30)
        strength = abs(drawn[1])
        for name, value in (
            ("ShearX", 0.3 * strength),
            ("TranslateX", 150 / 331 * strength * 200),
            ("Rotate", 30 * strength),
            ("Brightness", 0.9 * strength),
            ("Posterize", round(8 - 4 * strength)),
            ("Solarize", 1 - strength),
        ):
            assert math.isclose(float(space[name][0](31, 200, 200)[magnitude]), value, abs_tol=1e-5), name


def test_images_are_augmented_each_by_its_own_draw_and_the_input_is_left_alone():
    images = photographs(len(OPERATIONS))
    draws = np.array([[[number, 0.5], [(number + 3) % 14, -0.7]] for number in range(14)], float)
    order = np.random.default_rng(0).permutation(14)
    floats = images / 255
    before = floats.clone()
    together = RandAugment.apply(floats[order], draws[order])
    assert torch.equal(floats, before)
    RandAugment.apply(floats, draws)
    assert torch.equal(floats, before)
    for row, number in enumerate(order):
        alone = RandAugment.apply(floats[number : number + 1], draws[number : number + 1])[0]
        assert torch.allclose(together[row], alone, atol=1e-6)
        one = augmented(floats[number : number + 1], OPERATIONS[number], 0.5)
        assert torch.allclose(alone, augmented(one, OPERATIONS[(number + 3) % 14], -0.7)[0], atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_other_channels_are_augmented_too(channels):
    images = photographs(1, channels=channels)
    for name in OPERATIONS:
        got = augmented(images, name, 0.6)
        assert got.shape == images.shape
        assert float(got.min()) >= 0
        assert float(got.max()) <= 1
    assert torch.equal(augmented(images, "colour", 0.6), images / 255)


def test_flat_and_tiny_images_stay_as_they_are():
    flat = torch.full((2, 3, 1, 2), 77, dtype=torch.uint8)
    for name in ("auto_contrast", "equalize", "sharpness", "contrast"):
        assert torch.allclose(augmented(flat, name, 0.9), flat / 255, atol=1e-6)


def test_every_operation_and_sign_is_drawn_equally_often():
    torch.manual_seed(3)
    drawn = np.concatenate([RandAugment(2, 15).draw() for _ in range(1400)])
    counts = Counter(drawn[:, 0].astype(int).tolist())
    assert set(counts) == set(range(14))
    assert all(140 < count < 260 for count in counts.values())  # 200 expected, with a deviation of 13.6
    assert 1280 < (drawn[:, 1] > 0).sum() < 1520
    assert {abs(s) for s in drawn[:, 1]} == {0.5}
    assert (abs(RandAugment(2, 15).draw(magnitude=6.0)[:, 1]) == 0.2).all()


# Mixing.

LABEL = torch.tensor([2, 0, 1, 1])


def test_mixup_gives_each_image_its_share():
    images = photographs(4)
    mixed, shares = Mix.apply(images, LABEL, np.array([0, 0.7, 0, 0]), 3)
    for i in range(4):
        expected = 0.7 * images[i] / 255 + 0.3 * images[i - 1] / 255
        assert torch.allclose(mixed[i], expected, atol=1e-6)
    assert torch.allclose(shares, torch.tensor([[0, 0.3, 0.7], [0.7, 0, 0.3], [0.3, 0.7, 0], [0, 1, 0.0]]), atol=1e-6)


@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.1, 0.95), (0.0, 0.999)])
def test_cutmix_pastes_a_window_and_counts_what_shows(centre):
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 20, 30)
    mixed, shares = Mix.apply(images, LABEL, np.array([1, 0.75, *centre]), 3)
    pasted = (mixed * 255).round() != images
    assert float(shares[0, 2]) == pytest.approx(1 - pasted[0, 0].float().mean().item())
    assert float(shares[0, 2]) >= 0.749  # half of each side, or less where the border clips it
    rows, columns = pasted[0, 0].any(1).nonzero()[:, 0], pasted[0, 0].any(0).nonzero()[:, 0]
    assert pasted[0, 0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert (len(rows), len(columns)) == (10, 15) or centre != (0.5, 0.5)
    assert torch.equal((mixed * 255).round()[1][pasted[1]], torch.zeros(int(pasted[1].sum())))
    assert torch.allclose(shares.sum(1), torch.ones(4))


def test_several_classes_mix_as_well_and_unmixed_batches_have_shares_too():
    several = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 1]]).float()
    _, shares = Mix.apply(photographs(4), several, np.array([0, 0.75, 0, 0]), 3)
    assert torch.allclose(shares, 0.75 * several + 0.25 * several.roll(1, 0))
    images, shares = Mix.apply(photographs(4), LABEL, np.array([0, 1.0, 0, 0]), 3)
    assert torch.equal(images, photographs(4) / 255)
    assert torch.equal(shares, torch.nn.functional.one_hot(LABEL, 3).float())


def test_shares_are_drawn_from_the_beta_distribution():
    torch.manual_seed(1)
    for alpha in (0.2, 1.0):
        drawn = np.array([Mix(mixup=alpha, cutmix=0).draw() for _ in range(2000)])
        assert not drawn[:, 0].any()
        variance = 1 / (4 * (2 * alpha + 1))
        assert abs(drawn[:, 1].mean() - 0.5) < 5 * math.sqrt(variance / 2000)
        assert drawn[:, 1].var() == pytest.approx(variance, rel=0.1)


def test_which_batches_are_mixed_and_how():
    torch.manual_seed(1)

    def shares(mix, **plan):
        drawn = np.array([mix.draw(**plan) for _ in range(800)])
        return drawn[:, 0].mean(), (drawn[:, 1] == 1).mean()

    cut, unmixed = shares(Mix(mixup=1, cutmix=1, switch=0.25, probability=0.6))
    assert abs(cut - 0.25) < 0.08
    assert abs(unmixed - 0.4) < 0.09
    assert shares(Mix(mixup=0, cutmix=1)) == (1, 0)
    assert shares(Mix(mixup=0, cutmix=0)) == (0, 1)
    assert shares(Mix(mixup=0.2, cutmix=0), mixup=0.0) == (0, 1)
    assert shares(Mix(mixup=0, cutmix=0), cutmix=1.0) == (1, 0)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: RandAugment(operations=0), "operations is at least 1"),
        (lambda: RandAugment(magnitude=31), r"magnitude is in \[0, 30\]"),
        (lambda: Mix(mixup=-1), "mixup is at least 0"),
        (lambda: Mix(cutmix=float("inf")), "cutmix is at least 0"),
        (lambda: Mix(switch=1.5), r"switch is in \[0, 1\]"),
        (lambda: Mix(probability=-0.1), r"probability is in \[0, 1\]"),
    ],
)
def test_numbers_out_of_range_are_refused(build, said):
    with pytest.raises(ConfigError, match=said):
        build()


# Data.


@pytest.fixture
def module(tmp_path):
    folder = write_image_folder(tmp_path / "photos", counts=(8, 2, 2))

    def build(**options):
        given = {"image_size": 24, "batch_size": 4, "num_workers": 0, "check": False} | options
        return ImageFolder(root=str(folder), **given)

    return build


def finished(module, loader):
    return [module.on_after_batch_transfer(batch, 0) for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_whatever_the_workers_and_after_an_interruption(module, workers):
    options = {"rand_augment": RandAugment(3, 20), "mix": Mix(0.4, 1.0)}
    data = module(**options)
    whole = data.train_dataloader()
    whole.batch_sampler.set_epoch(1)
    expected = finished(data, whole)
    other = module(num_workers=workers, **options)
    first = other.train_dataloader()
    first.batch_sampler.set_epoch(1)
    batches = iter(first)
    for _ in range(2):
        next(batches)
    second = other.train_dataloader()
    second.load_state_dict(first.state_dict())
    rest = finished(other, second)
    assert len(rest) == len(expected) - 2
    for one, two in zip(rest, expected[2:], strict=True):
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["label"], two["label"])
        assert one["label"].shape == (4, 3)
        assert {"rand_augment", "mix"}.isdisjoint(one)


def test_epochs_differ_and_evaluation_is_left_alone(module):
    data = module(rand_augment=RandAugment(), mix=Mix())
    loader = data.train_dataloader()
    labels = []
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        labels.append(torch.cat([batch["label"] for batch in finished(data, loader)]))
    assert not torch.equal(*labels)
    (batch, *_) = finished(data, data.val_dataloader())
    assert batch["image"].dtype == torch.uint8
    assert batch["label"].shape == (4,)
    assert data.mixes
    assert not module().mixes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_host_never_waits_for_the_device():
    images, label = photographs(56).cuda(), torch.arange(56).cuda() % 3
    draws = np.array([[[number % 14, 0.5], [(number + 3) % 14, -0.7]] for number in range(56)], float)
    expected = RandAugment.apply(images.cpu(), draws)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = RandAugment.apply(images, draws)
        Mix.apply(got, label, np.array([1, 0.6, 0.5, 0.5]), 3)
        Mix.apply(got, label, np.array([0, 0.6, 0.5, 0.5]), 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(got.cpu(), expected, atol=1e-4)
