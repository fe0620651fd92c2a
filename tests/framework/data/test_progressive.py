"""Stages of training: what a plan says, how it reaches the samples, and that a run goes on from anywhere in it."""

import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torchvision.transforms import v2

from framework.cli.main import main
from framework.data.image_folder import ImageFolder
from framework.data.loader import KeyedBatches
from framework.data.progressive import Progressive, Stage
from framework.errors import ConfigError, DataError
from framework.length import run_length
from framework.tasks.classification import Classification
from tests.folders import write_image_folder
from tests.tiny import Tiny

PLAN = {"image_size": [16, 24, 32], "magnitude": [5.0, 10.0, 15.0], "mixup": [0.0, 0.2, 0.4], "batch_size": "by_area"}
EPOCHS = 6  # of which each stage has two, of 2, 6 and 10 batches


@pytest.fixture
def folder(tmp_path):
    return write_image_folder(tmp_path / "photos", counts=(10, 2, 2))


def data(folder, plan=PLAN, **options):
    progressive = Progressive(**plan) if isinstance(plan, dict) else plan
    return ImageFolder(
        root=str(folder), **({"batch_size": 3, "num_workers": 0, "check": False, "progressive": progressive} | options)
    )


# What a plan says.


def test_stages_are_equally_long_and_change_with_the_epoch_alone():
    plan = Progressive(image_size=[128, 192, 256], magnitude=[5, 10, 15], dropout=[0.1, 0.2, 0.3])
    assert [plan.at(epoch, 9).image_size[0] for epoch in range(9)] == [128] * 3 + [192] * 3 + [256] * 3
    assert plan.at(4, 9) == Stage(image_size=(192, 192), magnitude=10, dropout=0.2)
    for epochs in range(3, 50):
        lengths = [[plan.at(epoch, epochs).magnitude for epoch in range(epochs)].count(m) for m in (5, 10, 15)]
        assert sum(lengths) == epochs
        assert max(lengths) - min(lengths) <= 1
    assert plan.at(99, 9).magnitude == 15  # a run that goes on after its end stays in the last stage


def test_lengths_are_in_proportion():
    plan = Progressive(magnitude=[1, 2, 3], lengths=[30, 60, 10])
    assert plan.starts(100) == [0, 30, 90]
    assert plan.starts(10) == [0, 3, 9]
    thirds = Progressive(magnitude=[1, 2, 3], lengths=[0.1, 0.1, 0.1])
    assert thirds.starts(30) == [0, 10, 20]  # 0.1 + 0.1 + 0.1 is not 0.3


def test_batches_follow_the_area_so_that_each_has_no_more_pixels_than_the_last():
    plan = Progressive(image_size=[128, 160, 256], batch_size="by_area").with_batch_size(32)
    assert plan.batch_size == [128, 81, 32]
    assert Progressive(magnitude=[1, 2], batch_size=[8, 4]).with_batch_size(32).batch_size == [8, 4]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"image_size": [128, 192], "magnitude": [5]}, "image_size has 2, magnitude has 1"),
        ({"magnitude": [5, 10], "lengths": [1, 2, 3]}, "magnitude has 2, lengths has 3"),
        ({"image_size": [192, 128]}, "must rise from stage to stage, got 192x192 before 128x128"),
        ({"image_size": [128, 128]}, "got 128x128 before 128x128; a stage is made longer by `lengths`"),
        ({"image_size": [(128, 192), (192, 128)]}, "got 128x192 before 192x128"),
        ({"magnitude": [5, 31]}, r"magnitude is in \[0, 30\]"),
        ({"mixup": [-0.1, 0.2]}, "mixup is at least 0"),
        ({"dropout": [0.5, 1.0]}, r"dropout is in \[0, 1\)"),
        ({"magnitude": [5, 9], "batch_size": "by_area"}, "by_area if image_size is listed"),
        ({"magnitude": [5, 9], "lengths": [1, 0]}, "lengths are positive"),
        ({}, "nothing is scheduled"),
        ({"magnitude": []}, "nothing is scheduled"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(plan, said):
    with pytest.raises(ConfigError, match=said):
        Progressive(**plan)


def test_a_run_too_short_for_its_stages_is_refused():
    plan = Progressive(magnitude=[1, 2, 3], lengths=[1, 8, 1])
    plan.check(10)
    with pytest.raises(ConfigError, match=r"5 epochs are too few .* 1, 8, 1: stage 3 would have none"):
        plan.check(5)


# How it reaches the samples.


def test_images_batches_and_augmentation_are_those_of_the_stage(folder):
    module = data(folder)
    module.splits()
    loader = module.train_dataloader()
    seen = []
    for epoch in range(3):  # without a trainer, a stage an epoch
        loader.batch_sampler.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader) == module.train_batches(epoch=epoch)
        seen.append((len(batches), *batches[0]["image"].shape))
        strengths = {round(abs(float(s)), 6) for batch in batches for draw in batch["rand_augment"] for s in draw[:, 1]}
        assert strengths == {round(PLAN["magnitude"][epoch] / 30, 6)}
        assert all((draw[1] == 1) == (epoch == 0) for batch in batches for draw in batch["mix"])
    assert seen == [(2, 12, 3, 16, 16), (6, 5, 3, 24, 24), (10, 3, 3, 32, 32)]
    assert next(iter(module.val_dataloader()))["image"].shape[-2:] == (32, 32)
    assert module.example("train")["image"].shape[-2:] == (32, 32)


