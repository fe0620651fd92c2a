"""The W&B logger: what lands on disk, and that no trouble with W&B reaches training."""

import os
import socket
import subprocess
import sys
import time
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch.utils.data import DataLoader

from framework.errors import ConfigError, UserError
from framework.tracking.wandb import WandB
from tests.reference.offline_run import read_offline_run

KEY = "0123456789" * 4
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _nobody_logged_in(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)
    yield
    wandb.teardown()


@pytest.fixture
def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, _):
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(logger, folder):
    trainer = pl.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=1,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Line(), DataLoader(torch.ones(3, 2), batch_size=1))
    return trainer.global_step


def bound(folder, **arguments):
    logger = WandB(**arguments)
    logger.bind(folder, "run-id", "run name")
    return logger


def read(folder):
    wandb.finish()
    return read_offline_run(folder)


def test_a_whole_run_offline_with_nobody_logged_in_and_stdin_closed(tmp_path):
    script = f"""
import sys
from pathlib import Path
import numpy as np
from framework.tracking.wandb import WandB
from tests.framework.test_wandb import fit
del sys.modules["wandb"]
logger = WandB(project="p", tags=["a"])
logger.bind(Path({str(tmp_path)!r}), "run-id", "run name")
assert fit(logger, {str(tmp_path)!r}) == 3
logger.log_config({{"model": {{"head": {{"class_path": "UNet"}}, "rates": [0.1, None]}}, "seed": 7}})
logger.log_pictures("val/pictures", [np.full((4, 6, 3), 200, np.uint8)], step=2)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    (line,) = [line for line in done.stdout.decode().splitlines() if line.startswith("W&B")]
    folder = line.removeprefix(
        "W&B: offline (no API key found; `wandb login` stores one); upload later with: wandb sync "
    )
    run = read_offline_run(Path(folder))
    assert (run.id, run.name, run.project, run.exit_code) == ("run-id", "run name", "p", 0)
    assert run.config["model"] == {"head": {"class_path": "UNet"}, "rates": [0.1, None]}
    losses = run.column("train/loss")
    assert len(losses) == 3
    assert losses[0] > losses[2]
    assert run.column("trainer/global_step") == [0, 1, 2, 2]
    (picture,) = Path(folder).rglob("*.png")
    assert np.array_equal(np.asarray(Image.open(picture)), np.full((4, 6, 3), 200, np.uint8))


def test_importing_the_logger_does_not_import_wandb():
    code = "import sys, framework.tracking.wandb; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0
