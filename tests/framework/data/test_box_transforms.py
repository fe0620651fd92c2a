import math

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from framework.boxes import scale_boxes
from framework.data.box_transforms import (
    BoxEvalTransform,
    BoxTrainTransform,
    GivenView,
    RandomView,
    View,
    Window,
    clip_objects,
    cut_boxes,
    flip_boxes,
)
from framework.data.fit import Fit
from framework.errors import ConfigError, DataError
from tests.framework.data.rectangles import Rectangles, found_box, worst_edge

FITS = {
    "as stored": Fit(),
    "shorter side": Fit(resize=70),
    "longer side": Fit(resize=100, longest=110),
    "letterbox": Fit(letterbox=(100, 160)),
    "high letterbox": Fit(letterbox=(200, 96)),
}


@pytest.mark.parametrize("shrink", [1, 2])
@pytest.mark.parametrize("crop", [None, (64, 48), (150, 170)], ids=["whole", "small", "large"])
@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_boxes_of_a_training_picture_lie_on_what_they_framed(fit, crop, shrink):
    samples = Rectangles(shrink=shrink)
    transform = BoxTrainTransform(RandomView(fit, (0.6, 1.6), 0.5, 0.5, 0.0, crop), crop, None)
    shown = 0
    for seed in range(12):
        torch.manual_seed(seed)
        sample = transform(samples.read(seed % 4))
        image, (height, width) = sample["image"], sample["size"]
        assert image.dtype == torch.uint8
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()
        assert crop is None or image.shape[1:] == crop
        assert worst_edge(image, sample["boxes"], sample["labels"]) <= 1.0
        shown += len(sample["boxes"])
    assert shown >= 10


@pytest.mark.parametrize("min_visibility", [0.0, 0.3, 0.8])
def test_an_object_stays_if_enough_of_it_is_seen_and_goes_with_its_label(min_visibility):
    samples, fit = Rectangles(), Fit(resize=90)
    view = RandomView(fit, (0.8, 1.6), 0.5, 0.5, min_visibility, (64, 64))
    kept = dropped = 0
    for seed in range(60):
        torch.manual_seed(seed)
        sample = samples.read(seed % 4)
        picture = view(sample)
        torch.manual_seed(seed)
        scale = 0.8 * 2 ** float(torch.rand(()))  # the first number drawn
        whole = sample["area"] * scale**2
        for label, area in zip(sample["labels"].tolist(), whole.tolist(), strict=True):
            seen = float(picture.image[label].float().sum()) / 255
            if abs(seen / area - min_visibility) > 0.1:  # what is close is not settled by counting pixels
                assert (label in picture.labels) == (seen / area > min_visibility)
                kept, dropped = kept + (label in picture.labels), dropped + (seen / area < min_visibility)
        assert len(picture.labels) == len(picture.boxes)
    assert kept > 20
    assert dropped > 20 or min_visibility == 0


def test_boxes_are_clipped_to_the_picture_and_slivers_are_dropped():
    boxes = torch.tensor([[-6.0, 2, 4, 12], [2, 2, 8, 8], [19.5, 0, 60, 40], [30, 30, 40, 40], [-9, -9, 29, 19]])
    view = View(torch.zeros(3, 10, 20), boxes, torch.arange(5))
    assert clip_objects(view, 0.3).labels.tolist() == [0, 1]  # 0.32 and 1; the last, of 0.19, is seen too little
    assert clip_objects(view, 0.0).labels.tolist() == [0, 1, 4]
    assert clip_objects(view, 0.0).boxes.tolist() == [[0, 2, 4, 10], [2, 2, 8, 8], [0, 0, 20, 10]]


def test_flips_move_boxes_as_torchvision_does():
    size = (30, 50)
    boxes = torch.tensor([[3.5, 4, 10, 20], [0, 0, 50, 30]])
    given = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
    assert torch.equal(flip_boxes(boxes, size, True, False), torch.Tensor(tv.horizontal_flip(given)))
    assert torch.equal(flip_boxes(boxes, size, False, True), torch.Tensor(tv.vertical_flip(given)))
    both = tv.vertical_flip(tv.horizontal_flip(given))
    assert torch.equal(flip_boxes(boxes, size, True, True), torch.Tensor(both))
    assert torch.equal(flip_boxes(boxes, size, False, False), boxes)


def test_boxes_inside_a_window_are_cut_as_torchvision_cuts_them():
    window, size = Window(5, 8, 20, 30), (50, 45)
    boxes = torch.tensor([[10.0, 7, 20, 15], [9, 6, 37, 24]])
    given = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(40, 60))
    expected = tv.resized_crop(given, *window, size=list(size))
    assert torch.allclose(cut_boxes(boxes, window, size), torch.Tensor(expected), atol=1e-4)


