"""Sampling against its definitions, computed here anew with NumPy."""

from collections import Counter

import numpy as np
import pytest

from framework.data.image_folder import ImageFolder
from framework.data.loader import KeyedBatches
from framework.data.sampling import ClassBalanced, Labels, RepeatFactor
from tests.folders import write_image_folder

COUNTS = [200, 30, 7, 1]  # images of each class
SINGLE = [label for label, count in enumerate(COUNTS) for _ in range(count)]
SEVERAL = [(0,)] * 60 + [(0, 1)] * 20 + [(1, 2)] * 3 + [()] * 5 + [(2,)]


def visits(sampling, labels, epoch, repeats=1, seed=3):
    """Count the visits of each image in an epoch."""
    given = Labels.of(labels, 4)
    order = sampling.order(given, sampling.epoch_length(given, repeats), seed, epoch)
    seen = Counter(index % len(labels) for index in order)
    assert len(set(order)) == len(order)  # each visit has a number of its own, to be augmented by
    assert set(order) == {i + n * len(labels) for i in range(len(labels)) for n in range(seen[i])}
    return np.array([seen[i] for i in range(len(labels))])


def per_class(seen, labels):
    totals = np.zeros(4)
    np.add.at(totals, labels, seen)
    return totals


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("repeats", [1, 3])
def test_class_balanced_gives_each_class_its_share(power, repeats):
    weights = np.array(COUNTS, float) ** power
    expected = weights / weights.sum() * len(SINGLE) * repeats
    for epoch in range(5):
        found = per_class(visits(ClassBalanced(power), SINGLE, epoch, repeats), SINGLE)
        assert found.sum() == len(SINGLE) * repeats
        assert np.abs(found - expected).max() < 1


def test_images_of_a_large_class_take_turns():
    total = sum(visits(ClassBalanced(), SINGLE, epoch) for epoch in range(24))
    first = total[:200]
    assert first.sum() == pytest.approx(24 * len(SINGLE) / 4, abs=24)
    assert first.max() - first.min() <= 3  # about the mean, 7.1; independent draws spread by more than 10


def test_images_of_several_classes_have_a_share_of_each():
    mean = sum(visits(ClassBalanced(), SEVERAL, epoch) for epoch in range(200)) / 200
    counts = Counter(label for labels in SEVERAL for label in labels or [3])
    expected = [sum(len(SEVERAL) / 4 / counts[label] for label in labels or [3]) for labels in SEVERAL]
    assert np.abs(mean - expected).max() < 0.02


@pytest.mark.parametrize(("labels", "threshold"), [(SINGLE, 0.001), (SINGLE, 0.2), (SEVERAL, 0.1), (SEVERAL, 1.0)])
def test_repeat_factors_are_those_of_the_paper(labels, threshold):
    several = [(label,) if isinstance(label, int) else label for label in labels]
    share = [sum(c in each for each in several) / len(several) for c in range(4)]
    factor = [max(1, np.sqrt(threshold / f)) if f else 1 for f in share]
    expected = np.array([max([factor[c] for c in each], default=1) for each in several])
    epochs = [visits(RepeatFactor(threshold), labels, epoch) for epoch in range(200)]
    assert {seen.sum() for seen in epochs} == {round(expected.sum())}  # every epoch is as long
    for seen in epochs:
        assert (np.abs(seen - expected) < 1 + 0.01 * expected).all()
        assert seen.min() >= 1 - (round(expected.sum()) < expected.sum())
    assert np.abs(np.mean(epochs, axis=0) - expected * round(expected.sum()) / expected.sum()).max() < 0.02


def test_an_epoch_is_a_function_of_seed_and_epoch():
    given = Labels.of(SINGLE, 4)
    first = ClassBalanced().order(given, 100, 5, 2)
    assert ClassBalanced().order(given, 100, 5, 2) == first
    assert ClassBalanced().order(given, 100, 6, 2) != first
    assert ClassBalanced().order(given, 100, 5, 3) != first
    assert first != sorted(first)


def test_thresholds_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"in \(0, 1\], got 2"):
        RepeatFactor(2.0)


# In a data module.


@pytest.fixture
def uneven(tmp_path):
    """Ten images of one class, three of another, two of a third."""
    root = write_image_folder(tmp_path / "set", counts=(10, 1, 0))
    for name, count in (("green", 3), ("red", 2)):
        for path in sorted((root / "train" / name).iterdir())[count:]:
            path.unlink()
    return root


def data(root, **options):
    options = {"batch_size": 2, "num_workers": 0, "image_size": 16, "photometric": None, **options}
    return ImageFolder(str(root), **options)


def test_every_step_is_counted_before_training(uneven):
    plain, balanced = data(uneven), data(uneven, sampling=ClassBalanced())
    rare = data(uneven, sampling=RepeatFactor(1 / 3), repeats=2)
    assert (plain.train_batches(), balanced.train_batches()) == (7, 7)
    whole = 10 + 3 * np.sqrt(15 / 9) + 2 * np.sqrt(15 / 6)
    assert rare.train_batches() == round(2 * whole) // 2 == len(rare.train_dataloader())
    assert rare.train_batches(world_size=3) == round(2 * whole) // 6


def test_batches_are_balanced_and_repeated_images_are_augmented_anew(uneven):
    loader = data(uneven, sampling=ClassBalanced(), repeats=4).train_dataloader()
    batches = list(loader)
    classes = Counter(label for batch in batches for label in batch["label"].tolist())
    assert classes == {0: 20, 1: 20, 2: 20}
    seen = {}
    for batch in batches:
        for name, image in zip(batch["id"], batch["image"], strict=True):
            seen.setdefault(name, []).append(image.numpy().tobytes())
    assert all(len(set(images)) == len(images) for images in seen.values())


def test_processes_share_a_sampled_epoch_without_overlap_or_loss():
    given = Labels.of(SINGLE, 4)
    sampling = RepeatFactor(0.3)
    length = sampling.epoch_length(given)

    def epoch(rank, world, number):
        batches = KeyedBatches(
            length, 5, 3, True, rank, world, order=lambda epoch: sampling.order(given, length, 3, epoch)
        )
        batches.set_epoch(number)
        return [key.index for batch in batches for key in batch]

    for number in range(2):
        whole = sampling.order(given, length, 3, number)
        parts = [epoch(rank, 3, number) for rank in range(3)]
        assert all(part == whole[rank::3][: len(part)] for rank, part in enumerate(parts))
        assert len({*parts[0], *parts[1], *parts[2]}) == sum(map(len, parts)) == length // 15 * 15


@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_sampled_epoch_goes_on_where_it_stopped(uneven, stop):
    whole = data(uneven, sampling=ClassBalanced()).train_dataloader()
    whole.batch_sampler.set_epoch(3)
    expected = [batch["id"] for batch in whole]
    first, second = (data(uneven, sampling=ClassBalanced()).train_dataloader() for _ in range(2))
    first.batch_sampler.set_epoch(3)
    batches = iter(first)
    seen = [next(batches)["id"] for _ in range(stop)]
    second.load_state_dict(first.state_dict())
    assert seen + [batch["id"] for batch in second] == expected
