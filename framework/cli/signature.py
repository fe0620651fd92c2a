"""What a class takes: its arguments with types, defaults and docs, those that it hands on to its parents included."""

import inspect
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

# Private, but the one place that follows **options to a class's parents and reads their docstrings; jsonargparse<5.
from jsonargparse._parameter_resolvers import get_signature_parameters

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Argument:
    """One argument of a class.

    Args:
        name: Its name.
        type: Its annotation; `Any` if it has none.
        default: Its default; `REQUIRED` if it has none.
        doc: What the docstring says of it, on one line.
    """

    name: str
    type: Any
    default: Any
    doc: str

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is REQUIRED


@cache
def arguments_of(target: Callable[..., Any]) -> tuple[Argument, ...]:
    """Return the arguments that a class or function takes, in order."""
    return tuple(
        Argument(
            parameter.name,
            Any if parameter.annotation is inspect.Parameter.empty else parameter.annotation,
            parameter.default,
            " ".join((parameter.doc or "").split()),
        )
        for parameter in get_signature_parameters(target, None, logger=False)
        if parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    )


def class_of(annotation: Any) -> type | None:
    """Return the class of which an argument of type `Class` or `Class | None` is built; of other types None."""
    parts = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    kinds = [part for part in parts or (annotation,) if part is not type(None)]
    if len(kinds) != 1 or not inspect.isclass(kinds[0]) or kinds[0].__module__ == "builtins":
        return None
    return None if inspect.isabstract(kinds[0]) else kinds[0]


def factory_of(annotation: Any) -> tuple[int, type] | None:
    """Return, of a `Callable[[A, B], Class]`, how many arguments its caller gives and the class; of others None."""
    if typing.get_origin(annotation) is not typing.get_origin(Callable[..., Any]):
        return None
    given, returned = (*typing.get_args(annotation), ..., None)[:2]
    return (len(given), returned) if isinstance(given, list) and isinstance(returned, type) else None


def type_name(annotation: Any) -> str:
    """Write a type as a person would: `int | None`, `list[str]`, `'batch' | 'none'`, `DenseHead`."""
    factory = factory_of(annotation)
    if factory is not None:
        return factory[1].__name__
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(repr(value) for value in arguments)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_name(part) for part in arguments)
    if annotation in (None, type(None)):
        return "null"
    if origin is not None:
        inside = ", ".join("..." if part is ... else type_name(part) for part in arguments)
        return f"{origin.__name__}[{inside}]" if inside else str(origin.__name__)
    return annotation.__name__ if isinstance(annotation, type) else re.sub(r"^typing\.", "", str(annotation))


def default_text(value: Any) -> str:
    """Write a default as YAML would have it."""
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
