"""A run stops before a step whose loss is not finite, or leaves it out, and never keeps broken weights."""

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from framework.errors import TrainingError
from framework.run.bad_step import record_step, write_step
from framework.tasks.base import SkippedStep
from framework.transfer.sharding import local_part

MOST_IN_A_ROW = 10  # steps left out before the run stops: nothing is learned
NEVER = -1
LOSS, GRADIENTS, EITHER = "the loss is", "the gradients are", "the loss, or a gradient, is"


class FiniteLoss(Callback):
    """Look at the loss and the gradients before the weights are changed, and at the weights before they are saved.

    On a CPU every step is looked at before it changes anything. On a GPU, training would have to wait for that: a
    number gathers on the device and is read every `log_every_n_steps` steps and before a checkpoint is written.
    Processes stop, and leave steps out, together. Gradients that a loss scaler (float16) finds too large are its own
    matter.

    Args:
        folder: Where to write a step that is not finite.
        config: The resolved experiment, which goes with it.
        on_nan: `stop` before such a step, or `skip` it: then every step is looked at, which on a GPU costs a
            synchronisation each, and one that is left out changes no weight, no buffer, no optimizer state and no
            average.
    """

    def __init__(self, folder: Path, config: dict[str, Any], on_nan: Literal["stop", "skip"] = "stop") -> None:
        self.folder, self.config, self.skips = folder, config, on_nan == "skip"
        self.in_a_row = self.in_epoch = self.in_all = 0  # steps left out
        self._first: Tensor | None = None  # the first step that was not finite, on the device; NEVER if there is none
        self._batch: Any = None  # of this accumulation window, the one that is to blame, else the last
        self._batch_idx = 0
        self._blamed = self._by_loss = self._learned = False
        self._parameters: list[Tensor] = []
        self._buffers: list[Tensor] = []
        self._kept: list[Tensor] = []  # the buffers before this window

    def state_dict(self) -> dict[str, int]:
        """Return the counts, for a run that goes on."""
        return {"in_a_row": self.in_a_row, "in_epoch": self.in_epoch, "in_all": self.in_all}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on with the counts."""
        self.in_a_row, self.in_epoch, self.in_all = (state_dict[name] for name in ("in_a_row", "in_epoch", "in_all"))

    # One step.

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect what is looked at, and what a forward pass changes."""
        self._parameters, self._buffers = list(pl_module.parameters()), list(pl_module.buffers())
        self._kept = [torch.empty_like(buffer) for buffer in self._buffers]
        self._first = torch.full((), NEVER, dtype=torch.long, device=pl_module.device)

    @torch.no_grad()
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batch, and the buffers as they are before the accumulation window."""
        first = batch_idx % trainer.accumulate_grad_batches == 0
        self._blamed, self._by_loss = self._blamed and not first, self._by_loss and not first
        if not self._blamed:
            self._batch, self._batch_idx = batch, batch_idx
        if first and self._kept and self._looks(trainer):
            torch._foreach_copy_(self._kept, self._buffers)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Look at the loss of one batch."""
        self._learned = True
        self._note(trainer, loss.detach().isfinite().all(), LOSS)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the gradients so far."""
        shares = [local_part(p.grad) for p in self._parameters if p.grad is not None]
        gradients = [share for share in shares if share.numel()]  # FSDP2 leaves some processes none of small ones
        if gradients and _scaler(trainer) is None:
            self._note(trainer, _all_finite(gradients), GRADIENTS)

    def _note(self, trainer: Trainer, finite: Tensor, what: str) -> None:
        assert self._first is not None
        step = trainer.global_step
        self._first = torch.where(finite | (self._first != NEVER), self._first, step)
        if not self._looks(trainer):
            return
        self._blamed = self._blamed or int(self._first) == step
        self._by_loss = self._by_loss or (self._blamed and what == LOSS)
        if self._blamed and trainer.world_size == 1 and not self.skips:
            self._stop(trainer, what)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let go of the batch, but not within an accumulation window of the one that is to blame."""
        if not self._blamed:
            self._batch = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Stop before the weights are changed, or leave the step out; the last moment at which processes can agree."""
        if not self._looks(trainer) or not self._anywhere(trainer):
            self.in_a_row = 0
        elif self.skips:
            self._skip(trainer, pl_module)
        else:
            self._stop(trainer, EITHER)

    def _looks(self, trainer: Trainer) -> bool:
        """Tell whether this step is looked at before it changes anything."""
        assert self._first is not None
        every = 1 if self.skips or self._first.device.type == "cpu" else trainer.log_every_n_steps  # type: ignore[attr-defined]
        return trainer.global_step % max(1, every) == 0

    def _anywhere(self, trainer: Trainer) -> bool:
        """Tell whether any process met something that is not finite."""
        own = self._first is not None and int(self._first) != NEVER
        return bool(trainer.strategy.reduce_boolean_decision(own, all=False)) if trainer.world_size > 1 else own

    # Stopping.

    def _stop(self, trainer: Trainer, what: str) -> None:
        assert self._first is not None
        first, step = int(self._first), trainer.global_step
        self._first.fill_(NEVER)
        if first not in (NEVER, step):
            raise TrainingError(
                f"the loss, or a gradient, was not finite at step {first}; a GPU is asked every "
                f"trainer.log_every_n_steps steps: --trainer.log_every_n_steps 1, from the checkpoint before on, stops "
                f"at the step itself and keeps it for replay; {ADVICE}"
            )
        kept = self._keep_step(trainer)
        raise TrainingError(f"{what} not finite at {self._where(trainer)}: {kept}; {ADVICE}")

    def _keep_step(self, trainer: Trainer) -> str:
        """Write the step as it was before it changed anything; returns what to say of it."""
        self._restore_buffers()
        task: Any = trainer.lightning_module
        record = record_step(trainer, task, self._batch, self._batch_idx, self.config)
        if trainer.world_size > 1:  # gradients are all alike: those whose own loss it was keep the step
            known = trainer.strategy.reduce_boolean_decision(self._by_loss, all=False)
            if known and not self._by_loss:
                return "the process that met it keeps the step for replay"
        try:
            file = write_step(record, self.folder, trainer.world_size)
        except OSError as error:
            return f"the step could not be kept for replay ({error.strerror})"
        return f"the step is kept, and `framework replay {file}` runs it again"

    def _where(self, trainer: Trainer) -> str:
        known = isinstance(self._batch, dict) and "id" in self._batch
        samples = f", samples {', '.join(map(str, self._batch['id'][:8]))}" if known else ""
        return f"epoch {trainer.current_epoch}, step {trainer.global_step}{samples}"

    @torch.no_grad()
    def _restore_buffers(self) -> None:
        if self._kept:
            torch._foreach_copy_(self._buffers, self._kept)

    # Leaving a step out.

    def _skip(self, trainer: Trainer, pl_module: Any) -> None:
        assert self._first is not None
        self._first.fill_(NEVER)
        self.in_a_row, self.in_epoch, self.in_all = self.in_a_row + 1, self.in_epoch + 1, self.in_all + 1
        if self.in_a_row == MOST_IN_A_ROW:
            raise TrainingError(
                f"{MOST_IN_A_ROW} steps in a row were left out because their loss, or a gradient, was not finite, the "
                f"last at {self._where(trainer)}: nothing is learned; {ADVICE}"
            )
        if self.in_all == 1:
            kept = self._keep_step(trainer)
            if self._blamed or trainer.world_size == 1:
                where = self._where(trainer)
                print(f"warning: the loss, or a gradient, is not finite at {where}: left out; {kept}", file=sys.stderr)
        self._restore_buffers()
        pl_module.step_skipped = True
        if _scaler(trainer) is None:  # which leaves the step out itself, and lowers its scale
            raise SkippedStep

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many steps were left out."""
        if self.in_epoch and trainer.is_global_zero:
            steps = (
                "1 step left out because its" if self.in_epoch == 1 else f"{self.in_epoch} steps left out because their"
            )
            print(
                f"warning: epoch {trainer.current_epoch}: {steps} loss, or a gradient, was not finite", file=sys.stderr
            )
        self.in_epoch = 0

    # Saving and ending.

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Never write a checkpoint of broken weights.

        Raises:
            TrainingError: They are broken.
        """
        if not self.skips and self._anywhere(trainer):
            self._stop(trainer, EITHER)
        weights = [local_part(parameter.detach()) for parameter in pl_module.parameters()]
        whole = bool(torch.stack([weight.isfinite().all() for weight in weights]).all())
        if trainer.world_size > 1:
            whole = bool(trainer.strategy.reduce_boolean_decision(whole))
        if not whole:
            raise TrainingError(
                f"the weights are not finite after epoch {trainer.current_epoch}, step {trainer.global_step}: {ADVICE}"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to have trained nothing.

        Raises:
            TrainingError: There was not a single step.
        """
        if not self._learned and trainer.global_step == 0:
            raise TrainingError("training ended without a single step: there was no training batch")


ADVICE = (
    "lower the learning rate, clip gradients (trainer.gradient_clip_val), look at the samples, or leave such steps out "
    "(--on_nan skip); checkpoints written before are whole"
)


def _all_finite(tensors: list[Tensor]) -> Tensor:
    """Tell, on their device, whether all values of all tensors are finite."""
    cpu = tensors[0].device.type == "cpu"
    norms = torch._foreach_norm(tensors, 2 if cpu else torch.inf)  # on a CPU the Euclidean is seven times as fast
    finite = torch.stack([norm.float() for norm in norms]).isfinite().all()
    if cpu and not finite:  # it overflows before the values do
        return torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
    return finite


def _scaler(trainer: Trainer) -> Any:
    """Return what scales the loss for float16, if anything does."""
    return getattr(trainer.precision_plugin, "scaler", None)
