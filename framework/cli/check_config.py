"""Checking an experiment as `fit` would begin it, and stopping before anything is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framework.cli.experiment import ExperimentCLI, check_keys, hush
from framework.cli.layers import plugin_files, read_layer
from framework.cli.main import DEFAULTS


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
    layers = [read_layer(DEFAULTS), read_layer(file)]
    hush()
    plugins = [*plugins, *(path for layer in layers for path in plugin_files(layer))]
    check_keys(layers, trust, plugins)
    kind = BuiltExperiment if build else CheckedExperiment
    kind(file.stem, layers, plugins, [], args=["fit", "--config", str(DEFAULTS), "--config", str(file)])
