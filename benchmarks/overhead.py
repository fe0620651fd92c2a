"""What the framework costs: `fit`'s training steps against a hand-written loop, same network, data and optimizer.

    python benchmarks/overhead.py

Both run in this process, in turns; the medians of their step times are compared.
"""

import argparse
import importlib
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

sys.path.insert(0, str(Path(__file__).parents[1]))

from framework.cli.main import main as framework
from framework.data.sample_cells import SampleCells
from framework.heads.decoders import UNet
from framework.losses.segmentation import CrossEntropy, Dice, WeightedSum
from framework.schedules import WarmupCosine
from framework.tasks.segmentation import Segmentation
from plugins.timm import Timm

EXPERIMENT = Path(__file__).parents[1] / "experiments/unet_seg.yaml"
STEPS = 16


class StepTimer(Callback):
    """Notes when each training batch starts."""

    starts: ClassVar[list[float]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the time."""
        self.starts.append(time.perf_counter())


def time_fit(crop: int) -> list[float]:
    """Return the seconds of each step of `fit`, data, callbacks and logging included."""
    starts = importlib.import_module("benchmarks.overhead").StepTimer.starts  # this file is __main__ as well
    starts.clear()
    options = {
        "--data.crop_size": crop,
        "--data.repeats": 8 * STEPS // 6 + 1,
        "--trainer.max_epochs": 1,
        "--trainer.limit_train_batches": STEPS,
        "--trainer.limit_val_batches": 0,
        "--trainer.limit_test_batches": 1,
        "--trainer.callbacks+": "benchmarks.overhead.StepTimer",
        "--trust": "benchmarks",
    }
    arguments = [f"{name}={value}" for name, value in options.items()]
    assert framework(["fit", "--config", str(EXPERIMENT), *arguments]) == 0
    return [after - before for before, after in pairwise(starts)]


def time_loop(crop: int) -> list[float]:
    """Return the seconds of each step of a loop without any framework."""
    torch.manual_seed(0)
    data = SampleCells(batch_size=8, repeats=8 * STEPS // 6 + 1, crop_size=crop, vflip=0.5, num_workers=0)
    network = Segmentation(
        Timm("tf_efficientnet_lite0", pretrained="packaged", in_channels=2),
        num_classes=3,
        head=lambda levels, prefix, outputs: UNet(levels, prefix, outputs, channels=(128, 64, 48, 32, 16)),
        loss=WeightedSum([CrossEntropy(), Dice()]),
        optimizer=partial(torch.optim.AdamW, lr=0.002),
    ).to(memory_format=torch.channels_last)
    optimizer = network.build_optimizer(network.partition(), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: WarmupCosine().factor(step, STEPS))
    network.train()
    starts = []
    for step, batch in enumerate(data.train_dataloader()):
        starts.append(time.perf_counter())
        if step == STEPS:
            break
        batch = data.on_after_batch_transfer(batch, 0)
        loss = network.loss(network(batch["image"]), batch["mask"], network.ignore_index)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return [after - before for before, after in pairwise(starts)]


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--crop", type=int, default=192, help="smaller crops make the network cheaper, overhead plainer"
    )
    options = parser.parse_args()
    fit, loop = [], []
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        os.chdir(folder)
        for _ in range(options.rounds):
            loop += time_loop(options.crop)[2:]  # the first steps warm up
            fit += time_fit(options.crop)[2:]
    ours, theirs = statistics.median(fit), statistics.median(loop)
    print(f"fit   {1e3 * ours:8.1f} ms a step (median of {len(fit)})")
    print(f"loop  {1e3 * theirs:8.1f} ms a step (median of {len(loop)})")
    print(f"ratio {ours / theirs:8.3f}")


if __name__ == "__main__":
    main()
