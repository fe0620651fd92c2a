"""Mistakes in an experiment: found before any data is read, in at most ten lines, with file, key and nearest name."""

from pathlib import Path

import pytest
import torch

from framework.cli.main import main
from tests.folders import write_mask_folder

EXPERIMENT = """
model:
  class_path: Segmentation
  init_args:
    backbone: {class_path: Timm, init_args: {name: test_resnet}}
    head: LinearHead
    optimizer: {class_path: AdamW, init_args: {lr: 0.01}}
data:
  class_path: MaskFolder
  init_args: {root: set, crop_size: 32, batch_size: 2, num_workers: 0}
trainer:
  max_epochs: 1
  accelerator: cpu
"""


@pytest.fixture
def refuse(tmp_path, capsys):
    """Run `fit` on the experiment with a replacement in it; return the message and check that it is one for users."""
    write_mask_folder(tmp_path / "set")

    def run(old="", new="", *options, code=2):
        assert old in EXPERIMENT
        Path("x.yaml").write_text(EXPERIMENT.replace(old, new) if old else EXPERIMENT + new)
        assert main(["fit", "--config", "x.yaml", *options]) == code
        message = capsys.readouterr().err
        assert len(message.splitlines()) <= 10
        assert "Traceback" not in message
        assert not Path("runs/x").exists()
        return message

    return run


TYPOS = {
    ("max_epochs", "max_epoch"): ["x.yaml:12", "unknown key trainer.max_epoch", "did you mean 'max_epochs'?"],
    ("name: test_resnet", "nam: test_resnet"): ["x.yaml:5", "model.backbone.nam of Timm", "did you mean 'name'?"],
    ("head: LinearHead", "heads: LinearHead"): ["x.yaml:6", "model.heads of Segmentation", "did you mean 'head'?"],
    ("LinearHead", "LinerHead"): ["x.yaml:6", "model.head", "no class LinerHead", "did you mean 'LinearHead'?"],
    ("Segmentation", "Segmentatoin"): ["x.yaml:3", "no class Segmentatoin", "did you mean 'Segmentation'?"],
    ("MaskFolder", "MaskFodler"): ["x.yaml:9", "no class MaskFodler", "did you mean 'MaskFolder'?"],
    ("Timm", "Tim"): ["x.yaml:5", "model.backbone", "no class Tim", "did you mean 'Timm'?"],
    ("AdamW", "AdamWW"): ["x.yaml:7", "model.optimizer", "did you mean 'AdamW'?"],
    ("lr: 0.01", "lrr: 0.01"): ["x.yaml:7", "model.optimizer.lrr of AdamW", "did you mean 'lr'?"],
    ("batch_size: 2", "batchsize: 2"): ["x.yaml:10", "data.batchsize of MaskFolder", "did you mean 'batch_size'?"],
    ("trainer:", "trainerr:"): ["x.yaml:11", "unknown key trainerr", "did you mean 'trainer'?"],
    ("test_resnet", "test_resnt"): ["test_resnt", "test_resnet"],
}


@pytest.mark.parametrize(("change", "expected"), TYPOS.items(), ids=[new for _, new in TYPOS])
def test_a_typo_names_file_line_and_the_nearest_valid_name(refuse, change, expected):
    message = refuse(*change)
    for part in expected:
        assert part in message


def test_wrong_types_name_file_line_and_key(refuse):
    assert "x.yaml:12: trainer.max_epochs: Expected a int; got many" in refuse("max_epochs: 1", "max_epochs: many")
    assert "x.yaml:10: batch_size: Not of type PositiveInt" in refuse("batch_size: 2", "batch_size: 0")
    assert "--model.optimizer.lr" in refuse("", "", "--model.optimizer.lr", "fast")


def test_abbreviated_options_are_refused(refuse):
    assert "did you mean 'max_epochs'?" in refuse("", "", "--trainer.max_epoch", "3")
    assert "did you mean 'crop_size'?" in refuse("", "", "--data.crop", "3")
    assert "unrecognized arguments: stray" in refuse("", "", "stray")


def test_doubled_keys_tabs_and_broken_yaml_name_the_line(refuse):
    assert "x.yaml:14: trainer.max_epochs stands twice (first in line 12)" in refuse("", "  max_epochs: 3\n")
    assert "x.yaml:14: not YAML" in refuse("", "\tmax_epochs: 3\n")
    assert "x.yaml:15: not YAML" in refuse("", "data: [\n")


@pytest.mark.parametrize(
    ("callback", "monitor", "hint"),
    [
        ("EarlyStopping", "val/mIoU", "did you mean 'val/miou'?"),
        ("ModelCheckpoint", "val/mIoU", "did you mean 'val/miou'?"),
        ("EarlyStopping", "train/los", "did you mean 'train/loss'?"),
        ("EarlyStopping", "lr", ""),  # without a LearningRateMonitor
    ],
)
def test_a_monitor_that_is_never_logged_is_refused(refuse, callback, monitor, hint):
    message = refuse("", f"  callbacks:\n    - {{class_path: {callback}, init_args: {{monitor: {monitor}}}}}\n")
    assert "x.yaml:15" in message
    assert f"{callback} monitors '{monitor}', which is never logged; {hint}" in message


def test_what_the_data_states_may_not_be_written_again(refuse):
    assert "x.yaml:6: model.num_classes" in refuse("    head", "    num_classes: 5\n    head")
    assert "--model.ignore_index" in refuse("", "", "--model.ignore_index", "9")
    assert "--model.backbone.in_channels" in refuse("", "", "--model.backbone.in_channels", "1")
    assert "--data.seed" in refuse("", "", "--data.seed", "1")


