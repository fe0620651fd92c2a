"""The door: every key and class name of an experiment is checked, with its file and line, before anything is built."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from framework.cli.layers import Layer, Path_
from framework.cli.signature import arguments_of, class_of
from framework.errors import ConfigError, suggest
from framework.registry import Advert, is_trusted, known_short_class, known_short_classes

META_KEYS = ("class_path", "init_args", "dict_kwargs")
CLASS_KEYS = {
    "model": "tasks",
    "data": "data",
    "backbone": "backbones",
    "head": "heads",
    "output": "outputs",
    "loss": "losses",
    "losses": "losses",
    "train_transforms": None,
    "callbacks": None,
    "logger": None,
    "schedule": "schedules",
    "inference": "inference",
    "sampling": "sampling",
    "optimizer": None,
    "adapter": "adapters",
}
"""Keys whose plain string is a class, and the kind of plugin that it is; None: other libraries have some too."""

LINKED = {
    ("model", "num_classes"): "the number of classes",
    ("model", "class_names"): "the class names",
    ("model", "ignore_index"): "the ignore index",
    ("model", "multi_label"): "whether images have several classes",
    ("model", "depth_range"): "the range of depths",
    ("model", "backbone", "in_channels"): "the number of channels",
    ("data", "seed"): "the seed (seed_everything)",
}
"""What the data (or the run) states once and the command line links: nobody may write it a second time."""


def parameters(target: Callable[..., Any]) -> frozenset[str]:
    """Return the names of the arguments that a class takes, those it hands on to its parents included."""
    return frozenset(argument.name for argument in arguments_of(target))


def _kind_key(place: Path_) -> str:
    """Return the key that a value stands under, that of the list for an item."""
    return next((name for name in reversed(place) if not name.isdigit()), "")


class Door:
    """Checks layers in the order in which they are laid over each other.

    Args:
        groups: Valid keys of the top-level groups that have no class, such as `trainer`; the group None holds the
            top-level keys.
        adverts: Advertised plugins by name.
        trusted: Modules from which experiments may import classes.
    """

    def __init__(
        self, groups: dict[str | None, frozenset[str]], adverts: dict[str, Advert], trusted: Sequence[str]
    ) -> None:
        self.groups, self.adverts, self.trusted = groups, adverts, trusted
        self.classes: dict[Path_, Callable[..., Any]] = {}  # which class stands where, by path without init_args
        self.written: dict[Path_, str] = {}  # and in which file and line

    def check(self, layer: Layer) -> None:
        """Check one layer.

        Raises:
            ConfigError: A key is unknown, a class is unknown or not trusted, or a linked value is written.
        """
        for key, value in layer.values.items():
            name = str(key)  # YAML reads `1:` and `on:` as a number and a boolean
            if name not in self.groups[None]:
                self._refuse(layer, (name,), name, self.groups[None], "")
            base = name.removesuffix("+")
            if base in self.groups and isinstance(value, dict):
                for inner_key, inner in value.items():
                    option = str(inner_key)
                    if option.removesuffix("+") not in self.groups[base]:
                        self._refuse(layer, (name, option), option, self.groups[base], f"{name}.")
                    self._value(layer, (name, option), (name, option.removesuffix("+")), inner)
            else:
                self._value(layer, (name,), (base,), value)

    def check_tasks(self) -> None:
        """Check, after all layers, that the data and what the task is given are made for this task.

        Raises:
            ConfigError: A class is made for other tasks.
        """
        task = self.classes.get(("model",))
        if task is None:
            return
        kin = {kind.__name__ for kind in inspect.getmro(task)} if inspect.isclass(task) else set()
        for place, found in self.classes.items():
            served = getattr(found, "tasks", None)
            left = place[0] == "model" and place[1:] and place[1] not in parameters(task)  # of another task, overlaid
            if served is not None and kin.isdisjoint(served) and not left:
                fit = [a.name for a in self.adverts.values() if a.tasks and a.kind == CLASS_KEYS.get(_kind_key(place))]
                fit = [name for name in fit if not kin.isdisjoint(self.adverts[name].tasks or ())]
                raise ConfigError(
                    f"{self.written[place]}: {found.__name__} is for {' and '.join(served)}, not for {task.__name__}"
                    + (f"; take {', '.join(fit)}" if fit else "")
                )

    def _value(self, layer: Layer, path: Path_, place: Path_, value: Any) -> None:
        if isinstance(value, list):
            for index, item in enumerate(value):
                self._value(layer, (*path, str(index)), (*place, str(index)), item)
        elif isinstance(value, str) and self._names_class(place, value):
            self._name_class(layer, path, place, value)
        elif isinstance(value, dict):
            if isinstance(value.get("class_path"), str):
                self._name_class(layer, (*path, "class_path"), place, value["class_path"])
            elif place not in self.classes:
                self._declared_class(place)
            if place in self.classes:
                self._arguments(layer, path, place, value)

    def _declared_class(self, place: Path_) -> None:
        """Take the class that the argument is declared as, which is meant where none is written."""
        owner = self.classes.get(place[:-1])
        for argument in arguments_of(owner) if owner is not None else ():
            declared = class_of(argument.type) if argument.name == place[-1] else None
            if declared is not None:
                self.classes[place] = declared

    def _names_class(self, place: Path_, value: str) -> bool:
        if value.endswith((".yaml", ".yml")):  # jsonargparse reads a value from a file
            return False
        return place in self.classes or value in self.adverts or _kind_key(place) in CLASS_KEYS

    def _arguments(self, layer: Layer, path: Path_, place: Path_, value: dict[str, Any]) -> None:
        valid = parameters(self.classes[place])
        inner = [(path, {key: item for key, item in value.items() if key not in META_KEYS})]
        if isinstance(value.get("init_args"), dict):
            inner.append(((*path, "init_args"), value["init_args"]))
        for where, arguments in inner:
            for raw, item in arguments.items():
                key = str(raw)
                name = key.removesuffix("+")
                if name not in valid:
                    self._refuse(layer, (*where, key), name, valid, ".".join(place) + ".", self.classes[place])
                if (*place, name) in LINKED:
                    raise ConfigError(
                        f"{layer.place((*where, key))}: {'.'.join((*place, name))}: "
                        f"{LINKED[(*place, name)]} comes from elsewhere and would be overwritten: remove this line"
                        + (" (the data states it)" if place[0] == "model" else "")
                    )
                self._value(layer, (*where, key), (*place, name), item)

    def _name_class(self, layer: Layer, path: Path_, place: Path_, name: str) -> None:
        where = f"{layer.place(path)}: {'.'.join(place)}"
        self.written[place] = where
        if name in self.adverts:
            self.classes[place] = self.adverts[name].load()
        elif "." in name:
            if not is_trusted(name, self.trusted):
                raise ConfigError(
                    f"{where}: {name} is in a package that experiments may not import by default: "
                    f"add --trust {name.partition('.')[0]} if you trust it"
                )
            self.classes[place] = self._import(name, where)
        else:
            found = known_short_class(name)
            if found is None:
                raise ConfigError(
                    f"{where}: there is no class {name}; {suggest(name, self._names_for(place))}".rstrip("; ")
                )
            self.classes[place] = found

    def _names_for(self, place: Path_) -> list[str]:
        kind = CLASS_KEYS.get(_kind_key(place))
        if kind is not None:
            return [advert.name for advert in self.adverts.values() if advert.kind == kind]
        return [*self.adverts, *known_short_classes()]

    @staticmethod
    def _import(name: str, where: str) -> Callable[..., Any]:
        import importlib

        module, _, attribute = name.rpartition(".")
        try:
            loaded: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{where}: {name} cannot be imported: {error}") from error
        return loaded

    @staticmethod
    def _refuse(
        layer: Layer,
        path: Path_,
        name: str,
        valid: frozenset[str],
        prefix: str,
        owner: Callable[..., Any] | None = None,
    ) -> None:
        of = f" of {owner.__name__}" if owner is not None else ""
        place = layer.place(path)
        hint = suggest(name, valid)
        raise ConfigError(f"{place}: unknown key {prefix}{name}{of}" + (f"; {hint}" if hint else ""))
