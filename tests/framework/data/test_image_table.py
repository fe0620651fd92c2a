import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from framework.cli.main import main
from framework.conformance import check_plugin
from framework.data.image_folder import ImageFolder
from framework.data.image_table import ImageTable
from framework.errors import ConfigError, DataError
from tests.folders import write_image_folder


@pytest.fixture
def photos(tmp_path):
    """Eight images of each of three classes in class folders, in `photos`."""
    return write_image_folder(tmp_path / "photos", counts=(8,))


def rows(photos):
    return [(f"photos/{path.parent.name}/{path.name}", path.parent.name) for path in sorted(photos.glob("*/*.png"))]


def write(name, lines, header=("path", "label"), delimiter=","):
    with Path(name).open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *lines])
    return name


def data(table, **options):
    return ImageTable(table, **{"batch_size": 2, "num_workers": 0, "image_size": 16, "photometric": None, **options})


def ids(module, split):
    samples = module.splits()[split]
    return [samples.read(index)["id"] for index in range(len(samples))]


def test_a_table_of_a_folder_is_divided_as_the_folder_is(photos):
    table, folder = data(write("t.csv", rows(photos))), ImageFolder(str(photos))
    assert table.classes == folder.classes == ("blue", "green", "red")
    for split in ("train", "val"):
        assert [name.removeprefix("photos/") for name in ids(table, split)] == ids(folder, split)
    sample = table.splits()["train"].read(9)
    assert sample["label"] == table.classes.index(Path(sample["id"]).parent.name)
    stored = np.asarray(Image.open(sample["id"]))
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), stored)
    assert table.check_files() == []


@pytest.mark.parametrize(("name", "delimiter", "option"), [("t.tsv", "\t", None), ("t.csv", ";", ";")])
def test_splits_are_stated_by_a_column(photos, name, delimiter, option):
    stated = ["train", "val", "test", "train"]
    lines = [(*row, stated[number % 4]) for number, row in enumerate(rows(photos))]
    module = data(write(name, lines, ("path", "label", "split"), delimiter), delimiter=option)
    assert module.counts == {"train": 12, "val": 6, "test": 6}
    assert ids(module, "val") == [line[0] for line in lines if line[2] == "val"]


def test_splits_are_stated_by_files_of_their_own_and_names_start_from_the_root(photos):
    lines = [(path.removeprefix("photos/"), label) for path, label in rows(photos)]
    (photos / "lists").mkdir()
    for number, name in enumerate(("train", "val", "test")):
        write(photos / f"lists/{name}.csv", lines[number::3], ("file", "kind"))
    tables = {"val_table": str(photos / "lists/val.csv"), "test_table": str(photos / "lists/test.csv")}
    module = data(str(photos / "lists/train.csv"), **tables, root="photos", path_column="file", label_column="kind")
    assert [ids(module, split) for split in ("train", "val", "test")] == [
        [path for path, _ in lines[number::3]] for number in range(3)
    ]


@pytest.mark.parametrize("listed", ["argument", "file"])
def test_labels_may_be_indices_in_a_list_of_classes(photos, listed):
    names = ["sky", "leaf", "blood"]
    write("t.csv", [(path, ["blue", "green", "red"].index(label)) for path, label in rows(photos)])
    if listed == "file":
        Path("classes.txt").write_text("\n".join(names) + "\n")
    module = data("t.csv", classes=names if listed == "argument" else None)
    assert module.classes == ("sky", "leaf", "blood")
    for index in range(len(module.splits()["train"])):
        sample = module.splits()["train"].read(index)
        assert sample["label"] == ["blue", "green", "red"].index(Path(sample["id"]).parent.name)


def test_numbers_without_a_list_are_names_by_size(photos):
    numbers = {"blue": 10, "green": 9, "red": 2}
    module = data(write("t.csv", [(path, numbers[label]) for path, label in rows(photos)]))
    assert module.classes == ("2", "9", "10")
    with pytest.raises(DataError, match=r"some are negative \(-1\): a class is at least 0"):
        data(write("t.csv", [(path, numbers[label] - 3) for path, label in rows(photos)]))


def test_a_label_that_changed_is_looked_at_again(photos):
    Path("classes.txt").write_text("blue\ngreen\nred\nrest\n")
    lines = [*rows(photos)[1:], (rows(photos)[0][0], "rest")]
    data(write("t.csv", lines), val_fraction=0.01).check_files()
    write("t.csv", rows(photos))
    with pytest.raises(DataError, match="no image of class rest"):
        data("t.csv", val_fraction=0.01).check_files()


