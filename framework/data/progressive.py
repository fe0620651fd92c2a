"""Progressive training: image size, augmentation and regularisation in stages, as a pure function of the epoch."""

from bisect import bisect_right
from collections.abc import Sequence
from copy import copy
from itertools import accumulate, pairwise
from math import ceil, inf
from typing import Literal, NamedTuple

from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch import Trainer

from framework.errors import ConfigError

RANGES = {
    "magnitude": (0, 30, "in [0, 30]"),
    "mixup": (0, inf, "at least 0"),
    "cutmix": (0, inf, "at least 0"),
    "dropout": (0, 0.999, "in [0, 1)"),
    "drop_path": (0, 0.999, "in [0, 1)"),
    "batch_size": (1, inf, "at least 1"),
}


class Stage(NamedTuple):
    """What a stage of training asks for; None where it leaves things as they are configured.

    It travels with the keys of the samples, so that loader processes need no state to know it.

    Args:
        image_size: Height and width of what the network is trained on.
        magnitude: Strength of RandAugment, in [0, 30].
        mixup: Alpha of mixup; 0: none.
        cutmix: Alpha of CutMix; 0: none.
        dropout: Probability of dropping a feature, in [0, 1).
        drop_path: Rate of stochastic depth of the deepest layer, in [0, 1).
        batch_size: Samples a step and process.
    """

    image_size: tuple[int, int] | None = None
    magnitude: float | None = None
    mixup: float | None = None
    cutmix: float | None = None
    dropout: float | None = None
    drop_path: float | None = None
    batch_size: int | None = None


