"""A training step on disk, with everything that it takes to run it again: batch, weights, keys of its randomness."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from framework.errors import ConfigError
from framework.length import planned_epochs
from framework.tasks.base import Task
from framework.transfer.sharding import whole

KEYS = {"batch", "batch_idx", "step", "epoch", "seed", "rank", "device", "precision"}
KEYS |= {"config", "class_names", "state_dict", "trained", "rates"}


def record_step(trainer: Trainer, task: Task, batch: Any, batch_idx: int, config: dict[str, Any]) -> dict[str, Any]:
    """Return a training step, before its weights are changed, as tensors on the CPU and plain types.

    All processes call it together.

    Args:
        trainer: The trainer.
        task: The task.
        batch: The batch as the network saw it.
        batch_idx: Its number in the epoch, counted from 0.
        config: The resolved experiment.
    """
    plan = getattr(getattr(trainer, "datamodule", None), "progressive", None)
    stage = plan.at(trainer.current_epoch, planned_epochs(trainer)) if plan is not None else None
    return {
        "batch": plain(batch),
        "batch_idx": batch_idx,
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "seed": task.run_seed(),
        "rank": trainer.global_rank,
        "config": config,
        "class_names": list(task.class_names),
        "state_dict": plain(whole(task.state_dict(), keep=True)),
        "trained": sorted(name for name, parameter in task.named_parameters() if parameter.requires_grad),
        "rates": {name: getattr(stage, name, None) for name in ("dropout", "drop_path")},
        "precision": str(trainer.precision),
        "device": task.device.type,
    }


def plain(value: Any) -> Any:
    """Return a value as tensors on the CPU and plain types, which `torch.load(weights_only=True)` takes."""
    if isinstance(value, Tensor):
        return value.detach().cpu().as_subclass(Tensor).clone()
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value] if isinstance(value, list) else tuple(plain(v) for v in value)
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def write_step(record: dict[str, Any], folder: Path, processes: int) -> Path:
    """Write a recorded step into a folder, whole or not at all; returns the file."""
    rank = f"_rank{record['rank']}" if processes > 1 else ""
    path = folder / f"step_{record['step']:06d}{rank}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        torch.save(record, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_step(path: Path) -> dict[str, Any]:
    """Read a recorded step.

    Raises:
        ConfigError: The file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: a run that stops at a loss that is not finite writes such a file")
    try:
        record: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), repr(error))[:160]
        raise ConfigError(f"{path} is no whole file ({path.stat().st_size} bytes): {reason}") from error
    lacking = sorted(KEYS - set(record)) if isinstance(record, dict) else sorted(KEYS)
    if lacking:
        raise ConfigError(
            f"{path} is no recorded step (it lacks {', '.join(lacking[:4])}): replay takes RUN/nonfinite/step_*.pt"
        )
    return dict(record)
