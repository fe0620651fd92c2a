"""A callback that ends a run early, as an interruption does."""

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
