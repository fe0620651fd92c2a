from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from framework.data.annotations import AnnotatedImage, Annotations, Object
from framework.data.loader import SampleKey
from framework.data.sample_cells import SampleCells, SampleCellsDetection, instance_boxes
from framework.data.sampling import ClassBalanced, RepeatFactor
from framework.data.scenes import SCENE_CLASSES
from framework.data.synthetic import SyntheticScenes, SyntheticScenesDetection
from framework.errors import ConfigError, DataError
from tests.framework.data.rectangles import EACH, RectangleData, Rectangles

CELLS = Path(__file__).parents[3] / "framework/data/cells"


class Labelled(Rectangles):
    """Image 0 alone has an object of class 2, and image 3 has none at all."""

    class_indices = ([0, 2], [0], [0, 1], [])


class Bare(Rectangles):
    class_indices = ([], [], [], [])


class Annotated(Rectangles):
    def __init__(self, *objects, notes=()):
        super().__init__()
        image = AnnotatedImage(Path("a.png"), "a", Path("a.txt"), objects)
        self.annotations, self.notes = Annotations.of([image] * 4), list(notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"letterbox": 64, "resize": 50}, r"data\.letterbox and data\.resize"),
        ({"longest": 50}, r"data\.longest .*set data\.resize"),
        ({"scale": (1.5, 0.5)}, r"data\.scale: two positive numbers, rising, got \[1.5, 0.5\]"),
        ({"scale": (0.0, 1.5)}, r"data\.scale: two positive numbers"),
        ({"mosaic": 0.5}, r"data\.mosaic: training pictures need one size: set data\.crop_size or data\.letterbox"),
        ({"mixup": 0.5, "resize": 64}, r"data\.mixup: training pictures need one size"),
        ({"mosaic": 0.5, "crop_size": 1}, r"data\.mosaic: training pictures need one size"),
        (
            {"mixup": 0.5, "crop_size": 64, "train_transforms": [v2.RandomHorizontalFlip()]},
            r"data\.mixup: data\.train_transforms take its place",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        RectangleData(**options)


FLIP = [v2.RandomHorizontalFlip()]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"crop_size": 64}, "data.crop_size"),
        ({"crop_size": 64, "letterbox": 80}, "data.crop_size"),
        ({"scale": (0.5, 2.0)}, "data.scale"),
        ({"hflip": 0.1, "vflip": 0.5}, "data.hflip, data.vflip"),
        ({"min_visibility": 0.9}, "data.min_visibility"),
    ],
)
def test_options_that_transforms_of_ones_own_would_replace_are_refused(options, named):
    with pytest.raises(ConfigError, match=rf"^{named}: data\.train_transforms take the place .*: leave \w+ out"):
        RectangleData(train_transforms=FLIP, **options)


def test_options_that_say_what_is_so_go_with_transforms_of_ones_own():
    RectangleData(train_transforms=FLIP, letterbox=80)
    RectangleData(train_transforms=FLIP, scale=(1.0, 1.0), hflip=0.0, vflip=0.0, min_visibility=0.0)
    SampleCellsDetection(train_transforms=FLIP)  # has a crop_size and a vflip of its own
    SampleCellsDetection(train_transforms=FLIP, crop_size=None)
    with pytest.raises(ConfigError, match=r"^data\.crop_size, data\.vflip: "):
        SampleCellsDetection(train_transforms=FLIP, crop_size=96, vflip=0.25)


@pytest.mark.parametrize(
    ("transform", "shape", "size"),
    [
        (FLIP[0], (100, 80), (60, 80)),
        (v2.Resize((120, 70)), (120, 80), (120, 70)),
        (v2.Pad(30), (120, 140), (120, 140)),
    ],
    ids=["smaller", "higher", "larger"],
)
def test_pictures_of_ones_own_transforms_fill_the_letterbox(transform, shape, size):
    data = RectangleData(batch_size=2, letterbox=(100, 80), train_transforms=[transform])
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 12, *shape)
    assert batch["size"] == [size] * 2


# What is found before training.


class Checked(RectangleData):
    def __init__(self, cache, **options):
        super().__init__(batch_size=2, **options)
        self.check, self.check_cache = True, cache