def test_scales_are_drawn_log_uniformly_and_flips_as_often_as_asked():
    sample = Rectangles(size=(80, 80)).read(0)
    sample["image"][0, :, :] = torch.arange(80).to(torch.uint8) * 3  # rises from left to right
    sample["image"][1, :, :] = torch.arange(80).to(torch.uint8)[:, None] * 3
    view = RandomView(Fit(), (0.5, 2.0), 0.7, 0.2, 0.0)
    torch.manual_seed(0)
    views = [view(sample) for _ in range(400)]
    heights = torch.tensor([each.size[0] for each in views]).float()
    assert heights.min() >= 40
    assert heights.max() <= 160
    thirds = torch.log2(heights / 40).mul(1.5).long().clamp(max=2).bincount()
    assert (thirds - 400 / 3).abs().max() < 35
    flipped = sum(bool(each.image[0, 0, 0] > each.image[0, 0, -1]) for each in views) / 400
    turned = sum(bool(each.image[1, 0, 0] > each.image[1, -1, 0]) for each in views) / 400
    assert abs(flipped - 0.7) < 0.08
    assert abs(turned - 0.2) < 0.08


def test_every_part_of_an_image_is_shown():
    samples = Rectangles(size=(40, 60))
    sample = samples.read(0)
    sample["image"][0] = torch.arange(40, dtype=torch.uint8)[:, None]
    sample["image"][1] = torch.arange(60, dtype=torch.uint8)
    view = RandomView(Fit(), crop=(30, 30))
    torch.manual_seed(0)
    corners = {(int(each.image[0, 0, 0]), int(each.image[1, 0, 0])) for each in (view(sample) for _ in range(3000))}
    assert corners == {(top, left) for top in range(11) for left in range(31)}


def test_ignored_objects_are_not_trained_on():
    sample = Rectangles().read(0)
    sample["ignored"][1] = True
    out = BoxTrainTransform(RandomView(Fit()), None, None)(sample)
    assert out["labels"].tolist() == [0, 2]
    assert torch.equal(out["boxes"], torch.Tensor(sample["boxes"])[[0, 2]])
    assert out.keys() == {"image", "boxes", "labels", "size", "id", "original_size"}


def test_an_image_without_objects_stays_as_a_negative():
    sample = Rectangles().read(0)
    none = torch.zeros(3, dtype=torch.bool)
    sample = {**sample, **{name: sample[name][none] for name in ("labels", "ignored", "area")}}
    sample["boxes"] = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(90, 120))
    for view in (RandomView(Fit(), (0.5, 2), 1.0, 1.0, 0.5, (64, 64)), GivenView(Fit(), [v2.RandomHorizontalFlip(1)])):
        out = BoxTrainTransform(view, None, None)(sample)
        assert out["boxes"].shape == (0, 4)
        assert out["labels"].shape == (0,)


@pytest.mark.parametrize("original", [(90, 120), (120, 90), (33, 500), (37, 37), (1, 9)])
@pytest.mark.parametrize(("resize", "longest"), [(50, None), (50, 64), (100, 130), (64, 65)])
def test_the_size_is_that_of_torchvisions_resize(original, resize, longest):
    expected = tv.resize(torch.zeros(1, *original), [resize], max_size=longest).shape[1:]
    size = Fit(resize=resize, longest=longest).size(original)
    assert all(abs(one - other) <= 1 for one, other in zip(size, expected, strict=True))  # torchvision rounds down
    assert longest is None or max(size) <= longest


@pytest.mark.parametrize("original", [(90, 120), (120, 90), (33, 500), (700, 41), (64, 96), (1, 9)])
@pytest.mark.parametrize("letterbox", [(64, 96), (100, 100), (31, 977)])
def test_a_letterbox_holds_the_largest_image_that_fits(original, letterbox):
    fit = Fit(letterbox=letterbox)
    size = fit.size(original)
    assert fit.canvas(size) == letterbox
    scale = min(letterbox[0] / original[0], letterbox[1] / original[1])
    assert all(abs(side - max(1, scale * whole)) <= 0.5 for side, whole in zip(size, original, strict=True))
    assert size[0] == letterbox[0] or size[1] == letterbox[1]
    assert size[0] <= letterbox[0]
    assert size[1] <= letterbox[1]