class Progressive:
    """Small, weakly augmented images first, larger and more strongly augmented ones later.

    Tan and Le, EfficientNetV2, arXiv 2104.00298, section 4. Each list has a value for every stage; what is not listed
    stays as it is configured. Evaluation always sees `data.image_size`.

    Args:
        image_size: Height and width of training images, rising; a number for a square.
        magnitude: Strength of RandAugment, in [0, 30].
        mixup: Alpha of mixup; 0: none.
        cutmix: Alpha of CutMix; 0: none.
        dropout: Probability of dropping a feature in the head, in [0, 1).
        drop_path: Rate of stochastic depth of the deepest layer, in [0, 1).
        batch_size: Samples a step and process; `by_area`: as many of the smaller images as have the pixels of
            `data.batch_size` of the largest. The learning rate does not follow.
        lengths: How long the stages last, in proportion to each other; null: equally long.

    Raises:
        ConfigError: The lists contradict each other, or a value is out of range.
    """

    def __init__(
        self,
        image_size: list[PositiveInt | tuple[PositiveInt, PositiveInt]] | None = None,
        magnitude: list[float] | None = None,
        mixup: list[float] | None = None,
        cutmix: list[float] | None = None,
        dropout: list[float] | None = None,
        drop_path: list[float] | None = None,
        batch_size: list[PositiveInt] | Literal["by_area"] | None = None,
        lengths: list[PositiveFloat] | None = None,
    ) -> None:
        self.image_size = None if image_size is None else [_pair(size) for size in image_size]
        self.magnitude, self.mixup, self.cutmix = magnitude, mixup, cutmix
        self.dropout, self.drop_path = dropout, drop_path
        self.by_area = batch_size == "by_area"
        self.batch_size: list[int] | None = None if isinstance(batch_size, str) else batch_size
        if isinstance(batch_size, str) and (not self.by_area or image_size is None):
            raise ConfigError(
                f"data.progressive: batch_size is a number for each stage, or by_area if image_size is listed, "
                f"got {batch_size}"
            )
        self.count = self._count_stages(lengths)
        self.lengths: list[float] = lengths or [1.0] * self.count
        self._check_values()

    def _lists(self) -> dict[str, Sequence[object]]:
        """Return what is scheduled, by name."""
        values = {name: getattr(self, name) for name in Stage._fields}
        return {name: listed for name, listed in values.items() if listed is not None}

    def _count_stages(self, lengths: list[float] | None) -> int:
        lists = {**self._lists(), **({} if lengths is None else {"lengths": lengths})}
        counts = {name: len(listed) for name, listed in lists.items()}
        if not self._lists() or 0 in counts.values():
            raise ConfigError("data.progressive: nothing is scheduled: give image_size, magnitude or another list")
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{name} has {count}" for name, count in counts.items())
            raise ConfigError(f"data.progressive: every list needs a value for each stage, but {said}")
        return next(iter(counts.values()))

    def _check_values(self) -> None:
        for name, (lowest, highest, said) in RANGES.items():
            listed = getattr(self, name) or []
            if not all(lowest <= value <= highest for value in listed):
                raise ConfigError(f"data.progressive: {name} is {said}, got {listed}")
        if min(self.lengths) <= 0:
            raise ConfigError(f"data.progressive: lengths are positive, got {self.lengths}")
        for one, two in pairwise(self.image_size or []):
            if one == two or one[0] > two[0] or one[1] > two[1]:
                raise ConfigError(
                    f"data.progressive: image_size must rise from stage to stage, got {_said(one)} before {_said(two)}"
                    + ("; a stage is made longer by `lengths`" if one == two else "")
                )

    # What is asked of a plan.

    def starts(self, epochs: int) -> list[int]:
        """Return the first epoch, from 0 on, of every stage in a run of so many epochs."""
        ends = list(accumulate(self.lengths))
        return [0, *(ceil(epochs * end / ends[-1] - 1e-9) for end in ends[:-1])]  # 1e-9: rounding is no epoch

    def at(self, epoch: int, epochs: int) -> Stage:
        """Return the stage of an epoch, from 0 on, in a run of so many."""
        return self.stages()[bisect_right(self.starts(epochs), epoch) - 1]

    def stages(self) -> list[Stage]:
        """Return all stages in order."""
        return [Stage(**{name: listed[i] for name, listed in self._lists().items()}) for i in range(self.count)]  # type: ignore[arg-type]

    def check(self, epochs: int) -> None:
        """Refuse a run that is too short.

        Raises:
            ConfigError: A stage would have no epoch.
        """
        starts = [*self.starts(epochs), epochs]
        empty = [number for number, (one, two) in enumerate(pairwise(starts), 1) if one >= two]
        if empty:
            raise ConfigError(
                f"data.progressive: {epochs} epochs are too few for {self.count} stages of lengths "
                f"{', '.join(f'{length:g}' for length in self.lengths)}: stage {empty[0]} would have none; raise "
                "trainer.max_epochs"
            )

    def with_batch_size(self, batch_size: int) -> "Progressive":
        """Return the plan with numbers for `by_area`, if it says so; `batch_size` is that of the largest images."""
        if not self.by_area or self.image_size is None:
            return self
        plan, (height, width) = copy(self), self.image_size[-1]
        plan.batch_size = [batch_size * height * width // (rows * columns) for rows, columns in self.image_size]
        return plan


def recount_batches(trainer: Trainer, batches: int) -> None:
    """Tell Lightning how many batches the epoch that begins has; it counts them once, when training starts.

    Args:
        trainer: The trainer, in training.
        batches: Batches of the epoch, the trainer's limit considered.
    """
    loop = trainer.fit_loop
    loop.max_batches = batches
    progress = loop.epoch_loop.batch_progress
    if loop.restarting and progress.is_last_batch:  # the checkpoint's epoch is over, whatever this one counts
        progress.current.completed = max(progress.current.completed, batches)
    if loop._combined_loader is not None and loop._data_fetcher is not None:
        loop._combined_loader.limits = [batches]  # read when an epoch begins
        loop._data_fetcher.length = batches  # where a run goes on, it was read before the epoch was known
    interval = trainer.val_check_interval
    if isinstance(interval, float) and trainer.val_check_batch is not None:
        trainer.val_check_batch = max(1, int(batches * interval))


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _said(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