DROPPING = [
    (
        {"crop_size": 4},
        r"train: 4 images .* of 64 .* none .*data\.min_visibility 0\.3, .*data\.crop_size \[4, 4\]",
    ),
    ({"scale": (0.01, 0.02)}, r"data\.scale \[0\.01, 0\.02\]"),
    ({"letterbox": 3}, r"data\.letterbox \[3, 3\]"),
    ({"train_transforms": [v2.Resize((2, 2))]}, r"data\.train_transforms drop them all"),
]


@pytest.mark.parametrize(("options", "message"), DROPPING)
def test_training_pictures_that_show_no_object_are_found_before_training(options, message, tmp_path):
    options = {"min_visibility": 0.3, **options}
    with pytest.raises(DataError, match=message):
        Checked(tmp_path, **options).check_files()
    unchecked = Checked(tmp_path, **options)
    unchecked.check = False
    assert unchecked.check_files() == []


def test_one_picture_with_an_object_is_enough_and_takes_one_image(tmp_path):
    data = Checked(tmp_path, crop_size=48)
    state = torch.random.get_rng_state()
    assert data.check_files() == data.check_files() == []
    assert len(data.samples.was_read) == 1
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("size", [(1, 1), (8, 200)])
def test_scenes_too_small_to_show_an_object_are_refused(size, tmp_path):
    options = {"train": 4, "val": 2, "test": 2, "batch_size": 2, "check_cache": str(tmp_path)}
    assert SyntheticScenesDetection(**options).check_files() == []
    with pytest.raises(DataError, match=rf"train: no scene of 4 has an object .* at {size[0]}x{size[1]}: raise data"):
        SyntheticScenesDetection(**options, size=size).check_files()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "at least 1 class"),
        (["cat", "dog", "cat"], "must differ, but cat stand twice"),
        (["cat", "dog\udcff"], "no UTF-8"),
        (["cat", " "], "empty"),
    ],
)
def test_classes_that_cannot_be_told_apart_are_refused(classes, message):
    with pytest.raises(DataError, match=message):
        RectangleData().state_classes(classes)


def test_one_class_is_enough():
    data = RectangleData()
    data.state_classes(["nucleus"])
    assert data.classes == ("nucleus",)
    assert data.num_classes == 1


@pytest.mark.parametrize("bare", ["train", "val"])
@pytest.mark.parametrize("check", [True, False])
def test_a_split_to_train_on_or_to_measure_with_needs_an_object(bare, check, tmp_path):
    data = RectangleData(batch_size=2)
    data.check, data.check_cache = check, tmp_path
    data.split = lambda name: None if name == "test" else (Bare() if name == bare else Labelled())
    with pytest.raises(DataError, match=f"{bare}: no image has an object to learn from or to measure, of 4 images"):
        data.check_files()


def test_a_test_split_may_have_no_object():
    data = RectangleData(batch_size=2)
    data.split = lambda name: Bare() if name == "test" else Labelled()
    assert data.check_files() == []


def box(*corners, label=0, **more):
    return Object(corners, label, "line 1", **more)


def test_the_verdict_of_the_check_depends_on_what_is_annotated():
    one = [box(1, 2, 3, 4)]
    several = [
        RectangleData(Annotated(*one)),
        RectangleData(Annotated(*one), bad_boxes="drop"),
        RectangleData(Annotated(*one, notes=["odd"])),
        RectangleData(Annotated(box(1, 2, 3, 4.5))),
        RectangleData(Annotated(box(1, 2, 3, 4, label=1))),
        RectangleData(Annotated(box(1, 2, 3, 4, ignored=True))),
        RectangleData(Annotated(*one, *one)),
        RectangleData(),
    ]
    assert len({data.rules() for data in several}) == len(several)
    assert RectangleData(Annotated(*one)).rules() == several[0].rules()


# Batches.


