"""Finding plugins by entry point, importing only those that are asked for, and importing nothing else."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from framework.errors import ConfigError

KINDS = (
    "tasks",
    "backbones",
    "heads",
    "losses",
    "data",
    "transforms",
    "inference",
    "schedules",
    "callbacks",
    "loggers",
)
TRUSTED = ("framework", "plugins", "lightning.pytorch", "torch", "torchvision")


@dataclass(frozen=True, slots=True)
class Advert:
    """A plugin as its package advertises it: nothing of it is imported yet.

    Args:
        name: Short class name, as written in an experiment.
        kind: One of `KINDS`.
        target: `module:Class`.
        package: The distribution that ships it, with its version.
    """

    name: str
    kind: str
    target: str
    package: str

    @property
    def module(self) -> str:
        """The module that defines the class."""
        return self.target.partition(":")[0]

    def load(self) -> type:
        """Import the class.

        Raises:
            ConfigError: The plugin is broken; the message has the reason.
        """
        try:
            loaded: type = getattr(importlib.import_module(self.module), self.target.partition(":")[2])
        except Exception as error:
            raise ConfigError(
                f"plugin {self.name} of {self.package} is broken: importing {self.target} raised "
                f"{type(error).__name__}: {error}"
            ) from error
        return loaded


def advertised() -> dict[str, Advert]:
    """Return every advertised plugin by name, sorted.

    Raises:
        ConfigError: Two packages advertise different classes by one name.
    """
    found: dict[str, Advert] = {}
    for kind in KINDS:
        for point in entry_points(group=f"framework.{kind}"):
            advert = Advert(point.name, kind, point.value, _package(point))
            other = found.setdefault(advert.name, advert)
            if other.target != advert.target:
                raise ConfigError(
                    f"two plugins are named {advert.name}: {other.target} of {other.package} and {advert.target} of "
                    f"{advert.package}: uninstall one, or write the whole class path of the one you mean"
                )
    return dict(sorted(found.items()))


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unknown package"


def is_trusted(class_path: str, trusted: Iterable[str]) -> bool:
    """Return whether a class path lies in one of the trusted packages or modules."""
    return any(class_path == name or class_path.startswith(f"{name}.") for name in trusted)


def trusted_modules(adverts: dict[str, Advert], extra: Iterable[str] = ()) -> list[str]:
    """Return the modules that an experiment may import: ours, Lightning, torch, advertised plugins, and `extra`."""
    return sorted({*TRUSTED, *(advert.module.split(".")[0] for advert in adverts.values()), *extra})


_SHORT_NAME_MODULES = (
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    "lightning.pytorch.plugins",
    "torch.optim",
    "torchvision.transforms.v2",
)


def known_short_class(name: str) -> type | None:
    """Return the class of Lightning, torch.optim or torchvision's transforms v2 of that name, or None."""
    for module in _SHORT_NAME_MODULES:
        found = getattr(importlib.import_module(module), name, None)
        if isinstance(found, type):
            return found
    return None


def known_short_names() -> list[str]:
    """Return all names that `known_short_class` knows."""
    modules = [importlib.import_module(module) for module in _SHORT_NAME_MODULES]
    return [name for module in modules for name, value in vars(module).items() if isinstance(value, type)]
