import pytest
import torch

from framework.data.box_transforms import RandomView
from framework.data.fit import Fit
from framework.data.mosaic import MixUp, Mosaic
from tests.framework.data.rectangles import EACH, Rectangles, worst_edge


class Grey(Rectangles):
    """One channel, whose value says which image it is."""

    def read(self, index):
        sample = super().read(index)
        sample["image"] = sample["image"][:1].fill_(5 * (index + 1))
        return sample


def views(make, samples, count):
    for seed in range(count):
        torch.manual_seed(seed)
        sample = samples.read(seed % len(samples))
        samples.was_read.clear()
        yield make(sample), [seed % len(samples), *samples.was_read]


@pytest.mark.parametrize("fit", [Fit(), Fit(resize=40), Fit(letterbox=(300, 200))], ids=["stored", "small", "large"])
def test_boxes_of_a_mosaic_lie_on_what_they_framed(fit):
    samples = Rectangles(count=30)
    view = RandomView(fit, (0.5, 1.5), 0.5, 0.5, 0.0)
    seen = 0
    for picture, read in views(Mosaic(1.0, view, view, samples, (96, 128)), samples, 40):
        assert picture.size == (96, 128)
        assert len(read) == 4
        assert set((picture.labels // EACH).tolist()) <= set(read)
        if len(set(read)) == 4:  # an image that is there twice has two boxes of one channel
            assert worst_edge(picture.image, picture.boxes, picture.labels) <= 1.0
            seen += len(picture.labels)
    assert seen > 60


def test_a_mosaic_is_cut_at_a_random_point_into_four_that_leave_no_gap():
    samples = Grey(count=50, size=(30, 40))
    view = RandomView(Fit(), (0.5, 1.5), 0.5, 0.5, 0.0)
    cuts, places = set(), set()
    for picture, read in views(Mosaic(1.0, view, view, samples, (50, 60)), samples, 60):
        image = picture.image[0].int()
        if len(set(read)) < 4:
            continue
        row = int((image[:, 0] == image[0, 0]).sum())
        column = int((image[0] == image[0, 0]).sum())
        corners = [image[0, 0], image[0, -1], image[-1, 0], image[-1, -1]]
        parts = [image[:row, :column], image[:row, column:], image[row:, :column], image[row:, column:]]
        assert all((part == corner).all() for part, corner in zip(parts, corners, strict=True))
        assert sorted(map(int, corners)) == sorted(5 * (index + 1) for index in read)
        assert 10 <= row <= 40
        assert 12 <= column <= 48
        cuts.add((row, column))
        places.add([int(corner) for corner in corners].index(5 * (read[0] + 1)))
    assert len(cuts) > 20
    assert places == {0, 1, 2, 3}


def test_a_mixed_picture_is_the_mean_of_two_with_the_boxes_of_both():
    samples = Rectangles(count=20)
    view = RandomView(Fit(), (0.6, 1.5), 0.5, 0.5, 0.0, (80, 100))
    seen = 0
    for picture, read in views(MixUp(1.0, view, view, samples), samples, 30):
        assert len(read) == 2
        assert int(picture.image.max()) <= (128 if len(set(read)) == 2 else 255)
        assert set((picture.labels // EACH).tolist()) <= set(read)
        if len(set(read)) == 2:
            assert worst_edge(picture.image, picture.boxes, picture.labels, brightness=128) <= 1.0
            seen += len(set((picture.labels // EACH).tolist())) == 2
    assert seen > 10


def test_a_mixed_picture_keeps_the_size_of_the_first_and_the_other_fills_it():
    samples = Grey(count=2, size=(30, 40))
    view = RandomView(Fit(), (0.5, 0.5), crop=(80, 100))
    for picture, read in views(MixUp(1.0, view, view, samples), samples, 6):
        assert picture.size == (15, 20)
        assert (picture.image == (5 * (read[0] + 1) + 5 * (read[1] + 1) + 1) // 2).all()


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_pictures_are_made_of_several_images_as_often_as_asked(probability):
    samples = Rectangles(size=(20, 24))
    view = RandomView(Fit(), crop=(16, 16))
    mosaics = [len(read) == 4 for _, read in views(Mosaic(probability, view, view, samples, (16, 16)), samples, 200)]
    mixed = [len(read) == 2 for _, read in views(MixUp(probability, view, view, samples), samples, 200)]
    assert abs(sum(mosaics) / 200 - probability) < 0.1
    assert abs(sum(mixed) / 200 - probability) < 0.1


def test_a_mosaic_may_be_mixed_with_another_image():
    samples = Rectangles(count=30)
    view = RandomView(Fit(), (0.8, 1.2), 0.5, 0.0, 0.0, (64, 64))
    whole = MixUp(1.0, Mosaic(1.0, view, view, samples, (64, 64)), view, samples)
    assert all(len(read) == 5 and picture.size == (64, 64) for picture, read in views(whole, samples, 5))


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (10, 4)])
def test_the_smallest_pictures_can_be_cut(size):
    samples = Rectangles(size=(20, 24))
    view = RandomView(Fit(), (0.1, 3.0))
    assert all(picture.size == size for picture, _ in views(Mosaic(1.0, view, view, samples, size), samples, 20))
