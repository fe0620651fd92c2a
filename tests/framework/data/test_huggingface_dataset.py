"""Data sets that the test saves to disk with Hugging Face's `datasets`."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from framework.cli.main import main
from framework.conformance import check_plugin
from framework.data.huggingface_dataset import HuggingFaceDataset
from framework.errors import ConfigError, DataError

datasets = pytest.importorskip("datasets")

CLASSES = ["cat", "dog"]
LABEL = datasets.ClassLabel(names=CLASSES)


@pytest.fixture(autouse=True)
def _quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def picture(number):
    return np.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=np.uint8)


def table(count, label=LABEL, start=0, labels=None, column="label"):
    labels = [number % 2 for number in range(count)] if labels is None else labels
    images = [Image.fromarray(picture(start + number)) for number in range(count)]
    features = datasets.Features({"image": datasets.Image(), column: label})
    return datasets.Dataset.from_dict({"image": images, column: labels}, features=features)


def save(name="set", **splits):
    datasets.DatasetDict(splits).save_to_disk(name)
    return name


def data(name="set", **options):
    return HuggingFaceDataset(
        name, **{"batch_size": 2, "num_workers": 0, "image_size": 16, "photometric": None, **options}
    )


def test_a_saved_data_set_is_read_as_it_was_saved():
    save(train=table(6), validation=table(4, start=6), test=table(2, start=10))
    module = data()
    assert (module.classes, module.multi_label) == (("cat", "dog"), False)
    assert module.counts == {"train": 6, "val": 4, "test": 2}
    for split, start in (("train", 0), ("val", 6), ("test", 10)):
        samples = module.splits()[split]
        for index in range(len(samples)):
            sample = samples.read(index)
            assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), picture(start + index))
            assert (int(sample["label"]), sample["id"]) == (index % 2, f"{CLASSES[index % 2]}/{split}-{index}")
    assert module.check_files() == []


def test_without_a_validation_split_a_share_of_each_class_is_held_out():
    save(train=table(20))
    module = data(val_fraction=0.3)
    assert module.counts == {"train": 14, "val": 6}
    assert np.bincount(module.splits()["val"].labels).tolist() == [3, 3]
    rows = [row for split in ("train", "val") for row in module.splits()[split].rows]
    assert sorted(rows) == list(range(20))
    assert module.splits()["val"].rows == data(val_fraction=0.3, seed=5).splits()["val"].rows


def test_lists_of_classes_are_several_labels():
    labels = [[], [0], [0, 1], [1]] * 3
    save(train=table(12, datasets.Sequence(LABEL), labels=labels, column="tags"))
    module = data(label_column="tags")
    assert (module.multi_label, module.classes) == (True, ("cat", "dog"))
    marks = [[0, 0], [1, 0], [1, 1], [0, 1]]
    for samples in module.splits().values():
        for index, row in enumerate(samples.rows):
            assert samples.read(index)["label"].tolist() == marks[row % 4]
    assert next(iter(module.train_dataloader()))["label"].dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "values", "classes"), [("string", ["b", "a"], ("a", "b")), ("int64", [12, 3], ("3", "12"))]
)
def test_names_and_numbers_are_classes_too(kind, values, classes):
    save(train=table(6, datasets.Value(kind), labels=values * 3), val=table(2, datasets.Value(kind), labels=values))
    module = data()
    assert module.classes == classes
    assert [int(module.splits()["val"].read(index)["label"]) for index in range(2)] == [1, 0]


def test_a_folder_that_load_dataset_takes(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    table(8).to_parquet(folder / "train-0.parquet")
    table(2, start=8).to_parquet(folder / "test-0.parquet")
    module = data("mine")
    assert module.counts == {"train": 6, "val": 2, "test": 2}
    assert np.array_equal(module.splits()["test"].read(1)["image"].permute(1, 2, 0).numpy(), picture(9))


def test_hidden_labels_of_a_test_split_leave_it_out_and_elsewhere_are_refused():
    save(train=table(4), test=table(2, labels=[-1, -1]))
    assert data().counts == {"train": 2, "val": 2}
    with pytest.raises(DataError, match="set, test: 2 of 2 images have no label, as row 0"):
        data(test_split="test")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train_split": "trian"}, r"data\.train_split: there is no split 'trian'; did you mean 'train'"),
        ({"val_split": "dev"}, r"data\.val_split: there is no split 'dev'; valid: test, train"),
        ({"image_column": "picture"}, r"data\.image_column: there is no column 'picture' of images; valid: image"),
        ({"label_column": "lable"}, r"data\.label_column: there is no column 'lable' of classes; did you mean 'label'"),
        ({"label_column": "image"}, r"data\.label_column: it holds Image"),
    ],
)
def test_what_is_not_there_is_named_with_the_nearest(options, said):
    save(train=table(4), test=table(2))
    with pytest.raises(ConfigError, match=said):
        data(**options)


def test_several_columns_of_classes_have_to_be_told_apart():
    save(train=table(4, column="fine").add_column("coarse", [0] * 4).cast_column("coarse", LABEL))
    with pytest.raises(ConfigError, match=r"data\.label_column: name the column of classes; found fine, coarse"):
        data()


def test_names_on_the_hub_need_the_network():
    with pytest.raises(ConfigError, match=r"data\.name: nobody/nothing cannot be loaded: .*; it is no folder here"):
        data("nobody/nothing")
    with pytest.raises(ConfigError, match=r"data\.name: \./nothing is no folder"):
        data("./nothing")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r'pip install "vision-plugin-framework\[datasets\]"'):
        data()


def test_a_damaged_image_is_named_and_stops_a_run(capsys):
    rows = {"image": [{"bytes": b"no image", "path": None}] * 8, "label": [0, 1] * 4}
    features = datasets.Features({"image": datasets.Image(), "label": LABEL})
    save(train=table(8), validation=datasets.Dataset.from_dict(rows, features=features))
    model = ["--model", "Classification", "--model.backbone", "Timm", "--model.backbone.name", "test_resnet"]
    options = ["--data.name", "set", "--data.num_workers", "0", "--data.image_size", "32", "--trainer.max_epochs", "1"]
    Path("x.yaml").write_text("trainer: {accelerator: cpu}\n")
    command = ["fit", "--config", "x.yaml", *model, "--data", "HuggingFaceDataset", *options]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert "val: val-0 is no image that Pillow can read (8 bytes)" in message
    assert len(message.splitlines()) <= 10


def test_it_passes_every_check_of_data_modules():
    save(train=table(6), validation=table(4, start=6))
    assert {v.name: v.found for v in check_plugin(data, "data") if v.outcome != "passed"} == {}
