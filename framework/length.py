"""How long a run is: its epochs and optimizer steps, from the configuration alone."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from math import inf
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from framework.errors import ConfigError, TrainingError
from framework.schedules import Moment


@dataclass(frozen=True)
class RunLength:
    """The optimizer steps of every epoch of a run.

    Args:
        epoch_steps: Optimizer steps of each epoch; the last may be cut short.
        is_trial: It only tries a few steps (`trainer.fast_dev_run`).
        images: Images of a step, over all processes and gathered batches, of the first epoch; None: nobody knows.
    """

    epoch_steps: tuple[int, ...]
    is_trial: bool = False
    images: int | None = None

    @cached_property
    def ends(self) -> list[int]:
        """One past the last step of each epoch."""
        return list(accumulate(self.epoch_steps))

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.ends[-1] if self.ends else 0

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return len(self.epoch_steps)

    def start(self, epoch: int) -> int:
        """Return the first optimizer step of an epoch, both from 0 on."""
        return self.ends[epoch - 1] if epoch else 0

    def moment(self, step: int) -> Moment:
        """Return the moment of an optimizer step, from 0 on."""
        return Moment(step, self.steps, bisect_right(self.ends, step), self.epochs)


def run_length(trainer: Trainer, data: Any, past: Sequence[int] = ()) -> RunLength:
    """Return how long a run is; no loader is built for it.

    Args:
        trainer: The trainer.
        data: Its data module; of another kind than ours, or None, Lightning counts by building the loader.
        past: Optimizer steps of the epochs that have ended, which may have had batches of another size.

    Raises:
        TrainingError: The run has no end, or an epoch has no batch.
        ConfigError: The run is too short for the stages that the data plans; or batches are gathered by a schedule.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
        raise ConfigError(
            "trainer.callbacks: under GradientAccumulationScheduler nobody knows which step is the last, so no "
            "schedule could be planned: take trainer.accumulate_grad_batches"
        )
    if not hasattr(data, "train_batches"):
        return _evenly(int(trainer.estimated_stepping_batches), trainer.max_epochs or 1)
    planned = data.progressive is not None and not trainer.fast_dev_run  # type: ignore[attr-defined]
    if planned:
        data.progressive.check(planned_epochs(trainer))
    if _epochs(trainer) is None and _most_steps(trainer) == inf:
        raise TrainingError("the run has no end: give trainer.max_epochs or trainer.max_steps")
    batches: list[int] = []
    steps: list[int] = []
    for count in _batches(trainer, data):
        if count == 0:
            raise TrainingError(
                "an epoch has no training batch: see data.batch_size, data.repeats and trainer.limit_train_batches"
            )
        epoch = len(batches)
        batches.append(count)
        steps.append(past[epoch] if epoch < len(past) else _steps_of(trainer, count))
        if not planned and sum(steps) >= _most_steps(trainer):
            break
    is_trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
    length = RunLength(tuple(_cut(steps, _most_steps(trainer))), is_trial, _images_of_step(trainer, data))
    if planned:
        check_counts(trainer, data.progressive, batches, length.steps)
    return length


def _epochs(trainer: Trainer) -> int | None:
    """Return the epochs that a run is limited to, if it is."""
    return trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else None


def _most_steps(trainer: Trainer) -> float:
    """Return the optimizer steps that a run is limited to."""
    return trainer.max_steps if trainer.max_steps is not None and trainer.max_steps >= 0 else inf


def _steps_of(trainer: Trainer, batches: int) -> int:
    """Return the optimizer steps of an epoch: its last one may have gathered fewer batches."""
    return -(-batches // trainer.accumulate_grad_batches)


def _images_of_step(trainer: Trainer, data: Any) -> int | None:
    """Return the images that a step takes, over all processes and gathered batches, in the first epoch."""
    sizes = getattr(data.progressive, "batch_size", None) or [getattr(data, "batch_size", None)]
    return None if sizes[0] is None else int(sizes[0] * trainer.world_size * trainer.accumulate_grad_batches)


def _batches(trainer: Trainer, data: Any) -> Iterator[int]:
    """Give the batches of each epoch and process; without end if the epochs have none."""
    whole, epoch = _epochs(trainer), 0
    while whole is None or epoch < whole:
        yield data.train_batches(trainer.world_size, epoch, whole or None, trainer.limit_train_batches)
        epoch += 1


def _cut(steps: list[int], most: float) -> Iterator[int]:
    """Leave out what comes after so many steps."""
    for count in steps:
        if most <= 0:
            return
        yield int(min(count, most))
        most -= count


def _evenly(steps: int, epochs: int) -> RunLength:
    """Share steps out among epochs."""
    bounds = [steps * epoch // max(1, epochs) for epoch in range(max(1, epochs) + 1)]
    return RunLength(tuple(two - one for one, two in pairwise(bounds)))


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
    begins = sum(_steps_of(trainer, count) for count in batches[:first])
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
