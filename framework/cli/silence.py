"""What is left out of the terminal: what Lightning says at every start, and its progress bar after training."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer


def hush() -> None:
    """Silence what Lightning says at every start and that no user can act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "LightningCLI's args parameter",  # we hand it the arguments on purpose
        ".*isinstance.treespec, LeafSpec.*",  # Lightning against the newest torch
        ".*does not have many workers.*",  # chosen from the cores, or by the user
        "Found .* module.* in eval mode",  # frozen layers rest
        "It is recommended to use `self.log",  # metrics are over all processes already
        "No positive samples found in target",  # such a class has no average precision, and its figure is NaN
        "Be aware that when using `ckpt_path`",  # a test needs no checkpoint callbacks
        "The dirpath has changed from",  # going on from another run's checkpoint is meant
        "Couldn't infer the batch indices",  # predictions carry the ids of their images
        "Checkpoint directory .* exists and is not empty",  # the run folder's own
        "Grad strides do not match bucket view strides",  # DDP of a few small weights in channels last
        ".*The number of training batches .* is smaller than the logging interval.*",
    ):
        warnings.filterwarnings("ignore", message)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's to mend


@contextmanager
def quiet(trainer: Trainer) -> Iterator[None]:
    """Leave the progress bar out."""
    bar = trainer.progress_bar_callback
    if bar is not None:
        bar.disable()
    yield
    if bar is not None:
        bar.enable()
