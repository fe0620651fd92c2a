"""The run folder: config, checkpoints, metrics and pictures of one run. Nobody else writes there."""

import os
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from framework.errors import ConfigError

ID_VARIABLE = "FRAMEWORK_RUN_ID"  # processes that a run starts must find its folder


class RunFolder:
    """`ROOT/NAME/ID/` with `config.yaml`, `checkpoints/`, `metrics.json`, `metrics.csv` and `pictures/`.

    Args:
        name: What to call the experiment; null: the stem of its file.
        root: Folder of all runs.
        id: What to call this run; null: the time it starts.
    """

    def __init__(self, name: str | None = None, root: str = "runs", id: str | None = None) -> None:
        for given, value in (("name", name), ("id", id)):
            if value is not None and (not value or value in (".", "..") or any(c in value for c in "/\\\0")):
                raise ConfigError(f"run.{given}: {value!r} cannot be the name of a folder")
        self.name, self.root = name or "run", Path(root)
        self.id = id or os.environ.get(ID_VARIABLE) or _start().strftime("%Y%m%d-%H%M%S-%f")[:-3]

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
        os.environ[ID_VARIABLE] = self.id
        try:
            self.path.mkdir(parents=True)
            self.checkpoints.mkdir()
            self.pictures.mkdir()
            write_atomically(self.path / "config.yaml", config)
        except FileExistsError:
            inside = self.path if self.path.exists() else next(p for p in self.path.parents if p.exists())
            if inside == self.path:
                raise ConfigError(f"run.id: {self.path} exists already: give another --run.id") from None
            raise ConfigError(f"run.root: {inside} is no folder, so {self.path} cannot be made") from None
        except OSError as error:
            raise ConfigError(f"run.root: {self.path} cannot be written ({error.strerror}): give another") from None

    def checkpoint_callbacks(self, validated: bool) -> list[Callback]:
        """Return two policies: the best by `val/score`, if there is validation, and the last whatever it scored."""
        best = ModelCheckpoint(
            self.checkpoints, filename="best", monitor="val/score", mode="max", enable_version_counter=False
        )
        last = ModelCheckpoint(
            self.checkpoints, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
        )
        return [best, last] if validated else [last]


def _start() -> datetime:
    """Return now; for a process that torchrun started, when torchrun itself started: its processes must agree."""
    launcher = Path(f"/proc/{os.getppid()}")
    if "TORCHELASTIC_RUN_ID" in os.environ and launcher.exists():
        return datetime.fromtimestamp(launcher.stat().st_ctime)
    return datetime.now()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader never sees half of it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


class ConfigInCheckpoint(Callback):
    """Put the resolved config, as plain types, into every checkpoint, so that a checkpoint alone is enough."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the config."""
        checkpoint["config"] = self.config
