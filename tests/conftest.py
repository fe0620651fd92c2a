"""Every test runs offline, in a folder of its own, on few threads."""

import os
import sys

# One thread: the tensors are tiny, and threads that wait for each other on a busy machine spin.
os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true", OMP_NUM_THREADS="1")

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--write-matrix", action="store_true", help="write docs/matrix.md from `-m matrix`")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRAMEWORK_RUN_ID", raising=False)
    path = list(sys.path)
    yield
    sys.path[:] = path  # local plugins of one test are no modules of the next
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
