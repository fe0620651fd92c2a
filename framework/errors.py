"""Errors that a user can mend, and the nearest valid name to suggest."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user gave is wrong: the command line prints the message alone and exits with 2.

    The message says what was wrong, where (file, key, image path), and how to mend it.
    """


class ConfigError(UserError):
    """An experiment file or a command-line option is wrong."""


class DataError(UserError):
    """A data set on disk is wrong."""


class WeightsError(UserError):
    """A weights file is missing, unreadable, or does not fit the network."""


class TrainingError(UserError):
    """Training cannot go on, or ended without having learned anything."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the valid name nearest to `name`, or the valid names, or nothing."""
    options = sorted(set(valid))
    lowered = {option.lower(): option for option in options}
    close = get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{lowered[close[0]]}'?"
    if 0 < len(options) <= 12:
        return f"valid: {', '.join(options)}"
    return ""
