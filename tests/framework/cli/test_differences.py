"""Going on with another experiment: what differs is said, and what would make another run of it is refused."""

from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch

from framework.cli.differences import check_changes
from framework.cli.main import main
from framework.cli.network import check_network
from framework.errors import ConfigError
from framework.heads.classification import MLPClassifier
from framework.tasks.classification import Classification
from tests.folders import write_mask_folder
from tests.framework.cli.test_door import EXPERIMENT
from tests.tiny import Tiny


def cls(path, **arguments):
    return {"class_path": path, "init_args": arguments}


TRAINED = {
    "seed_everything": 7,
    "model": cls(
        "framework.tasks.classification.Classification",
        backbone=cls("plugins.timm.Timm", name="resnet18", pretrained=True, weights=None, drop_path=0.0),
        head=cls("framework.heads.classification.MLPClassifier", hidden=512),
        loss=cls(
            "framework.losses.segmentation.WeightedSum",
            losses=[cls("framework.losses.segmentation.CrossEntropy", label_smoothing=0.0)],
        ),
        optimizer=cls("torch.optim.AdamW", lr=0.001, betas=[0.9, 0.999]),
        freeze=1,
    ),
    "data": cls(
        "framework.data.image_folder.ImageFolder",
        root="photos",
        image_size=64,
        batch_size=8,
        repeats=1,
        num_workers=2,
        progressive=None,
        val_fraction=0.2,
        check=True,
        predict_dir=None,
    ),
    "trainer": {
        "max_epochs": 10,
        "logger": None,
        "log_every_n_steps": 10,
        "accumulate_grad_batches": 1,
        "devices": "auto",
        "gradient_clip_val": 1.0,
        "callbacks": [cls("framework.transfer.ema.EMA", decay=0.999)],
    },
    "run": {"name": "x", "root": "runs", "id": None},
    "plugins": None,
}
EMA = [cls("framework.transfer.ema.EMA", decay=0.99)]


def changed(**values):
    """Return the experiment with other values, by keys with `__` for dots and without `init_args`; None takes away."""
    config = deepcopy(TRAINED)
    for key, value in values.items():
        *path, last = key.split("__")
        inside = config
        for name in path:
            inside = inside[name]
            inside = inside.get("init_args", inside)
        inside[last] = value
    return config


def check(given, allowed=(), at_epoch_end=True, **options):
    return check_changes(TRAINED, given, allowed, at_epoch_end, **options)


SILENT = [
    {"run__name": "y", "run__root": "elsewhere"},
    {"trainer__logger": cls("framework.tracking.wandb.WandB")},
    {"trainer__log_every_n_steps": 1, "trainer__enable_progress_bar": False, "trainer__profiler": "simple"},
    {"trainer__default_root_dir": "/tmp", "trainer__num_sanity_val_steps": 0},
    {"trainer__callbacks": [*TRAINED["trainer"]["callbacks"], cls("lightning.pytorch.callbacks.RichProgressBar")]},
    {"trainer__callbacks": [*TRAINED["trainer"]["callbacks"], cls("lightning.pytorch.callbacks.LearningRateMonitor")]},
    {"data__num_workers": 0, "data__check": False, "data__predict_dir": "new"},
    {"model__backbone__pretrained": False, "model__backbone__weights": "moved.pt"},
    {"plugins": ["mine.py"], "on_nan": "skip"},
    {"trainer__callbacks": [cls("framework.averages.EMA", decay=0.999)]},  # the same class in a newer version
]


@pytest.mark.parametrize("values", SILENT, ids=lambda values: ",".join(values))
@pytest.mark.parametrize("at_epoch_end", [True, False])
def test_what_cannot_change_the_result_goes_unsaid(values, at_epoch_end):
    assert check(changed(**values), at_epoch_end=at_epoch_end) == []


