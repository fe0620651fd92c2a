"""Whether progressive training costs what its pixels say: time of a step against the area of its images.

    python benchmarks/progressive.py

Short runs of `fit`, each an epoch of every size, one after the other, so that whatever else the machine does falls on
all sizes. The median time of a step over that of the largest size should be the ratio of the areas, within 15 %, on a
network that is bound by computing. A loader process reads ahead; callbacks and logging are included, and the batch size
is the same in all stages. Beside the median on the clock stands the quickest step of this process on its cores, which
other work on the machine disturbs least.
"""

import argparse
import importlib
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from framework.cli.main import main as framework

Moment = tuple[float, float]  # on the clock, and of this process on its cores, in seconds
BATCH = 24
STEPS = 5  # an epoch; the first warms up


class StepTimer(Callback):
    """Notes when each training batch of an epoch starts, and the size of its images."""

    epochs: ClassVar[list[tuple[int, list[Moment]]]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a list."""
        self.epochs.append((0, []))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the time."""
        self.epochs[-1] = (batch["image"].shape[-1], [*self.epochs[-1][1], (time.perf_counter(), time.process_time())])


def write_photographs(root: Path, count: int, side: int) -> None:
    """Write a folder of smooth patches in two classes."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("one", "other"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count // 2 if split == "train" else 1):
                patches = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
                patches.resize((side, side)).save(folder / f"{number}.jpg")


def time_stages(name: str, sizes: list[int]) -> dict[int, list[Moment]]:
    """Return the seconds of each step of one run of `fit` but the first of an epoch, by image size."""
    epochs = importlib.import_module("benchmarks.progressive").StepTimer.epochs  # this file is __main__ as well
    epochs.clear()
    options = {
        "--model": "Classification",
        "--model.backbone": "Timm",
        "--model.backbone.name": name,
        "--data": "ImageFolder",
        "--data.root": "photos",
        "--data.batch_size": BATCH,
        "--data.num_workers": 1,
        "--data.progressive": "Progressive",
        "--data.progressive.image_size": sizes,
        "--trainer.max_epochs": len(sizes),
        "--trainer.limit_train_batches": STEPS,
        "--trainer.limit_val_batches": 0,
        "--trainer.enable_progress_bar": "false",
        "--trainer.callbacks+": "benchmarks.progressive.StepTimer",
        "--trust": "benchmarks",
    }
    assert framework(["fit", *(f"{key}={value}" for key, value in options.items())]) == 0
    return {size: [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(starts)][1:] for size, starts in epochs}


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet10t", help="a timm model that is bound by computing")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 192, 256], help="rising")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    taken: dict[int, list[Moment]] = {size: [] for size in options.sizes}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_photographs(Path("photos"), BATCH * STEPS, max(options.sizes))
        for _ in range(options.rounds):
            for size, times in time_stages(options.backbone, options.sizes).items():
                taken[size] += times
    print(f"{options.backbone}, batches of {BATCH}, {len(taken[options.sizes[-1]])} steps of each size\n")
    print("| image size | area | median step | off by | quickest, on the cores | off by |")
    print("|---:|---:|---:|---:|---:|---:|")
    summary = {}
    for size, steps in taken.items():
        clock, cores = zip(*steps, strict=True)
        summary[size] = (statistics.median(clock), min(cores))
    for size, times in summary.items():
        area = (size / options.sizes[-1]) ** 2
        ratios = [mine / largest for mine, largest in zip(times, summary[options.sizes[-1]], strict=True)]
        columns = [f"{1e3 * own:.0f} ms, {r:.3f} | {r / area - 1:+.1%}" for own, r in zip(times, ratios, strict=True)]
        print(f"| {size} | {area:.3f} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
