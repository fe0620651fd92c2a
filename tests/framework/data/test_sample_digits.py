import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from framework.conformance import check_plugin
from framework.data.sample_digits import SampleDigits
from framework.errors import ConfigError


@pytest.fixture(scope="module")
def digits():
    return SampleDigits(batch_size=4, num_workers=0)


def pixels(samples):
    return np.stack([samples.read(index)["image"].numpy()[0] for index in range(len(samples))])


def test_it_states_what_the_model_needs_to_know(digits):
    assert digits.classes == tuple("0123456789")
    assert (digits.channels, digits.multi_label) == (1, False)
    assert digits.counts == {"train": 1197, "val": 300, "test": 300}
    assert digits.check_files() == []


def test_the_splits_are_scikit_learns_digits_each_once(digits):
    theirs = load_digits()
    expected = sorted(
        (image.astype(int).tobytes(), int(label)) for image, label in zip(theirs.images, theirs.target, strict=True)
    )
    found = []
    for samples in digits.splits().values():
        images = np.rint(pixels(samples) / 255 * 16).astype(int)
        found += [(image.tobytes(), label) for image, label in zip(images, samples.labels, strict=True)]
    assert sorted(found) == expected
    for split in ("val", "test"):
        assert np.bincount(digits.splits()[split].labels).tolist() == [30] * 10
    assert pixels(digits.splits()["train"]).max() == 255


def test_the_division_never_changes(digits):
    # Written down, because a release that divides otherwise would mix up the data of runs that go on.
    for module in (digits, SampleDigits(seed=9)):
        found = {split: [module.splits()[split].read(index)["id"] for index in range(4)] for split in EXPECTED}
        assert found == EXPECTED


EXPECTED = {
    "train": ["1/0001", "3/0003", "6/0006", "7/0007"],
    "val": ["0/0000", "4/0004", "5/0005", "2/0012"],
    "test": ["2/0002", "8/0008", "6/0016", "5/0033"],
}


def test_the_division_is_fair(digits):
    train, test = digits.splits()["train"], digits.splits()["test"]
    neighbours = KNeighborsClassifier(1).fit(pixels(train).reshape(len(train), -1), train.labels)
    assert 0.96 < neighbours.score(pixels(test).reshape(len(test), -1), test.labels) < 1


def test_batches_are_grey_images_of_any_size(digits):
    batch = next(iter(SampleDigits(image_size=28, batch_size=4, num_workers=0).train_dataloader()))
    assert (batch["image"].shape, batch["image"].dtype) == ((4, 1, 28, 28), torch.uint8)
    assert batch["label"].dtype == torch.long
    assert next(iter(digits.val_dataloader()))["original_size"] == [(8, 8)] * 4


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r'pip install "vision-plugin-framework\[samples\]"'):
        SampleDigits()


def test_it_passes_every_check_of_data_modules():
    assert {v.name: v.found for v in check_plugin(SampleDigits, "data") if v.outcome != "passed"} == {}
