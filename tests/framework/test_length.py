"""How long a run is, counted without a loader."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

from framework.cli.main import main
from framework.errors import TrainingError
from framework.length import RunLength, run_length
from tests.folders import write_image_folder


def trainer(**options):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", **quiet, **options)


def data(*batches):
    """Epochs with so many batches, the last number for ever."""
    count = lambda world_size, epoch, epochs, limit: batches[min(epoch, len(batches) - 1)]  # noqa: E731
    return SimpleNamespace(progressive=None, train_batches=count)


@pytest.mark.parametrize(
    ("options", "batches", "past", "expected"),
    [
        ({"max_epochs": 3}, (5,), (), (5, 5, 5)),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, (5,), (), (3, 3, 3)),
        ({"max_epochs": 3, "max_steps": 7}, (5,), (), (5, 2)),
        ({"max_epochs": -1, "max_steps": 12}, (5,), (), (5, 5, 2)),
        ({"max_epochs": 3}, (2, 6, 10), (), (2, 6, 10)),
        ({"max_epochs": 4}, (5,), (10, 10), (10, 10, 5, 5)),  # batches were half as large in the first two
        ({"max_epochs": 4, "max_steps": 22}, (5,), (10, 10), (10, 10, 2)),
        ({"max_epochs": 0}, (5,), (), ()),
    ],
)
def test_steps_of_every_epoch(options, batches, past, expected):
    length = run_length(trainer(**options), data(*batches), past)
    assert length.epoch_steps == expected
    assert length.steps == sum(expected)


def test_moments_and_starts():
    length = RunLength((2, 6, 10))
    assert [length.start(epoch) for epoch in range(3)] == [0, 2, 8]
    assert [length.moment(step).epoch for step in (0, 1, 2, 7, 8, 17)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("options", "batches"), [({"max_epochs": -1}, (5,)), ({"max_epochs": 2}, (5, 0))])
def test_a_run_without_end_or_without_batches_is_refused(options, batches):
    with pytest.raises(TrainingError):
        run_length(trainer(**options), data(*batches))


EXPERIMENT = """
model:
  class_path: Classification
  init_args:
    backbone: {class_path: Timm, init_args: {name: test_resnet}}
    schedule: {class_path: Polynomial, init_args: {power: 1}}
    optimizer: {class_path: SGD, init_args: {lr: 1.0}}
    freeze: all
data: {class_path: ImageFolder, init_args: {root: set, image_size: 32, batch_size: 3, num_workers: 0}}
trainer: {max_epochs: 2, accelerator: cpu}
"""


def test_other_batches_after_a_resume_count_from_there_on(capsys):
    """Eighteen images: twelve steps in two epochs, then two epochs of three steps; the rate falls on to their end."""
    write_image_folder(Path("set"))
    Path("x.yaml").write_text(EXPERIMENT)
    assert main(["fit", "--config", "x.yaml", "--run.id", "r"]) == 0
    more = ["--trainer.max_epochs", "4", "--data.batch_size", "6"]
    assert main(["fit", "--config", "x.yaml", "--run.id", "r", *more]) == 0
    assert "over 18 steps" in capsys.readouterr().out
    last = torch.load("runs/x/r/checkpoints/last.ckpt", weights_only=True)
    previous = torch.load("runs/x/r/checkpoints/previous.ckpt", weights_only=True)
    assert last["epoch_steps"] == [6, 6, 3, 3]
    assert [c["optimizer_states"][0]["param_groups"][-1]["lr"] for c in (previous, last)] == [pytest.approx(3 / 18), 0]
    assert any(not torch.equal(v, last["state_dict"][n]) for n, v in previous["state_dict"].items() if "head" in n)