SAID = {
    "trainer.max_epochs: 10 in the checkpoint, 20 now: the schedule now spans 20 epochs": {"trainer__max_epochs": 20},
    "model.optimizer.lr: 0.001 in the checkpoint, 0.01 now": {"model__optimizer__lr": 0.01},
    "model.optimizer.betas: [0.9, 0.999] in the checkpoint, [0.8, 0.9] now": {"model__optimizer__betas": [0.8, 0.9]},
    "model.schedule: nothing in the checkpoint, Constant now": {"model__schedule": cls("framework.schedules.Constant")},
    "model.loss.losses.CrossEntropy.label_smoothing: 0.0 in the checkpoint, 0.1 now": {
        "model__loss__losses": [cls("framework.losses.segmentation.CrossEntropy", label_smoothing=0.1)]
    },
    "model.loss: WeightedSum in the checkpoint, Dice now": {"model__loss": cls("framework.losses.segmentation.Dice")},
    "model.freeze: 1 in the checkpoint, 0 now": {"model__freeze": 0},
    "model.alignment: nothing in the checkpoint, ['median'] now": {"model__alignment": ["median"]},
    "model.backbone.drop_path: 0.0 in the checkpoint, 0.1 now": {"model__backbone__drop_path": 0.1},
    "trainer.callbacks.EMA.decay: 0.999 in the checkpoint, 0.99 now": {"trainer__callbacks": EMA},
    "trainer.callbacks.EMA: EMA in the checkpoint, nothing now": {"trainer__callbacks": None},
    "trainer.gradient_clip_val: 1.0 in the checkpoint, nothing now": {"trainer__gradient_clip_val": None},
    "trainer.devices: auto in the checkpoint, 2 now: from here on not bit-equal to an unbroken run": {
        "trainer__devices": 2
    },
    "trainer.plugins: nothing in the checkpoint, x now: from here on not bit-equal to an unbroken run": {
        "trainer__plugins": "x"
    },
    "data.root: photos in the checkpoint, moved now": {"data__root": "moved"},
    "data.image_size: 64 in the checkpoint, 96 now": {"data__image_size": 96},
}


@pytest.mark.parametrize(("line", "values"), SAID.items(), ids=[line.partition(":")[0] for line in SAID])
@pytest.mark.parametrize("at_epoch_end", [True, False])
def test_what_the_run_may_go_on_with_is_listed(line, values, at_epoch_end):
    assert check(changed(**values), at_epoch_end=at_epoch_end) == [line]


REFUSED = {
    "model.backbone.name: resnet18 in the checkpoint, resnet50 now": {"model__backbone__name": "resnet50"},
    "model.backbone: Timm in the checkpoint, TorchVision now": {
        "model__backbone": cls("plugins.torchvision.TorchVision")
    },
    "model.head: MLPClassifier in the checkpoint, LinearClassifier now": {
        "model__head": cls("framework.heads.classification.LinearClassifier")
    },
    "model.head.hidden: 512 in the checkpoint, 64 now": {"model__head__hidden": 64},
    "model: Classification in the checkpoint, Segmentation now": {
        "model": cls("framework.tasks.segmentation.Segmentation")
    },
    "data: ImageFolder in the checkpoint, SampleDigits now": {"data": cls("framework.data.sample_digits.SampleDigits")},
    "data.val_fraction: 0.2 in the checkpoint, 0.5 now": {"data__val_fraction": 0.5},
    "seed_everything: 7 in the checkpoint, 8 now": {"seed_everything": 8},
}


@pytest.mark.parametrize(("line", "values"), REFUSED.items(), ids=[line.partition(":")[0] for line in REFUSED])
def test_another_experiment_is_refused_unless_it_is_allowed(line, values):
    key = line.partition(":")[0]
    with pytest.raises(ConfigError) as refusal:
        check(changed(**values, trainer__max_epochs=20), source="runs/x/1/checkpoints/last.ckpt")
    first, second, remedy = str(refusal.value).splitlines()
    assert first == "--ckpt_path: runs/x/1/checkpoints/last.ckpt: this run was another experiment:"
    assert second.startswith(line)
    assert remedy.endswith(f"or --allow_changes {key}")
    for allowed in (key, key.partition(".")[0], key.replace("model.", "model.init_args.")):
        assert any(said.startswith(line) for said in check(changed(**values), [allowed]))
    with pytest.raises(ConfigError):
        check(changed(**values), ["trainer"])


