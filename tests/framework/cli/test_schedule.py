"""`framework schedule show` says what `fit` then does, in print, as JSON, as a table and as pictures."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from lightning.pytorch import Callback

from framework.cli.main import main
from tests.folders import write_image_folder, write_mask_folder
from tests.framework.cli.test_door import EXPERIMENT as SEGMENTATION

PLAN = "framework.data.progressive.Progressive"
EXPERIMENT = f"""
model:
  class_path: Classification
  init_args:
    backbone: {{class_path: Timm, init_args: {{name: test_convnext, drop_path: 0.1}}}}
    head: {{class_path: LinearClassifier, init_args: {{dropout: 0.1}}}}
    optimizer: {{class_path: AdamW, init_args: {{lr: 0.02}}}}
    schedule: {{class_path: Polynomial, init_args: {{power: 2.0, warmup: 0.25}}}}
    backbone_lr_factor: 0.1
data:
  class_path: ImageFolder
  init_args:
    root: set
    batch_size: 2
    num_workers: 0
    progressive:
      class_path: {PLAN}
      init_args:
        {{image_size: [32, 64], magnitude: [5, 10], dropout: [0.1, 0.3], drop_path: [0.0, 0.2], batch_size: [4, 2]}}
trainer:
  max_epochs: 4
  accelerator: cpu
"""


@pytest.fixture
def show(tmp_path, capsys):
    """Show the experiment; return what is printed."""
    write_image_folder(tmp_path / "set", counts=(4, 1, 0))  # 12 for training: 3 batches of 4, then 6 of 2
    Path("x.yaml").write_text(EXPERIMENT)

    def run(*options, experiment="x.yaml", code=0):
        assert main(["schedule", "show", experiment, *options]) == code
        assert not Path("runs").exists()
        return getattr(capsys.readouterr(), "err" if code else "out")

    return run


class Recorder(Callback):
    """Writes what each training step is done with."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.images = batch["image"].shape

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        groups = optimizer.param_groups
        depth = max(m.drop_prob for m in pl_module.modules() if isinstance(getattr(m, "drop_prob", None), float))
        rates = [group["lr"] for group in groups]
        row = [trainer.global_step, trainer.current_epoch, *rates, self.images[0], self.images[2]]
        with Path("seen.csv").open("a") as file:
            print(*row, pl_module.head.dropout.p, depth, sep=",", file=file)


def test_the_table_of_every_step_is_what_fit_then_does(show):
    show("--out", "all.csv")
    rows = list(csv.DictReader(Path("all.csv").read_text().splitlines()))
    callback = "--trainer.callbacks+=tests.framework.cli.test_schedule.Recorder"
    assert main(["fit", "--config", "x.yaml", callback, "--trust", "tests", "--run.root", "elsewhere"]) == 0
    names = ["step", "epoch", *(f"lr/{part}/{rest}" for part in ("backbone", "head") for rest in ("decay", "no_decay"))]
    names += ["batch_size", "image_size", "dropout", "drop_path"]
    seen = [[float(value) for value in line.split(",")] for line in Path("seen.csv").read_text().splitlines()]
    assert len(seen) == len(rows) == 2 * 3 + 2 * 6
    for expected, row in zip(seen, rows, strict=True):
        assert [float(row[name]) for name in names] == pytest.approx(expected, rel=1e-9)
    assert {row["magnitude"] for row in rows[:6]} == {"5"}


EMA = "--trainer.callbacks+=framework.transfer.ema.EMA"


