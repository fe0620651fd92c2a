"""What a sample of detection data is, and what is said of boxes that cannot be right."""

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torchvision.ops import box_area, clip_boxes_to_image

from framework.data.annotations import SIDES, AnnotatedImage, Annotations, Object
from framework.data.box_files import BoxFiles, judge_boxes
from framework.data.check import check_splits
from framework.data.sampling import Labels
from framework.data.voc_detection import VOCDetection
from framework.errors import DataError
from tests.folders import write_voc

NAN, INF = float("nan"), float("inf")


def picture(path, size=(60, 80), orientation=None):
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path, exif=exif)
    return path


def files(tmp_path, *images, bad_boxes="refuse", form=None, classes=("cat", "dog"), **keywords):
    """One image of 80x60 pixels for each list of objects, whose boxes may stand alone."""
    made = []
    for number, objects in enumerate(images):
        path = picture(tmp_path / f"{number}.png")
        objects = [
            each if isinstance(each, Object) else Object(each, 0, f"object {i + 1}") for i, each in enumerate(objects)
        ]
        made.append(AnnotatedImage(path, path.stem, tmp_path / f"{number}.xml", objects, keywords.get("size")))
    annotations = Annotations.of(made, **({"form": form} if form else {}))
    return BoxFiles(annotations, classes, 3, None, bad_boxes)


def look(samples):
    """Check every image, as is done before training; returns what is wrong and what is odd."""
    return [samples.problem(index) for index in range(len(samples))], *samples.remarks()


def test_a_sample_has_what_was_annotated(tmp_path):
    objects = [Object((1, 2, 11, 22), 0, "object 1"), Object((5.5, 0, 80, 60), 1, "object 2", True, 77.0)]
    sample = files(tmp_path, objects).read(0)
    assert sample["image"].shape == (3, 60, 80)
    assert sample["image"].dtype == torch.uint8
    assert sample["boxes"].tolist() == [[1, 2, 11, 22], [5.5, 0, 80, 60]]
    assert sample["boxes"].dtype == torch.float32
    assert sample["boxes"].canvas_size == sample["original_size"] == (60, 80)
    assert sample["labels"].tolist() == [0, 1]
    assert sample["labels"].dtype == torch.long
    assert sample["ignored"].tolist() == [False, True]
    assert sample["area"].tolist() == [200, 77]
    assert sample["area"].dtype == torch.float32
    assert sample["id"] == "0"


def test_an_image_without_objects_is_a_sample(tmp_path):
    sample = files(tmp_path, []).read(0)
    assert sample["boxes"].shape == (0, 4)
    assert sample["labels"].shape == sample["area"].shape == (0,)


def test_an_area_of_zero_as_some_tools_write_is_none(tmp_path):
    assert files(tmp_path, [Object((0, 0, 4, 5), 0, "x", area=0.0)]).read(0)["area"].tolist() == [20]


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((10, 10, 30, NAN), "x1, y1, x2, y2 = 10, 10, 30, nan is not finite"),
        ((10, -INF, 30, 20), "is not finite"),
        ((10, 10, 1e60, 20), "is not finite"),  # beyond what float32 holds
        ((50, 10, 20, 40), "50, 10, 20, 40 is reversed (x2 < x1 or y2 < y1: are they x, y, width, height?)"),
        ((10, 40, 30, 20), "is reversed"),
        ((10, 10, 10, 40), "10, 10, 10, 40 has no area"),
        ((10, 10, 10.0000001, 40), "has no area"),  # the same in float32
        ((90, 10, 120, 40), "lies outside"),
        ((-20, -20, 0, 0), "lies outside"),
        ((10, 60, 20, 61), "lies outside"),
        ((10, 10, 83, 40), "sticks out"),
        ((-2.5, 10, 30, 40), "sticks out"),
    ],
)
def test_boxes_that_cannot_be_right_are_refused(tmp_path, box, said):
    samples = files(tmp_path, [(1, 1, 5, 5), box])
    message = samples.problem(0)
    assert f"{tmp_path}/0.xml (image 0.png, 80x60): object 2 (cat): the box" in message
    assert said in message
    assert "set data.bad_boxes to drop" in message
    assert "object 1 " not in message
    with pytest.raises(DataError, match="object 2"):
        samples.read(0)


def test_many_bad_boxes_of_an_image_are_counted(tmp_path):
    message = files(tmp_path, [(9, 9, 5, 5)] * 7).problem(0)
    assert message.count("is reversed") == 3
    assert "object 3" in message
    assert "and 4 more" in message


