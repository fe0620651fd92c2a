import csv
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from torch.testing import assert_close

from framework.cli.main import main
from framework.data.image_folder import ImageFolder
from framework.data.loader import SampleKey
from framework.data.synthetic import SyntheticScenes
from framework.errors import ConfigError
from framework.heads.classification import LinearClassifier
from framework.losses.classification import BinaryCrossEntropy
from framework.losses.segmentation import CrossEntropy, Dice, Focal
from framework.tasks.classification import Classification
from tests.folders import write_image_folder
from tests.framework.tasks.test_segmentation import trainer
from tests.tiny import Tiny


def task(**options):
    return Classification(Tiny(), **{"num_classes": 3, **options})


def folder(tmp_path, **options):
    if not (tmp_path / "set").exists():
        write_image_folder(tmp_path / "set", counts=(8, 4, 3))
    return ImageFolder(str(tmp_path / "set"), **{"batch_size": 4, "num_workers": 0, "image_size": 24, **options})


# Numbers.


def test_losses_are_those_of_torch():
    logits, label = torch.randn(9, 4, requires_grad=True), torch.randint(0, 4, (9,))
    weights = [1.0, 0.0, 2.0, 0.5]
    model = task(num_classes=4, loss=CrossEntropy(class_weights=weights, label_smoothing=0.1))
    expected = F.cross_entropy(logits, label, torch.tensor(weights), reduction="sum", label_smoothing=0.1)
    assert_close(model.compute_loss(logits, label), expected / torch.tensor(weights)[label].sum())
    p = logits.softmax(1)[range(9), label]
    assert_close(
        task(num_classes=4, loss=Focal(gamma=2.0)).compute_loss(logits, label), (-((1 - p) ** 2) * p.log()).mean()
    )
    assert task(num_classes=4, loss=Dice()).compute_loss(logits, label).isfinite()


def independent_scores(model, module):
    """Accuracy and balanced accuracy of the val split by scikit-learn, image by image."""
    samples = module.val_dataloader().dataset
    target, predicted, losses = [], [], []
    for index in range(module.counts["val"]):
        sample = samples[SampleKey(index, 0)]
        with torch.no_grad():
            logits = model(sample["image"][None])
        target.append(int(sample["label"]))
        predicted.append(int(logits.argmax()))
        losses.append(float(F.cross_entropy(logits, sample["label"][None])))
    return np.mean(np.equal(target, predicted)), balanced_accuracy_score(target, predicted), np.mean(losses)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_validation_equals_scoring_each_image_by_hand(tmp_path, batch_size):
    module, model = folder(tmp_path, batch_size=batch_size), task().eval()
    (metrics,) = trainer(tmp_path).validate(model, module, verbose=False)
    accuracy, balanced, loss = independent_scores(model, module)
    assert metrics["val/accuracy"] == metrics["val/score"] == pytest.approx(accuracy)
    assert metrics["val/balanced_accuracy"] == pytest.approx(balanced)
    assert metrics["val/loss"] == pytest.approx(loss, rel=1e-5)
    assert set(metrics) == set(model.metric_names())


def test_seven_classes_have_a_top5(tmp_path):
    module = SyntheticScenes(train=2, val=4, test=0, size=(32, 32), batch_size=2, num_workers=0)
    model = task(num_classes=7, class_names=list(module.classes))
    (metrics,) = trainer(tmp_path).validate(model, module, verbose=False)
    assert "val/top5" in metrics
    assert set(metrics) == set(model.metric_names())


def test_pads_that_even_out_processes_are_not_counted():
    model = task().eval()
    batch = model.example_batch(4, 16, 24)
    model.validation_step(batch, 0)
    whole = {name: float(value) for name, value in model.val_metrics.compute().items()}
    padded = {
        name: torch.cat([value, value[:1]]) if isinstance(value, torch.Tensor) else [*value, value[0]]
        for name, value in batch.items()
    }
    padded["is_pad"][-1] = True
    model.val_metrics.reset()
    outputs = model.validation_step(padded, 0)
    assert len(outputs["probabilities"]) == 5  # pictures and predictions go by rows
    assert int(model.val_metrics.confusion.compute().sum()) == 4
    assert {name: float(value) for name, value in model.val_metrics.compute().items()} == pytest.approx(
        whole, nan_ok=True
    )
    model.val_metrics.reset()
    padded["is_pad"][:] = True
    model.validation_step(padded, 0)
    assert int(model.val_metrics.confusion.compute().sum()) == 0


def test_the_loss_of_a_split_is_weighted_as_in_training():
    model = task(loss=CrossEntropy(class_weights=[1.0, 10.0, 0.0])).eval()
    batch = model.example_batch(6, 16, 24)
    batch["label"] = torch.tensor([0, 0, 0, 1, 2, 0])
    for rows in (slice(0, 4), slice(4, 6)):
        part = {name: value[rows] for name, value in batch.items()}
        model.validation_step(part, 0)
    expected = model.compute_loss(model(batch["image"]), batch["label"])
    assert_close(model.val_metrics.compute()["loss"], expected.detach())


# The network.


