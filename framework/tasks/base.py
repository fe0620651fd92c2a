"""What all tasks share: parameter groups, optimizer, schedule, and the way of a batch through the backbone."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from PIL import Image
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import AdamW, Optimizer

from framework.backbone import Backbone, rest_frozen
from framework.clock import key_step
from framework.errors import ConfigError
from framework.length import RunLength, planned_epochs, run_length
from framework.regularisation import Regularisation
from framework.schedules import Courses, Schedule, WarmupCosine
from framework.tracking.drawing import Picture
from framework.transfer.adapter import Adapter
from framework.transfer.ema import take_trained_weights
from framework.transfer.groups import ParameterGroup, Rates, partition
from framework.transfer.optimizer_state import Names, RatesByStep, keep_hyperparameters, name_state
from framework.transfer.plan import TrainingPlan
from framework.transfer.selection import Parts, Selection, parts_of, select
from framework.transfer.sharding import shard
from framework.transfer.unfreezing import ProgressiveUnfreezing

PAST = "epoch_steps"  # of a checkpoint
OptimizerFactory = Callable[[Iterable[Any]], Optimizer]

Batch = dict[str, Any]


class SkippedStep(Exception):
    """What a callback raises before an optimizer step, to leave it out."""


class Task(LightningModule, ABC):
    """Base of all tasks.

    Every task logs its headline metric as `val/score`, higher is better, beside its own metrics.

    Args:
        backbone: A backbone plugin.
        optimizer: An optimizer class with its arguments.
        schedule: The learning rate as a function of the step.
        backbone_lr_factor: The backbone learns at this fraction of the learning rate.
        layer_decay: Each stage of the backbone learns at this fraction of the rate of the next one, the last at this
            fraction of the head's; in (0, 1].
        learning_rates: Rates of parts of the network, such as `{stage0: 1e-5, backbone: 5e-5, head: 1e-3}`; of several
            that mean a parameter that of the smallest part holds. See docs/transfer.md for the words.
        freeze: What is never trained: a number of stages of the backbone, from the input on; `all` for the whole
            backbone; or words such as `[stage0, norms]`, see docs/transfer.md.
        adapter: Few weights inside the backbone, such as `LoRA`, that are trained in place of its own; see
            docs/transfer.md.
        frozen_dtype: What a backbone computes in while all of it is frozen, whatever `trainer.precision` is: the head
            gets its features in float32, or as that says. null: as `trainer.precision` says.
        channels_last: Memory layout; null: channels last for convolutional backbones.
        compile: Compile backbone and head with torch.compile.
    """

    trains: ClassVar[bool] = True  # whether there is anything to train
    class_names: list[str]
    step_skipped = False  # whether the last optimizer step was left out
    unfreezing: ProgressiveUnfreezing | None  # who decides what is trained when, beside `freeze`
    trained: frozenset[str] | None  # names of what is trained now
    length: RunLength | None = None  # of the run, once the optimizer is built
    past: tuple[int, ...] = ()  # optimizer steps of the epochs before the checkpoint that the run goes on from
    grouped: Names  # the parameters of each group of the optimizer, once it is built

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerFactory = AdamW,
        schedule: Schedule | None = None,
        backbone_lr_factor: float = 1.0,
        layer_decay: float = 1.0,
        learning_rates: dict[str, float] | None = None,
        freeze: Selection = 0,
        adapter: Adapter | None = None,
        frozen_dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        channels_last: bool | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.optimizer, self.schedule = optimizer, schedule or WarmupCosine()
        self.rates = Rates(backbone_lr_factor, layer_decay, learning_rates)
        self.rates.check()
        self.channels_last, self.compile_network = channels_last, compile
        backbone.frozen_dtype = getattr(torch, frozen_dtype) if frozen_dtype is not None else None
        self.never_trained, self.unfreezing, self.trained = freeze, None, None
        self._regularisation: Regularisation | None = None  # once the head is there
        self._parts: Parts | None = None
        try:
            backbone.probe()
        except ValueError as error:
            raise ConfigError(f"model.backbone: {error}") from error
        self.adapter = adapter
        if adapter is not None:
            adapter.adapt(backbone)

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

    def train_metric_names(self) -> list[str]:
        """Return every metric that training will log; an override adds those of its own."""
        return ["train/loss"]

    def check_command(self, command: str, data: Any) -> None:
        """Refuse a command that the task has no use for, before any file is looked at; an override calls this too.

        Args:
            command: `fit`, `validate`, `test` or `predict`.
            data: The data module.

        Raises:
            ConfigError: There is nothing to train.
        """
        if command == "fit" and not self.trains:
            raise ConfigError(
                f"{type(self).__name__} trains nothing: run `framework validate` with the same options; it needs no "
                "checkpoint"
            )

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

    def prediction_files(self, batch: Batch, prediction: Any, row: int) -> dict[str, bytes]:
        """Return what else is written for one predicted image, by file name; nothing by default."""
        return {}

    def prediction_record(self, batch: Batch, prediction: Any, row: int) -> list[tuple[str, Any]]:
        """Return the row of one predicted image in `predictions.csv`, as (column, value); none by default."""
        return []

    def prediction_records(self, batch: Batch, prediction: Any, row: int) -> list[list[tuple[str, Any]]]:
        """Return all rows of one predicted image in `predictions.csv`: its `prediction_record`, if it has one."""
        record = self.prediction_record(batch, prediction, row)
        return [record] if record else []

    def prediction_columns(self) -> list[str]:
        """Return the columns of `predictions.csv`, where an image may have no row; none: as in the first row."""
        return []

    # What is trained.

    @property
    def parts(self) -> Parts:
        """What every parameter belongs to."""
        if self._parts is None:
            self._parts = parts_of(self, self.backbone)
        return self._parts

    def frozen_names(self) -> frozenset[str]:
        """Return the names of the parameters that are never trained.

        Raises:
            ConfigError: `freeze` names a part that there is not.
        """
        words = self.never_trained if isinstance(self.never_trained, list) else [self.never_trained]
        named = [{"all": "backbone", "!all": "!backbone"}.get(str(word), word) for word in words]  # of the backbone
        frozen = select(self.parts, named, "input", "model.freeze")
        if self.adapter is None:
            return frozen
        spared: list[int | str] = [word[1:] for word in named if isinstance(word, str) and word.startswith("!")]
        return frozen | (
            self._beside_adapter(self.adapter, frozen) - select(self.parts, spared, "input", "model.freeze")
        )

    def _beside_adapter(self, adapter: Adapter, frozen: frozenset[str]) -> frozenset[str]:
        """Return the backbone's own parameters, which rest where an adapter is trained.

        Raises:
            ConfigError: Every adapter is frozen too.
        """
        adapters = {name for name in self.parts.backbone if adapter.adapts(name)}
        if adapters <= frozen:
            raise ConfigError(
                "model.freeze: it means every adapter too: leave it out, as model.adapter freezes the rest of the "
                "backbone by itself"
            )
        return self.parts.backbone - adapters

    def apply_freeze(self) -> None:
        """Freeze what is never trained; every task calls it at the end of its constructor.

        Raises:
            ConfigError: `freeze` names a part that there is not.
        """
        self.set_trained(self.parts.all - self.frozen_names())

    def set_trained(self, names: frozenset[str]) -> bool:
        """Train these parameters and no others; returns whether that changes anything.

        Frozen ones get no gradient, and their layers rest in eval mode whatever `train` is told.
        """
        changed = False
        for name, parameter in self.named_parameters():
            if parameter.requires_grad != (name in names):
                parameter.requires_grad_(name in names)
                changed = True
            if name not in names:
                parameter.grad = None  # else momentum and weight decay go on
        self.trained = names
        self.backbone.settle()
        self.train(self.training)
        return changed

    def train(self, mode: bool = True) -> Self:
        """Set training mode, but let frozen layers rest in eval mode, those of the head too."""
        super().train(mode)
        if mode and self.trained is not None and not self.parts.head <= self.trained:
            rest_frozen(child for child in self.children() if child is not self.backbone)  # which knows by itself
        return self

    def plan_training(self, length: RunLength) -> TrainingPlan:
        """Return what is trained when.

        Raises:
            ConfigError: A part is named that there is not, an unfreezing would never come, or nothing is trained.
        """
        frozen = self.frozen_names()
        plan = TrainingPlan((0,), (self.parts.all - frozen,))
        if self.unfreezing is not None:
            plan = self.unfreezing.plan(self.parts, frozen, length)
            self.unfreezing.prepare(plan, {name: parameter.numel() for name, parameter in self.named_parameters()})
        if not all(plan.trained):
            raise ConfigError("no parameter is trainable: lower model.freeze")
        return plan

    # One static partition of all parameters, from step 0 on.

    def partition(self, plan: TrainingPlan | None = None) -> list[ParameterGroup]:
        """Split all parameters, frozen ones too, into groups that are treated alike from the first step to the last."""
        return partition(self, self.parts, self.rates, plan or TrainingPlan((0,), (self.parts.all,)))

    def build_optimizer(self, groups: list[ParameterGroup], fused: bool = False) -> Optimizer:
        """Build the optimizer over all groups, each with its base rate."""
        factory = partial(self.optimizer, **{"fused": True}) if fused else self.optimizer
        named = dict(self.named_parameters())
        optimizer = factory(
            [
                {"params": [named[name] for name in group.names], "name": group.name}
                | ({} if group.decays else {"weight_decay": 0.0})
                for group in groups
            ]
        )
        for built, group in zip(optimizer.param_groups, groups, strict=True):
            built["lr"] = built["lr"] * group.share if group.share is not None else group.rate
        return optimizer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer over all groups, and the schedules as pure functions of the step."""
        fused = knows_fused(self.optimizer) and not (self._scales_gradients() and self.trainer.gradient_clip_val)
        length = self.length = run_length(self.trainer, getattr(self.trainer, "datamodule", None), self.past)
        plan = self.plan_training(length)
        groups = self.partition(plan)
        optimizer = self.build_optimizer(groups, fused)
        schedule = RatesByStep(optimizer, [self.factor(group, plan, length.steps) for group in groups])
        self.grouped = [list(group.names) for group in groups]
        keep_hyperparameters(optimizer, self.grouped)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def factor(self, group: ParameterGroup, plan: TrainingPlan, steps: int) -> Callable[[int], float]:
        """Return what a group's base rate is multiplied with at each optimizer step of a run of so many."""
        opened = plan.factor(group.history)
        return lambda step: opened(step) * self.schedule.factor(step, steps)

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
        """Note what the outputs mean; in a checkpoint of weights alone also what Lightning asks no callback for."""
        checkpoint["class_names"] = list(self.class_names)
        if "loops" in checkpoint and "callbacks" not in checkpoint and self._trainer is not None:
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if getattr(callback, "completes_weights", False):
                    callback.on_save_checkpoint(self.trainer, self, checkpoint)
        if "optimizer_states" in checkpoint:
            checkpoint["optimizer_states"] = [
                name_state(state, self.grouped) for state in checkpoint["optimizer_states"]
            ]
        if self.length is not None and self._trainer is not None:
            checkpoint[PAST] = self._steps_of_ended_epochs(self.length)

    def _steps_of_ended_epochs(self, length: RunLength) -> list[int]:
        """Return the optimizer steps of every epoch that has ended; the end of the run may have cut the last one."""
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        steps = [*self.past, *length.epoch_steps[len(self.past) :]][: epochs.processed]
        if steps and epochs.processed == epochs.ready:
            steps[-1] = self.global_step - sum(steps[:-1])
        return steps

    def check_outputs(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose outputs mean something else; an override calls this too.

        Raises:
            ConfigError: It was trained for other classes.
        """
        trained = checkpoint.get("class_names", list(self.class_names))
        if trained != list(self.class_names):
            raise ConfigError(
                f"--ckpt_path: the checkpoint was trained for the classes {', '.join(trained[:8])}, but the data has "
                f"{', '.join(self.class_names[:8])}: they must be the same, in the same order"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check what the outputs mean; train on from weights as trained, not their average."""
        self.check_outputs(checkpoint)
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            take_trained_weights(checkpoint)
            self.going_on_from(checkpoint)

    def going_on_from(self, checkpoint: dict[str, Any]) -> None:
        """Count the steps of the epochs that have ended as they were, whatever the batches are now."""
        self.past = tuple(checkpoint.get(PAST, ()))

    def setup(self, stage: str) -> None:
        """Lay out memory and compile, as asked for."""
        if not isinstance(self, FSDPModule):  # those keep the layout that they have
            self.to(memory_format=self.memory_format)
        if self.compile_network:
            for module in self.children():
                module.compile()  # in place: keys in checkpoints stay as they are

    def configure_model(self) -> None:
        """Spread the parameters over the processes, under the strategy fsdp2."""
        if self.device_mesh is not None:
            shard(self, self.backbone, self.device_mesh)

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

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Key dropout and drop-path by the step, so that a resumed run draws what an unbroken one would.

        Their rates follow the epoch, if the data has a plan for them.
        """
        key_step(self.run_seed(), self.global_step, batch_idx, self.global_rank)
        plan = getattr(getattr(self.trainer, "datamodule", None), "progressive", None)
        if plan is not None:
            self.regularisation().set(plan.at(self.current_epoch, planned_epochs(self.trainer)))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take a step; one that a callback leaves out changes nothing, but counts."""
        self.step_skipped = False
        with suppress(SkippedStep):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def run_seed(self) -> int:
        """Return the seed of the run, which the data module was given."""
        return int(getattr(getattr(self.trainer, "datamodule", None), "seed", 0))


def knows_fused(factory: OptimizerFactory) -> bool:
    """Tell whether an optimizer has a fused kernel that the config does not decide on."""
    if isinstance(factory, partial):
        return "fused" in factory.keywords and factory.keywords["fused"] is None
    return inspect.isclass(factory) and "fused" in inspect.signature(factory).parameters


def unpadded(batch: Batch, values: Tensor) -> Tensor:
    """Leave out the rows of `values` that belong to pads."""
    return values[~batch["is_pad"]]
