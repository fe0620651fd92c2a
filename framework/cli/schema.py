"""`framework schema`: the JSON Schema of experiment files, so that an editor completes, explains and checks them."""

import collections.abc
import inspect
import json
import math
import operator
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from datetime import timedelta
from enum import Enum
from os import PathLike
from pathlib import Path
from typing import Any

from framework.cli.arguments import CommandParser
from framework.cli.door import LINKED
from framework.cli.layers import Path_
from framework.cli.signature import REQUIRED, Argument, arguments_of, factory_of
from framework.errors import ConfigError
from framework.registry import advertised, known_short_classes

Schema = dict[str, Any]

EPILOG = """example: framework schema --out schema.json
an editor with a YAML language server reads it by this comment in an experiment:
  # yaml-language-server: $schema=../schema.json"""
DOTTED = r"^([A-Za-z_]\w*(\.[A-Za-z_]\w*)+|.+\.ya?ml)$"
"""What stands for a class that is not known: its class path, or a YAML file of its own."""
PLAIN: dict[Any, Schema] = {
    None: {"type": "null"},
    type(None): {"type": "null"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    list: {"type": "array"},
    tuple: {"type": "array"},
    set: {"type": "array"},
    dict: {"type": "object"},
    timedelta: {"type": "string"},
}
LIMITS = {
    operator.gt: "exclusiveMinimum",
    operator.ge: "minimum",
    operator.lt: "exclusiveMaximum",
    operator.le: "maximum",
    operator.eq: "const",
}


def run(arguments: Sequence[str]) -> int:
    """Print the schema, or write it into a file; returns the exit code."""
    parser = CommandParser(
        prog="framework schema",
        description="Print the JSON Schema of experiment files: every class there is, its arguments and their docs.",
        epilog=EPILOG,
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="write it into this file instead of printing it")
    parser.add_plugin_options()
    options = parser.parse_known(arguments)
    text = json.dumps(experiment_schema(options.plugins), indent=1, allow_nan=False)
    if options.out is None:
        print(text)
    else:
        options.out.write_text(f"{text}\n", encoding="utf-8")
        print(options.out)
    return 0


def experiment_schema(plugins: Iterable[Path] = ()) -> Schema:
    """Return the JSON Schema (draft 2020-12) of a whole experiment.

    It is stricter than the command line in two things: text does not stand for a number, and null only for what may
    be null.

    Args:
        plugins: Local files, or folders of such, whose plugins count too.
    """
    from lightning.pytorch import Trainer  # torch: not for --help

    from framework.data.datamodule import VisionData
    from framework.run.folder import RunFolder
    from framework.tasks.base import Task

    writer = SchemaWriter(known_classes(plugins))
    properties = {
        "$schema": {"type": "string", "description": "Where this schema is, for editors."},
        "seed_everything": {"type": "integer", "default": 0, "description": "The seed of everything random."},
        "model": writer.subclass_of(Task, place=("model",)),
        "data": writer.subclass_of(VisionData, place=("data",)),
        "trainer": writer.arguments(arguments_of(Trainer)),
        "run": writer.arguments(arguments_of(RunFolder)),
        "plugins": {
            "anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"type": "string"}}],
            "description": "Python files, or folders of such, that hold plugins.",
        },
        "resume": {"enum": ["auto", "must", "never"], "default": "auto", "description": "Whether fit goes on."},
        "on_nan": {"enum": ["stop", "skip"], "default": "stop", "description": "What a loss that is not finite does."},
        "allow_changes": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Keys in which the experiment may differ from that of the run that goes on.",
        },
        "ckpt_path": {"type": ["string", "null"], "description": "A checkpoint to go on from."},
        "weights_only": {"type": ["boolean", "null"], "description": "Load checkpoints without unpickling code."},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Experiment",
        "description": "An experiment of vision-plugin-framework: fit --config FILE",
        "type": "object",
        "properties": properties,
        "required": ["model", "data"],
        "additionalProperties": False,
        "$defs": dict(sorted(writer.definitions.items())),
    }


def known_classes(plugins: Iterable[Path] = ()) -> dict[str, type]:
    """Return every class that an experiment can write by a short name; a broken plugin is left out with a warning.

    Args:
        plugins: Local files, or folders of such, whose plugins count too.
    """
    adverts = advertised(plugins)
    found = {name: known for name, known in known_short_classes().items() if name not in adverts and name[0] != "_"}
    for name, advert in adverts.items():
        try:
            found[name] = advert.load()
        except ConfigError as error:
            print(f"warning: left out: {str(error).splitlines()[0]}", file=sys.stderr)
    return dict(sorted(found.items()))


