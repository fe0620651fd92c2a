"""Checking an experiment as `fit` would begin it, and stopping before anything is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framework.cli.experiment import ExperimentCLI
from framework.cli.keys import check_keys
from framework.cli.layers import plugin_files, read_layer
from framework.cli.main import DEFAULTS
from framework.cli.silence import hush
from framework.run.checkpoint import written_experiment
from framework.tasks.base import Task


class CheckedExperiment(ExperimentCLI):
    """An experiment that is parsed as for `fit`, built if asked for, and not run."""

    build = False

    def instantiate_classes(self) -> None:
        """Build data and model, if asked for."""
        if self.build:
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build no trainer: the device that it asks for may be elsewhere."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Stop here."""


class BuiltExperiment(CheckedExperiment):
    """An experiment whose data and model are built."""

    build = True

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build no trainer, but check that it would write checkpoints, and what the callbacks would monitor."""
        config = self._get(self.config_init, "trainer", default={})
        self.check_checkpointing(config)
        given = config.get("callbacks") or []
        self.check_monitors(given if isinstance(given, list) else [given])


def check_experiment(file: Path, build: bool, trust: Sequence[str] = (), plugins: Sequence[Path] = ()) -> None:
    """Check one experiment file, laid over the defaults.

    Args:
        file: The experiment.
        build: Whether to build its data and model too.
        trust: Modules that it may import beside the usual ones.
        plugins: Local files whose plugins it may use.

    Raises:
        ConfigError: Something in it is wrong.
        DataError: Its data cannot be read (when building).
        WeightsError: Its weights cannot be had (when building).
    """
    _parse(BuiltExperiment if build else CheckedExperiment, [DEFAULTS, file], trust, plugins)


def build_task(config: dict[str, Any], source: str, trust: Sequence[str] = (), plugins: Sequence[Path] = ()) -> Task:
    """Build the task of a resolved experiment that came with weights, and its data, from which it has its classes.

    Args:
        config: The experiment.
        source: What to call the file that it came from.
        trust: Modules that it may import beside the usual ones.
        plugins: Local files whose plugins it may use.

    Raises:
        ConfigError: Something in it is wrong, or it needs plugin files that are not given.
        DataError: Its data cannot be read.
    """
    with written_experiment(config, source, plugins) as file:
        task: Task = _parse(BuiltExperiment, [file], trust, plugins).model
    return task


def _parse(
    kind: type[CheckedExperiment], files: Sequence[Path], trust: Sequence[str], plugins: Sequence[Path]
) -> CheckedExperiment:
    layers = [read_layer(file) for file in files]
    hush()
    plugins = [*plugins, *(path for layer in layers for path in plugin_files(layer))]
    check_keys(layers, trust, plugins)
    configs = [part for file in files for part in ("--config", str(file))]
    return kind(files[-1].stem, layers, plugins, [], args=["fit", *configs])
