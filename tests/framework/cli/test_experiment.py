"""What a run leaves behind, and how experiments are laid over each other."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
import yaml
from PIL import Image

from benchmarks.resume import ended, fork
from framework.cli.main import main
from tests.folders import write_mask_folder
from tests.framework.cli.test_door import EXPERIMENT
from tests.reference.offline_run import read_offline_run


@pytest.fixture
def run(tmp_path):
    """Run a command on the experiment; return the run's folder."""
    if not (tmp_path / "set").exists():
        write_mask_folder(tmp_path / "set")
    Path("x.yaml").write_text(EXPERIMENT)

    def call(*options, command="fit", config="x.yaml", code=0):
        before = set(Path("runs").glob("[!.]*/*"))
        assert main([command, *(["--config", config] if config else []), *options]) == code
        (folder,) = set(Path("runs").glob("[!.]*/*")) - before or {None}
        return folder

    return call


def test_a_run_leaves_everything_in_its_folder(run, capsys):
    folder = run("--trainer.max_epochs", "2")
    printed = capsys.readouterr().out
    assert folder.parent == Path("runs/x")
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "config.yaml",
        "groups.csv",
        "checkpoints",
        "metrics.json",
        "metrics.csv",
        "pictures",
    }
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"val/miou", "val/score", "test/miou", "test/iou/class 1", "val/pixel_accuracy"} <= set(metrics)
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert all(float(row["train/loss"]) > 0 and float(row["val/miou"]) >= 0 for row in rows)
    best = max(float(row["val/score"]) for row in rows)
    assert metrics["val/score"] == pytest.approx(best, abs=1e-6)
    pictures = sorted(path.name for path in (folder / "pictures").iterdir())
    best = [f"{split}_best{what}.png" for split in ("test", "val") for what in ("", "_confusion")]
    assert pictures == [*best, "val_epoch_000.png", "val_epoch_001.png"]
    for name in ("checkpoints", "metrics.json", "pictures", "config.yaml"):
        assert (
            str(folder / name)
            in printed.splitlines()[-4:][["checkpoints", "metrics.json", "pictures", "config.yaml"].index(name)]
        )


