"""Tables of boxes, and what is said of rows that are wrong."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from framework.conformance import check_plugin
from framework.data.box_table import BoxTable
from framework.errors import ConfigError, DataError
from tests.folders import box_scenes

CLASSES = ("blue", "green", "red")
HEADER = ("path", "label", "x1", "y1", "x2", "y2", "split")


@pytest.fixture
def rows(tmp_path):
    """Write the images, and return a row for each object, and one for each image without objects."""
    Path("photos").mkdir()
    found = []
    for split, scenes in box_scenes().items():
        for scene in scenes:
            path = f"photos/{scene.name}.png"
            Image.fromarray(scene.pixels).save(path)
            for box, label in zip(scene.boxes, scene.labels, strict=True):
                found.append([path, CLASSES[label], *box, split])
            if not scene.boxes:
                found.append([path, "", "", "", "", "", split])
    return found


def write(rows, name="t.csv", header=HEADER, delimiter=","):
    with Path(name).open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return name


def data(table="t.csv", **options):
    return BoxTable(table, **{"batch_size": 2, "num_workers": 0, "photometric": None, **options})


def assert_true(module, split, scenes=None, prefix="photos/"):
    samples = module.splits()[split]
    read = {sample["id"]: sample for sample in map(samples.read, range(len(samples)))}
    scenes = scenes or box_scenes()[split]
    assert set(read) == {f"{prefix}{scene.name}.png" for scene in scenes}
    for scene in scenes:
        sample = read[f"{prefix}{scene.name}.png"]
        assert sample["boxes"].tolist() == [list(map(float, box)) for box in scene.boxes]
        assert [module.classes[label] for label in sample["labels"].tolist()] == [
            CLASSES[label] for label in scene.labels
        ]


def test_boxes_classes_and_splits_are_those_of_the_table(rows):
    rows = rows[::2] + rows[1::2]  # the rows of an image need not follow each other
    by_image = {scene.name: scene for scenes in box_scenes().values() for scene in scenes}
    module = data(write(rows))
    assert module.classes == CLASSES
    assert module.counts == {"train": 6, "val": 3, "test": 3}
    for split in ("train", "val", "test"):
        samples = module.splits()[split]
        for sample in map(samples.read, range(len(samples))):
            scene = by_image[Path(sample["id"]).stem]
            assert sorted(sample["boxes"].tolist()) == sorted(list(map(float, box)) for box in scene.boxes)
    negatives = "images have no object: they are kept as negatives"
    assert module.check_files() == [f"{split}: 1 of {count} {negatives}" for split, count in module.counts.items()]


def test_columns_have_other_names_and_boxes_are_sides(rows):
    sides = [[*row[:4], row[4] - row[2], row[5] - row[3], row[6]] if row[1] else row for row in rows]
    write(sides, "t.tsv", ("file", "kind", "left", "top", "w", "h", "part"), "\t")
    names = {"path_column": "file", "label_column": "kind", "split_column": "part"}
    module = data("t.tsv", box="sides", box_columns=("left", "top", "w", "h"), **names)
    for split in ("train", "val", "test"):
        assert_true(module, split)
    write(sides, "u.csv", ("path", "label", "x", "y", "width", "height", "split"), ";")
    assert_true(data("u.csv", box="sides", delimiter=";"), "train")


def test_splits_are_files_of_their_own_and_names_start_from_the_root(rows):
    for split in ("train", "val", "test"):
        write(
            [[row[0].removeprefix("photos/"), *row[1:6]] for row in rows if row[6] == split], f"{split}.csv", HEADER[:6]
        )
    module = data("train.csv", root="photos", val_table="val.csv", test_table="test.csv")
    for split in ("train", "val", "test"):
        assert_true(module, split, prefix="")


def test_without_a_validation_split_a_share_of_the_images_is_held_out(rows):
    write([row[:6] for row in rows], header=HEADER[:6])
    first, again = data(), data(seed=4)
    assert first.counts == {"train": 10, "val": 2}
    assert first.annotations["val"].ids == again.annotations["val"].ids
    assert len({*first.annotations["train"].ids, *first.annotations["val"].ids}) == 12


@pytest.mark.parametrize("how", ["argument", "file"])
def test_classes_may_be_indices_in_a_list(rows, how):
    listed = ["red", "pink", "green", "blue"]
    write([[row[0], listed.index(row[1]) if row[1] else "", *row[2:]] for row in rows])
    if how == "file":
        Path("classes.txt").write_text("\n".join(listed) + "\n")
    module = data(classes=listed if how == "argument" else None)
    assert module.classes == tuple(listed)
    assert_true(module, "train")
    assert "val: no object of class pink" in module.check_files()


def test_numbers_without_a_list_are_names_by_size(rows):
    numbers = {"blue": 10, "green": 9, "red": 2, "": ""}
    write([[row[0], numbers[row[1]], *row[2:]] for row in rows])
    assert data().classes == ("2", "9", "10")


@pytest.mark.parametrize("listed", [None, ["blue", "green", "red"], ["0", "1", "2"]])
def test_whole_numbers_may_be_written_as_floats(rows, listed):
    write([[row[0], f"{CLASSES.index(row[1])}.0" if row[1] else "", *row[2:]] for row in rows])
    module = data(classes=listed)
    assert module.classes == tuple(listed or ("0", "1", "2"))
    whole = [CLASSES.index(row[1]) for row in rows if row[1] and row[6] == "train"]
    assert module.annotations["train"].labels.tolist() == whole


def test_paths_with_backslashes(rows):
    write([[row[0].replace("/", "\\"), *row[1:]] for row in rows])
    assert_true(data(), "train")


def test_an_image_in_two_spellings_is_one(rows):
    for row, spelling in zip(rows[1:3], ("./photos/", "photos/../photos/"), strict=True):
        assert row[0] == "photos/train001.png"
        row[0] = row[0].replace("photos/", spelling)
    assert_true(data(write(rows)), "train")
    assert_true(data(root="photos/.."), "train")


def test_a_table_without_rows(rows):
    write([])
    with pytest.raises(DataError, match=r"t.csv has no row under the names of its columns"):
        data()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (["", "blue", 1, 1, 9, 9, "train"], "no file in column 'path'"),
        (["p.png", "", 1, 1, 9, 9, "train"], "a box without a class in column 'label'"),
        (["p.png", "blue", "", "", "", "", "train"], "class 'blue' without a box: give one, or leave the class empty"),
        (["p.png", "blue", 1, "", 9, 9, "train"], "column 'y1' holds '', no number"),
        (["p.png", "blue", 1, 1, "9px", 9, "train"], "column 'x2' holds '9px', no number"),
        (["p.png", "blue", 1, 1, 9, 9, "trian"], "split 'trian' is none of train, val, test"),
    ],
)
def test_rows_that_are_wrong(rows, row, said):
    write([*rows[:3], row, *rows[3:]])
    with pytest.raises(DataError, match=f"t.csv:5: {said}"):
        data()


def test_rows_that_contradict_each_other(rows):
    write([*rows, [*rows[0][:6], "val"], [rows[1][0], *[""] * 5, "train"]])
    with pytest.raises(DataError) as error:
        data()
    assert f"t.csv line {len(rows) + 2}: photos/train000.png is in another split at t.csv line 2" in str(error.value)
    assert f"t.csv line {len(rows) + 3}: photos/train001.png has objects and none" in str(error.value)


def test_classes_that_are_in_no_list(rows):
    rows[0][1], rows[3][1] = "bleu", "7"
    write(rows)
    with pytest.raises(DataError) as error:
        data(classes=list(CLASSES))
    assert "t.csv line 2: 'bleu' is no class; did you mean 'blue'?" in str(error.value)
    assert "t.csv line 5: '7' is no class; valid: blue, green, red" in str(error.value)


def test_a_column_or_a_folder_that_is_not_there(rows):
    write(rows, header=("path", "label", "x1", "y1", "x2", "y_2", "split"))
    with pytest.raises(ConfigError, match=r"data.box_columns: t.csv has no column 'y2'; did you mean 'y_2'\?"):
        data()
    with pytest.raises(ConfigError, match=r"data.root: nowhere is no folder"):
        data(root="nowhere")


@pytest.mark.parametrize(
    ("box", "said"),
    [
        (["nan", 1, 9, 9], "is not finite"),
        ([9, 1, 1, 9], r"x1, y1, x2, y2 = 9, 1, 1, 9 is reversed \(.*are they x, y, width, height\?\)"),
        ([9, 1, 9, 9], "has no area"),
        ([90, 1, 99, 9], "lies outside"),
        ([0.1, 0.1, 0.5, 0.9], "look normalised"),
    ],
)
def test_boxes_that_are_wrong_stop_before_training(rows, box, said):
    rows[0][2:6] = box
    write(rows)
    with pytest.raises(DataError, match=rf"train: t.csv \(image train000.png, 80x64\): .*{said}"):
        data().check_files()
    with pytest.raises(DataError, match="normalised" if "norm" in said else r"t.csv .*: line 2 \(blue\)"):
        data().check_files()


def test_a_split_without_objects(rows):
    write([row for row in rows if row[6] != "val" or not row[1]])
    with pytest.raises(DataError, match="val: no image has an object"):
        data().check_files()


def test_an_image_that_is_missing(rows):
    Path(rows[0][0]).unlink()
    write(rows)
    with pytest.raises(DataError, match=r"train: photos/train000.png does not exist, but it is listed by t.csv"):
        data().check_files()


def test_it_passes_every_check_of_data_modules(rows):
    write(rows)
    assert {v.name: v.found for v in check_plugin(data, "data") if v.outcome != "passed"} == {}
