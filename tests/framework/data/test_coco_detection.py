"""COCO's JSON: its layouts, and what is said of files that are wrong."""

import json
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from framework.conformance import check_plugin
from framework.data.coco import COCODetection
from framework.data.coco_file import read_coco
from framework.errors import ConfigError, DataError
from tests.folders import box_scenes, write_coco


@pytest.fixture
def root(tmp_path):
    return write_coco(tmp_path / "set")


def data(root="set", **options):
    return COCODetection(str(root), **{"batch_size": 2, "num_workers": 0, "photometric": None, **options})


def change(path, edit):
    """Edit the content of a JSON file."""
    content = json.loads(Path(path).read_text())
    Path(path).write_text(json.dumps(edit(content) or content))


def truth(module, split):
    """Return the boxes and class names of each image by its id."""
    samples = module.splits()[split]
    found = {}
    for index in range(len(samples)):
        sample = samples.read(index)
        found[sample["id"]] = (sample["boxes"].tolist(), [module.classes[label] for label in sample["labels"].tolist()])
    return found


def expected(split, classes=("blue", "green", "red")):
    return {
        scene.name: (
            [list(map(float, box)) for box in scene.boxes],
            [classes[label] for label in scene.labels],
        )
        for scene in box_scenes()[split]
    }


TRAIN = "set/annotations/instances_train2017.json"
VAL = "set/annotations/instances_val2017.json"


def test_boxes_and_classes_are_those_of_the_file(root):
    module = data()
    assert module.classes == ("blue", "green", "red")
    assert module.counts == {"train": 6, "val": 3, "test": 3}
    for split in ("train", "val", "test"):
        assert truth(module, split) == expected(split)
    assert module.check_files() == [
        f"{split}: 1 of {n} images have no object: they are kept as negatives"
        for split, n in (("train", 6), ("val", 3), ("test", 3))
    ]


def test_the_same_boxes_as_pycocotools(root, capsys):
    def shuffle(content):
        content["annotations"].reverse()
        content["images"].reverse()
        content["annotations"][0].update(iscrowd=1, segmentation={"counts": [5, 3], "size": [64, 80]})
        content["annotations"][1].update(area=12.5, bbox=[3.25, 4.5, 10.75, 9.125])
        content["annotations"][2].pop("area")
        content["annotations"][2].pop("iscrowd")

    change(TRAIN, shuffle)
    samples = data().splits()["train"]
    content = json.loads(Path(TRAIN).read_text())
    for each in content["annotations"]:
        each.setdefault("area", each["bbox"][2] * each["bbox"][3])
    Path("filled.json").write_text(json.dumps(content))
    api = COCO("filled.json")
    ids = {info["file_name"].removesuffix(".png"): id_ for id_, info in api.imgs.items()}
    seen = 0
    for index in range(len(samples)):
        sample = samples.read(index)
        theirs = api.loadAnns(api.getAnnIds(ids[sample["id"]]))
        xyxy = [[x, y, x + w, y + h] for x, y, w, h in (each["bbox"] for each in theirs)]
        assert sample["boxes"].tolist() == xyxy
        assert [1 + 2 * label for label in sample["labels"].tolist()] == [each["category_id"] for each in theirs]
        assert sample["area"].tolist() == [each["area"] for each in theirs]
        assert sample["ignored"].tolist() == [bool(each.get("iscrowd")) for each in theirs]
        seen += len(theirs)
    assert seen == 9


def test_whole_floats_are_ids_as_well(root):
    def floating(content):
        for key, ids in (("images", ["id"]), ("categories", ["id"]), ("annotations", ["id", "image_id"])):
            for each in content[key]:
                each.update({name: float(each[name]) for name in ids})

    change(TRAIN, floating)
    assert truth(data(), "train") == expected("train")
    change(TRAIN, lambda content: content["annotations"][2].update(bbox=[1, 2, -3, 4]))
    with pytest.raises(DataError, match=r"annotation 3 \(\w+\): the box"):
        data().check_files()


def test_a_crowd_may_be_written_as_truth(root):
    def crowds(content):
        for each, value in zip(content["annotations"], (True, False, 1.0, 0.0, None), strict=False):
            each["iscrowd"] = value

    change(TRAIN, crowds)
    assert data().annotations["train"].ignored[:5].tolist() == [True, False, True, False, False]


