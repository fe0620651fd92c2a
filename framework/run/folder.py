"""The run folder: config, checkpoints, metrics and pictures of one run. Nobody else writes there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_only

from framework.errors import ConfigError
from framework.run.lock import lock_folder
from framework.run.naming import launcher_id, start_id

ID_VARIABLE = "FRAMEWORK_RUN_ID"  # processes that a run starts must find its folder


class RunFolder:
    """`ROOT/NAME/ID/` with `config.yaml`, `checkpoints/`, `metrics.json`, `metrics.csv` and `pictures/`.

    Args:
        name: What to call the experiment; null: the stem of its file.
        root: Folder of all runs.
        id: What to call this run; `fit` goes on with one that is there. Null: what a launcher that restarts jobs calls
            this one, else the time it starts.
        checkpoint_minutes: Write a checkpoint within an epoch, too, when the last one is this many minutes old.
        checkpoint_steps: Write a checkpoint within an epoch every so many optimizer steps, too; null: do not.

    Raises:
        ConfigError: A name cannot be that of a folder, or a checkpoint would be due at no time.
    """

    def __init__(
        self,
        name: str | None = None,
        root: str = "runs",
        id: str | None = None,
        checkpoint_minutes: float = 10,
        checkpoint_steps: int | None = None,
    ) -> None:
        for given, value in (("name", name), ("id", id)):
            if value is not None and (not value or value in (".", "..") or any(c in value for c in "/\\\0")):
                raise ConfigError(f"run.{given}: {value!r} cannot be the name of a folder")
        if not checkpoint_minutes > 0:
            raise ConfigError(f"run.checkpoint_minutes: {checkpoint_minutes} must be more than 0")
        if checkpoint_steps is not None and checkpoint_steps < 1:
            raise ConfigError(f"run.checkpoint_steps: {checkpoint_steps} must be at least 1, or null")
        self.checkpoint_minutes, self.checkpoint_steps = checkpoint_minutes, checkpoint_steps
        self.name, self.root = name or "run", Path(root)
        self.id = id or os.environ.get(ID_VARIABLE) or launcher_id() or start_id()
        self.is_named = id is not None or ID_VARIABLE in os.environ  # by a person, or by the process that started this
        self.is_found_again = self.is_named or launcher_id() is not None  # by whatever restarts the run

    def serve(self, command: str) -> None:
        """Take another folder than the training of the same job, for a command that evaluates or predicts."""
        if self.is_found_again and not self.is_named:
            self.id = f"{self.id}-{command}"

    @property
    def path(self) -> Path:
        """The folder."""
        return self.root / self.name / self.id

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    @property
    def pictures(self) -> Path:
        """Where pictures go."""
        return self.path / "pictures"

    @rank_zero_only
    def create(self, config: str) -> None:
        """Make the folder and write the resolved config into it.

        Raises:
            ConfigError: The folder is there already, or cannot be written.
        """
        self._make(exist_ok=False)
        self._write_config(config)

    @rank_zero_only
    def enter(self, config: str, is_trial: bool = False) -> None:
        """Make the folder unless it is there, lock it, and write the resolved config into it unless one is there.

        A config that differs goes beside it, as `config.resume-N.yaml`.

        Args:
            config: The resolved config.
            is_trial: It only tries a few steps, so that the config of a run that is there counts.

        Raises:
            ConfigError: Another process trains in it, or it cannot be written.
        """
        self._make(exist_ok=True)
        lock_folder(self.path)
        written = [self.path / "config.yaml", *self._later_configs()]
        if read_config(written[0]) is None:
            self._write_config(config)
        elif not is_trial and yaml.safe_load(config) not in map(read_config, (written[0], written[-1])):
            self._write_config(config, f"config.resume-{len(written)}.yaml")

    def newest_config(self) -> dict[str, Any] | None:
        """Return the config with which the run last began or went on; None if there is none to be read."""
        found = map(read_config, reversed([self.path / "config.yaml", *self._later_configs()]))
        return next((config for config in found if config is not None), None)

    def _later_configs(self) -> list[Path]:
        """Return the configs with which the run went on, in order."""
        found = self.path.glob("config.resume-*.yaml")
        return sorted(found, key=lambda file: int("0" + "".join(filter(str.isdigit, file.stem))))

    def _write_config(self, config: str, name: str = "config.yaml") -> None:
        with self._refusing():
            write_atomically(self.path / name, config)

    def _make(self, exist_ok: bool) -> None:
        os.environ[ID_VARIABLE] = self.id
        with self._refusing():
            self.path.mkdir(parents=True, exist_ok=exist_ok)
            self.checkpoints.mkdir(exist_ok=True)
            self.pictures.mkdir(exist_ok=True)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Say what is wrong with the folder."""
        try:
            yield
        except (FileExistsError, NotADirectoryError):
            files = [p for p in (self.path, self.checkpoints, self.pictures) if p.exists() and not p.is_dir()]
            if files:
                raise ConfigError(f"run.id: {files[0]} is no folder: remove it, or give another --run.id") from None
            inside = self.path if self.path.exists() else next(p for p in self.path.parents if p.exists())
            if inside == self.path:
                raise ConfigError(f"run.id: {self.path} exists already: give another --run.id") from None
            raise ConfigError(f"run.root: {inside} is no folder, so {self.path} cannot be made") from None
        except OSError as error:
            raise ConfigError(f"run.root: {self.path} cannot be written ({error.strerror}): give another") from None


def read_config(path: Path) -> dict[str, Any] | None:
    """Read a config that was written into a run folder; None if it is not there, or somebody broke it."""
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return config if isinstance(config, dict) else None


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader never sees half of it."""
    prefix = f".{path.name}."
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=prefix, suffix=".tmp", delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


class ConfigInCheckpoint(Callback):
    """Put the resolved config, as plain types, into every checkpoint, so that a checkpoint alone is enough."""

    completes_weights = True  # a checkpoint of weights alone holds the config too

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the config, and how many processes trained."""
        checkpoint["config"], checkpoint["processes"] = self.config, trainer.world_size

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let the patience that is given now win over that of the checkpoint, which Lightning would take."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if isinstance(callback, EarlyStopping) and state is not None:
                state["patience"] = callback.patience
