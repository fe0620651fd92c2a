"""Experiment files and dotted options as layers of plain values that know where each stands. No torch in here."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from framework.errors import ConfigError, suggest

Path_ = tuple[str, ...]
DASHED = ("--help-all",)
"""Options without a dot whose name has a dash."""


@dataclass(frozen=True)
class Layer:
    """One file, or the options of the command line.

    Args:
        values: Nested plain values.
        places: Where each key stands, by its path: `file:line`, or the option as typed.
        folder: The folder of the file; None for options.
    """

    values: dict[str, Any]
    places: dict[Path_, str] = field(default_factory=dict)
    folder: Path | None = None

    def place(self, path: Path_) -> str:
        """Return where a key stands, or what it is written in; an empty string if it is not in this layer."""
        return next((self.places[path[:depth]] for depth in range(len(path), 0, -1) if path[:depth] in self.places), "")


class _Loader(yaml.SafeLoader):
    """A safe loader that reads 1e-3 as a number, as jsonargparse does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def read_layer(path: Path) -> Layer:
    """Read an experiment file.

    Raises:
        ConfigError: The file is missing or not YAML, a key is doubled (YAML would keep only the last), or the top is no
            mapping; with file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"--config: {path} does not exist{_nearby(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: {path} cannot be read: {error}") from None
    try:
        node = yaml.compose(text, Loader=_Loader)
        values = _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        tab = " (YAML does not allow tabs: indent with spaces)" if "\\t" in str(error.problem) else ""
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem}{tab}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: an experiment is a mapping with keys such as model and data, not {type(values).__name__}"
        )
    values.pop("$schema", None)  # for editors
    return Layer(values, dict(_places(node, (), str(path))), path.parent)


def plugin_files(layer: Layer) -> list[Path]:
    """Return the files and folders that the key `plugins` of an experiment file names.

    They are looked for in the folder of the file, then in the working folder; no others are run for a file's sake.

    Raises:
        ConfigError: One is missing, or lies elsewhere.
    """
    named = layer.values.get("plugins") or []
    found = []
    for name in [named] if isinstance(named, str) else named if isinstance(named, list) else [named]:
        place = f"{layer.places.get(('plugins',), '--plugins')}: plugins"
        if not isinstance(name, str):
            raise ConfigError(f"{place}: it takes Python files or folders of such, not {name!r}")
        folders = [folder for folder in (layer.folder, Path()) if folder is not None]
        path = next((folder / name for folder in folders if (folder / name).exists()), None)
        if path is None:
            beside = [file.name for folder in folders for file in folder.glob("*.py")]
            raise ConfigError(f"{place}: there is no file {name}; {suggest(name, beside)}".rstrip("; "))
        if not any(path.resolve().is_relative_to(folder.resolve()) for folder in folders):
            raise ConfigError(
                f"{place}: {name} is neither beside the experiment nor in the working folder, and an experiment may "
                f"not run what lies elsewhere: add --plugins {name} if you trust it"
            )
        found.append(path)
    return found


def _nearby(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("experiments")
    hint = suggest(path.name, [file.name for file in folder.glob("*.yaml")])
    return f"; in {folder}: {hint}" if hint else ""


def _places(node: yaml.Node | None, path: Path_, file: str) -> Iterator[tuple[Path_, str]]:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            name = str(key.value)
            if name in seen and name != "<<":
                raise ConfigError(
                    f"{file}:{line}: {'.'.join((*path, name))} stands twice (first in line {seen[name]}): remove one"
                )
            seen[name] = line
            yield (*path, name), f"{file}:{line}"
            yield from _places(value, (*path, name), file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, str(index)), f"{file}:{value.start_mark.line + 1}"
            yield from _places(value, (*path, str(index)), file)


def option_layer(arguments: Sequence[str]) -> Layer:
    """Turn `--a.b value` and `--a.b=value` into a layer; options without a value are passed over.

    What `--a.b+=value` adds is gathered in a list, and `--a.b.c value` after it belongs to the last of them.
    """
    values: dict[str, Any] = {}
    places: dict[Path_, str] = {}
    for option, text in _options(arguments):
        if text is None:
            continue
        *names, last = option.removeprefix("--").split(".")
        path, inside = _enter(values, names)
        value = _value(text)
        if last.endswith("+"):
            added = inside.setdefault(last, [])
            path += (last, str(len(added)))
            added += value if isinstance(value, list) else [value]
        else:
            path += (last,)
            inside[last] = {**inside[last], "class_path": value} if isinstance(inside.get(last), dict) else value
        for depth in range(1, len(path) + 1):
            places.setdefault(path[:depth], option)
    return Layer(values, places)


def _enter(values: dict[str, Any], names: Sequence[str]) -> tuple[Path_, dict[str, Any]]:
    """Return the path and the mapping that keys lead to; what is no mapping yet becomes a class with arguments."""
    path: Path_ = ()
    for name in names:
        holder: Any = values
        key: Any = name
        added = f"{name.removesuffix('+')}+"
        if values.get(added):
            holder, key, path = values[added], len(values[added]) - 1, (*path, added)
        elif name not in values:
            values[name] = {}
        if not isinstance(holder[key], dict):  # `--data MaskFolder --data.root DIR`
            holder[key] = {"class_path": holder[key]}
        path, values = (*path, str(key)), holder[key]
    return path, values


def with_underscores(arguments: Sequence[str]) -> list[str]:
    """Write options without a dot as they are declared: `--ckpt-path FILE` is `--ckpt_path FILE`."""
    written = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--") and "." not in name and name not in DASHED:
            name = f"--{name[2:].replace('-', '_')}"
        written.append(f"{name}{equals}{value}")
    return written


def class_options_first(arguments: Sequence[str]) -> list[str]:
    """Put an option that chooses a class, `--data ImageFolder`, before those of its arguments, `--data.root DIR`."""
    units: list[list[str]] = []
    for argument in arguments:
        if argument.startswith("--") or not units:
            units.append([])
        units[-1].append(argument)
    ordered: list[list[str]] = []
    for unit in units:
        prefix = f"{unit[0].partition('=')[0]}."
        place = next((index for index, other in enumerate(ordered) if other[0].startswith(prefix)), len(ordered))
        ordered.insert(place, unit)
    return [argument for unit in ordered for argument in unit]


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if not argument.startswith("--"):
            continue
        option, equals, text = argument.partition("=")
        if equals:
            yield option, text
        elif position < len(arguments) and not arguments[position].startswith("--"):
            yield option, arguments[position]
            position += 1
        else:
            yield option, None


def _value(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def take_option(arguments: Sequence[str], *names: str) -> tuple[list[str], list[str]]:
    """Separate every `--name VALUE` and `--name=VALUE` of some options from the other arguments.

    Returns:
        The values in order, and the other arguments.

    Raises:
        ConfigError: The last one has no value.
    """
    values: list[str] = []
    rest: list[str] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if argument.partition("=")[0] in names and "=" in argument:
            values.append(argument.partition("=")[2])
        elif argument in names:
            if position == len(arguments):
                raise ConfigError(f"{argument} needs a value")
            values.append(arguments[position])
            position += 1
        else:
            rest.append(argument)
    return values, rest