def test_evaluation_may_be_larger_than_the_last_stage(folder):
    module = data(folder, image_size=40)
    assert module.example("val")["image"].shape[-2:] == (40, 40)
    assert module.example("train")["image"].shape[-2:] == (32, 32)
    assert data(folder, plan=None).image_size == (224, 224)


def test_persistent_workers_see_every_stage_and_draw_the_same(folder):
    alone, helped = data(folder).train_dataloader(), data(folder, num_workers=2).train_dataloader()
    for epoch in range(3):
        for loader in (alone, helped):
            loader.batch_sampler.set_epoch(epoch)
        for one, two in zip(alone, helped, strict=True):
            assert one["id"] == two["id"]
            assert torch.equal(one["image"], two["image"])
            for name in ("rand_augment", "mix"):
                assert all((a == b).all() for a, b in zip(one[name], two[name], strict=True))


def test_own_transforms_are_brought_to_the_size_of_the_stage(folder):
    loader = data(folder, train_transforms=[v2.CenterCrop(38)]).train_dataloader()
    for epoch, side in enumerate((16, 24, 32)):
        loader.batch_sampler.set_epoch(epoch)
        assert next(iter(loader))["image"].shape[-2:] == (side, side)


def test_processes_share_each_stage_without_overlap():
    stages = Progressive(magnitude=[1, 2], batch_size=[4, 2]).stages()
    for epoch, count in ((0, 3), (1, 6)):
        ranks = [KeyedBatches(24, 9, 3, True, rank, 2, stage=stages.__getitem__) for rank in range(2)]
        for batches in ranks:
            batches.set_epoch(epoch)
        dealt = [list(batches) for batches in ranks]
        assert [len(batches) for batches in dealt] == [len(batches) for batches in ranks] == [count, count]
        keys = [key for rank in dealt for batch in rank for key in batch]
        assert sorted(key.index for key in keys) == list(range(24))
        assert {key.stage.magnitude for key in keys} == {epoch + 1}


def test_a_batch_larger_than_an_epoch_is_refused(folder):
    with pytest.raises(DataError, match="fewer than one batch of 32"):
        data(folder, batch_size=8).check_files()


# A run.


class Watch(Callback):
    """Notes what each batch was, how many were announced, and when validation came."""

    def __init__(self):
        self.batches, self.announced, self.validated = [], {}, []

    def on_train_epoch_start(self, trainer, pl_module):
        self.announced[trainer.current_epoch] = trainer.num_training_batches

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append((trainer.current_epoch, *batch["image"].shape[::2], batch["label"].ndim))

    def on_validation_start(self, trainer, pl_module):
        self.validated.append(trainer.global_step)


