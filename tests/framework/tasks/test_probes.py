import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD
from torch.testing import assert_close

from framework.backbone import Backbone, Features, Level
from framework.cli.main import main
from framework.data.image_folder import ImageFolder
from framework.errors import ConfigError
from framework.length import RunLength
from framework.tasks.probes import LinearProbes
from tests.folders import write_image_folder
from tests.framework.tasks.test_segmentation import trainer
from tests.tiny import Tiny


class Tokens(Backbone):
    """Two levels with a class token each."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__([Level(6, 8)] * 2, multiple=8, prefix_tokens=1, in_channels=in_channels)
        self.project = nn.Conv2d(in_channels, 6, 8, 8)

    def extract(self, images):
        maps = self.project(images)
        token = maps.flatten(2).amax(2)[:, None]
        return Features([maps, maps.square()], [token, 2 * token])

    def stages(self):
        return [list(self.project.parameters())]


def task(**options):
    torch.manual_seed(0)
    given = {"rates": [0.1, 0.5], "layers": [1, 2], "optimizer": lambda groups: SGD(groups, lr=9.0, momentum=0.9)}
    return LinearProbes(Tokens(), **{"num_classes": 3, **given, **options})


def by_hand(model, images):
    """What each classifier reads, in the order of the grid: layers, then without and with the mean."""
    with torch.no_grad():
        maps, tokens = model.backbone(images.float() / 255)
    first, second, mean = tokens[0][:, 0], tokens[1][:, 0], maps[1].mean((2, 3))
    read = [[second], [second, mean], [first, second], [first, second, mean]]
    return [torch.cat(parts, 1) for parts in read for _ in range(2)]


def test_each_classifier_reads_what_its_name_says():
    model, images = task(), torch.randint(0, 256, (4, 3, 16, 24), dtype=torch.uint8)
    assert [probe.name for probe in model.head.probes] == [
        f"layers{layers}_{pool}_lr{rate}" for layers in (1, 2) for pool in ("cls", "cls+mean") for rate in (0.1, 0.5)
    ]
    logits = model(images)
    for place, read in enumerate(by_hand(model, images)):
        linear = list(model.head.classifiers.values())[place].classify
        assert_close(logits[:, place], read @ linear.weight.T + linear.bias)


def train_by_hand(model, batches, scale):
    """Train every classifier by itself with torch's own SGD, at its rate on a cosine to 0; returns their weights."""
    trained = []
    for place, probe in enumerate(model.head.probes):
        linear = nn.Linear(*reversed(list(model.head.classifiers.values())[place].classify.weight.shape))
        linear.load_state_dict(list(model.head.classifiers.values())[place].classify.state_dict())
        optimizer = SGD(linear.parameters(), lr=probe.rate * scale, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
        for batch in batches:
            loss = F.cross_entropy(linear(by_hand(model, batch["image"])[place]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        trained.append(linear)
    return trained


def test_a_grid_in_one_pass_is_every_classifier_trained_alone(tmp_path):
    write_image_folder(tmp_path / "set", counts=(4, 1, 0), size=(24, 24))
    options = {"batch_size": 4, "num_workers": 0, "image_size": 24, "photometric": None, "hflip": 0.0}
    module = ImageFolder(str(tmp_path / "set"), **options, crop_area=(1.0, 1.0))
    module.seed, model = 3, task()
    expected = train_by_hand(model, list(module.train_dataloader()), 4 / 256)
    trainer(tmp_path, limit_val_batches=0).fit(model, module)
    for linear, trained in zip(expected, model.head.classifiers.values(), strict=True):
        assert_close(trained.classify.weight, linear.weight)
        assert_close(trained.classify.bias, linear.bias)
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


def test_rates_grow_with_the_images_of_a_step_and_clipping_is_each_classifiers_own():
    model = task(learning_rates={"head.classifiers.layers1_cls_lr0_1.*": 7.0})
    plan = model.plan_training(RunLength((5,), images=1024))
    rates = {name: group.rate for group in model.partition(plan) for name in group.names}
    assert rates["head.classifiers.layers2_cls+mean_lr0_5.classify.weight"] == 2.0
    assert rates["head.classifiers.layers1_cls_lr0_1.classify.bias"] == 7.0
    classifiers = list(model.head.classifiers.values())
    for size, classifier in enumerate(classifiers):
        classifier.classify.weight.grad = torch.full_like(classifier.classify.weight, 10.0**size)
        classifier.classify.bias.grad = torch.zeros_like(classifier.classify.bias)
    model.configure_gradient_clipping(None, 1.0, "norm")
    assert_close(torch.stack([each.classify.weight.grad.norm() for each in classifiers]), torch.ones(8))


def test_the_best_on_validation_makes_the_score_and_is_asked_afterwards(tmp_path):
    write_image_folder(tmp_path / "set", counts=(2, 3, 3))
    module = ImageFolder(str(tmp_path / "set"), batch_size=4, num_workers=0, image_size=24)
    model, loop = task().eval(), trainer(tmp_path)
    (figures,) = loop.validate(model, module, verbose=False)
    assert set(figures) == set(model.metric_names())
    batches = list(module.val_dataloader())
    hits = torch.cat([model(batch["image"]).argmax(2) == batch["label"][:, None] for batch in batches])
    shares = hits.double().mean(0)
    assert [figures[f"val/accuracy/{probe.name}"] for probe in model.head.probes] == pytest.approx(shares.tolist())
    assert figures["val/score"] == figures["val/accuracy"] == pytest.approx(float(shares.max()))
    assert figures["val/best"] == int(model.best) == int(shares.argmax())
    scores = [torch.cat([model(b["image"]).argmax(2) == b["label"][:, None] for b in module.test_dataloader()])]
    scores = scores[0].double().mean(0)
    worst = int(scores.argmin())
    assert scores[worst] < scores.max()
    model.best.fill_(worst)  # whatever is better on the test split
    (tested,) = loop.test(model, module, verbose=False)
    assert tested["test/score"] == tested["test/accuracy"] == pytest.approx(float(scores[worst]))
    assert_close(model.predict_step(batches[0], 0), model(batches[0]["image"])[:, worst].softmax(1))


def test_a_few_batches_before_training_choose_no_classifier(tmp_path, monkeypatch):
    write_image_folder(tmp_path / "set", counts=(2, 3, 0))
    module = ImageFolder(str(tmp_path / "set"), batch_size=4, num_workers=0, image_size=24)
    model, chosen = task(), []
    model.best.fill_(6)
    monkeypatch.setattr(model, "on_train_start", lambda: chosen.append(int(model.best)))
    trainer(tmp_path, num_sanity_val_steps=1).fit(model, module)
    assert chosen == [6]
    assert int(model.best) != 6 or model.val_metrics.compute()[0].argmax() == 6


def test_it_goes_on_as_any_task_does(tmp_path, capsys):
    write_image_folder(tmp_path / "set", counts=(4, 2, 0))
    options = ["--model", "LinearProbes", "--model.backbone", "Timm", "--model.backbone.name", "test_resnet"]
    options += ["--model.rates=[0.1,0.5]", "--model.layers=[1]", "--data", "ImageFolder", "--data.root", "set"]
    options += ["--data.image_size=32", "--data.num_workers=0", "--data.batch_size=4", "--run.id=one"]
    assert main(["fit", *options, "--trainer.max_epochs=1"]) == 0
    assert "of 2 classifiers on the validation split: layers1_mean_lr" in capsys.readouterr().out
    assert main(["fit", *options, "--trainer.max_epochs=2", "--allow_changes", "trainer.max_epochs"]) == 0
    (folder,) = Path("runs").glob("[!.]*/one")
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    momenta = checkpoint["optimizer_states"][0]["state"]
    assert {name.split(".")[2] for name in momenta} == {"layers1_mean_lr0_1", "layers1_mean_lr0_5"}
    assert "val/accuracy/layers1_mean_lr0.5" in json.loads((folder / "metrics.json").read_text())


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="stands twice"):
        task(rates=[0.1, 0.1])
    with pytest.raises(ConfigError, match=r"model\.rates: at least one"):
        task(rates=[])
    with pytest.raises(ConfigError, match="4 of the last levels are read, and the backbone returns 2"):
        task(layers=[1, 4])
    with pytest.raises(ConfigError, match="class token"):
        LinearProbes(Tiny(), 3, layers=[1], pools=["cls"])
    with pytest.raises(ConfigError, match=r"data\.mix"):
        task().check_data(type("Mixing", (), {"mixes": True, "progressive": None}))
