"""`framework config check`: whether experiment files are right, without training anything."""

import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from framework.cli.arguments import CommandParser
from framework.errors import ConfigError, UserError, suggest

ACTIONS = {"check": "check experiment files without training"}
EPILOG = "example: framework config check experiments/*.yaml"


def run(arguments: Sequence[str]) -> int:
    """Run one of the actions; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: framework config ACTION ...\n")
        print("\n".join(f"  {name:6} {what}" for name, what in ACTIONS.items()))
        print("\n`framework config ACTION --help` says more.")
        return 0
    action, *rest = arguments
    if action not in ACTIONS:
        raise ConfigError(f"framework config has no {action}; {suggest(action, ACTIONS)}")
    return _check(rest)


def _check(arguments: Sequence[str]) -> int:
    parser = CommandParser(
        prog="framework config check",
        description="Check keys, classes, types and required arguments of experiments as fit does.\n"
        "Each file is a whole experiment. Nothing is trained, and no run folder is made.",
        epilog=EPILOG,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path, help="an experiment")
    parser.add_argument(
        "--build", action="store_true", help="also build data and model, and check monitors; the data must be there"
    )
    parser.add_argument(
        "--trust", metavar="MODULE", action="append", default=[], help="let them import classes from one more module"
    )
    parser.add_plugin_options()
    options = parser.parse_known(arguments)
    wrong = 0
    for file in options.files:
        check = _problem if len(options.files) == 1 else _problem_apart
        problem = check(file, options.build, options.trust, options.plugins)
        if problem:
            print(f"error: {problem}" if str(file) in problem else f"error: {file}: {problem}", file=sys.stderr)
        else:
            print(f"{file}: in order{', built' if options.build else ''}")
        wrong += bool(problem)
    return 2 if wrong else 0


def _problem(file: Path, build: bool, trust: Sequence[str], plugins: Sequence[Path]) -> str:
    """Return what is wrong with an experiment; empty if nothing is."""
    from framework.cli.check_config import check_experiment  # torch: not for --help

    try:
        check_experiment(file, build, trust, plugins)
    except UserError as error:
        return str(error)
    return ""


def _problem_apart(file: Path, build: bool, trust: Sequence[str], plugins: Sequence[Path]) -> str:
    """Return the same from a process of its own: a plugin that was imported for one file is unknown to the next."""
    import framework.cli.check_config  # noqa: F401, once here and not in every process

    context = get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(_problem, file, build, trust, plugins).result()
