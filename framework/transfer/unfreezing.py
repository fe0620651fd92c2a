"""Progressive unfreezing that resumes, runs in several processes, and is known before the first step."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import ceil, isfinite
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from framework.errors import ConfigError
from framework.length import RunLength, run_length
from framework.schedules import Courses, Moment
from framework.transfer.distributed import before_toggle, rewrap
from framework.transfer.plan import TrainingPlan
from framework.transfer.selection import Parts, Selection, select

PLACE = "ProgressiveUnfreezing: schedule"


class ProgressiveUnfreezing(Callback):
    """Train the head first, then more and more of the backbone, from its output to its input.

    `{0: head, 5: 1, 10: all}` trains the head alone, from epoch 5 on the last stage of the backbone with it, and from
    epoch 10 on everything: ULMFiT's gradual unfreezing (Howard and Ruder, arXiv 1801.06146, section 3.3). With two
    entries, `{0: head, 5: all}`, it is feature extraction, then fine-tuning. Keys are epochs, or, if one lies between 0
    and 1, fractions of the run. A value is what is trained from then on: a number of stages from the output of the
    backbone on, with the head; or the words of docs/transfer.md. What `model.freeze` names stays frozen.

    Which parameters are trained follows from the optimizer step alone, so a resumed run trains what an unbroken one
    would. The optimizer has all parameters in groups from step 0 on; frozen ones have no gradient, so that it neither
    moves nor decays them and keeps nothing of them. Lightning's `BaseFinetuning` (2.6) freezes again what was unfrozen
    when it resumes (#21901), and under DDP trains what it unfreezes apart on every process (#20340).

    Args:
        schedule: What is trained, by the epoch or the fraction of the run from which on it is; begins with 0.
        warmup: Fraction of all optimizer steps over which the learning rate of what has been unfrozen rises, in [0, 1).

    Raises:
        ConfigError: The schedule does not begin with 0, does not rise, or mixes epochs and fractions; or `warmup` is
            out of range.
    """

    def __init__(self, schedule: dict[int | float, Selection], warmup: float = 0.0) -> None:
        self.entries = _sorted_entries(schedule)
        self.by_fraction = any(0 < key < 1 for key, _ in self.entries)
        odd = [key for key, _ in self.entries if key >= 1 and (self.by_fraction or not key.is_integer())]
        if odd:
            raise ConfigError(
                f"{PLACE}: keys are whole epochs, or all of them fractions of the run in [0, 1), got {odd[0]:g} "
                f"among {', '.join(f'{key:g}' for key, _ in self.entries)}"
            )
        if not 0 <= warmup < 1:
            raise ConfigError(f"ProgressiveUnfreezing: warmup is a fraction of the run in [0, 1), got {warmup}")
        self.warmup = warmup
        self._plan: TrainingPlan | None = None
        self._sizes: Mapping[str, int] = {}
        self._step = 0  # that the run goes on from
        self._moved: set[str] = set()  # what the optimizer had a state of by then

    # What is known before the first step.

    def plan(self, parts: Parts, frozen: frozenset[str], length: RunLength) -> TrainingPlan:
        """Return what is trained when.

        Args:
            parts: The network.
            frozen: Names of the parameters that are frozen for good.
            length: How long the run is.

        Raises:
            ConfigError: An entry names no part, changes nothing, or would never come.
        """
        trained: list[frozenset[str]] = []
        for key, selection in self.entries[: 1 if length.is_trial else None]:
            trained.append(select(parts, selection, "output", f"{PLACE}: {key:g}") - frozen)
            if not trained[-1]:
                raise ConfigError(f"{PLACE}: {key:g}: the words {_said(selection) or '[]'} leave nothing to train")
            if len(trained) > 1 and trained[-1] == trained[-2]:
                good = (
                    f", as {len(frozen)} parameters are frozen for good (model.freeze, model.adapter)" if frozen else ""
                )
                raise ConfigError(
                    f"{PLACE}: {key:g}: {_said(selection)} trains just what is trained before{good}: leave the entry "
                    "out, or change it"
                )
        keys = [key for key, _ in self.entries[: len(trained)]]
        starts = [self._start(key, length) for key in keys]
        for (one, start), (two, following) in pairwise(zip(keys, starts, strict=True)):
            if start == following:
                raise ConfigError(f"{PLACE}: {one:g} and {two:g} both begin at step {start}: the run is too short")
        return TrainingPlan(tuple(starts), tuple(trained), round(self.warmup * length.steps))

    def _start(self, key: float, length: RunLength) -> int:
        """Return the optimizer step at which an entry begins."""
        if self.by_fraction:
            return ceil(key * length.steps - 1e-9)  # 1e-9: rounding is no step
        if key >= max(1, length.epochs):
            raise ConfigError(
                f"{PLACE}: epoch {key:g} never comes, as the run has {length.epochs} epochs, from 0 to "
                f"{length.epochs - 1}: raise trainer.max_epochs, or begin earlier"
            )
        return length.start(int(key))

    def schedules(self) -> Courses:
        """Return how much is trained, for `framework schedule show`."""

        def trained(moment: Moment) -> float:
            plan = self._plan
            return sum(self._sizes[name] for name in plan.trained[plan.period(moment.step)]) / 1e6 if plan else 0.0

        return {"trained parameters, M": trained}

    def prepare(self, plan: TrainingPlan, sizes: Mapping[str, int]) -> None:
        """Take the plan of a run, and how many elements each parameter has."""
        self._plan, self._sizes = plan, sizes

    # While it trains.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the task who decides what is trained.

        Raises:
            ConfigError: There are two such callbacks, or the module is no task of this framework.
        """
        if not hasattr(pl_module, "set_trained"):
            raise ConfigError(f"ProgressiveUnfreezing needs a task of this framework, not {type(pl_module).__name__}")
        task: Any = pl_module
        task.unfreezing = unfreezing_among(trainer.callbacks)  # type: ignore[attr-defined]

    def going_on_from(self, checkpoint: dict[str, Any]) -> None:
        """Take the step of the checkpoint that the run goes on from: the network is made ready before it is loaded."""
        self._step = int(checkpoint["global_step"])
        self._moved = {name for state in checkpoint["optimizer_states"] for name in state["state"]}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Likewise, where nobody told before."""
        self.going_on_from(checkpoint)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze before processes are joined and states loaded: both look at what is trained."""
        task: Any = pl_module
        task.plan_training(run_length(trainer, getattr(trainer, "datamodule", None), task.past))
        self._apply(trainer, task, self._step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Also where a run goes on inside an epoch, whose start no hook tells of."""
        self._apply(trainer, pl_module, trainer.global_step)
        task: Any = pl_module
        closed = self._moved & (task.parts.all - task.trained)
        if closed and trainer.is_global_zero:  # as when fractions are of a longer run than before
            print(f"note: {len(closed)} parameters that were trained before are frozen from step {self._step} on")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Unfreeze what is due."""
        if self._apply(trainer, pl_module, trainer.global_step) and trainer.is_global_zero:
            print(f"from step {trainer.global_step} on, {self._said(trainer.global_step)}")

    def _apply(self, trainer: Trainer, task: Any, step: int) -> bool:
        """Train what the plan says; only compares, and returns False, if that is trained already."""
        assert self._plan is not None
        wanted = self._plan.trained[self._plan.period(step)]
        if task.trained is wanted:
            return False
        before_toggle(task)
        if not task.set_trained(wanted):
            return False
        rewrap(trainer)
        return True

    def _said(self, step: int) -> str:
        """Say what is trained from a step on."""
        assert self._plan is not None
        period = self._plan.period(step)
        trained = sum(self._sizes[name] for name in self._plan.trained[period])
        share = f"{trained / 1e6:.3g} M of {sum(self._sizes.values()) / 1e6:.3g} M parameters"
        return f"the run trains {_said(self.entries[period][1])}: {share}"


def unfreezing_among(callbacks: Iterable[Any]) -> ProgressiveUnfreezing | None:
    """Return the callback that says what is trained when, if there is one.

    Raises:
        ConfigError: There are two.
    """
    found = [callback for callback in callbacks if isinstance(callback, ProgressiveUnfreezing)]
    if len(found) > 1:
        raise ConfigError("trainer.callbacks: ProgressiveUnfreezing stands twice: write one schedule")
    return found[0] if found else None


def _sorted_entries(schedule: Mapping[int | float, Selection]) -> list[tuple[float, Selection]]:
    """Return the entries by key; keys that came as text, from the command line, as numbers."""
    try:
        entries = [(float(key), selection) for key, selection in schedule.items()]
    except (TypeError, ValueError):
        keys = ", ".join(map(str, schedule))
        raise ConfigError(f"{PLACE}: keys are epochs or fractions of the run, got {keys}") from None
    if not all(isfinite(key) for key, _ in entries):
        raise ConfigError(f"{PLACE}: keys are epochs or fractions of the run, got {', '.join(map(str, schedule))}")
    if not entries or entries[0][0] != 0:
        raise ConfigError(f"{PLACE}: it says what is trained from the start, so its first key is 0, such as 0: head")
    for (one, _), (two, _) in pairwise(entries):
        if two <= one:
            raise ConfigError(f"{PLACE}: keys rise, got {two:g} after {one:g}")
    return entries


def _said(selection: Selection) -> str:
    """Write a selection."""
    if isinstance(selection, int):
        last = "stage" if selection == 1 else f"{selection} stages"
        return f"the head with the last {last} of the backbone" if selection else "the head"
    return ", ".join(map(str, selection)) if isinstance(selection, list) else str(selection)