# Several labels.


def test_several_labels_in_a_cell(photos):
    lines = [(path, ["", "warm", "warm| dark", "dark|"][number % 4]) for number, (path, _) in enumerate(rows(photos))]
    module = data(write("t.csv", lines), label_separator="|")
    assert (module.multi_label, module.classes) == (True, ("dark", "warm"))
    marks = {"": [0, 0], "warm": [0, 1], "warm| dark": [1, 1], "dark|": [1, 0]}
    written = dict(lines)
    for split in ("train", "val"):
        samples = module.splits()[split]
        for index in range(len(samples)):
            sample = samples.read(index)
            assert sample["label"].dtype == torch.float32
            assert sample["label"].tolist() == marks[written[sample["id"]]]
    assert module.counts == {"train": 19, "val": 5}
    batch = next(iter(module.train_dataloader()))
    assert batch["label"].shape == (2, 2)


def test_a_column_for_each_class(photos):
    flags = [("0", "1"), ("1", "1"), ("False", "TRUE"), ("1.0", "0")]
    lines = [(path, *flags[number % 4]) for number, (path, _) in enumerate(rows(photos))]
    module = data(write("t.csv", lines, ("path", "warm", "dark")), label_columns=["warm", "dark"])
    assert (module.multi_label, module.classes) == (True, ("warm", "dark"))
    assert module.splits()["train"].read(0)["label"].tolist() in ([0, 1], [1, 1], [1, 0])
    write("t.csv", [(path, "2", "") for path, _ in rows(photos)], ("path", "warm", "dark"))
    with pytest.raises(DataError, match=r"24 bad rows") as error:
        data("t.csv", label_columns=["warm", "dark"])
    assert "t.csv:2: column 'warm' holds '2', neither 0 nor 1" in str(error.value)


def test_contradictory_arguments_are_refused(photos):
    with pytest.raises(ConfigError, match="label_columns name the classes: leave out"):
        data(write("t.csv", rows(photos)), label_columns=["a"], classes=["a", "b"])


def sum_of_labels(module):
    samples = [samples.read(index) for samples in module.splits().values() for index in range(len(samples))]
    return sum(sample["label"] for sample in samples).tolist()


# Parquet.


