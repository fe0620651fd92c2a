"""Building a plugin from `key=value` words, with the types and errors that an experiment would have."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jsonargparse import set_parsing_settings

from framework.cli.arguments import init_arguments
from framework.cli.parser import Parser, foreign_error, user_error
from framework.cli.signature import Argument, arguments_of
from framework.errors import ConfigError, suggest
from framework.registry import Advert, trusted_modules

GIVEN = {"heads": 3, "optimizers": 1}
"""How many arguments a task gives to plugins of a kind: levels, prefix tokens and outputs to a head, its parameters to
an optimizer."""


def own_arguments(advert: Advert) -> tuple[Argument, ...]:
    """Return the arguments of a plugin that an experiment can set."""
    return arguments_of(advert.load())[GIVEN.get(advert.kind, 0) :]


def lacking(advert: Advert, words: Sequence[str]) -> list[str]:
    """Return the names of required arguments that the words do not give.

    Raises:
        ConfigError: The words give an argument that the plugin does not have.
    """
    given, known = init_arguments(words), own_arguments(advert)
    for key in given:
        if key.partition(".")[0] not in {argument.name for argument in known}:
            hint = suggest(key, (argument.name for argument in known))
            raise ConfigError(f"{advert.name} has no argument {key}; {hint}".rstrip("; "))
    return [argument.name for argument in known if argument.required and argument.name not in given]


def maker(advert: Advert, words: Sequence[str], by: str | None = None) -> Callable[..., Any]:
    """Return what builds a plugin.

    Args:
        advert: The plugin.
        words: Its arguments, as `key=value`.
        by: The class method that builds it; its constructor by default.

    Returns:
        A function that takes what a task gives to such a plugin, and keyword arguments that win over the words.

    Raises:
        ConfigError: A key is unknown, a value has the wrong type, or a required one is missing.
    """
    target, given = advert.load(), init_arguments(words)
    missing = lacking(advert, words)
    if missing:
        raise ConfigError(
            f"{advert.name} needs {', '.join(missing)}: add {' '.join(f'{key}=VALUE' for key in missing)}"
        )
    options = _typed(advert, given)
    build = target if by is None else getattr(target, by)

    def make(*positional: Any, **overrides: Any) -> Any:
        try:
            return build(*positional, **{**options, **overrides})
        except Exception as error:
            if user_error(error) is not None:
                raise
            theirs = foreign_error(error, {advert.module.partition(".")[0]} - {"framework", "plugins"})
            if theirs is None:
                raise
            raise theirs from error

    return make


def make_without_memory(make: Callable[[], Any]) -> Any:
    """Build a network on the meta device, where it takes no memory; on the CPU if its constructor cannot."""
    try:
        with torch.device("meta"):
            return make()
    except (NotImplementedError, RuntimeError, ConfigError):
        return make()


def _typed(advert: Advert, given: dict[str, str]) -> dict[str, Any]:
    """Turn text into values of the types that the plugin declares."""
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=trusted_modules({advert.name: advert}))
    parser = Parser(exit_on_error=False)
    skip = {argument.name for argument in arguments_of(advert.load())[: GIVEN.get(advert.kind, 0)]}
    parser.add_class_arguments(
        advert.load(), advert.name, fail_untyped=False, sub_configs=False, instantiate=False, skip=skip
    )
    parsed = parser.parse_args([f"--{advert.name}.{key}={value}" for key, value in given.items()])
    values = parser.instantiate(parsed).get(advert.name, {})
    return {key: values[key] for key in {key.partition(".")[0] for key in given}}
