import csv
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from framework.boxes import Detections
from framework.cli.main import main
from framework.data.synthetic import SyntheticScenesDetection
from framework.errors import ConfigError, TrainingError
from framework.heads.detection import DetectionHead
from framework.heads.fcos import FCOS
from framework.tasks.detection import Detection
from framework.tiling import DetectionInference
from tests.framework.tasks.test_segmentation import trainer
from tests.tiny import Tiny

SMALL = partial(FCOS, channels=64, convolutions=1)


class Corner(DetectionHead):
    """Finds a box in the upper left quarter of every image, whatever is shown, and one of low score in the canvas."""

    multiple, used, loss_names = 16, (0,), ("nothing",)

    def __init__(self, levels, prefix_tokens, num_classes):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def losses(self, features, frame, objects):
        return {"nothing": self.weight * 0}

    def detect(self, features, frame):
        found = []
        for height, width in frame.sizes:
            boxes = torch.tensor([[0.0, 0.0, width / 2, height / 2], [0.0, 0.0, width, height]])
            found.append(Detections(boxes, torch.tensor([0.9, 0.2]), torch.tensor([1, 0])))
        return found


def task(**options):
    return Detection(Tiny(), **{"num_classes": 3, "head": SMALL, **options})


def scenes(**options):
    given = {"train": 4, "val": 3, "test": 2, "size": (48, 64), "batch_size": 2, "num_workers": 0, **options}
    return SyntheticScenesDetection(**given)


@pytest.mark.parametrize("fit", [{}, {"resize": 32}, {"letterbox": (40, 96)}, {"resize": 96, "longest": 100}])
def test_boxes_come_back_in_the_pixels_of_the_stored_image(fit):
    data = scenes(size=(45, 67), **fit)
    model = task(head=Corner).eval()
    batch = next(iter(data.val_dataloader()))
    for found in model.find(batch):
        torch.testing.assert_close(found.boxes, torch.tensor([[0, 0, 33.5, 22.5], [0, 0, 67, 45]]))


def test_what_lies_beside_an_image_is_the_mean_colour_to_the_network():
    model = task().eval()
    seen = []
    model.backbone.fine.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model.show(torch.randint(0, 256, (2, 3, 30, 40), dtype=torch.uint8), [(30, 40), (20, 33)])
    (images,) = seen
    assert images.shape[-2:] == (32, 64)  # what the pyramid of the head divides
    assert images[1, :, :20, :33].abs().min() > 0
    images[0, :, :30, :40], images[1, :, :20, :33] = 0, 0
    assert images.abs().max() < 1e-6


def test_an_image_is_found_the_same_whatever_its_batch_mates_are():
    model = task().eval()
    one, two = (torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((40, 56), (64, 33)))
    together = torch.zeros(2, 3, 64, 56, dtype=torch.uint8)
    together[0, :, :40], together[1, :, :, :33] = one, two
    sizes = [(40, 56), (64, 33)]
    with torch.no_grad():
        both = model.find({"image": together, "size": sizes, "canvas": sizes, "original_size": sizes})
        for found, image, size in zip(both, (one, two), sizes, strict=True):
            torch.testing.assert_close(found, model(image[None])[0])
            assert len(found.boxes)
            assert (found.boxes <= torch.tensor([size[1], size[0]] * 2)).all()


def test_a_step_counts_every_object_and_takes_images_without_any():
    model = task()
    batch = model.example_batch(3, 48, 64)
    loss = model.training_step(batch, 0)
    batch["boxes"], batch["labels"] = [torch.zeros(0, 4)] * 3, [torch.zeros(0, dtype=torch.long)] * 3
    nothing = model.training_step(batch, 0)
    assert 0 < float(nothing.detach()) < float(loss.detach())
    nothing.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_threshold_of_the_best_f1_is_chosen_kept_and_used(tmp_path):
    data, model = scenes(), task(head=Corner)
    found = model.find
    model.find = lambda batch: [  # all that there is, beside what is not there
        Detections(
            torch.cat([boxes, one.boxes]), torch.cat([boxes.new_full((len(boxes),), 0.95), one.scores]), torch.cat(both)
        )
        for one, boxes, both in zip(
            found(batch), batch["boxes"], zip(batch["labels"], [torch.tensor([1, 0])] * 2, strict=False), strict=True
        )
    ]
    assert model.score_threshold == 0.5
    trainer(tmp_path).validate(model, data, verbose=False)
    chosen = model.score_threshold
    assert 0.9 < chosen <= 0.95
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    other, given = task(head=Corner), task(head=Corner, score_threshold=0.3)
    for one in (other, given):
        one.on_load_checkpoint(checkpoint)
    assert (other.score_threshold, given.score_threshold) == (chosen, 0.3)
    batch = next(iter(data.val_dataloader()))
    assert [len(found.boxes) for found in given.predict_step(batch, 0)] == [1, 1]  # the one of 0.9, not that of 0.2
    trainer(tmp_path).validate(given, data, verbose=False)
    assert given.score_threshold == 0.3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"score_threshold": 1.5}, r"model.score_threshold must be in \(0, 1\), got 1.5"),
        ({"class_names": ["a", "b"]}, "2 names for 3 classes"),
        ({"head": partial(SMALL, class_weights=[1.0, 2.0])}, "^model.head.class_weights: 2 weights for 3 classes"),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        task(**options)


