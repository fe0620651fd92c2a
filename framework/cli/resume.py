"""Which checkpoint a run goes on from."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from framework.cli.differences import check_changes, is_same_training
from framework.cli.network import check_network
from framework.errors import ConfigError
from framework.run.checkpoint import read_checkpoint
from framework.run.checkpoint_file import broken_record
from framework.run.checkpoints import BEST, Checkpoints
from framework.run.folder import ID_VARIABLE, RunFolder
from framework.run.lock import lock_folder
from framework.run.unfinished_epoch import GATHERED
from framework.tasks.base import Task

FROM_VARIABLE = "FRAMEWORK_GOES_ON_FROM"  # tells the processes that a run starts what it goes on from
RESUME = ("auto", "must", "never")


@dataclass(frozen=True)
class Candidate:
    """A checkpoint in a run's folder.

    Args:
        path: The file.
        step: Optimizer steps taken.
        epochs: Epochs ended.
        written: When, in nanoseconds: of one step, what was written later knows more.
    """

    path: Path
    step: int
    epochs: int
    written: int


@dataclass
class Found:
    """The checkpoints in a folder.

    Args:
        whole: From which training can go on, the most advanced first.
        broken: Those that are damaged, with the reason.
        unloadable: Those that are whole, but hold more than tensors and plain types, with the reason.
        gathered: Those written between two optimizer steps: gradients are not in them.
    """

    whole: list[Candidate] = field(default_factory=list)
    broken: list[tuple[Path, str]] = field(default_factory=list)
    unloadable: list[tuple[Path, str]] = field(default_factory=list)
    gathered: list[Path] = field(default_factory=list)


@dataclass
class Start:
    """Where a run begins.

    Args:
        run_id: What the run is called.
        checkpoint: What it goes on from; None: from the start.
        is_own: It is the run's own, in the same folder.
        lines: What to tell people.
    """

    run_id: str
    checkpoint: Path | None = None
    is_own: bool = False
    lines: list[str] = field(default_factory=list)


def settle(run: RunFolder, resume: str, checkpoint: str | None) -> tuple[str, Path | None]:
    """Settle what was asked for, and with `must` which run is meant.

    Args:
        run: The run's folder; it gets the id of the run that goes on.
        resume: `auto`, `must` or `never`.
        checkpoint: `--ckpt_path`: a file, or `last`.

    Returns:
        `auto`, `must` or `never`, and the checkpoint to begin a new run with.

    Raises:
        ConfigError: There is no such run, or the words contradict each other.
    """
    if checkpoint == "last":
        if resume == "never":
            raise ConfigError("--ckpt_path last means --resume must, and --resume never is given: leave one out")
        resume, checkpoint = "must", None
    if checkpoint in ("best", "hpc"):
        raise ConfigError(f"--ckpt_path: fit goes on from a file, or from the `last` of a run, not from `{checkpoint}`")
    if resume == "must" and not run.is_found_again:
        run.id = newest_run(run.root / run.name)
    return resume, None if checkpoint is None else Path(checkpoint)


def newest_run(root: Path) -> str:
    """Return the name of the folder in `root` with the newest checkpoint.

    Raises:
        ConfigError: There is none.
    """
    found = list(root.glob("*/checkpoints/*.ckpt"))
    if not found:
        raise ConfigError(f"--resume must: there is nothing to go on from in {root}: no run there has a checkpoint")
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent.parent.name


def choose_start(
    run: RunFolder, trainer: Trainer, resume: str, given: Path | None, config: dict[str, Any] | None = None
) -> Start:
    """Choose where a run begins; the first process does, and all others learn of it.

    Args:
        run: The run's folder; if it is there, it is locked from now on.
        trainer: The trainer.
        resume: `auto`, `must` or `never`.
        given: A checkpoint to begin a new run with.
        config: The resolved experiment, as plain types; None: do not ask whether it is that of the folder.

    Raises:
        ConfigError: The folder is in use, or has no whole checkpoint, or must have one; or it may not be there; or it
            is of another experiment, and nobody named it.
    """
    if ID_VARIABLE in os.environ and not trainer.is_global_zero:  # started by the first process, which has chosen
        told = Path(os.environ[FROM_VARIABLE]) if os.environ.get(FROM_VARIABLE) else None
        return Start(run.id, told, is_own=told is not None and told.parent == run.checkpoints)
    environment: Any = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.world_size > 1 and environment is not None and environment.creates_processes_externally:
        start = _choose_together(run, trainer, resume, given, config)
    else:
        start = _choose(run, resume, given, config)
    os.environ[FROM_VARIABLE] = str(start.checkpoint or "")
    return start


def _choose_together(
    run: RunFolder, trainer: Trainer, resume: str, given: Path | None, config: dict[str, Any] | None
) -> Start:
    """Choose in the first process, and tell the others, also of a refusal, so that none waits for another."""
    trainer.strategy.setup_environment()  # Lightning does it later, and then finds it done
    outcome: Start | str | None = None
    if trainer.is_global_zero:
        try:
            outcome = _choose(run, resume, given, config)
        except ConfigError as error:
            outcome = str(error)
    outcome = trainer.strategy.broadcast(outcome)
    if not isinstance(outcome, Start):
        raise ConfigError(str(outcome))
    if outcome.run_id != run.id:
        raise ConfigError(f"run.id: one process has {outcome.run_id}, another {run.id}: give the same --run.id to all")
    return outcome


def _choose(run: RunFolder, resume: str, given: Path | None, config: dict[str, Any] | None) -> Start:
    if resume == "never" or not run.path.is_dir():
        if run.path.exists():
            raise ConfigError(f"run.id: {run.path} exists already: give another --run.id")
        if resume == "must":
            raise ConfigError(f"--resume must: there is nothing to go on from: {run.path} does not exist")
        return Start(run.id, given)
    lock_folder(run.path)
    _check_experiment(run, config)
    _clear(run)
    found = candidates(run.checkpoints)
    if found.whole:
        return _own_start(run, found, given)
    _refuse_unusable(found)
    lacks = f"{run.path} has no checkpoint"
    if found.gathered:
        lacks = f"{found.gathered[0]}, all there is, was written between two optimizer steps, without the gradients"
    if resume == "must":
        raise ConfigError(f"--resume must: there is nothing to go on from: {lacks}")
    return Start(run.id, given, lines=[] if given else [f"resume   {lacks}: from the start"])


def _check_experiment(run: RunFolder, config: dict[str, Any] | None) -> None:
    """Refuse to go on with what is there because a launcher's job has trained something else before.

    Raises:
        ConfigError: It has.
    """
    before = run.newest_config()
    if run.is_named or config is None or before is None or is_same_training(before, config):
        return
    raise ConfigError(
        f"run.id: {run.path} is of another experiment, which the same job has begun: give each run of a job its own "
        f"--run.id, such as {run.id}-2; to go on with that one all the same, --run.id {run.id}"
    )


def _own_start(run: RunFolder, found: Found, given: Path | None) -> Start:
    """Go on from the most advanced of a run's own checkpoints.

    Raises:
        ConfigError: Another one of them is given.
    """
    newest = found.whole[0].path
    own = given is not None and given.resolve().is_relative_to(run.path.resolve())
    if own and given is not None and given.resolve() != newest.resolve():
        raise ConfigError(
            f"--ckpt_path: {given} is of this very run, which goes on from {newest}: leave --ckpt_path out, or begin a "
            "new run from it with another --run.id"
        )
    lines = [_set_aside(path, reason) for path, reason in found.broken]
    lines += [f"resume   {path} is left out: {reason}" for path, reason in found.unloadable]
    if given is not None and not own:
        lines.append(f"resume   not from {given}: this run has got further than its start")
    return Start(run.id, newest, is_own=True, lines=lines)


def _refuse_unusable(found: Found) -> None:
    """Refuse to begin anew over checkpoints that people may want to save.

    Raises:
        ConfigError: There are some.
    """
    if found.unloadable:
        named = ", ".join(f"{path}: {reason}" for path, reason in found.unloadable)
        raise ConfigError(f"no checkpoint of this run can be loaded: {named}; give another --run.id")
    if found.broken:
        named = ", ".join(f"{path} ({path.stat().st_size} bytes): {reason}" for path, reason in found.broken)
        raise ConfigError(
            f"no checkpoint of this run is whole: {named}; delete them to start it anew, or give another --run.id"
        )


def go_on(
    checkpoint: Path, trainer: Trainer, model: Task, config: dict[str, Any], allowed: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Check that a run may go on from a checkpoint, and let callbacks prepare for it.

    Args:
        checkpoint: The file.
        trainer: The trainer.
        model: The task.
        config: The resolved experiment, as plain types.
        allowed: Keys in which it may differ from that of the checkpoint.

    Returns:
        The checkpoint, its tensors on disk, and what to tell people.

    Raises:
        ConfigError: It may not.
    """
    content, source = read_checkpoint(checkpoint), str(checkpoint)
    _check_complete(content, source)
    processes = (content.get("processes", 1), trainer.world_size)
    lines = check_changes(content.get("config") or config, config, allowed, at_epoch_end(content), processes, source)
    check_network(content, model, source)
    most, ended = trainer.max_epochs, epochs_ended(content)
    if most is not None and 0 <= most < ended:  # the run is complete, which Lightning would call an error
        trainer.fit_loop.max_epochs = ended
    for callback in (model, *trainer.callbacks):  # type: ignore[attr-defined]
        if hasattr(callback, "going_on_from"):
            callback.going_on_from(content)
    return content, [f"resume   {source}: {described(content)}", *(f"resume   {line}" for line in lines)]