def test_ids_that_are_text_on_one_side(root):
    change(TRAIN, lambda content: [each.update(id=str(each["id"])) for each in content["images"]] and None)
    with pytest.raises(DataError, match="image_id 10 is the id of no image: ids are text there and numbers here"):
        data()


# Layouts.


def moved(kind):
    """Rearrange the set into another layout."""
    root, splits = Path("set"), {"train": "train", "val": "val", "test": "test"}
    if kind == "roboflow":
        splits["val"] = "valid"
    for split, name in splits.items():
        images, file = root / f"{split}2017", root / f"annotations/instances_{split}2017.json"
        if kind == "roboflow":
            images.rename(root / name)
            file.rename(root / name / "_annotations.coco.json")
        elif kind == "plain":
            images.rename(root / name)
            file.rename(root / f"{name}.json")
        elif kind == "instances":
            (root / "images").mkdir(exist_ok=True)
            images.rename(root / "images" / name)
            file.rename(root / f"annotations/instances_{name}.json")
        elif kind == "one folder":
            for folder in ("JPEGImages", "coco"):
                (root / folder).mkdir(exist_ok=True)
            for path in images.iterdir():
                path.rename(root / "JPEGImages" / path.name)
            file.rename(root / f"coco/instances_{name}.json")
        else:
            change(
                file,
                lambda content, split=split: (
                    [each.update(file_name=f"{split}2017\\{each['file_name']}") for each in content["images"]] and None
                ),
            )


@pytest.mark.parametrize("kind", ["roboflow", "plain", "instances", "one folder", "names with a folder"])
def test_layouts(root, kind):
    moved(kind)
    module = data()
    for split in ("train", "val", "test"):
        assert truth(module, split) == expected(split)
    assert len(module.check_files()) == 3


def test_files_and_folders_may_be_stated(root):
    Path(TRAIN).rename("set/mine.json")
    Path("set/train2017").rename("set/pictures")
    module = data(
        train_annotations="mine.json",
        train_images="pictures",
        val_annotations="annotations/instances_test2017.json",
        val_images="test2017",
        test_annotations="annotations/instances_val2017.json",
    )
    assert truth(module, "train") == expected("train")
    assert truth(module, "val") == expected("test")


def test_without_a_validation_file_a_share_is_held_out(root):
    Path(VAL).unlink()
    first, again = data(), data(seed=5)
    assert first.counts == {"train": 5, "val": 1, "test": 3}
    assert truth(first, "val") == truth(again, "val")
    assert {**truth(first, "train"), **truth(first, "val")} == expected("train")


def test_what_may_be_the_validation_split_is_asked_for(root):
    Path(VAL).rename("set/annotations/instances_dev.json")
    with pytest.raises(
        ConfigError, match=r"data.val_annotations: is set/annotations/instances_dev.json the validation"
    ):
        data()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"root": "nowhere"}, "data.root: nowhere is no folder"),
        ({"root": "set/train2017"}, "has none of annotations/instances_train.json, .*there is no JSON"),
        (
            {"train_annotations": "annotations/train.json"},
            "data.train_annotations: set/annotations/train.json does not exist; there are annotations/instances_test",
        ),
        ({"train_images": "x"}, "data.train_images: set/x is no folder"),
        ({"train_images": "val2017"}, "lists train000.png and others, but they are not in|train000.png does not exist"),
    ],
)
def test_what_is_not_there_is_named(root, options, said):
    with pytest.raises((ConfigError, DataError), match=said):
        data(**options).check_files()


def test_two_files_that_may_be_meant(root):
    Path("set/train.json").write_text(Path(TRAIN).read_text())
    with pytest.raises(
        ConfigError, match=r"data.train_annotations: set it, as .*instances_train2017.json, set/train.json"
    ):
        data()


def test_images_that_are_in_no_folder(root):
    Path("set/train2017").rename("set/elsewhere")
    with pytest.raises(DataError, match=r"train2017.json lists train000.png .* set data.train_images to the folder"):
        data()


# Classes.


def test_chosen_classes_leave_out_the_others(root):
    module = data(classes=["red", "blue"])
    assert module.classes == ("red", "blue")
    for name, (boxes, labels) in truth(module, "train").items():
        kept = [pair for pair in zip(*expected("train")[name], strict=True) if pair[1] != "green"]
        assert list(zip(boxes, labels, strict=True)) == kept
    assert "train: 3 objects of classes that are not in data.classes are left out" in module.check_files()
    with pytest.raises(ConfigError, match=r"has no class 'rde'; did you mean 'red'\?, 'x'; valid"):
        data(classes=["rde", "x", "blue"])


