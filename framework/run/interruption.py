"""Signals: a run that is told to stop writes a checkpoint first, and SLURM is asked to start it again."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, Self

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)  # the first one to be found decides


class Interrupted(BaseException):
    """A run was told to stop.

    It is no Exception, so that nothing that forgives errors swallows it.

    Args:
        signum: The signal.
        saved: Whether a checkpoint was written for it.
    """

    def __init__(self, signum: int, saved: bool = False) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.code = 130 if signum == signal.SIGINT else 143
        self.saved = saved


class Interruption:
    """Whether the run was told to stop, by SIGTERM, SIGUSR1, SIGINT or SIGHUP.

    As a context manager it serves a whole command: a signal stops it at once, by raising `Interrupted`, but between
    `watch` and `rest` it only is noted, for `agreed` to find at the end of a step. By itself, `watch` installs the
    handlers and `rest` takes them away. A second SIGINT raises KeyboardInterrupt at once. A signal that the process was
    started to ignore, as `nohup` does with SIGHUP, is left ignored.

    Lightning's own handlers would swallow SIGTERM and exit with 0, turn SIGINT into 1, and send SIGTERM to processes
    that have not yet finished their step (2.6.6): `take_over` keeps them away.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._whole_command = False
        self._waits = self._ending = False

    def __enter__(self) -> Self:
        self._whole_command = True
        self._install()
        return self

    def __exit__(self, *exception: object) -> None:
        self._whole_command = False
        self.rest()

    def watch(self) -> None:
        """From now on, let a signal wait for the end of the step."""
        self._waits = True
        self._install()

    def rest(self) -> None:
        """From now on, leave signals to what was there before `watch`."""
        self._waits = False
        if self._whole_command or threading.current_thread() is not threading.main_thread():
            return
        for signum, handler in self._before.items():
            if signal.getsignal(signum) in (self._receive, signal.SIG_IGN):  # Lightning ignores SIGINT on its way out
                signal.signal(signum, handler)
        self._before = {}

    def end(self) -> None:
        """From now on, let signals change nothing: the command ends anyway."""
        self._ending = True

    def take_over(self, trainer: Trainer) -> None:
        """Keep a trainer from installing handlers of its own, SLURM's requeueing included."""
        trainer._signal_connector.register_signal_handlers = _leave_signals  # type: ignore[method-assign]

    def _install(self) -> None:
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        for signum in SIGNALS:
            handler = signal.getsignal(signum)
            if handler == signal.SIG_IGN:
                continue
            self._before[signum] = signal.SIG_DFL if handler is None else handler
            signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None or self._ending:  # schedulers repeat themselves; people mean it
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = signum
        if not self._waits:
            raise Interrupted(signum)
        if getattr(rank_zero_only, "rank", 0) == 0:
            again = "; Ctrl-C again stops at once" if signum == signal.SIGINT else ""
            _say(f"{signal.Signals(signum).name}: the run saves a checkpoint after this step and stops{again}")

    # Stopping.

    def agreed(self, trainer: Trainer) -> bool:
        """Tell, after an optimizer step, whether to save a checkpoint and stop; the same in every process.

        Several processes ask each other every `log_every_n_steps` steps. After the last step of an epoch that is not
        validated, and of the run, there is no place to go on from: the epoch is ended first.
        """
        loop = trainer.fit_loop.epoch_loop
        if trainer.global_step == trainer.max_steps:
            return False
        if loop.batch_progress.is_last_batch and not validation_follows(trainer):
            return False
        return self.agreed_at(trainer, trainer.global_step)

    def agreed_at(self, trainer: Trainer, moment: int) -> bool:
        """Tell whether any process was told to stop; several ask each other at every `log_every_n_steps`th moment."""
        told = self.received is not None
        if trainer.world_size == 1:
            return told
        if moment % max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]
            return False
        return bool(trainer.strategy.reduce_boolean_decision(told, all=False))

    def stop(self, trainer: Trainer) -> NoReturn:
        """Stop the run, which has saved its checkpoint; all processes come here together.

        Raises:
            Interrupted: Always.
        """
        signum = self._common_signal(trainer)
        self.received = signum
        hide_children(trainer)
        raise Interrupted(signum, saved=True)

    def stop_if_told(self, trainer: Trainer) -> None:
        """Stop a run that was told to, and has nothing to save; all processes come here together.

        Raises:
            Interrupted: One of them was.
        """
        if self.agreed_at(trainer, 0):
            raise Interrupted(self._common_signal(trainer))

    def _common_signal(self, trainer: Trainer) -> int:
        """Return the signal that one of the processes received, the same in all of them."""
        if trainer.world_size == 1:
            return self.received or signal.SIGTERM
        decide = trainer.strategy.reduce_boolean_decision
        return next((s for s in SIGNALS if decide(self.received == s, all=False)), signal.SIGTERM)


class InterruptibleValidation(Callback):
    """Lets a run be stopped while it validates; what goes on from the checkpoint validates from the first batch on.

    Args:
        interruption: Whether to stop.
        save_last: Writes the checkpoint.
    """

    def __init__(self, interruption: Interruption, save_last: Callable[[Trainer], None]) -> None:
        self.interruption, self.save_last = interruption, save_last
        self._said = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take back the batch that a checkpoint counts as begun, so that Lightning begins the validation again."""
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset_on_restart()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop if told to, once the weights as trained are saved."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if trainer.fit_loop._should_accumulate() or trainer.global_step == trainer.max_steps:
            self._finish_first(trainer)
        elif self.interruption.agreed_at(trainer, batch_idx):
            self.save_last(trainer)
            self.interruption.stop(trainer)

    def _finish_first(self, trainer: Trainer) -> None:
        """Say that the run cannot stop here: inside an accumulation window, or after the very last step."""
        if self.interruption.received is not None and trainer.is_global_zero and not self._said:
            self._said = True
            _say("this validation is finished first: the run could not go on from inside it")


def validation_follows(trainer: Trainer) -> bool:
    """Tell, at the end of a training batch, whether a validation comes next."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return bool(trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher))


def hide_children(trainer: Trainer) -> None:
    """Take the processes that Lightning started out of its sight: it kills this one when one of them has failed."""
    launcher: Any = trainer.strategy.launcher
    started = getattr(launcher, "procs", None)
    if started:
        launcher.procs = list(started)
        started.clear()


def requeue_if_meant(signum: int) -> None:
    """Put this SLURM job back into the queue, from the first process, where the signal says that its time is up."""
    if signum == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ and getattr(rank_zero_only, "rank", 0) == 0:
        requeue()


def requeue() -> None:
    """Put this SLURM job, or this task of a job array, back into the queue; where that fails, say so."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    command = ["scontrol", "requeue", job]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        print(f"warning: {' '.join(command)} failed ({reason}): submit the job again yourself", file=sys.stderr)
    else:
        print(f"requeued SLURM job {job}", file=sys.stderr)


def _say(text: str) -> None:
    """Write a line to stderr from inside a signal handler, where a buffer may be in use."""
    os.write(2, f"{text}\n".encode())


def _leave_signals() -> None:
    """Install no handlers."""
