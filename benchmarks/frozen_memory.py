"""Whether a frozen backbone costs what its forward pass costs: peak memory and time of a training step.

    python benchmarks/frozen_memory.py

A step of Lightning's Trainer with a frozen backbone stands beside the same work done apart, which keeps nothing: the
backbone's forward pass alone under `torch.no_grad`, then a step of the head on its features. The peak may be 1.1 times
that at most, the time 1.05 times. A step that trains the backbone too stands beside both.

Memory is what tensors hold on top of what there was before training began (weights, images): activations, gradients,
the optimizer's state; every storage counts from the operation that made it until it is freed. Scratch space inside a
kernel is not seen. Time is that of this process on its cores, one thread, the quickest of a few steps, taken in turns
and without counting memory.
"""

import argparse
import sys
import time
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))

from framework.cli.silence import hush
from framework.heads.dense import LinearHead
from framework.heads.depth import LinearDepth
from framework.preprocessing import pad_to_multiple, resize_logits, to_unit
from framework.tasks.base import Batch, Task
from framework.tasks.classification import Classification
from framework.tasks.depth import Depth
from framework.tasks.segmentation import Segmentation
from plugins.dinov2 import SHAPES, DINOv2
from plugins.timm import Timm

LIMIT, SLOWER = 1.1, 1.05
Run = Callable[[Task, Batch], list[float]]
TASKS = ("classification", "segmentation", "depth")
STEPS = 3  # the first makes the optimizer's state, the second uses it


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of all storages that operations make while it is entered; what was there before counts nothing.

    Attributes:
        live: Bytes that are held now.
        peak: Bytes that were held at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}  # by address

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count what it makes."""
        for value in tree_leaves((args, kwargs)):
            self._note(value, made=False)
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            self._note(value, made=True)
        self.peak = max(self.peak, self.live)
        return result

    def _note(self, value: Any, made: bool) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        address = storage._cdata
        if address not in self._sizes:
            self._sizes[address] = storage.nbytes() if made else 0
            self.live += self._sizes[address]
            weakref.finalize(storage, self._forget, address)

    def _forget(self, address: int) -> None:
        self.live -= self._sizes.pop(address)


class StepTimer(Callback):
    """Notes what each training step takes of the cores, in seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin."""
        self._began = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        """End."""
        self.seconds.append(time.process_time() - self._began)


def train(task: Task, batch: Batch) -> list[float]:
    """Train on the same batch again and again as Lightning does; returns the seconds of each step."""
    timer = StepTimer()
    Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        limit_val_batches=0,
        logger=False,
        callbacks=[timer],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(task, DataLoader([batch] * STEPS, batch_size=None))
    return timer.seconds


def train_apart(task: Task, batch: Batch) -> list[float]:
    """Train the head alone on features that are computed apart; returns the seconds of each step."""
    optimizer, seconds = torch.optim.AdamW(task.head.parameters(), fused=True), []
    task.train()
    for _ in range(STEPS):
        began = time.process_time()
        loss = head_loss(task, batch, features_alone(task, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        del loss
        seconds.append(time.process_time() - began)
    return seconds


@torch.no_grad()
def features_alone(task: Task, batch: Batch) -> Any:
    """Compute the features of a batch, and nothing that a backward pass would need."""
    return task.backbone.eval()(pad_to_multiple(to_unit(batch["image"]), task.backbone.multiple))


def head_loss(task: Task, batch: Batch, features: Any) -> Tensor:
    """Compute the loss of a batch from its features; the images need no padding."""
    if isinstance(task, Classification):
        return task.compute_loss(task.head(features), batch["label"])
    height, width = batch["image"].shape[-2:]
    if isinstance(task, Depth):
        depth = task.output(task.head.coarse(features, (height, width)), task.depth_range)
        return task.loss(resize_logits(depth, (height, width))[:, 0], task.readings(batch["depth"]), 0)
    assert isinstance(task, Segmentation)
    loss: Tensor = task.loss(task.head(features, (height, width)), batch["mask"].long(), task.ignore_index)
    return loss


def build(kind: str, name: str, freeze: int | Literal["all"]) -> Task:
    """Build a task with a linear head on a backbone at random weights, laid out as for training."""
    torch.manual_seed(0)
    backbone = DINOv2(name) if name in SHAPES else Timm(name)
    task: Task
    if kind == "segmentation":
        task = Segmentation(backbone, 21, LinearHead, freeze=freeze)
    elif kind == "depth":
        task = Depth(backbone, (0.001, 10.0), partial(LinearDepth, layers=4), freeze=freeze)
    else:
        task = Classification(backbone, 100, freeze=freeze)
    return task.to(memory_format=task.memory_format)


def peak_bytes(run: Run, task: Task, batch: Batch) -> int:
    """Return the peak memory of a run of a few steps."""
    with TensorMemory() as memory:
        run(task, batch)
    return memory.peak


def quickest(runs: list[tuple[Run, Task]], batch: Batch, rounds: int) -> list[float]:
    """Return the seconds of the quickest step of each run but the first, the runs taken in turns."""
    taken = [[min(run(task, batch)[1:]) for run, task in runs] for _ in range(rounds)]
    return [min(column) for column in zip(*taken, strict=True)]


def compare(name: str, kind: str, options: argparse.Namespace) -> tuple[float, float]:
    """Print the row of a backbone and a task; returns the ratios of the frozen step's peak and time."""
    runs: list[tuple[Run, Task]] = [
        (train_apart, build(kind, name, freeze="all")),
        (train, build(kind, name, freeze="all")),
        (train, build(kind, name, freeze=0)),
    ]
    batch = runs[0][1].example_batch(options.batch, options.size, options.size)
    apart, frozen, trained = (peak_bytes(run, task, batch) for run, task in runs)
    times = quickest(runs, batch, options.rounds)
    cells = [
        *(name, kind, f"{apart / 2**20:.1f} MiB", f"{frozen / 2**20:.1f} MiB", f"**{frozen / apart:.3f}**"),
        *(f"{trained / 2**20:.1f} MiB", f"{trained / apart:.2f}"),
        *(f"{times[1] / times[0]:.3f}", f"{times[2] / times[0]:.2f}"),
    ]
    print(f"| {' | '.join(cells)} |", flush=True)
    return frozen / apart, times[1] / times[0]


def main() -> None:
    """Print the table; the exit code is 1 if a frozen step takes more than it may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--backbones", nargs="+", default=["resnet18", "vits14"], help="timm models, or variants of DINOv2"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--batch", type=int, default=4, help="images")
    parser.add_argument("--size", type=int, default=224, help="height and width; a multiple of what the backbone needs")
    parser.add_argument("--rounds", type=int, default=2, help="of timing")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    hush()
    torch.set_num_threads(1)
    print(f"Batches of {options.batch} images, {options.size} x {options.size}, torch {torch.__version__}.\n")
    print("| backbone | task | forward alone, head | frozen | ratio | trained | ratio | time: frozen | trained |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    pairs = [(name, kind) for name in options.backbones for kind in options.tasks]
    memory, seconds = (max(column) for column in zip(*(compare(*pair, options) for pair in pairs), strict=True))
    print(f"\nThe highest ratio of a frozen step's memory is {memory:.3f}; at most {LIMIT} is allowed.")
    print(f"The highest ratio of a frozen step's time is {seconds:.3f}; at most {SLOWER} is allowed.")
    sys.exit(int(memory > LIMIT or seconds > SLOWER))


if __name__ == "__main__":
    main()
