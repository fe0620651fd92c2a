"""A callback that ends a run early, as an interruption does."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StopAfter(Callback):
    """Stop after some epochs.

    Args:
        epochs: How many.
    """

    def __init__(self, epochs: int = 2) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


class Crash(Callback):
    """Fail like a machine: at the start of a training step, inside a validation, or right after one.

    `Crash.at` says where, and stays out of the experiment, so that an unbroken run has the same.
    """

    at: tuple[str, int] | None = None  # the kind of moment, and the optimizer steps taken by then

    def _reached(self, moment: str, trainer: Trainer) -> None:
        if Crash.at == (moment, trainer.global_step) and not trainer.sanity_checking:
            raise RuntimeError("the machine is gone")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Fail before a step."""
        self._reached("step", trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Fail within a validation."""
        self._reached("validation", trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fail after the validation, before the end of the epoch is saved."""
        self._reached("epoch end", trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fail in the final evaluation."""
        self._reached("test", trainer)
