"""YOLO's format: its layouts, and what is said of files that are wrong."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from framework.conformance import check_plugin
from framework.data.yolo import YOLODetection
from framework.errors import ConfigError, DataError
from tests.folders import box_scenes, write_yolo

CLASSES = ("blue", "green", "red")
LABELS = Path("set/labels/train/train001.txt")


@pytest.fixture
def root(tmp_path):
    return write_yolo(tmp_path / "set")


def data(root="set", **options):
    return YOLODetection(str(root), **{"batch_size": 2, "num_workers": 0, "photometric": None, **options})


def describe(**values):
    """Change keys of data.yaml; None takes one out."""
    found = {**yaml.safe_load(Path("set/data.yaml").read_text()), **values}
    Path("set/data.yaml").write_text(yaml.safe_dump({key: value for key, value in found.items() if value is not None}))


def assert_true(module, split, scenes=None):
    samples = module.splits()[split]
    read = {sample["id"]: sample for sample in map(samples.read, range(len(samples)))}
    scenes = scenes or box_scenes()[split]
    assert set(read) == {scene.name for scene in scenes}
    for scene in scenes:
        boxes = read[scene.name]["boxes"].as_subclass(torch.Tensor)
        assert torch.allclose(boxes, torch.tensor(scene.boxes).float().reshape(-1, 4), atol=1e-3)
        assert read[scene.name]["labels"].tolist() == scene.labels


def test_boxes_and_classes_are_those_of_the_files(root):
    module = data()
    assert module.classes == CLASSES
    for split in ("train", "val", "test"):
        assert_true(module, split)
    negatives = "images have no object: they are kept as negatives"
    assert module.check_files() == [f"{split}: 1 of {count} {negatives}" for split, count in module.counts.items()]


@pytest.mark.parametrize(
    "values",
    [
        {"names": list(CLASSES), "nc": 3},
        {"path": "/home/somebody/set"},  # a folder of the machine that wrote it
        {"path": None},
        {"train": ["images/train"], "val": "images/val"},
        {"train": "../images/train", "val": "../images/val"},  # as Roboflow writes it
    ],
)
def test_descriptions(root, values):
    describe(**values)
    for split in ("train", "val"):
        assert_true(data(), split)


def test_a_path_inside_the_folder_goes_before_one_outside(root):
    shutil.copytree("set/images/val", "images/train")
    describe(train="../images/train")
    module = data()
    assert_true(module, "train")
    said = "train: set/data.yaml: ../images/train is taken to mean set/images/train, not set/../images/train"
    assert said in module.check_files()
    shutil.copytree("set/labels/train", "labels/other")
    Path("set/images/train").rename("images/other")
    describe(train="../images/other")  # of these there are none inside
    module = data()
    assert_true(module, "train")
    assert not [line for line in module.check_files() if "taken to mean" in line]


def test_paths_with_backslashes(root):
    train = box_scenes()["train"]
    Path("set/train.txt").write_text("".join(f".\\images\\train\\{scene.name}.png\n" for scene in train))
    describe(train="train.txt", val="images\\val", test="..\\images\\test")
    for split in ("train", "val", "test"):
        assert_true(data(), split)


@pytest.mark.parametrize("names", [{"0": "blue", "1": "green", "2": "red"}, {"0": "blue", 1: "green", 2: "red"}])
def test_numbers_of_classes_may_stand_in_quotes(root, names):
    describe(names=names)
    assert data().classes == CLASSES


def test_the_description_may_have_any_name_and_place(root):
    Path("set/data.yaml").rename("set/mine.yml")
    assert_true(data(), "train")
    assert_true(data("set/mine.yml"), "val")
    Path("set/other.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"set has several YAML files \(mine.yml, other.yaml\): give the file itself"):
        data()
    shutil.move("set/mine.yml", "far.yaml")
    Path("far.yaml").write_text(Path("far.yaml").read_text().replace("path: .", "path: set"))
    assert_true(data("far.yaml"), "train")


def test_lists_of_images(root):
    train, val = (box_scenes()[split] for split in ("train", "val"))
    Path("set/train.txt").write_text("".join(f"./images/train/{scene.name}.png\n" for scene in train))
    Path("set/lists").mkdir()
    Path("set/lists/val.txt").write_text("\n".join(f"images/val/{scene.name}.png" for scene in val))
    describe(train="train.txt", val=["lists/val.txt", "images/test"])
    assert_true(data(), "train")
    assert_true(data(), "val", [*val, *box_scenes()["test"]])


def test_other_layouts(root):
    for split in ("train", "val", "test"):  # Roboflow's
        Path(f"set/{split}").mkdir()
        for kind in ("images", "labels"):
            Path(f"set/{kind}/{split}").rename(f"set/{split}/{kind}")
    describe(**{split: f"{split}/images" for split in ("train", "val", "test")})
    assert_true(data(), "train")
    for split in ("train", "val", "test"):  # labels beside the images
        for path in Path(f"set/{split}/labels").iterdir():
            path.rename(Path(f"set/{split}/images") / path.name)
        Path(f"set/{split}/images").rename(f"set/{split}/pictures")
    describe(**{split: f"{split}/pictures" for split in ("train", "val", "test")})
    assert_true(data(), "val")


def test_without_a_validation_split_a_share_is_held_out(root):
    describe(val=None, test=None)
    first, again = data(), data(seed=7)
    assert first.counts == {"train": 5, "val": 1}
    assert first.annotations["val"].ids == again.annotations["val"].ids
    assert {*first.annotations["train"].ids, *first.annotations["val"].ids} == {s.name for s in box_scenes()["train"]}


def test_an_outline_is_taken_by_the_box_around_it(root):
    LABELS.write_text("1 0.5 0.25 0.75 0.5 0.625 0.75\n2 0.1 0.1 0.1 0.5 0.4 0.5 0.4 0.1\n0 0.5 0.5 0.25 0.25\n")
    module = data()
    boxes = module.splits()["train"].read(1)["boxes"].tolist()
    assert boxes[0] == [40, 16, 60, 48]
    assert boxes[1] == pytest.approx([8, 6.4, 32, 32])
    assert boxes[2] == [30, 24, 50, 40]
    assert "train: of 2 objects given by an outline, the box around it is taken" in module.check_files()


def test_keypoints_stand_behind_a_box(root):
    describe(kpt_shape=[2, 2])
    for path in Path("set/labels").rglob("*.txt"):
        path.write_text("".join(f"{line} 0.9 0.9 0.95 0.95\n" for line in path.read_text().splitlines()))
    assert_true(data(), "train")


def test_a_box_that_is_rounded_beyond_the_edge(root):
    LABELS.write_text("1 0.950001 0.5 0.1 1.0000004\n\n")
    boxes = data().splits()["train"].read(1)["boxes"]
    assert boxes[0].tolist() == pytest.approx([72, 0, 80, 64], abs=1e-3)
    assert boxes[0, 2:].tolist() == [80, 64]


# Files that are wrong.


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 0.5 0.5 0.1", r"4 fields, where 5 are wanted \(class cx cy w h\)"),
        ("0 0.5 0.5 0.1 0.1 0.9", r"6 fields, where 5 are wanted \(class cx cy w h\): is the last a score\?"),
        ("0 0.5 0.5 0.1 0.1 0.2 0.2 0.3", "8 fields"),
        ("3 0.5 0.5 0.1 0.1", "class 3 is none of 0 to 2, which data.yaml names"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 is none"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is none"),
        ("cat 0.5 0.5 0.1 0.1", "a line begins with the number of a class, not 'cat'"),
        ("0 0.5 0.5 0.1 1.2", "1.2 is outside of 0 to 1, shares of the image's width and height$"),
        ("0 0.5 0.5 -0.1 0.2", "-0.1 is outside of 0 to 1"),
        ("0 inf 0.5 0.1 0.2", "inf is outside"),
        ("0 40 30 20 10", r"40 is outside of 0 to 1, shares of the image's width and height: are they pixels\?"),
        ("0 0.5 0,5 0.1 0.2", "'0,5': a class and four numbers are wanted"),
    ],
)
def test_lines_that_are_wrong(root, line, said):
    LABELS.write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(DataError, match=rf"(?m)set/labels/train/train001.txt:2: .*{said}"):
        data()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 nan 0.5 0.1 0.1", r"line 1 \(blue\): the box x, y, width, height = nan, .* is not finite"),
        ("0 0.1 nan 0.2 0.2 0.3 0.1", "is not finite"),
        ("0 0.5 0.5 0 0.1", "= 40, 28.8, 0, 6.4 has no area"),
        ("0 0.95 0.5 0.2 0.1", "sticks out"),
    ],
)
def test_boxes_that_are_wrong_stop_before_training(root, line, said):
    LABELS.write_text(line)
    with pytest.raises(
        DataError, match=rf"train: set/labels/train/train001.txt \(image train001.png, 80x64\): .*{said}"
    ):
        data().check_files()
    data(bad_boxes="drop").check_files()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: [a\nnames: b]]", r"set/data.yaml:2:\d+: this is no YAML"),
        ("- a", "holds no keys"),
        ("train: images/train\nname: [a]", "has no 'names'; did you mean 'name'"),
        ("names: [a]", "has no 'train'"),
        (
            "train: images/train\nnames: {0: a, 2: b}",
            r"'names' must number the classes from 0 .*, got \[0, 2\]",
        ),
        ("train: images/train\nnames: 3", "'names' must be a list"),
        ("train: images/train\nnames: [a, b]\nnc: 3", "'nc' is 3, but 'names' has 2 classes"),
        ("train: images/train\nnames: [a, no, 1.10]", "class 1 is False, class 2 is 1.1: write it in quotes"),
        ("train: images/train\nnames: {0: a, 1: null}", "class 1 is None: write it in quotes"),
        ("train: images/train\nnames: {0: a, '0': b}", "'names' must number the classes from 0"),
        (
            "train: /home/bob/set/images/train\nnames: [a]",
            r"set/data.yaml: 'train' is /home/bob/set/images/train, but .*: is it a path of another machine\? "
            "Write where these images are from set, such as images/train",
        ),
        ("train: {a: b}\nnames: [a, b]", "'train' must be a folder"),
        ("train: images/trian\nnames: [a, b, c]", "set/images/trian does not exist"),
        ("train: labels/train\nnames: [a, b, c]", "set/labels/train has no image"),
        ("train: [images/train, images]\nnames: [a, b, c]", "'train' has set/images/train/train000.png more than once"),
        ("train: [images/train, images/val/../train]\nnames: [a, b, c]", "images/train/train000.png more than once"),
    ],
)
def test_descriptions_that_are_wrong(root, text, said):
    Path("set/data.yaml").write_text(text)
    with pytest.raises(DataError, match=said):
        data()


def test_no_code_is_run_from_a_description(root):
    Path("set/data.yaml").write_text("train: !!python/object/apply:pathlib.Path.touch [made]\nnames: [a]")
    with pytest.raises(DataError, match=r"set/data.yaml:1:8: this is no YAML"):
        data()


@pytest.mark.parametrize(("name", "said"), [("nowhere", "does not exist"), ("set/images", "has no data.yaml")])
def test_another_folder(root, name, said):
    with pytest.raises(ConfigError, match=f"data.root: {name} {said}"):
        data(name)


def test_labels_without_an_image(root):
    Path("set/labels/train/classes.txt").write_text("blue\n")
    data()
    Path("set/labels/train/extra.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match=r"labels/train/extra.txt: there is no image of this name in set/images/train"):
        data()


def test_an_image_that_a_list_names_is_missing(root):
    Path("set/train.txt").write_text("./images/train/train000.png\n./images/train/gone.png\n")
    describe(train="train.txt")
    with pytest.raises(DataError, match=r"train: set/images/train/gone.png does not exist, but it is listed: add it"):
        data().check_files()


def test_a_split_without_a_label_file(root):
    shutil.rmtree(root / "labels/val")
    with pytest.raises(DataError, match=r"none of the 3 images of the val split has a label file, such as set/l"):
        data()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_objects(root, split):
    for path in Path(f"set/labels/{split}").iterdir():
        path.write_text("\n")
    with pytest.raises(DataError, match=f"{split}: no image has an object"):
        data().check_files()


def test_an_image_that_exif_turns_is_remarked_upon(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open("set/images/train/train001.png").save("set/images/train/train001.png", exif=exif)
    remarks = [line for line in data().check_files() if "EXIF" in line]
    assert len(remarks) == 1
    assert "train: 1 image carries an EXIF rotation" in remarks[0]
    assert "train001.png" in remarks[0]


def test_it_passes_every_check_of_data_modules(root):
    assert {v.name: v.found for v in check_plugin(data, "data") if v.outcome != "passed"} == {}
