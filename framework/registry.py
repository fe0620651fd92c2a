"""Finding plugins by entry point and in local files, importing only those that are asked for, and nothing else."""

import importlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from framework.errors import ConfigError, suggest
from framework.source import (
    SourceClass,
    SourceError,
    ancestors,
    classes_of,
    find_module,
    import_problem,
    install_words,
    read_class,
)

KINDS = (
    "tasks",
    "backbones",
    "heads",
    "outputs",
    "losses",
    "data",
    "transforms",
    "sampling",
    "inference",
    "optimizers",
    "schedules",
    "adapters",
    "callbacks",
    "loggers",
)
TRUSTED = ("framework", "plugins", "lightning.pytorch", "torch", "torchvision")
CONTRACTS = {  # the base class that makes a class in a local file a plugin, and of which kind
    "Backbone": "backbones",
    "ClassificationHead": "heads",
    "DenseHead": "heads",
    "DetectionHead": "heads",
    "DepthOutput": "outputs",
    "SegmentationLoss": "losses",
    "DepthLoss": "losses",
    "VisionData": "data",
    "Sampling": "sampling",
    "Task": "tasks",
    "Optimizer": "optimizers",
    "Schedule": "schedules",
    "Adapter": "adapters",
    "Callback": "callbacks",
    "Logger": "loggers",
}


@dataclass(frozen=True, slots=True)
class Advert:
    """A plugin as its package, or a local file, advertises it: nothing of it is imported yet.

    Args:
        name: Short class name, as written in an experiment.
        kind: One of `KINDS`.
        target: `module:Class`.
        package: The distribution that ships it, with its version; or the local file.
        rivals: Others of the same name: then none of them can be meant by it.
    """

    name: str
    kind: str
    target: str
    package: str
    rivals: tuple["Advert", ...] = ()

    @property
    def module(self) -> str:
        """The module that defines the class."""
        return self.target.partition(":")[0]

    @property
    def distribution(self) -> str:
        """The name of the distribution that ships it; empty for a local file."""
        return self.package.partition(" ")[0] if " " in self.package else ""

    @property
    def class_path(self) -> str:
        """The class as a whole class path."""
        return self.target.replace(":", ".")

    def load(self) -> type:
        """Import the class.

        Raises:
            ConfigError: The plugin is broken, or another one has its name; the message has the reason.
        """
        if self.rivals:
            raise ConfigError(self.conflict())
        try:
            loaded = getattr(importlib.import_module(self.module), self.target.partition(":")[2])
        except Exception as error:
            raise ConfigError(
                f"plugin {self.name} of {self.package} is broken: importing {self.target} raised "
                f"{type(error).__name__}: {error}{self._remedy(error)}"
            ) from error
        if not isinstance(loaded, type):
            raise ConfigError(f"plugin {self.name} of {self.package} is broken: {self.target} is no class")
        return loaded

    def _remedy(self, error: Exception) -> str:
        """Say which extra of its package brings the module that an import lacked; empty if none does."""
        lacking = error.name if isinstance(error, ModuleNotFoundError) else None
        return install_words(self.distribution, lacking.partition(".")[0]) if lacking else ""

    def conflict(self) -> str:
        """Say who else has this name; empty if nobody has."""
        if not self.rivals:
            return ""
        owners = " and ".join(f"{advert.target} of {advert.package}" for advert in (self, *self.rivals))
        return (
            f"{1 + len(self.rivals)} plugins are named {self.name}: {owners}: uninstall or leave out all but one, "
            "or write the whole class path of the one you mean"
        )

    def problem(self) -> str:
        """Say why loading must fail, as far as that can be told without importing anything; empty if it need not."""
        if self.rivals:
            return self.conflict()
        broken = import_problem(self.module, self.distribution)
        try:
            self.describe()
        except SourceError as error:
            broken = broken or str(error)
        return broken or ""

    def describe(self) -> SourceClass:
        """Return what its source says.

        Raises:
            SourceError: The source cannot be found or read.
        """
        return read_class(self.module, self.target.partition(":")[2])

    def constant(self, name: str) -> object:
        """Return a class attribute as its source, or that of the nearest base which has it, states it; else None."""
        try:
            described = self.describe()
        except SourceError:
            return None
        for source in (described, *ancestors(described, ("framework", "plugins"))):
            if isinstance(source, SourceClass) and name in source.constants:
                return source.constants[name]
        return None

    @property
    def tasks(self) -> tuple[str, ...] | None:
        """Names of the tasks that it serves; None: all."""
        if self.kind == "tasks":
            return (self.name,)
        served = self.constant("tasks")
        return tuple(str(task) for task in served) if isinstance(served, tuple | list) else None


