"""The parameter groups of a run, in print and in a file: how many parameters, which rate and decay, trained when."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from framework.length import RunLength
from framework.tasks.base import Task

MOST_ROWS = 14  # in print
COLUMNS = ("group", "tensors", "parameters", "rate", "decay", "trained")


@dataclass(frozen=True)
class Group:
    """A parameter group and its learning rate.

    Args:
        name: Such as `backbone/decay`.
        base: Its base rate.
        decay: Its weight decay.
        tensors: How many parameters it has.
        parameters: How many elements those have.
        trained: How many of those are ever trained.
        periods: When it is trained: optimizer steps from, and up to but without; no end: infinity.
        factor: What its base rate is multiplied with at each optimizer step; 0 while it is frozen.
    """

    name: str
    base: float
    decay: float
    tensors: int
    parameters: int
    trained: int
    periods: tuple[tuple[int, float], ...]
    factor: Callable[[int], float]


def group_list(task: Task, length: RunLength) -> list[Group]:
    """Return the parameter groups of a task in a run of that length.

    Raises:
        ConfigError: A part is named that there is not, an unfreezing would never come, or nothing is trained.
    """
    plan = task.plan_training(length)
    groups, sizes = task.partition(plan), {name: p.numel() for name, p in task.named_parameters()}
    optimizer = task.build_optimizer(groups)
    factors: dict[tuple[bool, ...], Callable[[int], float]] = {}
    for group in groups:  # those of one history share a factor
        factors.setdefault(group.history, task.factor(group, plan, length.steps))
    return [
        Group(
            group.name,
            float(built["lr"]),
            float(built.get("weight_decay", 0.0)),
            len(group.names),
            sum(sizes[name] for name in group.names),
            sum(sizes[name] for name in group.names) if any(group.history) else 0,
            tuple(plan.periods(group.history)),
            factors[group.history],
        )
        for built, group in zip(optimizer.param_groups, groups, strict=True)
    ]


def group_lines(groups: Sequence[Group], length: RunLength) -> list[str]:
    """Write the groups as the lines of a table; of many, the first and the last."""
    rows = [group_row(group, length) for group in groups]
    if len(rows) > MOST_ROWS:
        rows = [*rows[: MOST_ROWS // 2], ["..."] + [""] * (len(COLUMNS) - 1), *rows[-MOST_ROWS // 2 :]]
    return table([list(COLUMNS), *rows])


def group_row(group: Group, length: RunLength) -> list[str]:
    """Write a group as the cells of a row."""
    size = f"{group.parameters:,}"
    return [group.name, str(group.tensors), size, f"{group.base:.3g}", f"{group.decay:.3g}", _when(group, length)]


def _when(group: Group, length: RunLength) -> str:
    """Say when a group is trained."""
    if group.periods == ((0, inf),):
        return "from the start"
    said = []
    for first, end in group.periods:
        begin = length.moment(first)
        where = f"from step {first} (epoch {begin.epoch}{'' if first == length.start(begin.epoch) else ', inside'})"
        said.append(where if end == inf else f"{where if first else 'from the start'} to step {int(end) - 1}")
    return ", ".join(said) or "never"


def group_facts(groups: Sequence[Group], length: RunLength) -> list[dict[str, Any]]:
    """Return the groups as plain rows, for files and loggers."""
    cells = ((g.name, g.tensors, g.parameters, g.base, g.decay, _when(g, length)) for g in groups)
    return [dict(zip(COLUMNS, row, strict=True)) for row in cells]


def write_groups(facts: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the groups as a table, CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(facts)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Write rows as lines whose columns begin below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
