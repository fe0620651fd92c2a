"""Progress: a rich bar with throughput and the headline metric, or a line an epoch where there is no terminal."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Lightning's rich bar with images per second and `val/score`; on no terminal, a plain line an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self._interactive = sys.stdout.isatty()
        if not self._interactive:
            self.disable()
        self._began = 0.0
        self._images = 0

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what stands beside the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        for name in ("train/loss_step", "train/loss_epoch"):
            metrics.pop(name, None)
        if "val/score" in trainer.callback_metrics:
            metrics["val/score"] = f"{float(trainer.callback_metrics['val/score']):.3f}"
        metrics["img/s"] = f"{self.throughput:.1f}"
        return metrics

    @property
    def throughput(self) -> float:
        """Training images a second in this epoch, all processes together."""
        return self._images / max(1e-9, time.perf_counter() - self._began)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        self._began, self._images = time.perf_counter(), 0
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images."""
        if isinstance(batch, dict) and "image" in batch:
            self._images += len(batch["image"]) * trainer.world_size
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the training throughput before validation spoils it."""
        self._rate = self.throughput
        super().on_validation_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's line where there is no bar."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._interactive or not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        shown = [
            f"{name} {float(metrics[name]):.4f}" for name in ("train/loss", "val/loss", "val/score") if name in metrics
        ]
        rate = getattr(self, "_rate", self.throughput)
        print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {'  '.join(shown)}  {rate:.1f} img/s", flush=True
        )