def test_a_batch_holds_what_belongs_to_objects_in_lists():
    data = RectangleData(batch_size=2, crop_size=64, scale=(1.0, 1.5))
    train, val = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert train["image"].shape == (2, 12, 64, 64)
    assert train["photometric"].shape == (2, 3)
    assert train.keys() >= {"boxes", "labels", "id", "size", "original_size", "is_pad"}
    assert not train.keys() & {"ignored", "area", "canvas"}
    assert val.keys() >= {"boxes", "labels", "ignored", "area", "id", "size", "canvas", "original_size", "is_pad"}
    for batch in (train, val):
        for name in {"boxes", "labels", "ignored", "area"} & batch.keys():
            assert isinstance(batch[name], list)
            assert all(type(values) is torch.Tensor for values in batch[name])
        assert [len(boxes) for boxes in batch["boxes"]] == [len(labels) for labels in batch["labels"]]


def test_whole_images_of_a_batch_are_padded_to_the_largest():
    data = RectangleData(batch_size=4, scale=(0.5, 1.5), photometric=None)
    batch = next(iter(data.train_dataloader()))
    heights, widths = zip(*batch["size"], strict=True)
    assert len(set(batch["size"])) == 4
    assert batch["image"].shape[2:] == (max(heights), max(widths))
    for image, (height, width) in zip(batch["image"], batch["size"], strict=True):
        assert image[:, :height, :width].any()
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()


def test_a_letterbox_makes_every_picture_of_one_size():
    data = RectangleData(batch_size=4, letterbox=(100, 80), scale=(0.5, 2.0))
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert next(iter(loader))["image"].shape == (4, 12, 100, 80)
    assert next(iter(data.val_dataloader()))["canvas"] == [(100, 80)] * 4
    assert next(iter(data.val_dataloader()))["size"] == [(60, 80)] * 4


def equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        pair = zip(one[name], other[name], strict=True)
        assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pair), name
    return True


def batches(workers, **options):
    data = SampleCellsDetection(batch_size=2, num_workers=workers, check=False, seed=5, **options)
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(1)
    return list(loader)


@pytest.mark.parametrize("options", [{}, {"crop_size": 96, "mosaic": 0.7, "mixup": 0.5}], ids=["plain", "mosaic"])
def test_a_training_batch_depends_on_seed_epoch_and_index_alone(options):
    alone = batches(0, **options)
    torch.rand(7)
    pairs = zip(alone, batches(2, **options), strict=True)
    assert all(equal(one, other) for one, other in pairs)
    other_epoch = SampleCellsDetection(num_workers=0, seed=5, **options).train_dataloader().dataset[SampleKey(0, 2)]
    this_epoch = SampleCellsDetection(num_workers=0, seed=5, **options).train_dataloader().dataset[SampleKey(0, 1)]
    assert not torch.equal(other_epoch["image"], this_epoch["image"])


# Sampling.


def test_images_of_rare_classes_are_visited_more_often():
    data = RectangleData(Labelled(), sampling=RepeatFactor(1.0), batch_size=1)
    visits = [key.index % 4 for batch in data.train_dataloader().batch_sampler for key in batch]
    assert len(visits) == data.epoch_length() == round(2 + (4 / 3) ** 0.5 + 2 + 1)
    assert visits.count(0) >= 2
    assert visits.count(3) == 1  # one without objects is visited too
    assert data.train_batches() == len(visits)


def test_each_visit_of_an_image_is_augmented_anew():
    data = RectangleData(Labelled(), sampling=RepeatFactor(1.0), batch_size=1, crop_size=32)
    keys = [key for batch in data.train_dataloader().batch_sampler for key in batch if key.index % 4 == 0]
    one, other = (data.train_dataloader().dataset[key] for key in keys[:2])
    assert one["id"] == other["id"]
    assert not torch.equal(one["image"], other["image"])


def test_every_class_is_visited_equally_often():
    data = RectangleData(Labelled(), sampling=ClassBalanced(), repeats=30, batch_size=1)
    visits = torch.tensor([key.index % 4 for batch in data.train_dataloader().batch_sampler for key in batch])
    shares = visits.bincount(minlength=4) / len(visits)
    # Classes 0, 1, 2 and none have a quarter each; of class 0 images 0, 1 and 2 have a third each.
    assert torch.allclose(shares, torch.tensor([1 / 3, 1 / 12, 1 / 3, 1 / 4]), atol=0.02)


