"""Every architecture by name: which plugin it is, and what was published of it. No torch in here."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from framework.errors import ConfigError, suggest

FILE = Path(__file__).with_name("architectures.yaml")


@dataclass(frozen=True, slots=True)
class Architecture:
    """A row of architectures.yaml, whose head says what each figure is.

    Args:
        name: What it is called on the command line.
        family: What it is one size of.
        backbone: Name of the plugin.
        arguments: Arguments of the plugin.
        size: Side in pixels of the images that the figures are published for.
        parameters: Published, in millions.
        multiply_adds: Published, in billions for one image.
        top1: Published, in per cent of ImageNet-1k's validation images.
        trained_on: Images that the weights of `top1` were trained on.
        source: Where the figures are from: a key of `read_sources`.
        receptive_field: Input pixels across that one cell of the coarsest map depends on, as counted.
        top1_source: Where `top1` is from, if from elsewhere.
        added_parameters: What the plugin has more than its paper counts, in millions.
        added_multiply_adds: Likewise, in billions.
        doubt: Why the counted figure differs from the published one by more than 1 % all the same.
    """

    name: str
    family: str
    backbone: str
    arguments: dict[str, Any]
    size: int
    parameters: float | None
    multiply_adds: float | None
    top1: float | None
    trained_on: str | None
    source: str
    receptive_field: int | Literal["all"] | None = None
    top1_source: str | None = None
    added_parameters: float = 0.0
    added_multiply_adds: float = 0.0
    doubt: str = ""

    @property
    def words(self) -> list[str]:
        """The arguments of the plugin as `key=value`, as on the command line."""
        pairs = self.arguments.items()
        return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in pairs]


@cache
def read_architectures() -> dict[str, Architecture]:
    """Return every architecture by name, in the order of the file."""
    rows = yaml.safe_load(FILE.read_text())["architectures"]
    return {name: Architecture(name=name, **row) for name, row in rows.items()}


@cache
def read_sources() -> dict[str, str]:
    """Return where published figures are from, by key."""
    sources: dict[str, str] = yaml.safe_load(FILE.read_text())["sources"]
    return sources


def named(pattern: str) -> list[Architecture]:
    """Return the architectures of a name, or of a pattern such as `resnet*`; none if there are none.

    Raises:
        ConfigError: A pattern fits none.
    """
    rows = read_architectures()
    found = [row for name, row in rows.items() if fnmatchcase(name, pattern)]
    if not found and any(sign in pattern for sign in "*?["):
        nearest = suggest(pattern.strip("*?"), rows)
        raise ConfigError(f"no architecture is named {pattern}; {nearest or 'see: framework compare --list'}")
    return found