@pytest.mark.parametrize("size", [(8, 8), (37, 51), (1, 1)])
def test_images_of_any_size_are_padded_to_the_multiple(size):
    model = task().eval()
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    padded = F.pad(images / 255, (0, -size[1] % 8, 0, -size[0] % 8), mode="replicate")
    assert_close(model(images), model(padded))
    assert model(images).shape == (2, 3)


def test_predictions_do_not_depend_on_batch_mates():
    model = task().eval()
    small, large = model.example_batch(1, 20, 28), model.example_batch(1, 33, 60)
    image = torch.zeros(2, 3, 33, 60, dtype=torch.uint8)
    image[0, :, :20, :28], image[1] = small["image"][0], large["image"][0]
    together = model.predict_step({"image": image, "size": [(20, 28), (33, 60)]}, 0)
    alone = torch.cat([model.predict_step(batch, 0) for batch in (small, large)])
    assert_close(together, alone)
    assert_close(together.sum(1), torch.ones(2))


def test_a_checkpoint_for_one_class_is_none_for_several():
    checkpoint = {}
    task().on_save_checkpoint(checkpoint)
    task().on_load_checkpoint(checkpoint)
    with pytest.raises(ConfigError, match=r"trained for one of the classes in each image, and the data has several"):
        task(multi_label=True).on_load_checkpoint(checkpoint)


def test_contradictions_are_refused_at_the_door():
    with pytest.raises(ConfigError, match="2 class_weights and the data has 3 classes"):
        task(loss=CrossEntropy(class_weights=[1.0, 2.0]))
    with pytest.raises(ConfigError, match="2 names for 3 classes"):
        task(class_names=["a", "b"])
    with pytest.raises(ConfigError, match="needs a class token"):
        task(head=partial(LinearClassifier, pool="cls"))
    with pytest.raises(ConfigError, match=r"CrossEntropy wants one class .* take BinaryCrossEntropy"):
        task(loss=CrossEntropy(), multi_label=True)


def test_mixing_is_refused_under_a_loss_of_whole_classes():
    mixing = SimpleNamespace(mixes=True)
    task(loss=CrossEntropy()).check_data(mixing)
    task(loss=Dice()).check_data(SimpleNamespace())
    with pytest.raises(ConfigError, match=r"Dice wants one class .* data\.mix gives shares"):
        task(loss=Dice()).check_data(mixing)


def test_images_with_several_classes_are_trained_and_scored():
    model = task(multi_label=True, class_names=["cat", "dog", "owl"])
    assert isinstance(model.loss, BinaryCrossEntropy)
    batch = model.example_batch(6, 16, 24)
    batch["label"][0] = torch.tensor([1.0, 0.0, 1.0])
    loss = model.compute_loss(model(batch["image"]), batch["label"])
    assert_close(loss, F.binary_cross_entropy_with_logits(model(batch["image"]), batch["label"]))
    model.eval().validation_step(batch, 0)
    computed = model.val_metrics.compute()
    assert [f"val/{name}" for name in computed] == model.metric_names()
    probabilities = model.predict_step(batch, 0)
    assert_close(probabilities, model(batch["image"]).sigmoid())
    row = model.draw_row(batch, {"probabilities": torch.tensor([[0.9, 0.2, 0.6]] * 6)}, 0)
    assert row.text == "cat, owl, predicted cat 90 %, owl 60 % · 0"
    record = dict(model.prediction_record(batch, torch.tensor([0.9, 0.2, 0.6]), 0))
    assert (record["class"], record["probability"], record["dog"]) == ("cat|owl", "0.900000|0.600000", "0.200000")
    assert model.charts("val") == {}


def test_the_example_trains():
    model = Classification.example(Tiny(), LinearClassifier)
    batch = model.example_batch(3, 16, 24)
    loss = model.compute_loss(model(batch["image"]), batch["label"])
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert batch["image"].shape == (3, 3, 16, 24)


def test_training_learns(tmp_path):
    module = folder(tmp_path, repeats=2)
    model = task(optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2))
    (before,) = trainer(tmp_path).validate(model, module, verbose=False)
    trainer(tmp_path, max_epochs=6).fit(model, module)
    (after,) = trainer(tmp_path).validate(model, module, verbose=False)
    assert before["val/loss"] > 1.0  # chance is log 3 = 1.1
    assert after["val/loss"] < 0.6
    assert after["val/accuracy"] > 0.9


# What people are shown.


def drawn(model, label, probabilities):
    batch = model.example_batch(1, 20, 30) | {"label": torch.tensor([label]), "id": ["x"]}
    return model.draw_row(batch, {"probabilities": torch.tensor([probabilities])}, 0), batch["image"][0]


def test_a_picture_says_what_it_shows_and_what_was_predicted():
    model = task(class_names=["cat", "dog", "owl"])
    row, image = drawn(model, 1, [0.7, 0.2, 0.1])
    assert row.text == "dog, predicted cat 70 % · x"
    ((_, picture),) = row.columns
    assert np.array_equal(picture[1:-1, 1:-1], image.permute(1, 2, 0).numpy())
    assert picture[0, 0, 0] > 2 * picture[0, 0, 1:].max()  # a red frame
    row, _ = drawn(model, 0, [0.7, 0.2, 0.1])
    assert row.text == "cat, predicted cat 70 % · x"
    assert row.columns[0][1][0, 0].max() < 1.1 * row.columns[0][1][0, 0].min()  # a grey one