EXPERIMENT = """
model:
  class_path: Detection
  init_args:
    backbone: {class_path: Timm, init_args: {name: test_resnet}}
    head: {class_path: FCOS, init_args: {channels: 64, convolutions: 1}}
    optimizer: {class_path: AdamW, init_args: {lr: 0.01}}
data:
  class_path: SyntheticScenesDetection
  init_args: {train: 8, val: 3, test: 2, size: [48, 64], batch_size: 2, num_workers: 0}
trainer:
  max_epochs: 2
  accelerator: cpu
  enable_progress_bar: false
"""


def test_a_run_leaves_figures_and_pictures_and_predicts_from_its_checkpoint(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(EXPERIMENT)
    assert main(["fit", "--config", "x.yaml", "--run.id", "one"]) == 0
    run = Path("runs/x/one")
    figures = json.loads((run / "metrics.json").read_text())
    assert {"val/ap", "val/ap50", "val/threshold", "test/ar100", "test/ap/cone"} <= figures.keys()
    assert figures["test/threshold"] == figures["val/threshold"]
    pictures = {path.name for path in (run / "pictures").iterdir()}
    assert {"val_best.png", "test_best.png", "test_best_confusion.png", "test_best_precision_recall.png"} <= pictures
    with (run / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert {"train/loss", "train/classification", "train/box", "train/centerness"} <= set(columns)

    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, size in (("wide", (90, 40)), ("high", (33, 70))):
        Image.effect_noise(size, 80).convert("RGB").save(folder / f"{name}.png")
    options = ["--data.predict_dir", str(folder), "--run.id", "two", "--model.score_threshold", "0.051"]
    assert main(["predict", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *options]) == 0
    written = {path.name for path in Path("runs/x/two/predictions").iterdir()}
    assert written == {"wide.jpg", "high.jpg", "predictions.csv"}
    with Path("runs/x/two/predictions/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        width, height = {"wide": (90, 40), "high": (33, 70)}[row["id"]]
        assert 0 <= float(row["x1"]) <= float(row["x2"]) <= width
        assert 0 <= float(row["y1"]) <= float(row["y2"]) <= height


def test_a_part_of_a_split_may_have_no_object_but_not_all_of_it(tmp_path):
    data, model = scenes(), task()
    read = data.splits()["val"].read
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "ignored": torch.zeros(0).bool()}
    nothing |= {"area": torch.zeros(0)}
    data.splits()["val"].read = lambda index: {**read(index), **nothing}
    trainer(tmp_path, limit_val_batches=1).validate(model, data, verbose=False)
    assert (model.score_threshold, model.charts("val")) == (0.5, {})
    with pytest.raises(TrainingError, match="not one object was counted"):
        trainer(tmp_path).validate(model, data, verbose=False)


@pytest.mark.parametrize(("given", "kept"), [(None, 2), (0.5, 1)])
def test_tiles_keep_apart_what_the_head_keeps_apart(given, kept):
    model = task(head=Corner, inference=DetectionInference(tile=32, nms_iou=given))
    model.head.nms_iou = 0.6
    model.inference.suit(model.head.nms_iou)
    neighbours = Detections(
        torch.tensor([[10.0, 10, 50, 50], [19, 14, 59, 54]]), torch.tensor([0.9, 0.8]), torch.zeros(2).long()
    )  # an IoU of 0.54
    nothing = Detections(*(values[:0] for values in neighbours))
    found = model.inference(
        lambda images, sizes: [neighbours] if images.shape[-1] == 64 else [nothing] * len(images),
        torch.zeros(1, 3, 64, 64),
        [(64, 64)],
    )
    assert len(found[0].boxes) == kept