@pytest.mark.parametrize("shrink", [1, 2])
@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_what_is_found_in_evaluation_comes_back_to_the_stored_image(fit, shrink):
    samples = Rectangles(shrink=shrink)
    for index in range(4):
        stored, sample = samples.read(index), BoxEvalTransform(fit)(samples.read(index))
        size, canvas = sample["size"], sample["canvas"]
        assert sample["image"].shape[1:] == canvas == fit.canvas(size)
        assert not sample["image"][:, size[0] :].any()
        assert not sample["image"][:, :, size[1] :].any()
        for name in ("boxes", "labels", "ignored", "area"):
            assert torch.equal(sample[name], stored[name].as_subclass(torch.Tensor))
            assert type(sample[name]) is torch.Tensor
        found = torch.tensor([found_box(sample["image"][label]) for label in sample["labels"]]).float()
        back = scale_boxes(found, size, sample["original_size"])
        assert (back - sample["boxes"]).abs().max() <= shrink * max(1.0, samples.size[0] / size[0])
        there = scale_boxes(sample["boxes"], sample["original_size"], size)
        assert torch.allclose(scale_boxes(there, size, sample["original_size"]), sample["boxes"], atol=1e-4)


def test_evaluation_shows_the_pixels_of_one_antialiased_resize():
    sample = Rectangles().read(0)
    sample["image"] = tv_tensors.Image(torch.randint(0, 256, sample["image"].shape, dtype=torch.uint8))
    shown = BoxEvalTransform(Fit(letterbox=(64, 64)))(sample)
    expected = torch.nn.functional.interpolate(
        sample["image"].float()[None], shown["size"], mode="bilinear", antialias=True
    )
    assert shown["size"] == (48, 64)
    assert (shown["image"][:, :48].float() - expected[0]).abs().max() <= 1


def test_training_at_scale_one_shows_what_evaluation_shows():
    samples = Rectangles()
    for fit in FITS.values():
        stored = samples.read(1)
        train = BoxTrainTransform(RandomView(fit), fit.letterbox, None)(stored)
        evaluated = BoxEvalTransform(fit)(stored)
        assert torch.equal(train["image"], evaluated["image"])
        assert train["size"] == evaluated["size"]
        moved = scale_boxes(evaluated["boxes"], samples.size, train["size"])
        assert torch.allclose(train["boxes"], moved, atol=1e-4)


@pytest.mark.parametrize("shrink", [1, 2])
def test_a_users_own_transforms_move_boxes_and_pixels_alike(shrink):
    samples = Rectangles(shrink=shrink)
    transforms = [v2.RandomResizedCrop((70, 80), (0.4, 1.0)), v2.RandomHorizontalFlip(0.5), v2.RandomVerticalFlip(0.5)]
    transform = BoxTrainTransform(GivenView(Fit(resize=80), transforms), None, None)
    counts = set()
    for seed in range(20):
        torch.manual_seed(seed)
        sample = transform(samples.read(seed % 4))
        assert sample["image"].shape[1:] == sample["size"] == (70, 80)
        assert worst_edge(sample["image"], sample["boxes"], sample["labels"]) <= 1.5
        assert type(sample["boxes"]) is type(sample["image"]) is torch.Tensor
        assert len(sample["boxes"]) == len(sample["labels"])
        counts.add(len(sample["boxes"]))
    assert len(counts) > 1  # objects outside of the crop are dropped


@pytest.mark.parametrize("form", ["XYWH", "CXCYWH"])
def test_boxes_that_a_transform_gives_in_another_form_stay_on_their_objects(form):
    view = GivenView(Fit(), [v2.ConvertBoundingBoxFormat(form)])(Rectangles().read(1))
    assert torch.equal(view.boxes, Rectangles().boxes(1))
    assert type(view.boxes) is torch.Tensor


class DropsBoxes(v2.Transform):
    def forward(self, sample):
        return {**sample, "boxes": sample["boxes"][:1]}


def test_a_transform_that_drops_boxes_and_not_their_labels_is_refused():
    with pytest.raises(DataError, match=r"data\.train_transforms: 1 boxes are left of 0, and 3 labels: .*Sanitize"):
        GivenView(Fit(), [DropsBoxes()])(Rectangles().read(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"letterbox": (64, 64), "resize": 50}, r"data\.letterbox and data\.resize both"),
        ({"letterbox": (64, 64), "longest": 50}, r"data\.letterbox and data\.longest both"),
        ({"longest": 50}, r"data\.longest bounds what data\.resize makes: set data\.resize, or data\.letterbox: 50"),
        ({"longest": 50, "resize": 60}, r"data\.longest: the longer side, 50, is less than data\.resize, 60"),
    ],
)
def test_rules_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Fit(**options)


@pytest.mark.parametrize("original", [(90, 120), (500, 120), (60, 61)])
def test_an_image_decoded_at_least_that_large_is_never_enlarged(original):
    for fit in (Fit(resize=40), Fit(letterbox=(40, 50)), Fit(resize=40, longest=45), Fit()):
        for scale in (0.5, 1.0, 1.7):
            needed = fit.at_least(scale)
            shown = [side * max(1.0, scale) for side in fit.size(original)]
            assert (needed if needed is not None else math.inf) >= min(shown) or min(original) <= needed