def test_sampling_needs_to_know_the_classes_before_images_are_read():
    data = RectangleData(sampling=RepeatFactor(0.5), batch_size=1)
    with pytest.raises(ConfigError, match=r"data\.sampling: the samples of RectangleData have no `class_indices`"):
        data.check_files()


def test_cells_can_be_sampled():
    data = SampleCellsDetection(sampling=ClassBalanced(), batch_size=2)
    assert data.train_labels.counts().tolist() == [data.epoch_length()] == [6]


# Embedded data.


def test_boxes_of_cells_are_those_of_the_instances():
    data = SampleCellsDetection()
    for split in ("train", "val", "test"):
        samples, masks = data.split(split), SampleCells().split(split)
        assert len(samples) == len(masks)
        for index in range(len(samples)):
            sample, known = samples.read(index), masks.read(index)
            assert torch.equal(sample["image"], known["image"])
            assert sample["id"] == known["id"]
            path = CELLS / "instances" / split / f"{sample['id']}.nuclei.png"
            instances = np.asarray(Image.open(path))
            numbers = [number for number in range(1, int(instances.max()) + 1) if (instances == number).any()]
            assert len(numbers) == len(sample["boxes"])
            for number, (x1, y1, x2, y2), area in zip(
                numbers, sample["boxes"].int().tolist(), sample["area"].tolist(), strict=True
            ):
                inside = instances[y1:y2, x1:x2] == number
                assert inside.sum() == (instances == number).sum() == area
                assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_a_map_without_instances_has_no_boxes():
    boxes, area = instance_boxes(np.zeros((4, 5), np.uint16))
    assert boxes.shape == (0, 4)
    assert area.shape == (0,)
    boxes, area = instance_boxes(np.array([[0, 7], [7, 9]], np.uint16))
    assert boxes.tolist() == [[0, 0, 2, 2], [1, 1, 2, 2]]
    assert area.tolist() == [2, 1]


def test_cells_name_their_files_and_none_is_wrong(tmp_path):
    data = SampleCellsDetection(batch_size=2, check_cache=str(tmp_path))
    assert data.check_files() == []
    assert {Path(path).name for path in data.split("val").sources(0)} == {
        "frame_4.hoechst.png",
        "frame_4.oblique.png",
        "frame_4.nuclei.png",
    }


def test_frames_are_predicted_without_objects():
    folder = CELLS / "images" / "test"
    data = SampleCellsDetection(predict_dir=str(folder), num_workers=0)
    batch = next(iter(data.predict_dataloader()))
    assert batch["id"] == ["frame_5", "frame_6"]
    assert batch["image"].shape == (2, 2, 210, 576)
    assert batch["canvas"] == batch["size"] == [(210, 576)] * 2
    assert "boxes" not in batch


def test_scenes_have_the_boxes_of_their_solids():
    options = {"train": 3, "val": 2, "test": 0, "size": (60, 80)}
    boxes, masks = SyntheticScenesDetection(**options), SyntheticScenes(**options)
    assert boxes.classes == SCENE_CLASSES[1:]
    assert boxes.split("test") is None
    for index in range(3):
        one, other = boxes.split("train").read(index), masks.split("train").read(index)
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["boxes"], other["boxes"])
        assert torch.equal(one["labels"] + 1, other["labels"])
        for (x1, y1, x2, y2), label, area in zip(
            one["boxes"].int().tolist(), one["labels"].tolist(), one["area"].tolist(), strict=True
        ):
            shown = int((other["mask"][y1:y2, x1:x2] == label + 1).sum())
            assert 0 < area <= shown  # others of its class may reach into its box


def test_images_to_predict_are_shown_as_evaluation_shows_them(tmp_path):
    Image.new("RGB", (400, 200), (9, 9, 9)).save(tmp_path / "a.jpg")
    data = RectangleData(Rectangles(count=1), letterbox=(64, 64), predict_dir=str(tmp_path))
    data.channels = EACH
    batch = next(iter(data.predict_dataloader()))
    assert batch["image"].shape == (1, 3, 64, 64)
    assert batch["size"] == [(32, 64)]
    assert batch["canvas"] == [(64, 64)]
    assert batch["original_size"] == [(200, 400)]
