"""The arguments of the commands that run no experiment; their mistakes are errors of a line."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from framework.errors import ConfigError, suggest


class CommandParser(argparse.ArgumentParser):
    """An argparse parser that raises instead of printing a page of usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raise the message, with the command that says more."""
        raise ConfigError(f"{message}; see {self.prog} --help")

    def parse_known(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse arguments, all of which must be known.

        Raises:
            ConfigError: One is not; the message has the nearest.
        """
        known, unknown = self.parse_known_args(arguments)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            raise ConfigError(
                f"{self.prog}: unknown argument {unknown[0]}; {suggest(unknown[0], options)}".rstrip("; ")
            )
        return known

    def add_plugin_options(self) -> None:
        """Add the options that say where plugins come from."""
        self.add_argument(
            "--plugins",
            metavar="FILE",
            type=Path,
            action="append",
            default=[],
            help="also the plugins in a Python file, or in a folder of such",
        )


def init_arguments(words: Sequence[str]) -> dict[str, str]:
    """Split `key=value` words into a plugin's arguments, still as text.

    Raises:
        ConfigError: A word has no `=`.
    """
    for word in words:
        if "=" not in word:
            raise ConfigError(f"{word} is no argument of a plugin: write key=value, such as name=resnet50")
    return {key: value for key, _, value in (word.partition("=") for word in words)}
