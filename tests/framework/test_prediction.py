import csv
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from framework.boxes import Detections
from framework.prediction import PredictionWriter, append_records, join_tables
from framework.tasks.detection import Detection
from tests.tiny import Tiny


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


class Finder:
    """A task that finds as many objects as an image's name says."""

    def __init__(self, columns=()):
        self.columns = list(columns)

    def prediction_images(self, batch, prediction, row):
        return {f"{batch['id'][row]}.png": Image.new("L", (2, 2))}

    def prediction_files(self, batch, prediction, row):
        return {f"{batch['id'][row]}.txt": b"found"}

    def prediction_records(self, batch, prediction, row):
        name = batch["id"][row]
        return [[("id", name), ("class", "é"), ("class", f"{prediction}-{each}")] for each in range(int(name[-1]))]

    def prediction_columns(self):
        return self.columns


def predict(folder, names, processes, task, batch_size=2):
    """Take turns at the images, as the loaders do, pads at the end included."""
    strategy = SimpleNamespace(barrier=lambda: None)
    trainers = [
        SimpleNamespace(global_rank=rank, world_size=processes, is_global_zero=rank == 0, strategy=strategy)
        for rank in range(processes)
    ]
    own = -(-len(names) // processes)
    padded = [*names, *[names[-1]] * (own * processes - len(names))]
    writers = [PredictionWriter(folder) for _ in range(processes)]
    for rank, (writer, trainer) in enumerate(zip(writers, trainers, strict=True)):
        writer.on_predict_start(trainer, task)
        mine = list(range(rank, len(padded), processes))
        for start in range(0, own, batch_size):
            indices = mine[start : start + batch_size]
            batch = {
                "id": [padded[index] for index in indices],
                "is_pad": torch.tensor([index >= len(names) for index in indices]),
            }
            writer.write_on_batch_end(trainer, task, indices, None, batch, start // batch_size, 0)
    for writer, trainer in reversed(list(zip(writers, trainers, strict=True))):
        writer.on_predict_end(trainer, task)


NAMES = ["a,0", "b3", "c0", "d1", "e2", "f0", "g2"]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_rows_of_an_image_stay_together_in_the_order_of_the_images(tmp_path, processes):
    predict(tmp_path / "p", NAMES, processes, Finder())
    rows = read(tmp_path / "p/predictions.csv")
    expected = [[name, "é", f"{index}-{each}"] for index, name in enumerate(NAMES) for each in range(int(name[-1]))]
    assert rows == [["id", "class", "class"], *expected]  # a class may be named as another column is
    written = {path.name for path in (tmp_path / "p").iterdir()}
    assert written == {"predictions.csv", *(f"{name}.{suffix}" for name in NAMES for suffix in ("png", "txt"))}


@pytest.mark.parametrize("processes", [1, 3])
def test_the_columns_stand_there_though_no_image_has_a_row(tmp_path, processes):
    predict(tmp_path / "p", ["a0", "b0"], processes, Finder(["id", "class", "score"]))
    assert read(tmp_path / "p/predictions.csv") == [["id", "class", "score"]]
    predict(tmp_path / "q", ["a0", "b0"], processes, Finder())  # a task that writes pictures alone
    assert not list((tmp_path / "q").glob("*.csv"))


def test_what_a_broken_off_start_left_is_not_part_of_the_table(tmp_path):
    (tmp_path / "p").mkdir()
    append_records(tmp_path / "p/predictions.0.csv", [(0, [("id", "old"), ("class", "x"), ("class", "y")])])
    predict(tmp_path / "p", ["a1"], 1, Finder())
    assert read(tmp_path / "p/predictions.csv")[1:] == [["a1", "é", "0-0"]]


def test_a_long_table_is_joined_by_number_and_not_by_text(tmp_path):
    parts = [tmp_path / f"{rank}.csv" for rank in range(2)]
    for number in range(24):
        append_records(parts[number % 2], [(number // 2, [("id", number)])])
    join_tables(parts, tmp_path / "all.csv")
    assert read(tmp_path / "all.csv") == [["id"], *[[str(number)] for number in range(24)]]


def test_the_columns_of_detection_are_those_of_its_rows():
    task = Detection(Tiny(), num_classes=2, class_names=["cat", "dog"])
    found = Detections(
        torch.tensor([[1.0, 2, 30.256, 40], [0, 0, 5, 5]]), torch.tensor([0.75, 0.5]), torch.tensor([1, 0])
    )
    rows = task.prediction_records({"id": ["x"]}, found, 0)
    assert [[name for name, _ in row] for row in rows] == [task.prediction_columns()] * 2
    assert [[value for _, value in row] for row in rows] == [
        ["x", "dog", "0.750000", "1.00", "2.00", "30.26", "40.00"],
        ["x", "cat", "0.500000", "0.00", "0.00", "5.00", "5.00"],
    ]
