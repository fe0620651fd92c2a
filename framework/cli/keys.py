"""The keys and classes of a whole experiment: which there are, and what it may import."""

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import set_parsing_settings
from lightning.pytorch import Trainer

from framework.cli.door import Door, parameters
from framework.cli.layers import Layer
from framework.registry import advertised, trusted_modules
from framework.run.folder import RunFolder

TOP_KEYS = frozenset(
    {"seed_everything", "trainer", "model", "data", "run", "plugins", "ckpt_path", "weights_only", "verbose"}
    | {"resume", "on_nan", "allow_changes"}
)


def check_keys(layers: Sequence[Layer], trust: Sequence[str], plugins: Sequence[Path]) -> None:
    """Check every key and class name of an experiment, and let it import what it may and nothing else.

    Args:
        layers: Its files and options, in the order in which they are laid over each other.
        trust: Modules that it may import beside the usual ones.
        plugins: Local files whose plugins it may use.

    Raises:
        ConfigError: A key or a class is unknown, not trusted, or may not be written.
    """
    if trust:
        sys.path.insert(0, str(Path.cwd()))
    adverts = advertised(plugins)
    trusted = trusted_modules(adverts, trust)
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=trusted)
    groups: dict[str | None, frozenset[str]] = {
        None: TOP_KEYS,
        "trainer": parameters(Trainer),
        "run": parameters(RunFolder),
    }
    door = Door(groups, adverts, trusted)
    for layer in layers:
        door.check(layer)
    door.check_tasks()