def _check_complete(content: dict[str, Any], source: str) -> None:
    """Refuse a checkpoint that holds less than it takes to train on.

    Raises:
        ConfigError: It does.
    """
    if "optimizer_states" not in content:
        raise ConfigError(
            f"--ckpt_path: {source} holds weights alone, without the state of the optimizer, and a run cannot go on "
            "from it: give one that was written without save_weights_only, such as last.ckpt"
        )
    if content.get(GATHERED):
        raise ConfigError(
            f"--ckpt_path: {source} was written between two optimizer steps (trainer.accumulate_grad_batches), without "
            "the gradients gathered by then: give last.ckpt or previous.ckpt; for validate, test and predict it is fine"
        )


def ended_early(checkpoint: dict[str, Any], config: dict[str, Any]) -> bool:
    """Tell whether a run had ended before its last epoch, as early stopping does, under the same experiment."""
    state = checkpoint.get("callbacks", {}).get(Checkpoints.__name__, {})
    return bool(state.get("ended_early")) and is_same_training(checkpoint.get("config") or {}, config)


def candidates(folder: Path) -> Found:
    """Look at every checkpoint in a folder; only the first and the best are read as a whole."""
    found, able = Found(), list[Candidate]()
    for path in sorted(folder.glob("*.ckpt")):
        try:
            able += _candidate(path, found)
        except (ConfigError, KeyError, TypeError) as error:
            reason = broken_record(path)
            if reason is not None:
                found.broken.append((path, reason))
            elif "no whole checkpoint" in str(error):  # others are of something else
                found.unloadable.append((path, str(error).rpartition("bytes): ")[2]))
    able.sort(key=lambda candidate: (candidate.step, candidate.epochs, candidate.written), reverse=True)
    for candidate in able:
        reason = broken_record(candidate.path) if not found.whole or candidate.path.name == BEST else None
        if reason is None:
            found.whole.append(candidate)
        else:
            found.broken.append((candidate.path, reason))
    return found