def test_parquet_says_the_same_as_text(photos):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    lines = rows(photos)
    columns = {"path": [path for path, _ in lines], "label": [label for _, label in lines]}
    columns["tags"] = [["a", "b"][: number % 3] for number in range(24)]
    columns["warm"] = [label == "red" for _, label in lines]
    columns["cold"] = [float(label == "blue") for _, label in lines]
    parquet.write_table(pyarrow.table(columns), "t.parquet")
    text, table = data(write("t.csv", lines)), data("t.parquet")
    assert [ids(text, split) for split in ("train", "val")] == [ids(table, split) for split in ("train", "val")]
    tagged = data("t.parquet", label_column="tags", label_separator="|")
    assert (tagged.classes, sum_of_labels(tagged)) == (("a", "b"), [16, 8])
    flagged = data("t.parquet", label_columns=["warm", "cold"])
    assert sum_of_labels(flagged) == [8, 8]
    with pytest.raises(DataError, match=r"t\.parquet row 1: a list in column 'tags': set data\.label_separator"):
        data("t.parquet", label_column="tags")
    Path("t.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="no Parquet file that can be read"):
        data("t.parquet")


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    Path("t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r'pip install "vision-plugin-framework\[parquet\]"'):
        data("t.parquet")


# What is wrong.


def test_every_bad_row_is_named_with_its_line(photos):
    lines = rows(photos)
    lines[0] = (lines[0][0], "")
    lines[3] = ("", "red")
    lines[5] = (*lines[4],)
    with pytest.raises(DataError, match="3 bad rows") as error:
        data(write("t.csv", lines))
    assert "t.csv:2: no label in column 'label'" in str(error.value)
    assert "t.csv:5: no file in column 'path'" in str(error.value)
    assert f"t.csv:7: {lines[4][0]} stands at t.csv:6 already" in str(error.value)
    lines = [(*row, "valid") for row in rows(photos)]
    with pytest.raises(DataError, match="24 bad rows") as error:
        data(write("t.csv", lines, ("path", "label", "split")))
    assert "t.csv:2: split 'valid' is none of train, val, test" in str(error.value)
    assert len(str(error.value).splitlines()) <= 8
    assert len(Path("data_problems.txt").read_text().splitlines()) == 24


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("3", "label 3 is out of range: 3 classes are 0 to 2"),
        ("-1", "label -1 is out of range"),
        ("rad", "did you mean 'red'"),
    ],
)
def test_labels_that_are_no_class_are_named(photos, label, said):
    lines = [*rows(photos)[:-1], (rows(photos)[-1][0], label)]
    with pytest.raises(DataError, match=r"t\.csv:25: ") as error:
        data(write("t.csv", lines), classes=["blue", "green", "red"])
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("path;label\n", "set data.delimiter"),
        ("path,lable\n", "no column 'label'; did you mean 'lable'"),
        ("path,label,path\n", "several columns are called 'path'"),
        ("path,label\na.png\n", "t.csv:2: 1 cells under 2 columns"),
        ('path,label\na.png,"red\n', "cannot be read as a table"),
        (b"path,label\n\xff\xfe,a\n", "is not UTF-8"),
        ("path,label\na.png,red\n", "at least 2 classes, got 1: red"),
    ],
)
def test_tables_that_cannot_be_read(content, said):
    Path("t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((ConfigError, DataError)) as error:
        data("t.csv")
    assert said in str(error.value)


def test_tables_that_are_none():
    with pytest.raises(DataError, match=r"t\.csv does not exist"):
        data("t.csv")
    Path("t.xlsx").write_bytes(b"")
    with pytest.raises(DataError, match=r"ends in \.csv, \.tsv or \.parquet, not \.xlsx"):
        data("t.xlsx")


def test_a_file_that_is_missing_is_named_with_its_line(photos):
    lines = [*rows(photos), ("photos/red/gone.png", "red")]
    stated = [(*row, "val" if number % 4 == 0 else "train") for number, row in enumerate(lines)]
    with pytest.raises(DataError, match=r"t\.csv:26: photos/red/gone\.png does not exist"):
        data(write("t.csv", stated, ("path", "label", "split"))).check_files()


def test_a_class_that_training_lacks_is_an_error_and_one_that_validation_lacks_a_warning(photos):
    lines = [(*row, "val" if number % 4 == 0 else "train") for number, row in enumerate(rows(photos))]
    lacking = [(path, label, "val" if label == "red" else split) for path, label, split in lines]
    with pytest.raises(DataError, match=r"train: no image of class red \(no row has it\)"):
        data(write("t.csv", lacking, ("path", "label", "split"))).check_files()
    lacking = [(path, label, "train" if label == "red" else split) for path, label, split in lines]
    warnings = data(write("t.csv", lacking, ("path", "label", "split"))).check_files()
    assert warnings == ["val: no image of class red (no row has it)"]


# From the command line.

EXPERIMENT = """
model:
  class_path: Classification
  init_args: {backbone: {class_path: Timm, init_args: {name: test_resnet}}}
data:
  class_path: ImageTable
  init_args: {table: t.csv, image_size: 32, batch_size: 4, num_workers: 0}
trainer: {max_epochs: 1, accelerator: cpu}
"""
OPTIONS = ["--data.label_separator=|", "--data.sampling=ClassBalanced", "--data.sampling.power=0.5"]


def test_bad_rows_stop_a_run_in_a_few_lines(photos, capsys):
    write("t.csv", [(path, "9") for path, _ in rows(photos)])
    Path("classes.txt").write_text("blue\ngreen\nred\n")
    Path("x.yaml").write_text(EXPERIMENT)
    assert main(["fit", "--config", "x.yaml"]) == 2
    message = capsys.readouterr().err
    assert "t.csv:2: label 9 is out of range: 3 classes are 0 to 2" in message
    assert len(message.splitlines()) <= 10


def test_fit_on_several_labels_with_sampling(photos, capsys):
    write(
        "t.csv", [(path, f"{label}|warm" if number % 3 else label) for number, (path, label) in enumerate(rows(photos))]
    )
    Path("x.yaml").write_text(EXPERIMENT)
    assert main(["fit", "--config", "x.yaml", *OPTIONS]) == 0
    assert "over 4 steps of 4 images" in capsys.readouterr().out  # 19 images to train


def test_it_passes_every_check_of_data_modules(photos):
    write("t.csv", rows(photos))
    lines = [(path, "a|b" if number % 2 else "a") for number, (path, _) in enumerate(rows(photos))]
    write("several.csv", lines)
    for make in (lambda: data("t.csv"), lambda: data("several.csv", label_separator="|")):
        assert {v.name: v.found for v in check_plugin(make, "data") if v.outcome != "passed"} == {}
