"""Depth data that is published with images to train and to test on, and none to validate on."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

from jsonargparse.typing import OpenUnitInterval

from framework.data.datamodule import SplitName
from framework.data.depth import DepthData
from framework.data.image_folder import hold_out
from framework.data.loader import Samples
from framework.errors import DataError

Part = Literal["train", "test"]


class GroupedSamples(Samples, Protocol):
    """Samples that say which place each was taken in.

    Attributes:
        groups: The scene, drive or sequence of each sample: frames of one look alike.
    """

    groups: list[str]

    def select(self, indices: Sequence[int]) -> Self:
        """Return some of the samples, in this order."""


class BenchmarkDepth(DepthData):
    """Base of depth data that is published without a validation split.

    What is published about such data validates on its test split, and so does this. A checkpoint that is chosen by it
    flatters the result; `val_fraction` holds out a part of the training data instead.

    Args:
        val_fraction: Share of the training scenes (drives, sequences) that is held out for validation, in (0, 1),
            chosen by their names alone. Null: validation is the test split, and there is no other test split.
    """

    channels = 3

    group: ClassVar[str] = "scene"  # what the groups of samples are called

    def __init__(self, val_fraction: OpenUnitInterval | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.val_fraction: float | None = val_fraction

    @abstractmethod
    def published(self, part: Part) -> GroupedSamples:
        """Return all images to train on, or all to test on."""

    @cached_property
    def parts(self) -> dict[SplitName, GroupedSamples]:
        """The splits that there are."""
        train, test = self.published("train"), self.published("test")
        if self.val_fraction is None:
            return {"train": train, "val": test}
        held_out = held_out_groups(train.groups, self.val_fraction, self.group)
        chosen: dict[bool, list[int]] = {False: [], True: []}
        for index, group in enumerate(train.groups):
            chosen[group in held_out].append(index)
        return {"train": train.select(chosen[False]), "val": train.select(chosen[True]), "test": test}

    def split(self, name: SplitName) -> GroupedSamples | None:
        """Return a split; None for `test` if it serves for validation."""
        return self.parts.get(name)


def held_out_groups(groups: Sequence[str], fraction: float, what: str) -> set[str]:
    """Choose a fixed share of the groups for validation.

    Raises:
        DataError: There are fewer than two.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        raise DataError(
            f"data.val_fraction: validation takes a whole {what}, so that it shares none with training, but there is "
            f"only {', '.join(names) or 'none'} to train on: leave it out"
        )
    return {path.as_posix() for path in hold_out([Path(name) for name in names], fraction)}
