"""An exponential moving average of the weights that validates, checkpoints and resumes."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from framework.errors import ConfigError
from framework.schedules import Courses
from framework.transfer.sharding import local_part, spread_like, whole

KEY = "ema"  # of a checkpoint: the weights as trained; `state_dict` holds the average


class EMA(Callback):
    """Exponential moving average of the weights: what validation sees, and what a checkpoint's `state_dict` holds.

    After each optimizer step every floating-point weight and buffer of the average moves to `decay` times itself plus
    (1 - decay) times the trained one. Until there is much to average the decay is lower: at step t it is at most
    (1 + t) / (10 + t), as in TensorFlow's `ExponentialMovingAverage`. Test, predict and export need no callback: the
    checkpoint holds the average; training goes on from the weights as trained, which it holds too.

    Lightning's own `EMAWeightAveraging` (2.6) confuses both in a checkpoint that is written while it validates.

    Args:
        decay: Share of the average that is kept in each step, in [0, 1).
        warmup: Begin with a lower decay.

    Raises:
        ConfigError: `decay` is out of range.
    """

    completes_weights = True  # a checkpoint of weights alone holds the average too

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"EMA: decay must be at least 0 and less than 1, got {decay}")
        self.decay, self.warmup = decay, warmup
        self._average: dict[str, Tensor] | None = None
        self._trained: dict[str, Tensor] | None = None  # while the module holds the average
        self._step = 0

    def decay_at(self, step: int) -> float:
        """Return the decay of optimizer step `step`, counted from 1."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    def schedules(self) -> Courses:
        """Return the decay, for `framework schedule show`."""
        return {"EMA decay": lambda moment: self.decay_at(moment.step + 1)}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to stand twice: each would take the other's average for the weights.

        Raises:
            ConfigError: It does.
        """
        if sum(isinstance(callback, EMA) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise ConfigError("trainer.callbacks: EMA stands twice: write it once")

    # Averaging.

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights as they are, or go on with the average of a checkpoint."""
        known = self._average or {}
        self._average = {
            name: spread_like(known[name].to(value.device), value) if name in known else _widened(value)
            for name, value in _weights(pl_module).items()
        }
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average, if the optimizer took a step."""
        if trainer.global_step == self._step or self._average is None:
            return
        self._step = trainer.global_step
        if getattr(pl_module, "step_skipped", False):
            return
        trained = _weights(pl_module)
        share = 1 - self.decay_at(self._step)
        averages = [local_part(self._average[name]) for name in trained]
        values = [
            local_part(value).to(average.dtype) for value, average in zip(trained.values(), averages, strict=True)
        ]
        torch._foreach_lerp_(averages, values, share)

    # Validation.

    @torch.no_grad()
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the module."""
        if trainer.state.fn == TrainerFn.FITTING and self._average is not None and self._trained is None:
            weights = _weights(pl_module)
            self._trained = {name: value.clone() for name, value in weights.items()}
            for name, value in weights.items():
                local_part(value).copy_(local_part(self._average[name]))

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the trained weights back."""
        if self._trained is not None:
            for name, value in _weights(pl_module).items():
                local_part(value).copy_(local_part(self._trained[name]))
            self._trained = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the trained weights back if validation was interrupted."""
        self.on_validation_end(trainer, pl_module)

    # Checkpoints.

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let `state_dict` hold the average, and keep the weights as trained beside it, both put together.

        A checkpoint of weights alone has the average alone.
        """
        if self._average is None:
            return
        state = checkpoint["state_dict"]  # whole; empty in a process whose checkpoint is not written
        average = whole(self._average, keep=bool(state))
        trained = whole(self._trained, keep=bool(state)) if self._trained else {name: state[name] for name in average}
        checkpoint["state_dict"] = {**state, **{name: average[name].to(trained[name].dtype) for name in trained}}
        if "optimizer_states" in checkpoint:
            checkpoint[KEY] = {name: value.clone() for name, value in trained.items()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with the average of a checkpoint, from which the task took the weights as trained."""
        if trainer.state.fn == TrainerFn.FITTING and KEY in checkpoint:
            self._average = {name: _widened(value) for name, value in checkpoint[KEY].items()}


def take_trained_weights(checkpoint: dict[str, Any]) -> None:
    """Exchange the average in a checkpoint for the weights as trained, with which training goes on."""
    for name, value in checkpoint.get(KEY, {}).items():
        checkpoint[KEY][name], checkpoint["state_dict"][name] = checkpoint["state_dict"][name], value


def _weights(module: LightningModule) -> dict[str, Tensor]:
    """Return the floating-point parameters and persistent buffers, not copied."""
    return {name: value for name, value in module.state_dict().items() if value.is_floating_point()}


def _widened(value: Tensor) -> Tensor:
    """Copy to 32 bits at least: small steps would be lost in 16."""
    return value.detach().clone().to(torch.promote_types(value.dtype, torch.float32))
