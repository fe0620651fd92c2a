"""A parser whose errors are a few lines, and name the file and line of what is wrong."""

import re
import traceback
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, _typehints
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from framework.cli.layers import Layer
from framework.errors import ConfigError, UserError
from framework.registry import Advert, known_short_class

OURS = ("framework", "plugins", "lightning", "torch", "torchvision")


class Parser(LightningArgumentParser):
    """A parser whose errors are a few lines, and name the file and line of what is wrong."""

    # Of the class: jsonargparse makes parsers of its own for what is nested.
    layers: Sequence[Layer] = ()
    adverts: Mapping[str, Advert] = {}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what argparse would print a page of usage for."""
        inner = user_error(ex)
        if isinstance(inner, MissingError):
            key = re.search(r'Parser key "([\w.]+)"', message)
            inner = ConfigError(f"{_place(key[1], self.layers)}{key[1]}: {inner}") if key is not None else inner
        if inner is None and "arguments are required" in message:
            names = re.sub(r".*arguments are required: ", "", message, flags=re.DOTALL).replace("fit.", "")
            inner = MissingError(f"missing: {names} (required, and no file or option gives it)")
        raise inner or ConfigError(explain(message, self.layers)) from ex


_resolve_by_name = _typehints.resolve_class_path_by_name  # private, and there is no other hook; jsonargparse<5


def resolve_short_name(cls: Any, name: str) -> str:
    """Return the class path of a short name; where several loaded libraries have the name, of the one the door takes.

    Raises:
        ValueError: They do, and it takes none.
    """
    try:
        path: str = _resolve_by_name(cls, name)
        return path
    except ValueError:
        if name in Parser.adverts:
            return Parser.adverts[name].class_path
        known = known_short_class(name)
        if known is None:
            raise
        return f"{known.__module__}.{known.__qualname__}"


_typehints.resolve_class_path_by_name = resolve_short_name


_discard: Any = _typehints.discard_init_args_on_class_path_change
_hints: Any = _typehints.ActionTypeHint


def forget_defaults(parser_or_action: Any, previous: Any, value: Any) -> None:
    """Let another class have its own defaults: jsonargparse would hand on those of the class it takes the place of.

    What was written for the other class, and differs from its default, is handed on if this one has it too.
    """
    if previous and previous.get("init_args") and previous["class_path"] != value["class_path"]:
        former = _hints.get_class_parser(previous["class_path"], {"fail_untyped": False})
        defaults = former.get_defaults()
        given = previous["init_args"]
        for key in list(vars(given) if isinstance(given, Namespace) else given):
            if key in defaults and _plain(given[key]) == _plain(defaults[key]):
                given.pop(key)
    _discard(parser_or_action, previous, value)


_typehints.discard_init_args_on_class_path_change = forget_defaults


def _plain(value: Any) -> Any:
    """Return a value as it would stand in a file."""
    if isinstance(value, Namespace):
        return {key: _plain(each) for key, each in vars(value).items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


class MissingError(ConfigError):
    """A required argument is given nowhere; whoever knows of what adds it."""


def user_error(error: BaseException | None) -> UserError | None:
    """Return the user's error inside another that wraps it, or None."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def foreign_error(error: Exception, packages: Collection[str]) -> ConfigError | None:
    """Name the line of a user's or a third party's class that raised an error, if one of these packages did."""
    place, cause = None, root_of(error)
    for frame, line in traceback.walk_tb(cause.__traceback__):
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] in packages:
            place = f"{frame.f_code.co_filename}:{line}: {frame.f_code.co_qualname}"
    if place is None:
        return None
    return ConfigError(f"{place} raised {type(cause).__name__}: {cause} (add --debug for the traceback)")


def explained_error(error: Exception, config: Mapping[str, Any], layers: Sequence[Layer]) -> UserError | None:
    """Return what to tell the user: the line of a plugin that failed, or why a class refused; None of bugs.

    Args:
        error: What building raised.
        config: The resolved experiment, whose classes it may have come from.
        layers: Its files and options.
    """
    if user_error(error) is None and not isinstance(root_of(error), ValueError | TypeError):
        packages = re.findall(r"class_path: (\w+)", yaml.safe_dump(config))
        foreign = foreign_error(error, set(packages) - {*OURS})
        if foreign is not None:
            return foreign
    refused = isinstance(error, ValueError | TypeError | MisconfigurationException)
    return user_error(error) or (ConfigError(explain(str(error), layers)) if refused else None)


def root_of(error: BaseException) -> BaseException:
    """Return the first of the errors that led to this one."""
    inner = error.__cause__ or error.__context__
    return error if inner is None or inner is error else root_of(inner)


def explain(message: str, layers: Sequence[Layer]) -> str:
    """Put a message of jsonargparse into a few lines with the place of the key that it names."""
    match = re.search(r'Parser key ["\']([\w.+]+)["\']:?\s*', message)
    place = _place(match[1], layers) if match is not None else ""
    text = message[match.end() :] if match is not None else message
    text = re.sub(r"<class '([\w.]+)'>", lambda found: found[1].rpartition(".")[2], text)
    noise = re.compile(r"Given value|Subtypes:|Does not validate|Errors:|Expected a (NoneType|path|dot import)")
    lines = [line.strip(" -") for line in text.splitlines() if line.strip(" -") and not noise.search(line)]
    given = re.search(r"Given value: (.{1,60})$", message, re.MULTILINE)
    if given is not None and "Got value" not in text and "(" not in given[1]:
        lines.append(f"got {given[1]}")
    return f"{place}{match[1] + ': ' if match is not None else ''}{'; '.join(lines[:6]) or message.splitlines()[0]}"


def _place(key: str, layers: Sequence[Layer]) -> str:
    wanted = key.split(".")
    for layer in reversed(layers):
        for path, place in layer.places.items():
            names = [name for name in path if name != "init_args"]
            bare = [name.removesuffix("+") for name in names if not name.isdigit()]  # of an item of a list
            if wanted in (names[-len(wanted) :], bare[-len(wanted) :]):
                return f"{place}: "
    return ""


def place_of(key: str, value: str, layers: Sequence[Layer]) -> str:
    """Return where a key has this value, or an empty string."""
    for layer in reversed(layers):
        for path, place in layer.places.items():
            inside: Any = layer.values
            for name in path:
                inside = inside[int(name)] if isinstance(inside, list) else inside.get(name, {})
            if path[-1] == key and inside == value:
                return f"{place}: "
    return ""
