"""The course of a run before it runs: its epochs and stages, and everything that is scheduled, step by step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import inf
from typing import Any

from lightning.pytorch import Trainer

from framework.cli.group_table import Group, group_list
from framework.length import RunLength, run_length
from framework.schedules import Moment, Schedule
from framework.tasks.base import Task
from framework.transfer.unfreezing import unfreezing_among

Value = float | int | tuple[int, int] | None
"""A setting: a number, or a height and width; None where the experiment has no such thing."""


@dataclass(frozen=True)
class Span:
    """Epochs with the same settings, one after the other.

    Args:
        epochs: The first, from 0 on, and one past the last.
        steps: Likewise, of optimizer steps.
        batches: Batches an epoch and process; the last epoch of a run may end before.
        settings: By name: batch size, image size, and what else a plan can change.
    """

    epochs: tuple[int, int]
    steps: tuple[int, int]
    batches: int
    settings: dict[str, Value]


@dataclass(frozen=True)
class Timeline:
    """The course of a run.

    Args:
        name: Of the experiment.
        processes: How many train together.
        schedule: Of the learning rate.
        groups: All parameter groups.
        spans: All stages in order.
        run: Its epochs and optimizer steps.
        courses: What else is scheduled, by name: the value at each moment.
    """

    name: str
    processes: int
    schedule: Schedule
    groups: list[Group]
    spans: list[Span]
    run: RunLength
    courses: dict[str, Callable[[Moment], float]]

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.run.steps

    @property
    def epochs(self) -> int:
        """Epochs of the whole run, of which the last may be cut short."""
        return self.run.epochs

    def moment(self, step: int) -> Moment:
        """Return the moment of an optimizer step, from 0 on."""
        return self.run.moment(step)

    @property
    def length(self) -> str:
        """How long the run is, in words."""
        shared = f", in {count_of(self.processes, 'process')}" if self.processes > 1 else ""
        return f"{count_of(self.epochs, 'epoch')}, {count_of(self.steps, 'optimizer step')}{shared}"

    @cached_property
    def peak(self) -> int:
        """The first step with the highest learning rate."""
        return max(range(self.steps), key=lambda step: self.schedule.factor(step, self.steps))

    def peak_of(self, group: Group) -> int:
        """Return the first step with the highest learning rate of a group."""
        if group.periods in ((), ((0, inf),)):
            return self.peak
        return max(range(self.steps), key=group.factor)


def timeline_of(name: str, trainer: Trainer, task: Task, data: Any, others: Sequence[Any]) -> Timeline:
    """Return the course of the run that a trainer would make of a task and its data.

    Args:
        name: Of the experiment.
        trainer: The trainer.
        task: The task.
        data: Its data module.
        others: Callbacks, and whatever else may have `schedules`.

    Raises:
        ConfigError: The run is too short for its stages, or the task contradicts the data.
        TrainingError: The run has no end, or an epoch has no batch.
    """
    task.check_data(data)
    length = run_length(trainer, data)
    task.unfreezing = unfreezing_among(others)
    groups = group_list(task, length)
    epochs = list(_epochs(trainer, task, data, length))
    owners = [task, data, *others]
    courses = {key: value for owner in owners for key, value in getattr(owner, "schedules", dict)().items()}
    return Timeline(
        name,
        trainer.world_size,
        task.schedule,
        groups,
        list(_spans(epochs)),
        length,
        courses,
    )


def _epochs(trainer: Trainer, task: Task, data: Any, length: RunLength) -> Iterator[Span]:
    """Give each epoch of a run as a span of its own."""
    whole = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else None
    for epoch, end in enumerate(length.ends):
        batches = data.train_batches(trainer.world_size, epoch, whole, trainer.limit_train_batches)
        yield Span((epoch, epoch + 1), (length.start(epoch), end), batches, _settings(task, data, epoch, whole))


def _spans(epochs: list[Span]) -> Iterator[Span]:
    """Join epochs with the same settings."""
    for (batches, _), together in groupby(epochs, key=lambda span: (span.batches, span.settings)):
        joined = list(together)
        first, last = joined[0], joined[-1]
        yield Span((first.epochs[0], last.epochs[1]), (first.steps[0], last.steps[1]), batches, first.settings)


def _settings(task: Task, data: Any, epoch: int, epochs: int | None) -> dict[str, Value]:
    """Return what an epoch trains with: the plan's values, else those that are configured."""
    plan, layers = getattr(data, "progressive", None), task.regularisation()
    stage = plan.at(epoch, epochs) if plan is not None else None
    rand_augment, mix = getattr(data, "rand_augment", None), getattr(data, "mix", None)
    configured: dict[str, Value] = {
        "batch_size": data.batch_size,
        "image_size": _pair(getattr(data, "image_size", None) or getattr(data, "crop_size", None)),
        "magnitude": getattr(rand_augment, "magnitude", None),
        "mixup": getattr(mix, "mixup", None),
        "cutmix": getattr(mix, "cutmix", None),
        "dropout": max((module.p for module in layers.dropouts), default=None),
        "drop_path": layers.highest if layers.depths else None,
    }
    planned = {name: getattr(stage, name, None) for name in configured}
    return {name: value if planned[name] is None else planned[name] for name, value in configured.items()}


def _pair(size: Any) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else None if size is None else (size[0], size[1])


# In words.


def setting_name(key: str) -> str:
    """Return what people call a setting."""
    names = {"magnitude": "RandAugment magnitude", "mixup": "mixup alpha", "cutmix": "CutMix alpha"}
    return names.get(key, key.replace("_", " "))


def setting_text(value: Value) -> str:
    """Write a setting; nothing for None."""
    if isinstance(value, tuple):
        return str(value[0]) if value[0] == value[1] else f"{value[0]}x{value[1]}"
    return "" if value is None else f"{value:.6g}"


def count_of(number: int, what: str) -> str:
    """Write a number with what it counts, in the plural but for one."""
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


def spread(steps: int, most: int) -> list[int]:
    """Return at most so many of the steps of a run, evenly spread, the first and the last among them."""
    chosen = min(most, steps)
    return [round(index * (steps - 1) / max(1, chosen - 1)) for index in range(chosen)]
