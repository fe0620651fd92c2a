"""Every test runs offline, in a folder of its own, on one thread; the whole suite in as many processes as it may."""

import os
import sys
from pathlib import Path

# One thread: the tensors are tiny, and threads that wait for each other on a busy machine spin.
os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true", OMP_NUM_THREADS="1")

import pytest
import torch

WORKER_MEMORY = 4 * 2**30  # bytes; one was seen to hold 3.3 GB


def pytest_addoption(parser):
    parser.addoption("--write-matrix", action="store_true", help="write docs/matrix.md from `-m matrix`")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Split the whole suite over the cores; a part of it runs here, as a worker spends ten seconds on imports."""
    whole = all(Path(__file__).is_relative_to(Path(argument).resolve()) for argument in config.args)
    chosen = config.option.keyword or config.option.markexpr != "not matrix"  # what pyproject.toml gives
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    workers = min(4, len(os.sched_getaffinity(0)), memory // WORKER_MEMORY)
    return workers if whole and not chosen and workers > 1 else 0


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
