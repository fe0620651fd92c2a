"""A callback that sends signals to its own process, as people and schedulers do."""

import os
import signal
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class SignalAt(Callback):
    """Send a signal at a moment of the run.

    Args:
        moment: `step` (during the training step after so many), `val` (batch 1 of the validation after so many steps),
            `sanity`, `test`, or `best` (the validation at the end).
        step: Optimizer steps before.
        names: The signals, one after the other.
        rank: Send them to this process alone.
    """

    def __init__(self, moment: str, step: int = 0, names: list[str] | None = None, rank: int | None = None) -> None:
        self.moment, self.step, self.names, self.rank = moment, step, names or ["SIGTERM"], rank

    def send(self) -> None:
        """Send them."""
        for name in self.names if self.rank in (None, int(os.environ.get("LOCAL_RANK", "0"))) else ():
            os.kill(os.getpid(), getattr(signal, name))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Send them inside a training step."""
        if self.moment == "step" and trainer.global_step == self.step:
            self.send()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Send them inside a validation."""
        best = trainer.state.fn == "validate"
        moment = "best" if best else "sanity" if trainer.sanity_checking else "val"
        if self.moment == moment and batch_idx == 1 and (best or trainer.global_step == self.step):
            self.send()

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Send them inside the test."""
        if self.moment == "test":
            self.send()