def test_a_box_of_sides_is_shown_as_it_was_written(tmp_path):
    message = files(tmp_path, [(10, 20, 5, 60), (10, 20, 150, 60)], form=SIDES).problem(0)
    assert "the box x, y, width, height = 10, 20, -5, 40 has a negative width or height" in message
    assert "10, 20, 140, 40 sticks out (are they x1, y1, x2, y2?)" in message


def test_boxes_that_stick_out_a_little_are_clipped(tmp_path):
    samples = files(tmp_path, [(-1, 0.5, 30, 40), (70, 50, 81.5, 62)])
    wrong, remarks = look(samples)[0], look(samples)[2]
    assert wrong == [None]
    assert samples.read(0)["boxes"].tolist() == [[0, 0.5, 30, 40], [70, 50, 80, 60]]
    assert samples.read(0)["area"].tolist() == [30 * 39.5, 100]
    assert any(
        "2 boxes are clipped, as they stick out of their image by up to 2 pixels" in remark for remark in remarks
    )


def test_drop_leaves_out_what_cannot_be_right_and_clips_the_rest(tmp_path):
    bad = [(10, 10, NAN, 20), (50, 10, 20, 40), (10, 10, 10, 40), (90, 10, 120, 40)]
    samples = files(tmp_path, [bad[0], (1, 1, 5, 5), *bad[1:], (60, 30, 99, 99)], bad[:1], bad_boxes="drop")
    wrong, stops, odd = look(samples)
    assert wrong == [None, None]
    assert stops == []
    assert samples.read(0)["boxes"].tolist() == [[1, 1, 5, 5], [60, 30, 80, 60]]
    assert samples.read(1)["boxes"].shape == (0, 4)
    said = "\n".join(odd)
    assert f"5 boxes are left out, as data.bad_boxes says: {tmp_path}/0.xml object 1 is the first" in said
    assert f"1 box is clipped, as they stick out of their image: {tmp_path}/0.xml object 6" in said
    assert "1 of 2 images have no object" in said


def test_boxes_look_normalised(tmp_path):
    for policy in ("refuse", "drop"):
        message = files(tmp_path, [(0.1, 0.1, 0.5, 0.5), (0, 0, 1, 1)], bad_boxes=policy).problem(0)
        assert "all coordinates are within 0 and 1, so its boxes look normalised: give them in pixels" in message
    assert files(tmp_path, [(0.1, 0.1, 0.5, 0.5), (3, 3, 9, 9)]).problem(0) is None


def test_a_random_box_is_judged_as_by_hand():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(-30, 110, (2000, 4)).round(rng.integers(0, 2))
    judged = judge_boxes(boxes, (60, 80))
    clipped = clip_boxes_to_image(torch.from_numpy(boxes).float(), (60, 80))
    assert torch.equal(torch.from_numpy(judged.boxes), clipped)
    for (x1, y1, x2, y2), fault in zip(boxes, judged.faults, strict=True):
        if x2 < x1 or y2 < y1:
            expected = 2
        elif x1 == x2 or y1 == y2:
            expected = 3
        elif min(x2, 80) - max(x1, 0) <= 0 or min(y2, 60) - max(y1, 0) <= 0:
            expected = 4
        else:
            expected = 5 * (max(-x1, -y1, x2 - 80, y2 - 60) > 2)
        assert fault == expected
    assert set(judged.faults.tolist()) == {0, 2, 3, 4, 5}
    assert (box_area(clipped[judged.faults == 5]) > 0).all()


# The image.


def one(path, size=None, box=(5, 5, 20, 20), tmp_path=None):
    image = AnnotatedImage(path, "a", path.with_suffix(".xml"), [Object(box, 0, "object 1")], size)
    return BoxFiles(Annotations.of([image]), ("cat",), 3, None)


def test_an_image_that_is_listed_but_missing(tmp_path):
    message = one(tmp_path / "gone.png").problem(0)
    assert f"{tmp_path}/gone.png does not exist, but it is listed by {tmp_path}/gone.xml: add it" in message


def test_an_image_that_cannot_be_read(tmp_path):
    path = picture(tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:60])
    assert f"{path} is damaged" in one(path).problem(0)


def test_a_size_that_differs(tmp_path):
    path = picture(tmp_path / "a.png")
    assert one(path, (60, 80)).problem(0) is None
    message = one(path, (120, 160)).problem(0)
    assert "a.xml: the size stated is 160x120, but" in message
    assert "is 80x60: was it resized" in message
    assert "is 80x60: it was turned by 90° after it was annotated" in one(path, (80, 60)).problem(0)


