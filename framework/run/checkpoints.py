"""The checkpoints of a run: the last two and the best, written so that at any instant a whole one is there."""

import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from framework.errors import UserError
from framework.run.checkpoint_file import PREVIOUS
from framework.run.interruption import Interruption, validation_follows

LAST, BEST = "last.ckpt", "best.ckpt"


class Checkpoints(Checkpoint):
    """Writes `last.ckpt`, keeps the one before as `previous.ckpt`, and `best.ckpt` by `val/score`.

    The last is written at the end of every epoch, within an epoch when one is due, and when the run is told to stop;
    always right after an optimizer step, since gradients gathered for the next one are in no checkpoint.

    Args:
        folder: Where they go.
        interruption: Whether the run was told to stop.
        minutes: One is due when the last is this many minutes old.
        steps: One is due every so many optimizer steps, too; None: not.
    """

    monitor, mode, save_top_k = "val/score", "max", 1  # what loggers ask of Lightning's own

    def __init__(
        self, folder: Path, interruption: Interruption, minutes: float = 10.0, steps: int | None = None
    ) -> None:
        self.folder, self.interruption, self.minutes, self.steps = folder, interruption, minutes, steps
        self.best_model_score: Tensor | None = None
        self.current_score: Tensor | None = None
        self.ends_at_once = False  # what the run goes on from had stopped early, under the same experiment
        self.trained = False
        self._ended_early = False
        self._step = 0
        self._saved_at = 0.0

    @property
    def best_model_path(self) -> str:
        """The best checkpoint, or an empty string."""
        return self._existing(BEST)

    @property
    def last_model_path(self) -> str:
        """The newest checkpoint, or an empty string."""
        return self._existing(LAST)

    def _existing(self, name: str) -> str:
        path = self.folder / name
        return str(path) if path.exists() else ""

    # When.

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.interruption.watch()
        self.trained = True
        self._step, self._saved_at = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step, stop if told to, or save if a checkpoint is due."""
        if trainer.global_step == self._step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._step = trainer.global_step
        if self.interruption.agreed(trainer):
            self.save_last(trainer)
            self.interruption.stop(trainer)
        elif not _epoch_ends(trainer) and self._due(trainer):
            self.save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best so far."""
        score = trainer.callback_metrics.get(self.monitor)
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not fitting or score is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.current_score = score.detach().cpu().clone()
        better = self.best_model_score is None or bool(self.current_score > self.best_model_score)
        if trainer.strategy.reduce_boolean_decision(better and bool(self.current_score.isfinite())):
            self.best_model_score = self.current_score
            self._save(trainer, BEST)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, then stop if told to since the last step."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._ended_early = trainer.should_stop and trainer.fit_loop._can_stop_early
        self.save_last(trainer)
        if self.interruption.agreed_at(trainer, 0):
            self.interruption.stop(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give signals back."""
        self.interruption.rest()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give signals back."""
        self.interruption.rest()

    def _due(self, trainer: Trainer) -> bool:
        """Tell whether a checkpoint is due, the same in every process: the clock of the first one counts."""
        if self.steps is not None and trainer.global_step % self.steps == 0:
            return True
        overdue = time.monotonic() - self._saved_at >= 60 * self.minutes
        if trainer.world_size == 1:
            return overdue
        if trainer.global_step % max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]
            return False
        return bool(trainer.strategy.reduce_boolean_decision(overdue and trainer.is_global_zero, all=False))

    # How.

    def save_last(self, trainer: Trainer) -> None:
        """Write `last.ckpt`, and keep the one before as `previous.ckpt`; all processes come here together.

        Raises:
            UserError: It cannot be written. What was there before is intact.
        """
        self._save(trainer, LAST, kept=PREVIOUS)
        self._saved_at = time.monotonic()

    def _save(self, trainer: Trainer, name: str, kept: str | None = None) -> None:
        path = self.folder / name
        later = isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO)  # then nobody knows when it is written
        new = path if later else self.folder / f".{name}.tmp"
        if later and kept is not None and trainer.is_global_zero:
            _keep(path, self.folder / kept)
        self._write(trainer, new)
        if not later and trainer.is_global_zero:
            if kept is not None:
                _keep(path, self.folder / kept)
            os.replace(new, path)
        trainer.strategy.barrier(f"checkpoint {name}")
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.after_save_checkpoint(self)  # type: ignore[arg-type]  # it has what they ask for

    def _write(self, trainer: Trainer, path: Path) -> None:
        """Write a checkpoint; a failure of the process that writes is one of all, so that none waits for it."""
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        failure: UserError | OSError | None = None
        try:
            trainer.strategy.save_checkpoint(checkpoint, path)
        except (UserError, OSError) as error:
            failure = error
        told = trainer.strategy.broadcast(None if failure is None else str(failure))
        if failure is not None:
            raise failure
        if told is not None:
            raise UserError(told)

    # What a run that goes on must know.

    def state_dict(self) -> dict[str, Any]:
        """Return the best score, and whether the run ended before its last epoch."""
        return {"best_score": self.best_model_score, "ended_early": self._ended_early}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with the best score, if the best checkpoint is there."""
        state = checkpoint.get("callbacks", {}).get(self.state_key, {})
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if state.get("best_score") is not None and self.best_model_path:
            self.best_model_score = state["best_score"].cpu()
        if self.ends_at_once:
            trainer.should_stop = True


def _epoch_ends(trainer: Trainer) -> bool:
    """Tell whether the epoch, which is saved anyway, or the run ends with this step: nothing goes on from within."""
    if trainer.global_step == trainer.max_steps:
        return True
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached() and not validation_follows(trainer)


def _keep(path: Path, kept: Path) -> None:
    """Give a file a second name, in one step, so that the first stays until something takes its place."""
    if not path.exists():
        return
    temporary = kept.with_name(f".{kept.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without links: until the new one takes its place, only the kept one is there
        os.replace(path, kept)
        return
    os.replace(temporary, kept)
    temporary.unlink(missing_ok=True)  # it stays if both names were of one file already
