"""Depth moves with its image, is never mixed between near and far, and heeds the camera where it is asked to."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from framework.clock import keyed_randomness
from framework.data.depth import DepthData
from framework.data.depth_transforms import DepthScaleCrop
from framework.data.transforms import DepthMap
from framework.errors import ConfigError

HEIGHT, WIDTH = 120, 160


class Grid:
    """An image whose channels are the row and the column of each pixel, and a depth that says both in its digits."""

    def __len__(self):
        return 4

    def read(self, index):
        rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
        image = torch.stack([rows, columns, torch.full_like(rows, 255)]).to(torch.uint8)
        depth = (1 + rows + columns / 1000).float()
        return {
            "image": tv_tensors.Image(image),
            "depth": DepthMap(depth),
            "intrinsics": torch.eye(3),
            "id": str(index),
            "original_size": (HEIGHT, WIDTH),
        }


class GridData(DepthData):
    channels = 3

    def split(self, name):
        return Grid()


def grid_data(**options):
    return GridData(**{"depth_range": (0.5, 1000.0), "photometric": None, "hflip": 0.0, **options})


def training_samples(data, count=6):
    transform = data.train_transform()
    for epoch in range(count):
        with keyed_randomness(0, "sample", epoch, 0):
            yield transform(Grid().read(0))


def decoded(depth):
    """Row and column of the reading that each pixel took, and whether it took one."""
    depth = depth.as_subclass(torch.Tensor).double()
    rows = (depth - 1).floor()
    return rows, (depth - 1 - rows) * 1000, depth > 0


@pytest.mark.parametrize(
    "options",
    [
        {"hflip": 1.0},
        {"rotation": 20.0},
        {"crop_size": (48, 64)},
        {"crop_size": (48, 64), "crop_scale": (0.2, 0.5)},
        {"crop_size": (48, 64), "crop_scale": (2.0, 3.0)},
        {"crop_size": (48, 64), "crop_scale": (0.5, 2.0), "rotation": 10.0, "hflip": 0.5},
        {"resize": 48, "crop_size": 32, "hflip": 0.5},
        {"train_transforms": [v2.RandomResizedCrop(40), v2.RandomHorizontalFlip()]},
        {"train_transforms": [v2.Resize(30), v2.RandomCrop(24)]},
    ],
    ids=str,
)
def test_depth_is_that_of_the_pixel_it_lies_on(options):
    for sample in training_samples(grid_data(**options)):
        image, depth = sample["image"].double(), sample["depth"]
        assert depth.shape == image.shape[-2:]
        assert depth.dtype == torch.float32
        rows, columns, known = decoded(depth)
        whole = known & (image[2] == 255)  # what is interpolated with black has no place
        assert whole.float().mean() > 0.3
        # Half a pixel by which the centres differ, and half for rounding the image; nothing is half a large pixel off.
        assert (rows - image[0])[whole].abs().max() <= 1.05
        assert (columns - image[1])[whole].abs().max() <= 1.05
        assert set(depth.unique().tolist()) <= {0.0, *Grid().read(0)["depth"].unique().tolist()}  # none is made up


def test_what_a_rotation_or_a_users_fill_adds_has_no_depth():
    for options in ({"rotation": 30.0}, {"train_transforms": [v2.RandomRotation(30, fill=200), v2.Pad(9, fill=200)]}):
        for sample in training_samples(grid_data(**options), 3):
            outside = sample["image"][2] < 201  # the inside has 255
            assert outside.float().mean() > 0.005
            strange = outside & (sample["depth"] > 0)
            assert strange.float().mean() < 0.01  # pixels on the border, where the image alone is interpolated
            assert (sample["depth"] <= 1 + HEIGHT).all()


def test_only_a_share_of_the_images_is_rotated():
    upright = Grid().read(0)["image"]
    samples = [sample["image"] for sample in training_samples(grid_data(rotation=10.0, rotated=0.5), 40)]
    assert 10 <= sum(torch.equal(image, upright) for image in samples) <= 30


def test_depths_are_divided_by_the_scale_of_the_crop_when_asked():
    kept = [*training_samples(grid_data(crop_size=(48, 64), crop_scale=(0.5, 2.0)))]
    options = {"crop_size": (48, 64), "crop_scale": (0.5, 2.0), "divide_depth": True}
    scales, measured = [], 0
    for sample, divided in zip(kept, training_samples(grid_data(**options)), strict=True):
        assert torch.equal(sample["image"], divided["image"])
        known = sample["depth"] > 0
        assert torch.equal(known, divided["depth"] > 0)
        columns = sample["image"][1].double()
        shown = (columns[:, -9] - columns[:, 8]).mean() / (64 - 17)  # columns of the image for each of the picture
        ratio = (sample["depth"] / divided["depth"])[known]
        assert ratio.max() - ratio.min() < 1e-4
        if (columns[:, -1] > 0).all() and (columns[:, 0] > 0).all():  # else the image does not fill it
            assert float(ratio.mean()) == pytest.approx(1 / float(shown), rel=0.03)
            measured += 1
        scales.append(float(ratio.mean()))
    assert measured
    assert min(scales) < 0.8
    assert max(scales) > 1.25


def test_readings_that_a_scale_moves_out_of_the_range_are_none():
    crop = DepthScaleCrop(HEIGHT, (2.0, 2.0), divide_depth=True)
    assert crop(*[Grid().read(0)[key] for key in ("image", "depth")])[1].max() <= 61
    for scale in (2.0, 0.5):
        options = {"crop_size": (48, 64), "crop_scale": (scale, scale), "divide_depth": True}
        data = grid_data(depth_range=(20.0, 70.0), **options)
        depths = [sample["depth"] for sample in training_samples(data)]
        for depth, whole in zip(depths, training_samples(grid_data(**options)), strict=True):
            whole = whole["depth"]
            expected = np.where((whole >= 20) & (whole <= 70), whole, 0)
            np.testing.assert_array_equal(depth, expected)
        assert any((depth == 0).any() for depth in depths)


def test_evaluation_resizes_the_image_alone_and_keeps_the_camera():
    data = grid_data(resize=60, depth_range=(10.0, 50.0), batch_size=2, num_workers=0)
    sample = next(iter(data.val_dataloader()))
    depth = Grid().read(0)["depth"]
    assert sample["image"].shape[-2:] == (60, 80)
    np.testing.assert_array_equal(sample["depth"][0], np.where((depth >= 10) & (depth <= 50), depth, 0))
    assert sample["intrinsics"].shape[1:] == (3, 3)
    assert "intrinsics" not in next(iter(data.train_dataloader()))  # a crop or a flip would make them wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth_range": (10.0, 0.001)}, r"data\.depth_range: .*did you mean \[0\.001, 10\.0\]\?"),
        (
            {"depth_range": (5.0, 5.0)},
            r"data\.depth_range: the smallest depth is below the largest, got \[5\.0, 5\.0\]",
        ),
        ({"depth_range": (0.0, 5.0)}, r"data\.depth_range: .* begin at 0\.001"),
        ({"depth_range": (0.1, float("inf"))}, r"data\.depth_range: two finite numbers"),
        ({"crop_scale": (2.0, 1.0), "crop_size": 8}, r"data\.crop_scale: two positive numbers, rising"),
        ({"crop_scale": (0.5, 1.0)}, r"data\.crop_scale: .* set data\.crop_size"),
        ({"crop_size": 8, "divide_depth": True}, r"data\.divide_depth: no crop is scaled"),
        ({"crop_size": 8, "rotation": 2.5, "train_transforms": []}, r"data\.crop_size, data\.rotation: data\.train_tr"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        grid_data(**options)