def fit(module, *callbacks, ckpt_path=None, **options):
    torch.manual_seed(0)
    task = Classification(Tiny(), num_classes=3)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    keeps = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = Trainer(
        **({"max_epochs": EPOCHS, "accelerator": "cpu", "num_sanity_val_steps": 0} | quiet | options),
        callbacks=list(callbacks),
        enable_checkpointing=keeps,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(task, module, ckpt_path=ckpt_path)
    return task.state_dict(), trainer


def test_every_epoch_has_the_batches_of_its_stage(folder):
    module, watch = data(folder), Watch()
    _, trainer = fit(module, watch)
    assert watch.announced == {0: 2, 1: 2, 2: 6, 3: 6, 4: 10, 5: 10}
    assert watch.validated == [2, 4, 10, 16, 26, 36]  # at the end of every epoch
    assert trainer.global_step == run_length(trainer, module).steps == 36
    expected = [(epoch, *stage, 2) for epoch, stage in enumerate([(12, 16)] * 2 + [(5, 24)] * 2 + [(3, 32)] * 2)]
    assert watch.batches == [
        row for row, count in zip(expected, watch.announced.values(), strict=True) for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("options", "steps", "validated"),
    [
        ({"accumulate_grad_batches": 4}, 12, [1, 2, 4, 6, 9, 12]),
        ({"limit_train_batches": 4}, 20, [2, 4, 8, 12, 16, 20]),
        ({"limit_train_batches": 0.5}, 18, [1, 2, 5, 8, 13, 18]),
        ({"val_check_interval": 0.5}, 36, [1, 2, 3, 4, 7, 10, 13, 16, 21, 26, 31, 36]),
    ],
)
def test_the_trainers_own_counts_follow(folder, options, steps, validated):
    module, watch = data(folder), Watch()
    _, trainer = fit(module, watch, **options)
    assert trainer.global_step == run_length(trainer, module).steps == steps
    assert watch.validated == validated


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_goes_on_ends_with_the_same_bits(folder, tmp_path, workers):
    every = ModelCheckpoint(tmp_path / "steps", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    best = ModelCheckpoint(
        tmp_path / "val", filename="{step}", monitor="val/score", save_top_k=-1, save_on_train_epoch_end=False
    )
    whole, _ = fit(data(folder), every, best)
    places = ["steps/step=1", "steps/step=4", "steps/step=7", "steps/step=16", "val/step=4", "val/step=16"]
    for place in places if workers == 0 else places[1:3]:  # in an epoch, at its end, and at the end of a stage
        watch = Watch()
        rest, trainer = fit(data(folder, num_workers=workers), watch, ckpt_path=str(tmp_path / f"{place}.ckpt"))
        assert trainer.global_step == 36
        assert len(watch.batches) == 36 - int(place.partition("=")[2]), place
        assert all(torch.equal(rest[name], value) for name, value in whole.items()), place


def test_a_run_of_too_few_epochs_stops_before_training(folder):
    with pytest.raises(ConfigError, match="2 epochs are too few for 3 stages"):
        fit(data(folder), max_epochs=2)
    with pytest.raises(ConfigError, match=r"give trainer\.max_epochs"):
        fit(data(folder), max_epochs=-1, max_steps=9)
    with pytest.raises(ConfigError, match=r"max_steps: 1 steps end before the last stage .* lower trainer\.max_epochs"):
        fit(data(folder), max_epochs=3, max_steps=1)
    fewest = min(data(folder).train_batches(1, epoch, 3) for epoch in range(3))
    with pytest.raises(ConfigError, match=rf"as few as {fewest} batches, fewer than {fewest + 1}: give a share"):
        fit(data(folder), max_epochs=3, val_check_interval=fewest + 1)
    _, trainer = fit(data(folder), fast_dev_run=True, limit_val_batches=0)  # one step, to see that it runs
    assert trainer.global_step == 1


# At the door.


@pytest.fixture
def refuse(folder, capsys):
    def run(*plan, backbone="tests.tiny.Tiny"):
        options = {
            "trust": backbone.partition(".")[0],
            "model": "Classification",
            "model.backbone": backbone,
            "data": "ImageFolder",
            "data.root": folder,
            "data.batch_size": 2,
            "data.num_workers": 0,
            "data.progressive": "Progressive",
            "trainer.max_epochs": 2,
        }
        words = [f"--{key}={value}" for key, value in options.items()]
        assert main(["fit", *words, *(f"--data.progressive.{text}" for text in plan)]) == 2
        return capsys.readouterr().err

    return run


def test_what_cannot_be_trained_is_refused_before_the_run(refuse, tmp_path):
    assert "2 epochs are too few for 3 stages" in refuse("image_size=[32,48,64]")
    assert "must rise from stage to stage, got 64x64 before 32x32" in refuse("image_size=[64,32]")
    source = (Path(__file__).parents[2] / "tiny.py").read_text().replace("class Tiny", "class Choosy")
    check = '        assert images.shape[-1] != 16, "not 16"\n'
    (tmp_path / "choosy.py").write_text(source.replace('        """Compute both maps."""\n', check))
    message = refuse("image_size=[16,32]", backbone="choosy.Choosy")
    assert "Choosy cannot take images of 16x16" in message
    assert "data.progressive" in message
