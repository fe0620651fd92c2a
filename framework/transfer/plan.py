"""What is trained when: a pure function of the optimizer step, known before the first one."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import inf

WARMUP_START = 0.01  # of the rate, at the first step of what was unfrozen


@dataclass(frozen=True)
class TrainingPlan:
    """The names of the trained parameters, period by period.

    Args:
        starts: The first optimizer step of each period; the first is 0, and they rise.
        trained: What is trained in each.
        warmup: Optimizer steps over which the rate of what has been unfrozen rises to its full height; 0: none.
    """

    starts: tuple[int, ...]
    trained: tuple[frozenset[str], ...]
    warmup: int = 0

    def period(self, step: int) -> int:
        """Return the number of the period of an optimizer step, both from 0 on."""
        return bisect_right(self.starts, step) - 1

    def history(self, name: str) -> tuple[bool, ...]:
        """Tell for each period whether a parameter is trained in it."""
        return tuple(name in names for names in self.trained)

    def periods(self, history: tuple[bool, ...]) -> Iterator[tuple[int, float]]:
        """Give the optimizer steps in which parameters with such a history are trained: from, and up to but without."""
        bounds = [*self.starts, inf]
        edges = [
            step
            for step, (before, now) in zip(bounds, pairwise([False, *history, False]), strict=True)
            if now != before
        ]
        yield from zip(map(int, edges[::2]), edges[1::2], strict=True)

    def factor(self, history: tuple[bool, ...]) -> Callable[[int], float]:
        """Return what the rate of parameters with such a history is multiplied with at each optimizer step.

        0 while they are frozen, 1 while they are trained, and rising in a straight line after they were unfrozen. What
        is trained from step 0 on warms up with the schedule alone.
        """
        changes = zip(self.starts[1:], pairwise(history), strict=True)
        opened = [start for start, (before, now) in changes if now and not before]

        def factor(step: int) -> float:
            if not history[self.period(step)]:
                return 0.0
            since = bisect_right(opened, step)
            if not since or step - opened[since - 1] >= self.warmup:
                return 1.0
            return WARMUP_START + (1 - WARMUP_START) * (step - opened[since - 1]) / self.warmup

        return factor
