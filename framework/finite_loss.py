"""A run stops when its loss is no longer finite, and never keeps broken weights."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from framework.errors import TrainingError


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