class SchemaWriter:
    """Writes types as JSON Schema; every class is written once, into `definitions`, and referred to.

    Args:
        classes: Known classes by short name.
    """

    def __init__(self, classes: dict[str, type]) -> None:
        self.classes = classes
        self.definitions: dict[str, Schema] = {}
        self._names: dict[tuple[Any, ...], str] = {}

    # Classes.

    def subclass_of(self, base: type, given: int = 0, place: Path_ = ()) -> Schema:
        """Return the schema of a value that is a class, with its arguments.

        Args:
            base: What it must be a subclass of.
            given: How many arguments the caller gives, so that the experiment cannot.
            place: Where in the experiment, without `init_args`: what is linked there may not be written.

        Returns:
            A reference.
        """
        members = {name: known for name, known in self.classes.items() if _can_be(known, base)}
        return self._define(
            f"any.{base.__name__}",
            ("any", base, given, _linked_part(place)),
            lambda: self._any_class(members, given, place),
        )

    def _any_class(self, members: dict[str, type], given: int, place: Path_) -> Schema:
        known = sorted({path for name, member in members.items() for path in _paths(name, member)})
        other = {"type": "string", "pattern": DOTTED, "not": {"enum": known}}
        linked = {path[-1]: False for path in LINKED if path[:-1] == place}
        free = {
            "type": "object",
            "properties": {
                "class_path": other,
                "init_args": {"type": "object", "properties": linked},
                "dict_kwargs": {"type": "object"},
            },
            "required": ["class_path"],
            "additionalProperties": False,
        }
        return {"anyOf": [*(self._class(name, member, given, place) for name, member in members.items()), other, free]}

    def _class(self, name: str, member: type, given: int, place: Path_) -> Schema:
        place = _linked_part(place)
        return self._define(
            name, ("class", member, given, place), lambda: self._whole_class(name, member, given, place)
        )

    def _whole_class(self, name: str, member: type, given: int, place: Path_) -> Schema:
        paths = {"enum": _paths(name, member)}
        own = self._own_arguments(name, member, given, place)
        needed = any(argument.required for argument in _free(arguments_of(member)[given:], place))
        whole = {
            "type": "object",
            "properties": {"class_path": paths, "init_args": own},
            "required": ["class_path", *(["init_args"] if needed else [])],
            "additionalProperties": False,
        }
        described: Schema = {"description": _summary(member)} if member.__doc__ else {}
        return described | (whole if needed else {"anyOf": [paths, whole]})

    def _own_arguments(self, name: str, member: type, given: int, place: Path_) -> Schema:
        place = _linked_part(place)
        return self._define(
            f"{name}.init_args",
            ("init_args", member, given, place),
            lambda: self.arguments(arguments_of(member)[given:], place),
        )

    def _define(self, name: str, key: tuple[Any, ...], write: Callable[[], Schema]) -> Schema:
        """Write a definition unless it is there, and return a reference to it."""
        if key not in self._names:
            while name in self.definitions:
                name += "_"
            self._names[key] = name
            self.definitions[name] = {}  # holds the name while what is inside is written, which may refer to it
            self.definitions[name] = write()
        return {"$ref": f"#/$defs/{self._names[key]}"}

    # Arguments.

    def arguments(self, arguments: Iterable[Argument], place: Path_ = ()) -> Schema:
        """Return the schema of a mapping with the arguments of a class, those left out that are linked at its place."""
        properties: dict[str, Schema] = {}
        required: list[str] = []
        either: list[Schema] = []
        for argument in _free(arguments, place):
            properties[argument.name] = self._argument(argument, (*place, argument.name))
            added = self._added(argument.type)
            if added is not None:
                properties[f"{argument.name}+"] = {**added, "description": "Adds to what earlier files give."}
            if argument.required and added is not None:
                either.append({"anyOf": [{"required": [argument.name]}, {"required": [f"{argument.name}+"]}]})
            elif argument.required:
                required.append(argument.name)
        return {
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
            **({"required": required} if required else {}),
            **({"allOf": either} if either else {}),
        }

    def _argument(self, argument: Argument, place: Path_) -> Schema:
        schema = self.type(argument.type, place)
        default = argument.default
        chosen = self._default_class(argument)
        if chosen is not None and schema:  # its arguments can be set without naming it
            factory = factory_of(argument.type)
            own = self._own_arguments(*chosen, factory[0] if factory is not None else 0, place)
            alone = {"properties": {"init_args": own}, "required": ["init_args"], "additionalProperties": False}
            schema = _any_of([schema, {"type": "object", **alone}])
        written = _written(default)
        return {
            **schema,
            **({"description": argument.doc} if argument.doc else {}),
            **({"default": written} if written is not REQUIRED else {}),
        }

    def _default_class(self, argument: Argument) -> tuple[str, type] | None:
        name = _written(argument.default)
        return (name, self.classes[name]) if _is_class(argument.default) and name in self.classes else None

    def _added(self, annotation: Any) -> Schema | None:
        """Return the schema of what `key+` adds: a list or an item of one; None if the type has no list."""
        if typing.get_origin(annotation) in (typing.Union, types.UnionType):
            parts = [self._added(part) for part in typing.get_args(annotation)]
            lists = [part for part in parts if part is not None]
            return _any_of(lists) if lists else None
        origin = typing.get_origin(annotation) or annotation
        if origin not in (list, collections.abc.Iterable, collections.abc.Sequence):
            return None
        item = next(iter(typing.get_args(annotation)), Any)
        return _any_of([self.type(annotation), self.type(item)])

    # Types.

    def type(self, annotation: Any, place: Path_ = ()) -> Schema:
        """Return the schema of a type; empty, so that anything is right, for what JSON cannot say."""
        factory = factory_of(annotation)
        if factory is not None:
            return self.subclass_of(factory[1], factory[0], place)
        origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is typing.Annotated:
            return self.type(inside[0], place)
        if origin is typing.Literal:
            return {"enum": list(inside)}
        if origin in (typing.Union, types.UnionType):
            return _any_of([self.type(part, place) for part in inside])
        if origin is None:
            return self._plain(annotation, place)
        return self._container(origin, inside) if isinstance(origin, type) else {}

    def _container(self, origin: Any, inside: tuple[Any, ...]) -> Schema:
        if issubclass(origin, PathLike):
            return {"type": "string"}
        if issubclass(origin, tuple) and inside[-1:] != (...,):
            items = [self.type(part) for part in inside]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
        if issubclass(origin, collections.abc.Mapping):
            return {"type": "object", "additionalProperties": self.type(inside[1])}
        if issubclass(origin, collections.abc.Iterable):
            return {"type": "array", "items": self.type(inside[0])}
        return {}

    def _plain(self, annotation: Any, place: Path_) -> Schema:
        if annotation in PLAIN:
            return PLAIN[annotation]
        if not isinstance(annotation, type):
            return {}
        if issubclass(annotation, Enum):
            return {"enum": [member.name for member in annotation]}
        if issubclass(annotation, PathLike):
            return {"type": "string"}
        if hasattr(annotation, "_restrictions"):
            return _restricted(annotation)
        if issubclass(annotation, str):
            return {"type": "string"}
        if annotation.__module__ in sys.stdlib_module_names or is_dataclass(annotation):
            return {}
        return self.subclass_of(annotation, place=place)