def test_classes_are_matched_by_name_whatever_their_ids(root):
    def renumber(content):
        for each in [*content["categories"]]:
            each["id"] = {1: 7, 3: 100, 5: 2}[each["id"]]
        for each in content["annotations"]:
            each["category_id"] = {1: 7, 3: 100, 5: 2}[each["category_id"]]

    change(VAL, renumber)
    assert truth(data(), "val") == expected("val")
    change(TRAIN, renumber)
    assert data().classes == ("red", "blue", "green")  # in the order of their ids
    assert truth(data(), "train") == expected("train")


def test_a_class_that_only_validation_has(root):
    change(VAL, lambda content: content["categories"][1].update(name="gren"))
    with pytest.raises(DataError, match=r"instances_val2017.json: class 'gren'.* did you mean 'green'\?"):
        data()


def test_classes_without_an_object_are_kept(root):
    change(TRAIN, lambda content: content["categories"].append({"id": 2, "name": "pink"}))
    module = data()
    assert module.classes == ("blue", "pink", "green", "red")
    assert "train: no object of class pink" in module.check_files()


@pytest.mark.parametrize("used", [False, True])
def test_the_class_that_roboflow_adds_is_left_out_if_it_is_certain(root, used):
    def add(content):
        for each in content["categories"]:
            each["supercategory"] = "shapes"
        content["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})
        if used:
            content["annotations"][0]["category_id"] = 0

    for split in ("train", "val", "test"):
        change(f"set/annotations/instances_{split}2017.json", add)
    assert data().classes == (("shapes",) if used else ()) + ("blue", "green", "red")


# Files that are wrong.


def test_no_json_is_named_with_line_and_column(root):
    text = json.dumps(json.loads(Path(TRAIN).read_text()), indent=1)
    Path(TRAIN).write_text(text.replace('"id": 11,', '"id" 11,', 1))
    line = 1 + text[: text.index('"id": 11')].count("\n")
    with pytest.raises(DataError, match=rf"instances_train2017.json:{line}:9: this is no JSON \(Expecting ':'"):
        data()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", r"instances_train2017.json:1:1: this is no JSON"),
        (b'{"images": [', r"json:1:\d+: this is no JSON .*is it cut off"),
        (b"\xff\xfe{}", "cannot be read as JSON"),
        (b"[" * 100000, "cannot be read as JSON"),
        (b"[]", "holds a list, .* is it a file of results"),
        (b'{"images": [], "annotation": [], "categories": []}', "has no 'annotations'; did you mean 'annotation'"),
        (b'{"images": {}, "annotations": [], "categories": []}', "'images' is a dict, not a list"),
    ],
)
def test_files_that_are_none_of_coco(root, text, said):
    Path(TRAIN).write_bytes(text)
    with pytest.raises(DataError, match=said):
        data()


def at(key, index, **values):
    return lambda content: content[key][index].update(values)