def advertised(local: Iterable[Path] = ()) -> dict[str, Advert]:
    """Return every advertised plugin by name, sorted.

    Args:
        local: Python files, or folders of such, whose plugins count too.

    Raises:
        ConfigError: A local file is missing or holds no plugin.
    """
    found: dict[str, Advert] = {}
    for advert in (*_installed(), *local_plugins(local)):
        other = found.setdefault(advert.name, advert)
        if other.target != advert.target:
            found[advert.name] = replace(other, rivals=(*other.rivals, advert))
    return dict(sorted(found.items()))


def _installed() -> Iterator[Advert]:
    every = entry_points()  # reads the metadata of all packages, so once
    for kind in KINDS:
        for point in sorted(every.select(group=f"framework.{kind}")):
            yield Advert(point.name, kind, point.value, _package(point))


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unknown package"


def local_plugins(paths: Iterable[Path]) -> list[Advert]:
    """Return the plugins in local files, which become importable by the file's name; none is imported.

    Args:
        paths: Python files; or folders, of which every file counts that holds a plugin.

    Raises:
        ConfigError: A file is missing, is no Python, holds no plugin, or has the name of an installed module.
    """
    adverts: list[Advert] = []
    for path in dict.fromkeys(paths):
        if path.is_dir():
            found = [advert for file in sorted(path.glob("*.py")) for advert in _of_file(file)]
        elif path.is_file():
            found = _of_file(path)
        else:
            folder = path.parent if path.parent.is_dir() else Path()
            hint = suggest(path.name, [file.name for file in folder.glob("*.py")])
            raise ConfigError(f"--plugins: there is no file {path}; {hint}".rstrip("; "))
        if not found:
            raise ConfigError(
                f"--plugins: {path} holds no plugin: a class whose base is {', '.join(CONTRACTS)}, in a .py file; "
                "`framework plugins new NAME` writes one"
            )
        adverts += found
    return adverts


def _of_file(file: Path) -> list[Advert]:
    """Return the plugins that a file defines."""
    if file.suffix != ".py" or not file.stem.isidentifier():
        return []
    in_package = (file.parent / "__init__.py").exists()
    folder = file.resolve().parent.parent if in_package else file.resolve().parent
    module = f"{file.resolve().parent.name}.{file.stem}" if in_package else file.stem
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last: nothing of the user's may stand in for what is installed
        importlib.invalidate_caches()
    try:
        classes = classes_of(file, module)
        kinds = {found.name: _kind(found) for found in classes}
        plugins = [
            Advert(found.name, kind, f"{module}:{found.name}", str(file))
            for found in classes
            if (kind := kinds[found.name]) and not found.name.startswith("_") and "abc.ABC" not in found.bases
        ]
        if plugins and not find_module(module).samefile(file):
            raise ConfigError(
                f"--plugins: {file}: {find_module(module)} is the module {module} already: rename the file"
            )
    except SourceError as error:
        raise ConfigError(f"--plugins: {error}") from error
    return plugins


def _kind(found: SourceClass) -> str | None:
    """Return the kind of plugin that a class is, by the contract among its bases."""
    for base in ancestors(found, ("framework", "plugins")):
        name = base.name if isinstance(base, SourceClass) else base.rpartition(".")[2]
        if name in CONTRACTS:
            return CONTRACTS[name]
    return None


def is_trusted(class_path: str, trusted: Iterable[str]) -> bool:
    """Return whether a class path lies in one of the trusted packages or modules."""
    return any(class_path == name or class_path.startswith(f"{name}.") for name in trusted)


def trusted_modules(adverts: dict[str, Advert], extra: Iterable[str] = ()) -> list[str]:
    """Return the modules that an experiment may import: ours, Lightning, torch, advertised plugins, and `extra`."""
    every = [advert for found in adverts.values() for advert in (found, *found.rivals)]
    return sorted({*TRUSTED, *(advert.module.split(".")[0] for advert in every), *extra})


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


def known_short_classes() -> dict[str, type]:
    """Return all classes that `known_short_class` knows, by name."""
    modules = [importlib.import_module(module) for module in reversed(_SHORT_NAME_MODULES)]
    return {name: value for module in modules for name, value in vars(module).items() if isinstance(value, type)}