@pytest.mark.parametrize(
    ("line", "values"),
    {
        "model.optimizer: AdamW in the checkpoint, SGD now: its state": {"model__optimizer": cls("torch.optim.SGD")},
        "model.optimizer.amsgrad: nothing in the checkpoint, true now": {"model__optimizer__amsgrad": True},
    }.items(),
)
def test_an_optimizer_whose_state_does_not_fit_is_refused_whatever_is_allowed(line, values):
    with pytest.raises(ConfigError) as refusal:
        check(changed(**values), ["model"])
    assert line in str(refusal.value)
    assert "--allow_changes" not in str(refusal.value)


WITHIN = {
    "data.batch_size": {"data__batch_size": 4},
    "data.repeats": {"data__repeats": 2},
    "data.sampling": {"data__sampling": cls("framework.data.sampling.ClassBalanced")},
    "data.progressive": {"data__progressive": cls("framework.data.progressive.Progressive", image_size=[32, 64])},
    "trainer.accumulate_grad_batches": {"trainer__accumulate_grad_batches": 2},
    "trainer.limit_train_batches": {"trainer__limit_train_batches": 0.5},
}


@pytest.mark.parametrize(("key", "values"), WITHIN.items(), ids=WITHIN)
def test_what_decides_which_samples_a_step_sees_changes_between_epochs_alone(key, values):
    (line,) = check(changed(**values))
    assert line.startswith(f"{key}: ")
    assert ("another number of steps" in line) == (key not in ("data.sampling", "data.progressive"))
    with pytest.raises(ConfigError, match=f"{key}: .*, in the middle of an epoch"):
        check(changed(**values), at_epoch_end=False)
    assert check(changed(**values), [key], at_epoch_end=False)


def test_within_an_epoch_other_processes_go_on_with_as_many_images_a_step():
    halved = changed(data__batch_size=4)
    (line,) = check(halved, at_epoch_end=False, processes=(1, 2))
    assert line == "data.batch_size: 8 in the checkpoint, 4 now: as many images a step"
    with pytest.raises(ConfigError, match=r"data.batch_size: 8 on each of 1 in the checkpoint, 8 on each of 2 now"):
        check(TRAINED, at_epoch_end=False, processes=(1, 2))
    (line,) = check(TRAINED, processes=(1, 2))
    assert line.startswith(
        "data.batch_size: 8 on each of 1 in the checkpoint, 8 on each of 2 now: from here on an epoch has another"
    )
    gathered = changed(data__batch_size=4, trainer__accumulate_grad_batches=2)
    with pytest.raises(ConfigError, match=r"data.batch_size: 8 in the checkpoint, 4 now"):  # another count of batches
        check(gathered, at_epoch_end=False)
    assert all(line.endswith(": as many images a step") for line in check(gathered))


def test_stages_are_not_spread_anew_within_an_epoch():
    stages = {"data__progressive": cls("framework.data.progressive.Progressive", image_size=[32, 64])}
    trained, given = changed(**stages), changed(**stages, trainer__max_epochs=20)
    assert check_changes(trained, given, [], at_epoch_end=True)
    with pytest.raises(ConfigError, match=r"trainer.max_epochs: 10 in .*, 20 now: other samples, in the middle of"):
        check_changes(trained, given, [], at_epoch_end=False)


def test_many_differences_are_told_in_ten_lines():
    given = changed(**{f"model__head__option{index}": index for index in range(12)})
    with pytest.raises(ConfigError) as refusal:
        check(given)
    lines = str(refusal.value).splitlines()
    assert len(lines) <= 10
    assert "... and 6 more" in lines


def test_a_key_to_allow_that_there_is_not_is_named():
    with pytest.raises(ConfigError, match=r"--allow_changes: the experiment has no data.batchsize; did you mean"):
        check(TRAINED, ["data.batchsize"])
    assert check(TRAINED, ["data.batch_size"]) == []  # the change was made in an earlier start