def test_the_saved_config_is_an_experiment_that_gives_the_same_result(run):
    first = run()
    second = run(config=str(first / "config.yaml"))
    weights = [torch.load(f / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for f in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_checkpoint_alone_is_enough_to_test_and_predict(run, tmp_path):
    folder = run()
    checkpoint = str(folder / "checkpoints/best.ckpt")
    tested = run("--ckpt_path", checkpoint, command="test", config=None)
    first, second = (json.loads((f / "metrics.json").read_text()) for f in (folder, tested))
    assert second["test/miou"] == first["test/miou"]
    Image.fromarray(np.zeros((37, 61, 3), np.uint8)).save(tmp_path / "odd.png")
    (tmp_path / "new").mkdir()
    (tmp_path / "odd.png").rename(tmp_path / "new/odd.png")
    predicted = run(
        "--ckpt_path", checkpoint, "--data.predict_dir", str(tmp_path / "new"), command="predict", config=None
    )
    mask = Image.open(predicted / "predictions/odd.png")
    assert mask.size == (61, 37)
    assert np.asarray(mask).max() <= 2


def test_a_checkpoint_whose_data_is_gone_says_how_to_give_another_folder(run, capsys):
    checkpoint = str(run("--trainer.max_epochs", "1") / "checkpoints/best.ckpt")
    Path("set").rename("moved")
    capsys.readouterr()
    run("--ckpt_path", checkpoint, command="validate", config=None, code=2)
    said = capsys.readouterr().err
    assert "data.root: set is no folder" in said
    assert f"(data.root is what {checkpoint} was trained with; --data.root DIR gives another)" in said
    run("--ckpt_path", checkpoint, "--data.root", "gone", command="validate", config=None, code=2)
    said = capsys.readouterr().err
    assert "data.root: gone is no folder" in said
    assert "trained with" not in said
    run("--ckpt_path", checkpoint, "--data.root", "moved", command="validate", config=None)


def test_options_override_files_and_later_files_override_earlier_ones(run, capsys):
    Path("more.yaml").write_text("trainer: {max_epochs: 7}\nmodel: {init_args: {head: {class_path: UNet}}}\n")
    arguments = [
        "--config",
        "more.yaml",
        "--model.backbone.name",
        "test_convnext",
        "--data.batch_size=3",
        "--print_config",
    ]
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert resolved["trainer"]["max_epochs"] == 7
    assert resolved["trainer"]["gradient_clip_val"] == 1.0  # from the defaults
    assert resolved["model"]["init_args"]["backbone"]["init_args"]["name"] == "test_convnext"
    assert resolved["model"]["init_args"]["head"]["class_path"] == "framework.heads.decoders.UNet"
    assert resolved["data"]["init_args"]["batch_size"] == 3


def test_another_data_set_is_one_option_away(run, tmp_path):
    write_mask_folder(tmp_path / "twenty", classes=20, counts=(3, 1, 0))
    folder = run("--data", "MaskFolder", "--data.root", "twenty", "--data.crop_size", "32")
    assert len([k for k in json.loads((folder / "metrics.json").read_text()) if k.startswith("val/iou/")]) == 20


def test_callbacks_are_added_not_replaced(run):
    folder = run(
        "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/score", "--trainer.callbacks.mode=max"
    )
    assert (folder / "checkpoints/best.ckpt").exists()


def test_early_stopping_ends_a_run_that_no_longer_improves(run):
    stop = "--trainer.callbacks+=EarlyStopping"
    watched = [
        "--trainer.callbacks.monitor=val/score",
        "--trainer.callbacks.mode=max",
        "--trainer.callbacks.patience=2",
    ]
    folder = run(stop, *watched, "--trainer.max_epochs=9", "--model.freeze=all", "--model.optimizer.lr=0")
    assert [row["epoch"] for row in csv.DictReader((folder / "metrics.csv").open())] == ["0", "1", "2"]
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == 0


def test_a_user_class_is_used_once_its_module_is_trusted(run, tmp_path):
    source = (Path(__file__).parents[2] / "tiny.py").read_text()
    (tmp_path / "user_net.py").write_text(source)
    assert run("--model.backbone", "user_net.Tiny", "--trust", "user_net", "--model.backbone.width", "4")


def test_a_loss_that_is_not_finite_stops_the_run(run, capsys):
    folder = run(
        "--model.optimizer.lr", "1e30", "--trainer.max_epochs", "20", "--trainer.gradient_clip_val", "null", code=2
    )
    assert "the loss is not finite at epoch" in capsys.readouterr().err
    for checkpoint in (folder / "checkpoints").iterdir():
        state = torch.load(checkpoint, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())


def weights(folder, name="last"):
    return torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]


def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(run):
    whole = run("--trainer.max_epochs", "3")
    first = run("--trainer.max_epochs", "3", "--trainer.callbacks+=tests.stop.StopAfter", "--trust", "tests")
    resumed = run("--trainer.max_epochs", "3", "--ckpt_path", str(first / "checkpoints/last.ckpt"))
    assert [row["epoch"] for row in csv.DictReader((first / "metrics.csv").open())] == ["0", "1"]
    assert (resumed / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_channels_follow_the_data(run, tmp_path):
    folder = run("--data.channels", "1")
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    first = next(value for name, value in state.items() if name.startswith("backbone") and value.ndim == 4)
    assert first.shape[1] == 1


def test_checkpoints_hold_the_experiment_and_load_safely(run):
    folder = run()
    checkpoint = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["config"] == yaml.safe_load((folder / "config.yaml").read_text())


def test_mixed_precision_clips_gradients_with_a_fused_optimizer(run):
    assert run("--trainer.precision", "bf16-mixed")


def test_weights_that_are_not_finite_are_never_saved(run, capsys):
    folder = run(
        "--model.optimizer.lr", "1e38", "--data.batch_size", "4", "--trainer.gradient_clip_val", "null", code=2
    )
    assert "not finite" in capsys.readouterr().err
    assert not list((folder / "checkpoints").iterdir())


def test_masks_without_a_pixel_that_counts_are_no_success(run, capsys):
    for path in Path("set/masks/val").iterdir():
        Image.fromarray(np.full((48, 56), 255, np.uint8)).save(path)
    run("--data.check", "false", code=2)
    assert "not one pixel was counted" in capsys.readouterr().err


def test_a_bad_file_found_by_a_worker_is_named_in_a_line(run, capsys):
    Path("set/images/train/001.png").write_bytes(b"")
    run("--data.check", "false", "--data.num_workers", "1", "--data.batch_size", "4", code=2)
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: set/images/train/001.png is empty")


def test_a_checkpoint_of_other_classes_or_another_network_is_refused(run, capsys, tmp_path):
    checkpoint = str(run() / "checkpoints/best.ckpt")
    (tmp_path / "set/classes.txt").write_text("a\nb\nc\n")
    run("--ckpt_path", checkpoint, command="test", config=None, code=2)
    assert "trained for the classes class 0, class 1, class 2, but the data has a, b, c" in capsys.readouterr().err
    (tmp_path / "set/classes.txt").write_text("class 0\nclass 1\nclass 2\n")
    run("--ckpt_path", checkpoint, "--model.backbone.name", "test_convnext", command="test", code=2)
    message = capsys.readouterr().err
    assert "holds another network" in message
    assert len(message.splitlines()) <= 10


def test_a_finished_run_has_nothing_to_do(run, capsys):
    checkpoint = str(run() / "checkpoints/last.ckpt")
    run("--ckpt_path", checkpoint)
    assert "nothing to do: the checkpoint is already at epoch 1; raise trainer.max_epochs" in capsys.readouterr().out


def test_without_validation_the_last_checkpoint_is_tested(run):
    folder = run("--trainer.limit_val_batches", "0")
    assert "test/miou" in json.loads((folder / "metrics.json").read_text())


def test_a_test_of_no_batch_is_no_test(run):
    figures = json.loads((run("--trainer.limit_test_batches", "0") / "metrics.json").read_text())
    assert "val/miou" in figures
    assert "test/miou" not in figures


def test_a_run_without_time_trains_nothing_and_says_so(run, capsys):
    run("--trainer.max_time", "00:00:00:00")
    assert "nothing was trained: its time is over; raise trainer.max_time to go on\n" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "value"), [("enable_checkpointing", "false"), ("barebones", "true")])
def test_a_run_needs_its_checkpoints(run, capsys, key, value):
    run(f"--trainer.{key}", value, code=2)
    assert f"error: --trainer.{key}: trainer.{key}: a run needs its checkpoints" in capsys.readouterr().err


def test_the_run_of_wandb_ends_with_the_command(run):
    folder = run("--trainer.logger", "WandB")
    assert wandb.run is None
    wandb.teardown()
    recorded = read_offline_run(folder)
    assert recorded.exit_code == 0
    assert any("test/miou" in row for row in recorded.history)


def test_ctrl_c_says_how_to_go_on(run):
    Path("x.yaml").write_text(EXPERIMENT)
    log = Path("log.txt")
    log.touch()
    command = ["fit", "--config", "x.yaml", "--trainer.max_epochs", "500"]
    process, pipe = fork(Path(), lambda pipe: main(command))  # a new process would import for ten seconds
    while "\nepoch 3/" not in log.read_text() and ended(process) is None:
        time.sleep(0.05)
    os.kill(process, signal.SIGINT)
    while (code := ended(process)) is None:
        time.sleep(0.05)
    os.close(pipe)
    said = log.read_text()
    assert code == 130, said
    assert "stopped at epoch " in said
    assert "; the same command with --run.id " in said
