"""A network that a constant image breaks, gradients that break at a step, and a witness of what every step changed."""

import hashlib
import json
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from framework.backbone import Features
from tests.tiny import Tiny


class Standardised(Tiny):
    """Divides each channel of an image by its range, and drops some features at random."""

    def __init__(self, width: int = 4, in_channels: int = 3) -> None:
        super().__init__(width, in_channels)
        self.coarse.append(nn.Dropout(0.5))

    def extract(self, images: Tensor) -> Features:
        """Compute both maps; of a constant image they are not finite."""
        return super().extract(images / (images.amax((2, 3), True) - images.amin((2, 3), True)))


class PoisonedGradient(Callback):
    """Break one gradient at a step.

    Args:
        step: Optimizer steps before.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Break it."""
        if trainer.global_step == self.step:
            pl_module.head.get_parameter(next(iter(dict(pl_module.head.named_parameters())))).grad[:1] = torch.inf


class Witness(Callback):
    """Write down, for every training batch, the loss and what tells weights, buffers and optimizer state apart.

    `witness_RANK.json` holds rows: the optimizer steps so far, the loss, and digests of weights, buffers, state of the
    optimizer and average.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[int, float, str, str, str, str]] = []
        self.loss = 0.0

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note the loss."""
        self.loss = float(loss.detach())
        self._write(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Note the rest."""
        state = trainer.optimizers[0].state_dict()["state"]
        optimizer = [value for index in state for value in state[index].values()]
        averages = [callback._average for callback in trainer.callbacks if hasattr(callback, "_average")]
        average = [value for values in averages for value in values.values()]
        kinds = (pl_module.parameters(), pl_module.buffers(), optimizer, average)
        self.rows.append((trainer.global_step, self.loss, *(digest(values) for values in kinds)))
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        Path(f"witness_{trainer.global_rank}.json").write_text(json.dumps({"rows": self.rows, "loss": self.loss}))


def digest(values: object) -> str:
    """Return what tells tensors apart in any bit."""
    data = [torch.as_tensor(value).detach().contiguous().numpy().tobytes() for value in values]
    return hashlib.sha256(b"".join(data)).hexdigest()