def _candidate(path: Path, found: Found) -> Iterator[Candidate]:
    """Describe a checkpoint, unless it holds weights alone, or lacks gradients."""
    content = read_checkpoint(path)
    if content.get(GATHERED):
        found.gathered.append(path)
    elif "optimizer_states" in content:
        yield Candidate(path, content["global_step"], epochs_ended(content), path.stat().st_mtime_ns)


def epochs_ended(checkpoint: dict[str, Any]) -> int:
    """Return how many epochs had ended when a checkpoint was written."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def at_epoch_end(checkpoint: dict[str, Any]) -> bool:
    """Tell whether a checkpoint was written at the end of an epoch."""
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    return bool(epochs["processed"] == epochs["ready"])


def described(checkpoint: dict[str, Any]) -> str:
    """Say where in a run a checkpoint was written; epochs count from 1."""
    epoch = epochs_ended(checkpoint) + (not at_epoch_end(checkpoint))
    return f"epoch {epoch}, step {checkpoint['global_step']}"


def _set_aside(path: Path, reason: str) -> str:
    """Rename a broken checkpoint, so that it never takes the place of a whole one; returns what to say."""
    kept = path.with_name(f"{path.name}.broken")
    size = path.stat().st_size
    os.replace(path, kept)
    return f"resume   {path} ({size} bytes) is broken, and now called {kept.name}: {reason}"


def _clear(run: RunFolder) -> None:
    """Remove what writing left behind when an earlier process was killed."""
    for folder in (run.path, run.checkpoints):
        for left in folder.glob(".*.tmp"):
            try:
                left.unlink()
            except OSError as error:
                print(f"warning: {left} cannot be removed: {error.strerror}", file=sys.stderr)
