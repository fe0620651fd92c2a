"""Running one command of one experiment, and ending it well: interrupted, failed or done."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from framework.cli.experiment import ExperimentCLI
from framework.cli.keys import check_keys
from framework.cli.layers import Layer, plugin_files
from framework.cli.resume import FROM_VARIABLE
from framework.cli.silence import hush
from framework.run.checkpoint import read_checkpoint
from framework.run.folder import ID_VARIABLE
from framework.run.interruption import Interrupted, Interruption, requeue_if_meant
from framework.run.lock import release_locks
from framework.run.processes import PATIENCE, end_children


def run_experiment(
    command: str,
    files: Sequence[Path],
    options: Sequence[str],
    layers: Sequence[Layer],
    trust: Sequence[str] = (),
    plugins: Sequence[Path] = (),
) -> int:
    """Run one command of one experiment; returns the exit code."""
    hush()
    plugins = [*plugins, *(path for layer in layers for path in plugin_files(layer))]
    check_keys(layers, trust, plugins)
    name = files[-1].stem if len(files) > 1 else "run"  # the first are the defaults
    configs = [part for file in files for part in ("--config", str(file))]
    started_by_another = ID_VARIABLE in os.environ
    try:
        return _run(name, layers, plugins, command, [*configs, *options])
    finally:
        release_locks()
        if not started_by_another:
            os.environ.pop(ID_VARIABLE, None)
            os.environ.pop(FROM_VARIABLE, None)


def _run(name: str, layers: Sequence[Layer], plugins: Sequence[Path], command: str, options: Sequence[str]) -> int:
    arguments = [command, *(["--help"] if "--help-all" in options else options)]
    if command in ("validate", "test") and not any(option.startswith("--verbose") for option in options):
        arguments.append("--verbose=false")  # our own report follows
    checkpoint = layers[-1].values.get("ckpt_path")
    if checkpoint is not None and checkpoint not in ("best", "last", "hpc"):
        read_checkpoint(Path(str(checkpoint)))
    started: list[ExperimentCLI] = []
    code = 1
    with Interruption() as interruption:
        try:
            ExperimentCLI(name, layers, plugins, started, interruption, args=arguments)
            code = 0
        except Interrupted as stop:
            code = _stopped(started, stop)
            if command == "fit":
                requeue_if_meant(stop.signum)
        except (KeyboardInterrupt, SystemExit) as stop:
            if isinstance(stop, SystemExit) and not stop.code:  # --print_config and --help-all
                raise
            code = _stopped(started, Interrupted(signal.SIGINT))  # a second Ctrl-C; Lightning turns it into an exit
        except Exception:
            if started:
                end_children(started[0].trainer)
            raise
        finally:
            interruption.end()
            for logger in started[0].trainer.loggers if started else ():
                if hasattr(logger, "close"):
                    logger.close(code)
    return code


def _stopped(started: Sequence[ExperimentCLI], stop: Interrupted) -> int:
    """Say what an interrupted run leaves behind; returns the exit code."""
    if not started:
        print("stopped before anything was done", file=sys.stderr)
        return stop.code
    trainer, run = started[0].trainer, started[0].run
    epoch = trainer.fit_loop.epoch_progress.current.ready  # begun, so they count from 1, as everywhere
    at = f" at epoch {epoch}, step {trainer.global_step}" if stop.saved else ""
    resumable = (run.checkpoints / "last.ckpt").is_file()
    hint = f"; the same command with --run.id {run.id} goes on" if resumable else ""
    if trainer.is_global_zero:
        print(f"stopped{at}{hint}", file=sys.stderr)
    if not stop.saved and trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(signal.SIGTERM)  # others may know nothing of it
    end_children(trainer, 60 if stop.saved else PATIENCE)
    return stop.code