# Weights.


@pytest.fixture
def task():
    def build(width=8, classes=3, **options):
        return Classification(Tiny(width), num_classes=classes, **options)

    return build


def test_the_weights_of_the_same_network_pass(task):
    check_network({"state_dict": task().state_dict()}, task())


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        (lambda build: build(width=16), ["another backbone", "backbone.fine.0.weight 16x3x4x4 there, 8x3x4x4 here"]),
        (lambda build: build(classes=5), ["another number of classes", "5x16 there, 3x16 here", "2 of "]),
        (lambda build: build(head=partial(MLPClassifier, hidden=4)), ["another head", "missing there", "unknown here"]),
    ],
    ids=["backbone", "classes", "head"],
)
def test_another_network_is_told_by_its_weights(task, trained, expected):
    with pytest.raises(ConfigError) as refusal:
        check_network({"state_dict": trained(task).state_dict()}, task(), "runs/last.ckpt")
    message = str(refusal.value)
    assert message.startswith("--ckpt_path: runs/last.ckpt holds another network, it seems with another")
    assert len(message.splitlines()) <= 10
    for part in expected:
        assert part in message


def test_the_nearest_name_of_a_weight_is_told(task):
    state = task().state_dict()
    state["backbone.coarse.0.wieght"] = state.pop("backbone.coarse.0.weight")
    state["backbone.coarse.0.biass"] = state.pop("backbone.coarse.0.bias")
    with pytest.raises(ConfigError, match=r"wieght \(did you mean 'backbone.coarse.0.weight'\?\)"):
        check_network({"state_dict": state}, task())


def test_a_checkpoint_of_other_classes_is_told_before_its_shapes(task):
    checkpoint = {"state_dict": task(classes=2).state_dict(), "class_names": ["a", "b"]}
    with pytest.raises(ConfigError, match="trained for the classes a, b, but the data has 0, 1, 2"):
        check_network(checkpoint, task())


# Through the command line.


def test_a_run_goes_on_with_what_is_given_now_or_says_why_not(tmp_path, capsys):
    write_mask_folder(tmp_path / "set")
    Path("x.yaml").write_text(EXPERIMENT)
    fit = ["fit", "--config", "x.yaml", "--model.schedule", "Constant"]
    assert main([*fit, "--run.id", "first"]) == 0  # one epoch
    checkpoint = "runs/x/first/checkpoints/last.ckpt"
    goes_on = [*fit, "--ckpt_path", checkpoint, "--trainer.max_epochs", "2"]
    capsys.readouterr()

    assert main([*goes_on, "--model.backbone.name", "test_convnext", "--run.id", "never"]) == 2
    message = capsys.readouterr().err
    assert "model.backbone.name: test_resnet in the checkpoint, test_convnext now" in message
    allowed = ["--model.backbone.name", "test_convnext", "--allow_changes", "model.backbone.name"]
    assert main([*goes_on, *allowed, "--run.id", "never"]) == 2
    assert "holds another network, it seems with another backbone" in capsys.readouterr().err
    assert not Path("runs/x/never").exists()

    assert main([*goes_on, "--model.optimizer.lr", "0.004", "--run.id", "second"]) == 0
    printed = "".join(capsys.readouterr())
    assert "model.optimizer.lr: 0.01 in the checkpoint, 0.004 now" in printed
    assert "trainer.max_epochs: 1 in the checkpoint, 2 now: the schedule now spans 2 epochs" in printed
    groups = torch.load("runs/x/second/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert {group["lr"] for group in groups} == {0.004}

    assert main([*fit, "--model.optimizer.lr", "0.004", "--run.id", "second"]) == 0
    assert "already complete at epoch 2" in capsys.readouterr().out

    Path("cut.ckpt").write_bytes(Path(checkpoint).read_bytes()[:5000])
    assert main([*fit, "--ckpt_path", "cut.ckpt"]) == 2
    assert "cut.ckpt is no whole checkpoint (5000 bytes)" in capsys.readouterr().err