def _restricted(number: Any) -> Schema:
    """Return the schema of one of jsonargparse's numbers of a range."""
    limits = [{LIMITS[compare]: limit} for compare, limit in number._restrictions if compare in LIMITS]
    kind = PLAIN[number._type]
    if number._join == "or":
        return {**kind, "anyOf": limits}
    return {**kind, **{name: limit for each in limits for name, limit in each.items()}}


def _any_of(parts: Sequence[Schema]) -> Schema:
    """Join alternatives, each once."""
    flat: list[Schema] = []
    for part in parts:
        flat += [inner for inner in (part["anyOf"] if set(part) == {"anyOf"} else [part]) if inner not in flat]
    if {} in flat:
        return {}
    if all(set(part) == {"type"} and isinstance(part["type"], str) for part in flat):
        kinds = [part["type"] for part in flat]
        return {"type": kinds if len(kinds) > 1 else kinds[0]}
    return {"anyOf": flat} if len(flat) > 1 else flat[0]


def _free(arguments: Iterable[Argument], place: Path_) -> list[Argument]:
    """Return the arguments that are not linked at their place."""
    return [argument for argument in arguments if (*place, argument.name) not in LINKED]


def _linked_part(place: Path_) -> Path_:
    """Return the place if something is linked at it or below; all others are alike, so that they share definitions."""
    return place if any(path[: len(place)] == place for path in LINKED) else ()


def _can_be(known: type, base: type) -> bool:
    try:
        return issubclass(known, base) and not inspect.isabstract(known)
    except TypeError:  # a protocol with attributes
        return False


def _paths(name: str, known: type) -> list[str]:
    """Return what a class may be called: its short name, its class path, and that in packages which re-export it."""
    parts = known.__module__.split(".")
    modules = [".".join(parts[:depth]) for depth in range(len(parts), 0, -1)]
    found = [module for module in modules if getattr(sys.modules.get(module), known.__name__, None) is known]
    return [name, *(f"{module}.{known.__name__}" for module in found)]


def _summary(known: type) -> str:
    return " ".join(re.split(r"\n\s*\n", inspect.cleandoc(known.__doc__ or ""))[0].split())


def _is_class(default: Any) -> bool:
    return (isinstance(default, type) and default is not REQUIRED) or (
        isinstance(default, dict) and "class_path" in default
    )


def _written(default: Any) -> Any:
    """Return a default as JSON has it; `REQUIRED` if there is none that it can write."""
    if default is REQUIRED:
        return REQUIRED
    if _is_class(default):
        return default.__name__ if isinstance(default, type) else default["class_path"].rpartition(".")[2]
    if isinstance(default, Enum):
        return default.name
    if isinstance(default, PathLike):
        return str(default)
    if isinstance(default, tuple | list):
        items = [_written(item) for item in default]
        return REQUIRED if REQUIRED in items else items
    if isinstance(default, float) and not math.isfinite(default):
        return REQUIRED
    return default if default is None or isinstance(default, bool | int | float | str) else REQUIRED
