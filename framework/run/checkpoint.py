"""Reading a checkpoint, and the experiment that it holds."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from framework.errors import ConfigError

ZIP, LEGACY = b"PK", b"\x80"  # what a checkpoint begins with, and any pickle
LAST = "checkpoints/last.ckpt"


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint, its tensors left on disk.

    Raises:
        ConfigError: It is missing, damaged, or none of Lightning's.
    """
    if checkpoint.is_dir():
        raise ConfigError(f"--ckpt_path: {checkpoint} is a folder: give a file, such as RUN/{LAST}")
    if not checkpoint.is_file():
        raise ConfigError(f"--ckpt_path: {checkpoint} does not exist")
    _require_zip(checkpoint)
    try:
        content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), repr(error))[:160]
        raise ConfigError(
            f"--ckpt_path: {checkpoint} is no whole checkpoint ({checkpoint.stat().st_size} bytes): {reason}"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content or "loops" not in content:
        raise ConfigError(
            f"--ckpt_path: {checkpoint} is not a checkpoint of a run; for plain weights see docs/backbones.md"
        )
    return content


def _require_zip(checkpoint: Path) -> None:
    """Refuse a file that does not begin as a checkpoint does.

    Raises:
        ConfigError: It does not.
    """
    try:
        with checkpoint.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise ConfigError(f"--ckpt_path: {checkpoint} cannot be read: {error.strerror}") from None
    if start.startswith(ZIP):
        return
    if not start:
        what = "it is empty (0 bytes)"
    elif start.startswith(LEGACY):
        what = "torch wrote it in its format of before 1.6, or it is another pickle"
    elif b"\0" not in start:
        what = "it is a text file"
    else:
        what = f"it is another kind of file ({checkpoint.stat().st_size} bytes)"
    raise ConfigError(
        f"--ckpt_path: {checkpoint} is no checkpoint: {what}: give one that fit wrote, such as RUN/{LAST}"
    )


@contextmanager
def experiment_of(checkpoint: Path, plugins: Sequence[Path] = ()) -> Iterator[Path]:
    """Write the experiment that a checkpoint holds into a file, for as long as it is needed.

    Args:
        checkpoint: The checkpoint.
        plugins: Local plugin files that the user gave: a checkpoint runs none by itself.

    Raises:
        ConfigError: The checkpoint is missing, damaged, holds no experiment, or needs plugin files that are not given.
    """
    config = read_checkpoint(checkpoint).get("config")
    if config is None:
        raise ConfigError(f"--ckpt_path: {checkpoint} holds no experiment: add --config FILE")
    with written_experiment(config, f"--ckpt_path: {checkpoint}", plugins) as file:
        yield file


@contextmanager
def written_experiment(config: dict[str, Any], source: str, plugins: Sequence[Path] = ()) -> Iterator[Path]:
    """Write an experiment that came with weights into a file, for as long as it is needed.

    The weights that its backbone started from are left out: it has its own.

    Args:
        config: The resolved experiment.
        source: What to call the file that it came from.
        plugins: Local plugin files that the user gave: no such file runs any by itself.

    Raises:
        ConfigError: It needs plugin files that are not given.
    """
    lacking = {Path(path).name for path in config.pop("plugins", None) or []} - {path.name for path in plugins}
    if lacking:
        raise ConfigError(
            f"{source} was trained with the plugins in {', '.join(sorted(lacking))}, which a checkpoint may not run by "
            "itself: add --plugins FILE"
        )
    backbone = config["model"]["init_args"]["backbone"].get("init_args", {})
    backbone |= {name: off for name, off in (("pretrained", False), ("weights", None)) if name in backbone}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"{config['run']['name']}.yaml")
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        yield file
