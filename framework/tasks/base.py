"""What all tasks share: parameter groups, optimizer, schedule, and the way of a batch through the backbone."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, Self

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from PIL import Image
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from framework.backbone import Backbone
from framework.clock import key
from framework.errors import ConfigError, TrainingError
from framework.regularisation import Regularisation
from framework.schedules import Courses, Schedule, WarmupCosine
from framework.tracking.drawing import Picture
from framework.transfer.ema import take_trained_weights

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
NO_DECAY = ("pos_embed", "cls_token", "reg_token", "mask_token", "relative_position_bias_table")

Batch = dict[str, Any]


class Task(LightningModule, ABC):
    """Base of all tasks.

    Every task logs its headline metric as `val/score`, higher is better, beside its own metrics.

    Args:
        backbone: A backbone plugin.
        optimizer: An optimizer class with its arguments.
        schedule: The learning rate as a function of the step.
        backbone_lr_factor: The backbone learns at this fraction of the learning rate.
        freeze: Stages of the backbone, from the input on, that are never trained; `all` for the whole.
        channels_last: Memory layout; null: channels last for convolutional backbones.
        compile: Compile backbone and head with torch.compile.
    """

    class_names: list[str]

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerFactory = AdamW,
        schedule: Schedule | None = None,
        backbone_lr_factor: float = 1.0,
        freeze: int | Literal["all"] = 0,
        channels_last: bool | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.optimizer, self.schedule = optimizer, schedule or WarmupCosine()
        self.backbone_lr_factor, self.channels_last, self.compile_network = backbone_lr_factor, channels_last, compile
        self._regularisation: Regularisation | None = None  # once the head is there
        try:
            backbone.probe()
            backbone.freeze(freeze)
        except ValueError as error:
            raise ConfigError(f"model.backbone: {error}") from error

    # What it takes to try any backbone under any head, without data.

    @classmethod
    @abstractmethod
    def example(cls, backbone: Backbone, head: Any = None) -> Self:
        """Build a small task of this kind, with the default head if none is given."""

    @abstractmethod
    def example_batch(self, count: int, height: int, width: int) -> Batch:
        """Make up a batch of `count` images of that size, with targets, as the data would give it."""

    @abstractmethod
    def metric_names(self) -> list[str]:
        """Return every metric that validation will log, for checking what callbacks monitor."""

    def check_data(self, data: Any) -> None:  # most tasks take any data that is made for them
        """Refuse data whose options contradict those of the task; an override calls this too.

        Args:
            data: The data module.

        Raises:
            ConfigError: They do.
        """
        plan = getattr(data, "progressive", None)
        if plan is not None:
            self.regularisation().check(plan)

    # What people are shown: pictures and tables.

    def charts(self, split: str) -> dict[str, Picture]:
        """Draw what sums up an evaluated split, `val` or `test`, by name; nothing by default."""
        return {}

    def prediction_images(self, batch: Batch, prediction: Any, row: int) -> dict[str, Image.Image]:
        """Return the pictures of one predicted image, by file name; none by default."""
        return {}

    def prediction_record(self, batch: Batch, prediction: Any, row: int) -> list[tuple[str, Any]]:
        """Return the row of one predicted image in `predictions.csv`, as (column, value); none by default."""
        return []

    # One static partition of all parameters, from step 0 on.

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Split all parameters, frozen ones too, into named groups: backbone or head, with or without weight decay.

        Norms, biases and embeddings are not decayed.
        """
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            part = "backbone" if name.startswith("backbone.") else "head"
            rest = parameter.ndim <= 1 or any(word in name for word in NO_DECAY)
            groups.setdefault(f"{part}/{'no_decay' if rest else 'decay'}", []).append(parameter)
        grouped = [parameter for group in groups.values() for parameter in group]
        assert {id(p) for p in grouped} == {id(p) for p in self.parameters()}
        assert len(grouped) == len({id(p) for p in grouped})
        return [
            {"params": groups[name], "name": name} | ({"weight_decay": 0.0} if name.endswith("/no_decay") else {})
            for name in sorted(groups)
        ]

    def build_optimizer(self, fused: bool = False) -> Optimizer:
        """Build the optimizer over all groups, each with its base rate."""
        factory = partial(self.optimizer, **{"fused": True}) if fused else self.optimizer
        optimizer = factory(self.parameter_groups())
        for group in optimizer.param_groups:
            if group["name"].startswith("backbone/"):
                group["lr"] *= self.backbone_lr_factor
        return optimizer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer over all groups, and the schedule as a pure function of the step."""
        fused = knows_fused(self.optimizer) and not (self._scales_gradients() and self.trainer.gradient_clip_val)
        optimizer = self.build_optimizer(fused)
        total = total_steps(self.trainer, getattr(self.trainer, "datamodule", None))
        schedule = LambdaLR(optimizer, lambda step: self.schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def _scales_gradients(self) -> bool:
        """Tell whether gradients are scaled, as float16 needs: a fused optimizer cannot clip those."""
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients; Lightning's own refuses fused optimizers under bfloat16 too, where nothing is scaled."""
        if not isinstance(self.trainer.precision_plugin, MixedPrecision) or self._scales_gradients():
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    # Hooks.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what the outputs mean."""
        checkpoint["class_names"] = list(self.class_names)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose outputs mean something else; train on from weights as trained, not their average.

        Raises:
            ConfigError: It was trained for other classes.
        """
        trained = checkpoint.get("class_names", list(self.class_names))
        if trained != list(self.class_names):
            raise ConfigError(
                f"--ckpt_path: the checkpoint was trained for the classes {', '.join(trained[:8])}, but the data has "
                f"{', '.join(self.class_names[:8])}: they must be the same, in the same order"
            )
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            take_trained_weights(checkpoint)

    def setup(self, stage: str) -> None:
        """Lay out memory and compile, as asked for."""
        self.to(memory_format=self.memory_format)
        if self.compile_network:
            for module in self.children():
                module.compile()  # in place: keys in checkpoints stay as they are

    @torch.no_grad()
    def try_size(self, height: int, width: int) -> None:
        """Run one empty image of a size through.

        Raises:
            ConfigError: The network cannot take it.
        """
        training = self.training
        self.eval()
        try:
            self(torch.zeros(1, self.backbone.in_channels, height, width, device=self.device))
        except (ValueError, RuntimeError, AssertionError, TypeError) as error:
            reason = next(iter(str(error).strip().splitlines()), repr(error))
            raise ConfigError(
                f"{type(self.backbone).__name__} cannot take images of {height}x{width}, even padded to a multiple of "
                f"{self.backbone.multiple}: {reason}; set data.crop_size and data.resize, or data.image_size and the "
                "sizes of data.progressive"
            ) from error
        finally:
            self.train(training)

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of weights and maps: convolutions are faster with channels last, on a CPU too."""
        convolutional = self.backbone.prefix_tokens == 0
        chosen = self.channels_last if self.channels_last is not None else convolutional
        return torch.channels_last if chosen else torch.contiguous_format

    def regularisation(self) -> Regularisation:
        """Return the layers of dropout and stochastic depth, with the rates that they were built with."""
        if self._regularisation is None:
            self._regularisation = Regularisation(self)
        return self._regularisation

    def schedules(self) -> Courses:
        """Return what this task schedules beside learning rates, for `framework schedule show`; nothing by default."""
        return {}

    def on_fit_start(self) -> None:
        """Refuse to train nothing."""
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ConfigError("no parameter is trainable: lower model.freeze")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Key dropout and drop-path by the step, so that a resumed run draws what an unbroken one would.

        Their rates follow the epoch, if the data has a plan for them.
        """
        torch.manual_seed(key(self.run_seed(), "step", self.global_step, batch_idx, self.global_rank))
        plan = getattr(getattr(self.trainer, "datamodule", None), "progressive", None)
        if plan is not None:
            self.regularisation().set(plan.at(self.current_epoch, planned_epochs(self.trainer)))

    def run_seed(self) -> int:
        """Return the seed of the run, which the data module was given."""
        return int(getattr(getattr(self.trainer, "datamodule", None), "seed", 0))


def total_steps(trainer: Trainer, data: Any) -> int:
    """Return the optimizer steps of a whole run, from the configuration alone: no loader is built for it.

    Args:
        trainer: The trainer.
        data: Its data module; of another kind than ours, or None, Lightning counts by building the loader.

    Raises:
        TrainingError: The run has no end, or an epoch has no batch.
        ConfigError: The run is too short for the stages that the data plans.
    """
    if not hasattr(data, "train_batches"):
        return int(trainer.estimated_stepping_batches)
    if data.progressive is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        data.progressive.check(planned_epochs(trainer))
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else None
    limit = trainer.limit_train_batches
    batches = [data.train_batches(trainer.world_size, epoch, epochs, limit) for epoch in range(epochs or 1)]
    if 0 in batches:
        raise TrainingError(
            "an epoch has no training batch: see data.batch_size, data.repeats and trainer.limit_train_batches"
        )
    ends = [trainer.max_steps] if trainer.max_steps is not None and trainer.max_steps > 0 else []
    if epochs is not None:
        ends.append(sum(-(-count // trainer.accumulate_grad_batches) for count in batches[:epochs]))
    if data.progressive is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        check_counts(trainer, data.progressive, batches, min(ends))
    if not ends:
        raise TrainingError("the run has no end: give trainer.max_epochs or trainer.max_steps")
    return min(ends)


def check_counts(trainer: Trainer, plan: Any, batches: list[int], steps: int) -> None:
    """Refuse limits under which a run that goes by stages would never train, or validate, in some of them.

    Args:
        trainer: The trainer.
        plan: The stages.
        batches: Batches of each epoch.
        steps: Optimizer steps of the run.

    Raises:
        ConfigError: The run ends before its last stage begins, or an epoch ends before it would be validated.
    """
    first = plan.starts(len(batches))[-1]
    begins = sum(-(-count // trainer.accumulate_grad_batches) for count in batches[:first])
    if steps <= begins:
        raise ConfigError(
            f"trainer.max_steps: {steps} steps end before the last stage of data.progressive begins, at step {begins}: "
            "lower trainer.max_epochs, over which the stages are spread"
        )
    interval = trainer.val_check_interval
    if isinstance(interval, int) and trainer.check_val_every_n_epoch is not None and interval > min(batches):
        raise ConfigError(
            f"trainer.val_check_interval: with data.progressive an epoch has as few as {min(batches)} batches, fewer "
            f"than {interval}: give a share of an epoch, such as 0.5"
        )


def planned_epochs(trainer: Trainer) -> int:
    """Return how many epochs the stages of a plan are spread over.

    Raises:
        ConfigError: The run is given in steps alone.
    """
    if trainer.max_epochs is None or trainer.max_epochs < 1:
        raise ConfigError("data.progressive: its stages are shares of the epochs of a run: give trainer.max_epochs")
    return trainer.max_epochs


def knows_fused(factory: OptimizerFactory) -> bool:
    """Tell whether an optimizer has a fused kernel that the config does not decide on."""
    if isinstance(factory, partial):
        return "fused" in factory.keywords and factory.keywords["fused"] is None
    return inspect.isclass(factory) and "fused" in inspect.signature(factory).parameters


def unpadded(batch: Batch, values: Tensor) -> Tensor:
    """Leave out the rows of `values` that belong to pads."""
    return values[~batch["is_pad"]]
