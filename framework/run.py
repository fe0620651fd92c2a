"""The run folder: config, checkpoints, metrics and pictures of one run. Nobody else writes there."""

import csv
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from framework.errors import ConfigError, TrainingError, suggest

ID_VARIABLE = "FRAMEWORK_RUN_ID"  # processes that a run starts must find its folder


class RunFolder:
    """`ROOT/NAME/ID/` with `config.yaml`, `checkpoints/`, `metrics.json`, `metrics.csv` and `pictures/`.

    Args:
        name: What to call the experiment; null: the stem of its file.
        root: Folder of all runs.
        id: What to call this run; null: the time it starts.
    """

    def __init__(self, name: str | None = None, root: str = "runs", id: str | None = None) -> None:
        for given, value in (("name", name), ("id", id)):
            if value is not None and (not value or value in (".", "..") or any(c in value for c in "/\\\0")):
                raise ConfigError(f"run.{given}: {value!r} cannot be the name of a folder")
        self.name, self.root = name or "run", Path(root)
        self.id = id or os.environ.get(ID_VARIABLE) or _start().strftime("%Y%m%d-%H%M%S-%f")[:-3]

    @property
    def path(self) -> Path:
        """The folder."""
        return self.root / self.name / self.id

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    @property
    def pictures(self) -> Path:
        """Where pictures go."""
        return self.path / "pictures"

    @rank_zero_only
    def create(self, config: str) -> None:
        """Make the folder and write the resolved config into it.

        Raises:
            ConfigError: The folder is there already, or cannot be written.
        """
        os.environ[ID_VARIABLE] = self.id
        try:
            self.path.mkdir(parents=True)
            self.checkpoints.mkdir()
            self.pictures.mkdir()
            write_atomically(self.path / "config.yaml", config)
        except FileExistsError:
            inside = self.path if self.path.exists() else next(p for p in self.path.parents if p.exists())
            if inside == self.path:
                raise ConfigError(f"run.id: {self.path} exists already: give another --run.id") from None
            raise ConfigError(f"run.root: {inside} is no folder, so {self.path} cannot be made") from None
        except OSError as error:
            raise ConfigError(f"run.root: {self.path} cannot be written ({error.strerror}): give another") from None

    def checkpoint_callbacks(self, validated: bool) -> list[Callback]:
        """Return two policies: the best by `val/score`, if there is validation, and the last whatever it scored."""
        best = ModelCheckpoint(
            self.checkpoints, filename="best", monitor="val/score", mode="max", enable_version_counter=False
        )
        last = ModelCheckpoint(
            self.checkpoints, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
        )
        return [best, last] if validated else [last]


def _start() -> datetime:
    """Return now; for a process that torchrun started, when torchrun itself started: its processes must agree."""
    launcher = Path(f"/proc/{os.getppid()}")
    if "TORCHELASTIC_RUN_ID" in os.environ and launcher.exists():
        return datetime.fromtimestamp(launcher.stat().st_ctime)
    return datetime.now()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader never sees half of it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


class ConfigInCheckpoint(Callback):
    """Put the resolved config, as plain types, into every checkpoint, so that a checkpoint alone is enough."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the config."""
        checkpoint["config"] = self.config


class MetricsRecord(Callback):
    """`metrics.csv`, a row an epoch, and `metrics.json`, the final figures, flat, named `split/metric`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self.final: dict[str, float | None] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far, for a run that goes on."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the rows of an interrupted run."""
        self.rows = state_dict["rows"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch's row."""
        metrics = plain_metrics(trainer.callback_metrics)
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **metrics})
        if trainer.is_global_zero:
            self._write_rows()

    def _write_rows(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=".metrics.", delete=False, newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        os.chmod(file.name, 0o644)
        os.replace(file.name, self.folder / "metrics.csv")

    @rank_zero_only
    def record_final(self, metrics: Mapping[str, Any]) -> None:
        """Add final figures to `metrics.json`."""
        self.final |= plain_metrics(metrics)
        write_atomically(self.folder / "metrics.json", json.dumps(self.final, indent=2) + "\n")


def plain_metrics(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Turn metrics into numbers, None where they are not finite; step values of what also has an epoch value go."""
    plain: dict[str, float | None] = {}
    for name, value in metrics.items():
        base, _, kind = name.rpartition("_")
        if kind in ("step", "epoch") and base in metrics:
            continue
        number = float(value)
        plain[name] = number if math.isfinite(number) else None
    return plain


class FiniteLoss(Callback):
    """Stop a run whose loss is no longer finite, and refuse to call a run without a training step a success.

    On a CPU every step is looked at; on a GPU a flag gathers on the device and is read every `log_every_n_steps`
    steps and before a checkpoint is written, so that training never waits for it.
    """

    def __init__(self) -> None:
        self._bad: torch.Tensor | None = None
        self._steps = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss."""
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if loss is None:
            return
        self._steps += 1
        bad = ~torch.isfinite(loss.detach()).all()
        self._bad = bad if self._bad is None else self._bad | bad
        if bad.device.type == "cpu" or self._steps % max(1, trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            self._raise(trainer, batch)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Never write a checkpoint of broken weights."""
        self._raise(trainer, None)
        finite = torch.stack([parameter.detach().isfinite().all() for parameter in pl_module.parameters()])
        if not bool(finite.all()):
            raise TrainingError(
                f"the weights are not finite after epoch {trainer.current_epoch}, step {trainer.global_step}: lower "
                "the learning rate or clip gradients (trainer.gradient_clip_val)"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to have trained nothing."""
        if self._steps == 0 and trainer.global_step == 0:
            raise TrainingError("training ended without a single step: there was no training batch")

    def _raise(self, trainer: Trainer, batch: Any) -> None:
        if self._bad is None or not bool(self._bad):
            return
        self._bad = None
        seen = f", samples {', '.join(batch['id'][:8])}" if isinstance(batch, dict) and "id" in batch else ""
        raise TrainingError(
            f"the loss is not finite at epoch {trainer.current_epoch}, step {trainer.global_step}{seen}: lower the "
            "learning rate, clip gradients (trainer.gradient_clip_val), or look at these samples; "
            "checkpoints written before are whole"
        )


_BETTER = {"score": "max", "loss": "min"}


def check_monitors(trainer: Trainer, names: list[str], place: Callable[[str], str] = lambda monitor: "") -> None:
    """Check that what callbacks monitor will be logged.

    Args:
        trainer: The trainer with its callbacks.
        names: What validation will log.
        place: Tells where a monitor is configured.

    Raises:
        ConfigError: It will not, with the nearest name; or the callback has the wrong idea of what is better.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        mode, better = getattr(callback, "mode", None), _BETTER.get(str(monitor).rpartition("/")[2])
        if better is not None and mode is not None and mode != better:
            raise ConfigError(
                f"{place(str(monitor))}{type(callback).__name__} takes {monitor} for better when it is "
                f"{'lower' if mode == 'min' else 'higher'}: set mode: {better}"
            )
        if isinstance(monitor, str) and not monitor.startswith(("train/", "lr")) and monitor not in names:
            raise ConfigError(
                f"{place(monitor)}{type(callback).__name__} monitors '{monitor}', which is never logged; "
                f"{suggest(monitor, names)}"
            )