# From the command line.

EXPERIMENT = """
model:
  class_path: Classification
  init_args:
    backbone: {class_path: Timm, init_args: {name: test_resnet}}
    head: {class_path: LinearClassifier, init_args: {dropout: 0.2}}
    optimizer: {class_path: AdamW, init_args: {lr: 0.01}}
data:
  class_path: ImageFolder
  init_args: {root: set, image_size: 32, batch_size: 4, num_workers: 0}
trainer:
  max_epochs: 1
  accelerator: cpu
"""


@pytest.fixture
def run(tmp_path):
    """Run a command on the experiment; return the run's folder."""
    write_image_folder(tmp_path / "set")
    Path("x.yaml").write_text(EXPERIMENT)

    def call(*options, command="fit", config="x.yaml", code=0):
        before = set(Path("runs").glob("[!.]*/*"))
        assert main([command, *(["--config", config] if config else []), *options]) == code
        (found,) = set(Path("runs").glob("[!.]*/*")) - before or {None}
        return found

    return call


def figures(found):
    return json.loads((found / "metrics.json").read_text())


def weights(found):
    return torch.load(found / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_a_run_leaves_everything_and_its_checkpoint_alone_is_enough(run, tmp_path):
    found = run()
    metrics = figures(found)
    names = {"loss", "score", "accuracy", "balanced_accuracy", "f1", "calibration_error"}
    names |= {"accuracy/blue", "accuracy/green", "accuracy/red"}
    assert set(metrics) == {f"{split}/{name}" for split in ("val", "test") for name in names}
    assert {path.name for path in (found / "pictures").iterdir()} == {
        "val_epoch_000.png",
        "val_best.png",
        "val_best_confusion.png",
        "test_best.png",
        "test_best_confusion.png",
    }
    checkpoint = str(found / "checkpoints/best.ckpt")
    tested = run("--ckpt_path", checkpoint, command="test", config=None)
    assert figures(tested) == {name: value for name, value in metrics.items() if name.startswith("test/")}
    (tmp_path / "new").mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 255, (37 + number, 61, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"new/{number}.png")
    predicted = run("--ckpt_path", checkpoint, "--data.predict_dir", "new", command="predict", config=None)
    assert [path.name for path in (predicted / "predictions").iterdir()] == ["predictions.csv"]
    rows = list(csv.DictReader((predicted / "predictions/predictions.csv").open()))
    assert [row["id"] for row in rows] == list("01234")
    for row in rows:
        every = {name: float(row[name]) for name in ("blue", "green", "red")}
        assert sum(every.values()) == pytest.approx(1, abs=1e-5)
        assert row["class"] == max(every, key=every.get)
        assert float(row["probability"]) == max(every.values())


def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(run):
    whole = run("--trainer.max_epochs", "3")
    first = run("--trainer.max_epochs", "3", "--trainer.callbacks+=tests.stop.StopAfter", "--trust", "tests")
    resumed = run("--trainer.max_epochs", "3", "--ckpt_path", str(first / "checkpoints/last.ckpt"))
    assert (resumed / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert not torch.equal(weights(first)["head.classify.weight"], weights(whole)["head.classify.weight"])
    expected, got = weights(whole), weights(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_channels_follow_the_data(run, tmp_path, channels, mode):
    write_image_folder(tmp_path / mode, mode=mode)
    found = run("--data.root", mode, "--data.channels", str(channels))
    first = next(value for name, value in weights(found).items() if name.startswith("backbone") and value.ndim == 4)
    assert first.shape[1] == channels


def test_scenes_are_one_option_away(run):
    found = run("--data", "SyntheticScenes", "--data.train=4", "--data.val=4", "--data.test=4", "--data.size=[32,32]")
    assert {"test/accuracy/sphere", "test/top5", "test/score"} <= set(figures(found))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model.head", "UNet"],
            "--model.head: model.head: UNet is for Segmentation and Depth, not for Classification; take",
        ),
        (
            ["--data", "MaskFolder", "--data.root", "set"],
            "MaskFolder is for Segmentation, not for Classification; take",
        ),
        (["--model", "Segmentation"], "is for Classification, not for Segmentation; take"),
    ],
)
def test_what_is_made_for_another_task_is_refused(run, capsys, options, message):
    run(*options, code=2)
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) <= 10


@pytest.mark.parametrize("key", ["mix", "rand_augment", "progressive", "photometric"])
def test_a_typo_in_what_has_one_class_names_the_line(run, capsys, key):
    Path("y.yaml").write_text(EXPERIMENT.replace("root: set,", f"root: set, {key}: {{magnitud: 1}},"))
    run(config="y.yaml", code=2)
    assert f"y.yaml:10: unknown key data.{key}.magnitud of " in capsys.readouterr().err


def test_another_loss_is_one_option_away(run):
    assert run("--model.loss", "Focal", "--model.loss.gamma", "1")
