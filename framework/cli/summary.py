"""What a command prints before it runs, and after it has run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer

from framework.cli.group_table import Group
from framework.data.datamodule import VisionData
from framework.tasks.base import Task, knows_fused

OF_BOXES = ("ap", "ap50", "ap75", "precision", "recall", "threshold")
OF_DEPTH = ("image/rmse", "image/abs_rel", "image/log10", "image/delta1")
HEADLINES = ("miou", "iou", "accuracy", "balanced_accuracy", "top5", "f1", "map", *OF_BOXES, "exact_match", "score")
MOST_CLASSES = 20  # more have their own figures in metrics.json alone
PLACES = {"checkpoints": "checkpoints", "metrics": "metrics.json", "pictures": "pictures", "config": "config.yaml"}


def setting_lines(run: Path, trainer: Trainer, model: Task, data: VisionData, counts: Mapping[str, int]) -> list[str]:
    """Say what a command works with: the run, the model, the data, the device, a line each.

    Args:
        run: The run's folder.
        trainer: The trainer.
        model: The task.
        data: Its data.
        counts: Samples by split, of the splits that are used.
    """
    total = sum(p.numel() for p in model.parameters())
    if data.depth_range is not None:
        targets = f"depths of {data.depth_range[0]:g} to {data.depth_range[1]:g} m"
    else:
        targets = f"classes {' '.join([*data.classes[:8], *(['...'] if len(data.classes) > 8 else [])])}"
    layout = "channels last" if model.memory_format is torch.channels_last else "contiguous"
    nodes = f"{trainer.num_nodes} nodes of " if trainer.num_nodes > 1 else ""
    return [
        f"run      {run}",
        f"model    {type(model).__name__} with {type(model.backbone).__name__}: {total / 1e6:.2f} M parameters",
        f"data     {type(data).__name__}: "
        + ", ".join([*(f"{count} {name}" for name, count in counts.items()), targets]),
        f"device   {nodes}{trainer.num_devices} x {trainer.strategy.root_device.type}, precision {trainer.precision}, "
        f"{layout}, {torch.get_num_threads()} threads, {data.worker_count(trainer.world_size)} loader workers",
    ]


def padding_lines(model: Task, sizes: Iterable[tuple[int, int]]) -> list[str]:
    """Say that images are padded, if any size (height, width) is none that the network can divide."""
    multiple = getattr(model, "multiple", model.backbone.multiple)
    for height, width in sizes:
        if height % multiple or width % multiple:
            padded = f"{-(-height // multiple) * multiple}x{-(-width // multiple) * multiple}"
            return [f"padding  {height}x{width} becomes {padded}, a multiple of {multiple}; results lose it again"]
    return []


def trained_words(groups: Sequence[Group]) -> str:
    """Say how many parameters are trained, and how many are frozen."""
    total = sum(group.parameters for group in groups)
    first = sum(group.parameters for group in groups if group.periods and group.periods[0][0] == 0)
    ever = sum(group.trained for group in groups)
    later = f", up to {ever / 1e6:.2f} M later" if ever != first else ""
    return f", {first / 1e6:.2f} M trained{later}, {(total - first) / 1e6:.2f} M frozen"


def recipe_line(
    trainer: Trainer, model: Task, data: VisionData, optimizer: Mapping[str, Any] | None, steps: int
) -> str:
    """Say how a run trains.

    Args:
        trainer: The trainer.
        model: The task.
        data: Its data.
        optimizer: As configured: `class_path` and `init_args`.
        steps: Optimizer steps of the run.
    """
    chosen = optimizer or {"class_path": "AdamW", "init_args": {}}
    name, rate = chosen["class_path"].rpartition(".")[2], chosen["init_args"].get("lr")
    plan = data.progressive
    batches = (plan.batch_size if plan is not None else None) or [data.batch_size]
    together = trainer.world_size * trainer.accumulate_grad_batches
    images = " to ".join(str(size * together) for size in dict.fromkeys([batches[0], batches[-1]]))
    return (
        f"recipe   {name}{' fused' if knows_fused(model.optimizer) else ''}, learning rate {rate}, "
        f"{type(model.schedule).__name__} over {steps} steps of {images} images, "
        f"gradients clipped at {trainer.gradient_clip_val}"
    )


def figure_lines(figures: Mapping[str, float | None], few: bool) -> Iterator[str]:
    """Write the headline figures; `few`: those of every class too."""
    chosen = {}
    for name, value in figures.items():
        _, *parts = name.split("/")
        is_one = "/".join(parts[:2]) in OF_DEPTH or (parts[0] in HEADLINES and (few or len(parts) == 1))
        if is_one and value is not None:
            chosen[name] = value
    width = max(24, *map(len, chosen), 0)
    for name, value in chosen.items():
        yield f"{name:{width}} {value:.4f}"


def place_lines(run: Path) -> Iterator[str]:
    """Say where in a run's folder everything is."""
    for what, file in PLACES.items():
        path = run / file
        if path.exists() and (path.is_file() or any(path.iterdir())):
            yield f"{what:12} {path}"


def end_words(trainer: Trainer, early: bool) -> str:
    """Say why a run trained nothing more, and what would let it.

    Args:
        trainer: The trainer.
        early: What it goes on from had ended before its last epoch, under the same experiment.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    left = [callback.time_remaining() for callback in callbacks if isinstance(callback, Timer)]
    if any(seconds is not None and seconds <= 0 for seconds in left):
        return ": its time is over; raise trainer.max_time to go on"
    if early:
        return ": early stopping ended it; change its settings to go on"
    reached = trainer.global_step == trainer.max_steps
    return f"; raise trainer.{'max_steps' if reached else 'max_epochs'} to go on"