def test_print_and_picture_have_every_group_and_every_stage(show):
    lines = show(EMA, "--out", "all.svg").splitlines()
    assert lines[0] == "x: 4 epochs, 18 optimizer steps"
    table = {line.split("  ")[1]: line.split() for line in lines if line.startswith("  ")}
    assert table["backbone/decay"][1:7] == ["0.002", "2e-05", "0.002", "at", "step", "4"]
    assert table["head/no_decay"][1:4] == ["0.02", "0.0002", "0.02"]
    assert table["head/no_decay"][-1][4] == max(table["head/no_decay"][-1]) == "█"
    assert len(table["head/no_decay"][-1]) == 18
    assert table["epochs"] == ["epochs", "0-1", "2-3"]
    assert table["steps"] == ["steps", "0-5", "6-17"]
    assert table["batches an epoch"][-2:] == ["3", "6"]
    assert table["batch size"][-2:] == ["4", "2"]
    assert table["image size"][-2:] == ["32", "64"]
    assert table["RandAugment magnitude"][-2:] == ["5", "10"]
    assert table["drop path"][-2:] == ["0", "0.2"]
    assert table["EMA decay"][2:4] == [f"{2 / 11:.6g}", f"{19 / 28:.6g}"]  # (1 + t) / (10 + t), t from 1 to 18
    assert "mixup alpha" not in table
    texts = {element.text for element in ElementTree.parse("all.svg").iter("{http://www.w3.org/2000/svg}text")}
    assert {"learning rate, Polynomial", "backbone 0.002", "head 0.02", "epoch 2", "EMA decay"} <= texts
    assert {"batch size", "image size", "RandAugment magnitude", "dropout", "drop path"} <= texts
    assert {"mixup alpha", "CutMix alpha"} & texts == set()


def test_options_override_and_json_is_for_programs(show):
    options = ["--trainer.max_steps=9", "--model.freeze", "all", "--model.schedule", "Constant"]
    facts = json.loads(show("--json", *options, "--trainer.accelerator=tpu"))  # which is not here, and not needed
    assert (facts["experiment"], facts["epochs"], facts["steps"], facts["schedule"]) == ("x", 3, 9, "Constant")
    first, second = facts["stages"]
    assert (first["first_step"], first["last_step"], second["last_epoch"], second["last_step"]) == (0, 5, 2, 8)
    assert (first["image_size"], second["batch_size"]) == ([32, 32], 2)
    by_name = {group["name"]: group for group in facts["groups"]}
    assert by_name["backbone/decay"]["trained"] == 0 < by_name["backbone/decay"]["parameters"]
    assert by_name["head/decay"]["trained"] == by_name["head/decay"]["parameters"]
    assert by_name["head/decay"]["last"] == 0.02


def test_accumulated_batches_and_processes_are_counted(show):
    facts = json.loads(
        show("--json", "--trainer.accumulate_grad_batches=2", "--trainer.devices=2", "--trainer.strategy=ddp")
    )
    assert facts["processes"] == 2
    assert [stage["batches"] for stage in facts["stages"]] == [1, 3]
    assert facts["steps"] == 2 * 1 + 2 * 2


def test_segmentation_has_schedules_too(show, tmp_path):
    write_mask_folder(tmp_path / "masks")
    Path("s.yaml").write_text(SEGMENTATION.replace("root: set", "root: masks"))
    lines = show(experiment="s.yaml").splitlines()
    assert lines[0] == "s: 1 epoch, 2 optimizer steps"
    assert "  image size        32" in lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.max_epoch", "3"], "did you mean 'max_epochs'?"),
        (["--model.schedule", "Polynomail"], "did you mean 'Polynomial'?"),
        (["--model.schedule.warmup", "2"], "warmup is the fraction of all steps spent warming up, in [0, 1), got 2"),
        (["--trainer.max_epochs", "1"], "1 epochs are too few for 2 stages"),
        (["--model.backbone.drop_path", "0"], "set drop_path of the backbone above 0"),
        (["--out", "x.pdf"], "neither a picture, .svg or .png, nor a table, .csv"),
        (["--out", "nowhere/x.svg"], "there is no folder nowhere"),
    ],
)
def test_mistakes_are_refused_as_fit_refuses_them(show, options, message):
    assert message in show(*options, code=2)


def test_help_needs_no_torch_and_unknown_actions_name_the_nearest(capsys):
    assert main(["schedule", "shwo", "x.yaml"]) == 2
    assert "did you mean 'show'?" in capsys.readouterr().err
    assert main(["schedule", "show"]) == 2
    assert "needs an experiment" in capsys.readouterr().err
    code = (
        "import sys; from framework.cli.main import main; main(['schedule']); main(['schedule', 'show', '--help']); "
        "print('torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "framework schedule show EXPERIMENT.yaml" in printed
    assert printed.endswith("False\n")