def test_an_image_turned_by_exif_is_annotated_upright(tmp_path):
    path = picture(tmp_path / "a.jpg", (80, 60), orientation=6)
    upright = one(path, (60, 80))
    assert upright.problem(0) is None
    assert upright.remarks() == ([], [])
    assert upright.read(0)["image"].shape == (3, 60, 80)
    message = one(path, (80, 60)).problem(0)
    assert "the size stated is 60x80" in message
    assert "80x60 once turned by 90° as its EXIF rotation says" in message
    assert "boxes must be those of the upright image" in message
    assert "remove the EXIF rotation" in message


@pytest.mark.parametrize(("orientation", "size"), [(6, None), (3, (80, 60)), (8, None)])
def test_nobody_knows_which_way_up_an_image_was_annotated(tmp_path, orientation, size):
    samples = one(picture(tmp_path / "a.jpg", (80, 60), orientation), size)
    assert samples.problem(0) is None
    assert any("1 image carries an EXIF rotation" in remark and "a.jpg" in remark for remark in samples.remarks()[1])


# The split.


def test_classes_of_each_image_and_what_the_split_lacks(tmp_path):
    box = (1, 1, 9, 9)
    two = [Object(box, 1, "object 1"), Object(box, 1, "object 2"), Object((2, 2, 9, 9), 0, "object 3")]
    samples = files(tmp_path, two, [], [Object(box, 0, "object 1", ignored=True)], [Object(box, 1, "a")])
    assert samples.class_indices == [[0, 1], [], [], [1]]
    assert Labels.of(samples.class_indices, 2).counts().tolist() == [1, 2]
    odd = look(samples)[2]
    assert "1 of 4 images have no object: they are kept as negatives" in odd
    assert "1 box is there twice, the same class in the same image" in odd
    assert not any("class" in remark and "no object of" in remark for remark in odd)
    assert "no object of class bird" in look(files(tmp_path, two, classes=("cat", "dog", "bird")))[2]


def test_boxes_that_are_dropped_do_not_make_their_image_one_of_their_class(tmp_path):
    good = (1, 1, 9, 9)
    bad = [(9, 9, 1, 1), (1, 1, 1, 9), (1, 1, NAN, 9), (1, 1, 1e60, 9), (-INF, 1, 9, 9)]
    images = [[Object(box, 1, "a"), Object(good, 0, "b")] for box in [*bad, good]]
    samples = files(tmp_path, *images, bad_boxes="drop")
    assert samples.class_indices == [[0]] * 5 + [[0, 1]]
    assert samples.class_indices == [sorted(set(samples.read(index)["labels"].tolist())) for index in range(6)]
    assert BoxFiles(samples.annotations, samples.classes, 3, None).class_indices == [[0, 1]] * 6


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("kind", ["none", "ignored", "dropped"])
def test_a_split_with_no_object_stops(tmp_path, split, kind):
    nothing = {"none": [], "ignored": [Object((1, 1, 9, 9), 0, "a", True)], "dropped": [(9, 9, 1, 1)]}[kind]
    for folder in ("full", "empty"):
        (tmp_path / folder).mkdir()
    full, empty = files(tmp_path / "full", [(1, 1, 9, 9)]), files(tmp_path / "empty", nothing, bad_boxes="drop")
    splits = {name: empty if name == split else full for name in ("train", "val", "test")}
    said = {"none": "", "ignored": "1 are ignored", "dropped": "1 were dropped"}[kind]
    with pytest.raises(DataError, match=f"{split}: no image has an object.*{said}"):
        check_splits(splits, "")


def test_sources_are_the_image_and_its_annotation(tmp_path):
    assert files(tmp_path, []).sources(0) == [str(tmp_path / "0.png"), str(tmp_path / "0.xml")]


def test_a_changed_annotation_is_looked_at_again(tmp_path):
    options = {"batch_size": 2, "num_workers": 0}
    write_voc(tmp_path / "set")
    VOCDetection("set", **options).check_files()
    xml = tmp_path / "set/Annotations/val000.xml"
    xml.write_text(xml.read_text().replace("<xmax>", "<xmax>9"))
    with pytest.raises(DataError, match=r"val: set/Annotations/val000.xml .* sticks out"):
        VOCDetection("set", **options).check_files()


def test_annotations_of_some_images(tmp_path):
    whole = files(tmp_path, [(1, 1, 2, 2)], [], [(3, 3, 9, 9), (4, 4, 9, 9)]).annotations
    some = whole.take(np.array([False, True, True]))
    assert some.ids == ["1", "2"]
    assert some.boxes[:, 0].tolist() == [3, 4]
    assert some.of_image(0) == slice(0, 0)
    assert some.of_image(1) == slice(0, 2)
    assert some.places[1] == "object 2"
