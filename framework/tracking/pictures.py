"""Pictures of the same few samples through a run: input, target, prediction and errors, on disk and in the logger."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from framework.tracking.drawing import Row, contact_sheet


class Pictures(Callback):
    """Draws what the task predicts for evenly spread samples of the validation and test splits.

    The predictions are those that validation makes anyway: nothing is computed twice. A task takes part by having
    `draw_row(batch, outputs, row)`, one row of titled pictures, and `legend()`; and by `charts(split)`, what sums up
    the best checkpoint's split.

    Args:
        folder: Where the PNGs go.
        count: Samples shown.
        at_most: Pictures of the validation split in one run, evenly spread over its epochs.
    """

    def __init__(self, folder: Path, count: int = 4, at_most: int = 10) -> None:
        self.folder, self.count, self.at_most = folder, count, at_most
        self._rows: list[Row] = []
        self._size = 1

    def _wanted(self, trainer: Trainer) -> bool:
        if not trainer.is_global_zero or trainer.sanity_checking or not hasattr(trainer.lightning_module, "draw_row"):
            return False
        if trainer.state.fn != "fit":
            return True
        epochs = trainer.max_epochs or 0
        every = max(1, -(-epochs // self.at_most)) if epochs > 0 else 1
        return trainer.current_epoch % every == 0 or trainer.current_epoch == epochs - 1

    def _gather(self, trainer: Trainer, outputs: Any, batch: Any, batch_idx: int, batches: int) -> None:
        if not self._wanted(trainer):
            return
        if batch_idx == 0:
            self._size = len(batch["id"])  # the last batch may be smaller
        length = max(1, batches) * self._size
        chosen = {round((i + 0.5) * length / self.count - 0.5) for i in range(self.count)}
        for row in range(len(batch["id"])):
            if batch_idx * self._size + row in chosen or length <= self.count:
                task: Any = trainer.lightning_module
                self._rows.append(task.draw_row(batch, outputs, row))

    def _publish(self, trainer: Trainer, split: str) -> None:
        if not self._rows:
            return
        task: Any = trainer.lightning_module
        training = trainer.state.fn == "fit"
        name = f"{split}_epoch_{trainer.current_epoch:03d}" if training else f"{split}_best"
        sheet = contact_sheet(self._rows, caption=f"{split}, epoch {trainer.current_epoch}", legend=task.legend())
        self._rows = []
        pictures = {"": sheet, **({} if training or not hasattr(task, "charts") else task.charts(split))}
        self.folder.mkdir(parents=True, exist_ok=True)
        for what, picture in pictures.items():
            path = self.folder / f"{name}{what and '_' + what}.png"
            Image.fromarray(picture).save(path, compress_level=1)  # in half the time, a twentieth larger
            for logger in trainer.loggers:
                if hasattr(logger, "log_pictures"):
                    logger.log_pictures(f"{split}/{what or 'pictures'}", [picture], trainer.global_step)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the chosen samples of this batch."""
        self._gather(trainer, outputs, batch, batch_idx, int(sum(trainer.num_val_batches)))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the chosen samples of this batch."""
        self._gather(trainer, outputs, batch, batch_idx, int(sum(trainer.num_test_batches)))

    # At the very end: by then all processes have summed up their metrics, on which charts are drawn.

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the validation split's picture."""
        self._publish(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the test split's picture."""
        self._publish(trainer, "test")