def test_a_module_that_is_not_trusted_is_never_imported(refuse, tmp_path):
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()\nclass Net: pass\n")
    message = refuse("class_path: Timm, init_args: {name: test_resnet}", "class_path: evil.Net")
    assert "x.yaml:5: model.backbone: evil.Net is in a package that experiments may not import" in message
    assert "--trust evil" in message
    assert not Path("ran").exists()


def test_missing_things_say_what_is_missing(refuse, capsys):
    assert "data: missing: root" in refuse("root: set, ", "")
    assert "data.root: nowhere is no folder" in refuse("root: set", "root: nowhere")
    assert main(["fit", "--config", "y.yaml"]) == 2
    assert "did you mean 'x.yaml'?" in capsys.readouterr().err
    assert main(["fitt"]) == 2
    assert "did you mean 'fit'?" in capsys.readouterr().err
    assert main(["fit"]) == 2
    assert "fit needs an experiment" in capsys.readouterr().err
    assert main(["test", "--ckpt_path", "none.ckpt"]) == 2
    assert "none.ckpt does not exist" in capsys.readouterr().err
    assert main(["predict"]) == 2
    assert "predict needs a checkpoint" in capsys.readouterr().err


def test_bad_data_stops_before_the_run_folder_is_made(refuse):
    Path("set/masks/train/001.png").write_bytes(b"")
    assert "set/masks/train/001.png is empty (0 bytes)" in refuse()


def test_a_run_folder_that_cannot_be_written_is_refused(refuse):
    Path("taken").write_text("")
    assert "run.root" in refuse("", "", "--run.root", "taken")
    assert "run.name" in refuse("", "", "--run.name", "a/b")


def test_nothing_to_train_is_refused(refuse):
    assert "an epoch has no training batch" in refuse("", "", "--trainer.limit_train_batches", "0")
    assert "lower data.batch_size" in refuse("batch_size: 2", "batch_size: 9")


def test_help_and_version_need_no_torch(capsys):
    for arguments in (["--help"], ["fit", "--help"], ["--version"]):
        assert main(arguments) == 0
    assert "--config" in capsys.readouterr().out


def test_a_logger_typo_is_named(refuse):
    assert "no class Wandb; did you mean 'WandB" in refuse("", "", "--trainer.logger", "Wandb")


def test_a_class_typo_inside_a_list_is_named(refuse):
    message = refuse("", "", "--model.loss", "WeightedSum", "--model.loss.losses", "[CrossEntropy, Dyce]")
    assert "no class Dyce; did you mean 'Dice'?" in message


def test_a_callback_with_the_wrong_idea_of_better_is_refused(refuse):
    message = refuse("", "  callbacks:\n    - {class_path: EarlyStopping, init_args: {monitor: val/score}}\n")
    assert "x.yaml:15" in message
    assert "set mode: max" in message


def test_values_out_of_range_are_refused(refuse):
    assert "crop_size" in refuse("crop_size: 32", "crop_size: 0")
    assert "hflip" in refuse("", "", "--data.hflip", "2")
    assert "0 to 255" in refuse("", "", "--data.ignore_index", "300")
    assert "channels" in refuse("", "", "--data.channels", "2")
    assert "unknown key 1" in refuse("", "1: 2\n")


def test_checkpoints_that_cannot_be_gone_on_from_are_refused(refuse):
    Path("torn.ckpt").write_bytes(b"PK\x03\x04 half a file")
    assert "torn.ckpt is no whole checkpoint (16 bytes)" in refuse("", "", "--ckpt_path", "torn.ckpt")
    assert "none.ckpt does not exist" in refuse("", "", "--ckpt_path", "none.ckpt")
    torch.save({"weight": torch.zeros(1)}, "weights.ckpt")
    assert "not a checkpoint of a run" in refuse("", "", "--ckpt_path", "weights.ckpt")
    Path("list.txt").write_text("one\ntwo\n")
    assert "list.txt is no checkpoint: it is a text file: give one that" in refuse("", "", "--ckpt_path", "list.txt")
    Path("none.ckpt").touch()
    assert "none.ckpt is no checkpoint: it is empty (0 bytes)" in refuse("", "", "--ckpt_path", "none.ckpt")
    torch.save({"weight": torch.zeros(1)}, "old.ckpt", _use_new_zipfile_serialization=False)
    assert "old.ckpt is no checkpoint: torch wrote it in its format" in refuse("", "", "--ckpt_path", "old.ckpt")
    Path("a.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    assert "a.png is no checkpoint: it is another kind of file" in refuse("", "", "--ckpt_path", "a.png")


def test_a_network_that_refuses_the_images_says_so_before_training(refuse, tmp_path):
    source = (Path(__file__).parents[2] / "tiny.py").read_text()
    check = '        assert images.shape[-2:] == (64, 96), "only 64x96"\n'
    source = source.replace('        """Compute both maps."""\n', check).replace("class Tiny", "class Fixed")
    source = source.replace("multiple=8", "multiple=32")
    (tmp_path / "fixed_net.py").write_text(source)
    message = refuse("", "", "--model.backbone", "fixed_net.Fixed", "--trust", "fixed_net")
    assert (
        "Fixed cannot take images of 32x32, even padded to a multiple of 32: only 64x96; set data.crop_size" in message
    )
