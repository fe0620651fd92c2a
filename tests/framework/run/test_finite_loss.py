"""Steps whose loss or gradients are not finite: the run stops before them, or they change nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from framework.cli.main import main
from framework.run.finite_loss import FiniteLoss
from tests.folders import write_mask_folder

REPOSITORY = Path(__file__).parents[3]
EXPERIMENT = """
model:
  class_path: Segmentation
  init_args:
    backbone: tests.poison.Standardised
    head: LinearHead
    optimizer: {class_path: AdamW, init_args: {lr: 0.01}}
data:
  class_path: MaskFolder
  init_args: {root: set, crop_size: 16, batch_size: 2, num_workers: 0, photometric: null}
trainer:
  max_epochs: 2
  accelerator: cpu
  enable_progress_bar: false
  limit_val_batches: 1
  callbacks+:
    - {class_path: EMA, init_args: {decay: 0.9}}
    - tests.poison.Witness
"""


@pytest.fixture
def fit(tmp_path):
    """Start a run on eight images of which some are constant; returns its folder and what was witnessed."""
    write_mask_folder(tmp_path / "set", counts=(8, 2, 0), size=(20, 24))
    Path("x.yaml").write_text(EXPERIMENT)

    def call(*options, constant=(), code=0):
        for number in constant:
            Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(f"set/images/train/{number:03d}.png")
        assert main(["fit", "--config", "x.yaml", "--trust", "tests", "--run.id", "a", *options]) == code
        return Path("runs/x/a"), json.loads(Path("witness_0.json").read_text())["rows"]

    return call


def test_a_run_stops_before_the_step_and_keeps_it(fit, capsys):
    folder, rows = fit(constant=[3], code=2)
    error = capsys.readouterr().err
    (file,) = (folder / "nonfinite").iterdir()
    step = torch.load(file, weights_only=True)
    assert file.name == f"step_{len(rows):06d}.pt"
    assert "003" in step["batch"]["id"]
    assert len(step["batch"]["id"]) == 2
    for part in (f"the loss is not finite at epoch {step['epoch']}, step {len(rows)}, samples", "003", str(file)):
        assert part in error
    assert f"framework replay {file}" in error
    assert len(error.splitlines()) <= 10
    assert all(value.isfinite().all() for value in step["state_dict"].values())  # batch norm's statistics as well
    assert step["class_names"] == ["class 0", "class 1", "class 2"]
    assert step["config"]["model"]["class_path"] == "framework.tasks.segmentation.Segmentation"
    main(["replay", str(file), "--trust", "tests"])
    printed = capsys.readouterr().out
    assert "loss        nan" in printed
    assert "outputs     not finite first in backbone.fine.0 (Conv2d):" in printed
    assert "they came about in backbone (Standardised)" in printed


def test_gradients_that_are_not_finite_stop_the_run_too_and_replay_gives_the_same_loss(fit, capsys):
    poison = ["--trainer.callbacks+=tests.poison.PoisonedGradient", "--trainer.callbacks.step=5"]
    folder, rows = fit(*poison, code=2)
    assert rows[-1][0] == 5
    assert "the gradients are not finite at epoch 1, step 5, samples" in capsys.readouterr().err
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    loss = json.loads(Path("witness_0.json").read_text())["loss"]
    assert main(["replay", str(folder / "nonfinite/step_000005.pt"), "--trust", "tests"]) == 0
    printed = capsys.readouterr().out
    assert f"loss        {loss}\n" in printed  # dropout draws the same
    assert "outputs     of every module are finite" in printed
    assert "gradients   finite" in printed


@pytest.mark.parametrize("window", [1, 2])
def test_a_skipped_step_changes_nothing_and_counts(fit, window, capsys):
    folder, rows = fit("--on_nan=skip", f"--trainer.accumulate_grad_batches={window}", constant=[3])
    steps = [rows[index] for index in range(window - 1, len(rows), window)]
    bad = [any(not np.isfinite(row[1]) for row in rows[i * window : (i + 1) * window]) for i in range(len(steps))]
    assert sum(bad) == 2  # once an epoch
    assert [step[0] for step in steps] == list(range(1, len(steps) + 1))
    for before, after, skipped in zip(steps[:-1], steps[1:], bad[1:], strict=True):
        assert (before[2:] == after[2:]) == skipped
    error = capsys.readouterr().err
    assert error.count("left out; the step is kept") == 1
    assert error.count("003") == 1
    for epoch in (0, 1):
        assert f"epoch {epoch}: 1 step left out because its loss, or a gradient, was not finite" in error
    assert len(list((folder / "nonfinite").iterdir())) == 1


def test_a_gpu_is_asked_now_and_then_and_before_a_checkpoint(fit, monkeypatch, capsys):
    monkeypatch.setattr(FiniteLoss, "_looks", lambda self, trainer: trainer.global_step % 50 == 0)  # as there
    folder, rows = fit(constant=[3], code=2)
    bad = next(row[0] - 1 for row in rows if not np.isfinite(row[1]))
    assert f"was not finite at step {bad}; a GPU is asked every" in capsys.readouterr().err
    assert not list((folder / "checkpoints").iterdir())


def test_ten_skipped_steps_in_a_row_stop_the_run(fit, capsys):
    options = ["--on_nan=skip", "--data.batch_size=1", "--trainer.max_epochs=9"]
    _, rows = fit(*options, constant=range(8), code=2)
    assert len(rows) == 9
    assert "10 steps in a row were left out" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_skip_together_and_stop_together_when_one_is_told_to(tmp_path):
    write_mask_folder(tmp_path / "set", counts=(16, 2, 0), size=(20, 24))
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save("set/images/train/003.png")
    Path("x.yaml").write_text(EXPERIMENT)
    options = ["--trust", "tests", "--run.id", "a", "--on_nan", "skip", "--trainer.max_epochs", "500"]
    options += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.log_every_n_steps", "2"]
    options += ["--trainer.callbacks+=tests.signals.SignalAt", "--trainer.callbacks.moment=step"]
    options += ["--trainer.callbacks.step=6", "--trainer.callbacks.rank=0"]
    process = subprocess.run(
        [sys.executable, "-m", "framework.cli.main", "fit", "--config", "x.yaml", *options],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 143, process.stderr
    assert "stopped at epoch 2, step 8; the same command with --run.id a goes on" in process.stderr
    assert "internal error" not in process.stderr
    first, second = (json.loads(Path(f"witness_{rank}.json").read_text())["rows"] for rank in (0, 1))
    assert [row[0] for row in first] == [row[0] for row in second] == list(range(1, 9))
    assert [(row[2], row[4]) for row in first] == [(row[2], row[4]) for row in second]  # weights and optimizer
    bad = [not np.isfinite(one[1]) or not np.isfinite(two[1]) for one, two in zip(first, second, strict=True)]
    assert sum(bad) == 2
    for before, after, skipped in zip(first[:-1], first[1:], bad[1:], strict=True):
        assert (before[2:] == after[2:]) == skipped
    checkpoint = torch.load("runs/x/a/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8
