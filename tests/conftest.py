"""Every test runs offline, in a folder of its own, on few threads."""

import os

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true")

import pytest
import torch

torch.set_num_threads(1)  # the tensors are tiny, and threads that wait for each other spin


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRAMEWORK_RUN_ID", raising=False)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
