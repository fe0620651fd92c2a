"""The course of a run before it runs: its epochs and stages, and everything that is scheduled, step by step."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from typing import Any

from lightning.pytorch import Trainer

from framework.schedules import Moment, Schedule
from framework.tasks.base import Task, total_steps

Value = float | int | tuple[int, int] | None
"""A setting: a number, or a height and width; None where the experiment has no such thing."""


@dataclass(frozen=True)
class Group:
    """A parameter group and its learning rate.

    Args:
        name: Such as `backbone/decay`.
        base: Its base rate.
        parameters: How many it has.
        trained: How many of those are not frozen.
    """

    name: str
    base: float
    parameters: int
    trained: int


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
        epoch_steps: Optimizer steps of each epoch.
        courses: What else is scheduled, by name: the value at each moment.
    """

    name: str
    processes: int
    schedule: Schedule
    groups: list[Group]
    spans: list[Span]
    epoch_steps: list[int]
    courses: dict[str, Callable[[Moment], float]]

    @cached_property
    def ends(self) -> list[int]:
        """One past the last step of each epoch."""
        return list(accumulate(self.epoch_steps))

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.ends[-1]

    @property
    def epochs(self) -> int:
        """Epochs of the whole run, of which the last may be cut short."""
        return len(self.epoch_steps)

    def moment(self, step: int) -> Moment:
        """Return the moment of an optimizer step, from 0 on."""
        return Moment(step, self.steps, bisect_right(self.ends, step), self.epochs)

    @property
    def length(self) -> str:
        """How long the run is, in words."""
        shared = f", in {count_of(self.processes, 'process')}" if self.processes > 1 else ""
        return f"{count_of(self.epochs, 'epoch')}, {count_of(self.steps, 'optimizer step')}{shared}"

    def factor(self, step: int) -> float:
        """Return what every base rate is multiplied with at a step."""
        return self.schedule.factor(step, self.steps)

    @cached_property
    def peak(self) -> int:
        """The first step with the highest learning rate."""
        return max(range(self.steps), key=self.factor)


def timeline_of(name: str, trainer: Trainer, task: Task, data: Any, others: Iterable[Any]) -> Timeline:
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
    steps = total_steps(trainer, data)
    epochs = list(_epochs(trainer, task, data, steps))
    owners = [task, data, *others]
    courses = {key: value for owner in owners for key, value in getattr(owner, "schedules", dict)().items()}
    return Timeline(
        name,
        trainer.world_size,
        task.schedule,
        _groups(task),
        list(_spans(epochs)),
        [span.steps[1] - span.steps[0] for span in epochs],
        courses,
    )


def _epochs(trainer: Trainer, task: Task, data: Any, steps: int) -> Iterator[Span]:
    """Give each epoch of a run of so many steps as a span of its own."""
    whole = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else None
    epoch, begin = 0, 0
    while begin < steps:
        batches = data.train_batches(trainer.world_size, epoch, whole, trainer.limit_train_batches)
        end = min(steps, begin - (-batches // trainer.accumulate_grad_batches))
        yield Span((epoch, epoch + 1), (begin, end), batches, _settings(task, data, epoch, whole))
        epoch, begin = epoch + 1, end


def _spans(epochs: list[Span]) -> Iterator[Span]:
    """Join epochs with the same settings."""
    for (batches, _), together in groupby(epochs, key=lambda span: (span.batches, span.settings)):
        joined = list(together)
        first, last = joined[0], joined[-1]
        yield Span((first.epochs[0], last.epochs[1]), (first.steps[0], last.steps[1]), batches, first.settings)


def _groups(task: Task) -> list[Group]:
    return [
        Group(
            group["name"],
            float(group["lr"]),
            sum(parameter.numel() for parameter in group["params"]),
            sum(parameter.numel() for parameter in group["params"] if parameter.requires_grad),
        )
        for group in task.build_optimizer().param_groups
    ]


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