def without(key, index, name):
    return lambda content: content[key][index].pop(name) and None


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (at("annotations", 2, image_id=99), "annotation 3: image_id 99 is the id of no image"),
        (at("annotations", 2, category_id=2), "annotation 3: category_id 2 is the id of no category"),
        (at("annotations", 2, image_id=[1]), "annotation 3: "),
        (at("annotations", 2, bbox=[1, 2, 3]), r"annotation 3: its bbox must be four numbers.*\[1, 2, 3\]"),
        (at("annotations", 2, bbox=[1, 2, 3, "a"]), "annotation 3: its bbox must be four numbers"),
        (at("annotations", 2, bbox=None), "annotation 3: its bbox must be four numbers"),
        (without("annotations", 2, "bbox"), "annotation 3: it has no 'bbox'"),
        (without("annotations", 2, "image_id"), "annotation 3: it has no 'image_id'"),
        (lambda content: content["annotations"].__setitem__(2, 5), r"annotations\[2\]: it is not what it should be"),
        (at("images", 1, id=10), r"images\[1\] \(train001.png\): train000.png has the id 10 already"),
        (at("images", 1, file_name="train000.png"), "train000.png is listed twice, with"),
        (at("images", 1, file_name="./train000.png"), r"train000.png is listed twice \(as train000.png, ./train000"),
        (at("images", 1, height=float("inf")), r"images\[1\]: .*height inf is no number of pixels"),
        (at("images", 1, width=10**30), r"images\[1\]: .*width 10{30} is no number of pixels"),
        (at("images", 1, width=10**400), r"images\[1\]: .*width 10+ is no number of pixels"),
        (at("annotations", 2, bbox=[1, 2, 10**400, 4]), "annotation 3: its bbox must be four numbers"),
        (at("annotations", 2, iscrowd="0"), "annotation 3: iscrowd is '0', neither 0 nor 1"),
        (at("annotations", 2, iscrowd=2), "annotation 3: iscrowd is 2, neither 0 nor 1"),
        (
            at("annotations", 2, image_id="10"),
            "annotation 3: image_id '10' is the id of no image: ids are numbers there and text here",
        ),
        (at("categories", 1, name=None), r"categories\[1\]: .*name None is no text"),
        (at("categories", 1, name=5), r"categories\[1\]: .*name 5 is no text: write it in quotes"),
        (without("images", 1, "file_name"), r"images\[1\]: it has no 'file_name'"),
        (at("images", 1, height="tall"), r"images\[1\]: it is not what it should be"),
        (at("categories", 1, id=1), r"categories\[1\] \(green\): 'blue' has the id 1 already"),
        (at("categories", 1, name="blue"), "several categories are called 'blue'"),
        (without("categories", 1, "name"), r"categories\[1\]: it has no 'name'"),
    ],
)
def test_entries_that_are_wrong(root, edit, said):
    change(TRAIN, edit)
    with pytest.raises(DataError, match=rf"set/annotations/instances_train2017.json: {said}"):
        data()


def test_all_that_is_wrong_is_listed_at_once(root):
    def spoil(content):
        for each in content["annotations"]:
            each["image_id"] += 100

    change(TRAIN, spoil)
    with pytest.raises(DataError, match="9 mistakes in the data") as error:
        data()
    assert str(error.value).count("is the id of no image") == 6
    assert Path("data_problems.txt").read_text().count("is the id of no image") == 9


def test_captions_are_no_boxes(root):
    change(
        TRAIN, lambda content: content.update(annotations=[{"id": 1, "image_id": 10, "category_id": 1, "caption": "a"}])
    )
    with pytest.raises(DataError, match="it has a caption and no bbox: take the file that starts with instances_"):
        data()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            at("annotations", 2, bbox=[1, 2, 0, 5]),
            r"annotation 3 \(red\): the box x, y, width, height = 1, 2, 0, 5 has no area",
        ),
        (at("annotations", 2, bbox=[1, 2, -4, 5]), "= 1, 2, -4, 5 has a negative width or height"),
        (at("annotations", 2, bbox=[100, 2, 4, 5]), "lies outside"),
        (at("annotations", 2, bbox=[40, 30, 70, 60]), r"sticks out \(are they x1, y1, x2, y2\?\)"),
        (at("annotations", 2, bbox=[1, float("nan"), 4, 5]), "is not finite"),
        (
            at("images", 1, height=80, width=64),
            r"instances_train2017.json: the size stated is 64x80, but .*train001.png is 80x64",
        ),
        (at("images", 1, file_name="gone.png"), r"gone.png does not exist, but it is listed by set/annotations/inst"),
    ],
)
def test_images_and_boxes_that_are_wrong_stop_before_training(root, edit, said):
    change(TRAIN, edit)
    with pytest.raises(DataError, match=f"train: .*{said}"):
        data().check_files()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_objects(root, split):
    change(f"set/annotations/instances_{split}2017.json", lambda content: content.update(annotations=[]))
    with pytest.raises(DataError, match=f"{split}: no image has an object to learn from or to measure"):
        data().check_files()


def test_no_object_of_python_is_kept_for_an_object(root):
    found = read_coco(Path(TRAIN))
    assert found.places[2] == "annotation 3"
    assert found.places.numbers.nbytes == 8 * 9
    change(TRAIN, lambda content: [each.update(id=f"a{each['id']}") for each in content["annotations"]] and None)
    assert read_coco(Path(TRAIN)).places[2] == "entry 2"


def test_it_passes_every_check_of_data_modules(root):
    assert {v.name: v.found for v in check_plugin(data, "data") if v.outcome != "passed"} == {}
