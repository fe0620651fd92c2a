"""`framework plugins list | show | new | check`: the plugins there are, what they are, and whether they are right."""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from framework.cli.arguments import CommandParser
from framework.errors import ConfigError, suggest
from framework.registry import KINDS, Advert, advertised
from framework.source import SourceError

ACTIONS = {
    "list": "every installed plugin, in a line each",
    "show": "what a plugin takes, and what a backbone gives",
    "new": "write a plugin that works, as a file or as a whole package",
    "check": "try a plugin against its contract",
}


def run(arguments: Sequence[str]) -> int:
    """Run one of the actions; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: framework plugins ACTION ...\n")
        print("\n".join(f"  {name:6} {what}" for name, what in ACTIONS.items()))
        print("\n`framework plugins ACTION --help` says more.")
        return 0
    action, *rest = arguments
    if action not in ACTIONS:
        raise ConfigError(f"framework plugins has no {action}; {suggest(action, ACTIONS)}")
    if action == "list":
        return _list(rest)
    command = import_module(f"framework.cli.{action}_plugin").run
    return int(command(rest))


def _list(arguments: Sequence[str]) -> int:
    parser = CommandParser(prog="framework plugins list", description="List plugins; none is imported for it.")
    parser.add_argument("--task", help="only what serves this task, such as Segmentation")
    parser.add_argument("--kind", help=f"only plugins of a kind: {', '.join(KINDS)}")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.add_argument(
        "--load", action="store_true", help="import each, which finds every broken one and takes the seconds of torch"
    )
    parser.add_plugin_options()
    options = parser.parse_known(arguments)
    every = advertised(options.plugins)
    chosen = _choose(every, options)
    problems = {advert.name: _problem(advert, options.load) for advert in chosen}
    if options.json:
        print(json.dumps([_row(advert, problems[advert.name]) for advert in chosen], indent=2))
    else:
        _print_table(chosen, problems)
    conflicts = [advert.conflict() for advert in chosen if advert.rivals]
    if conflicts:
        raise ConfigError("\n".join(conflicts))
    return 0


def _choose(every: dict[str, Advert], options: argparse.Namespace) -> list[Advert]:
    tasks = {name.lower(): name for name, advert in every.items() if advert.kind == "tasks"}
    if options.task is not None and options.task.lower() not in tasks:
        raise ConfigError(f"--task: there is no task {options.task}; {suggest(options.task, tasks.values())}")
    if options.kind is not None and options.kind not in KINDS:
        raise ConfigError(f"--kind: there is no kind {options.kind}; {suggest(options.kind, KINDS)}")
    task = tasks[options.task.lower()] if options.task is not None else None
    return [
        advert
        for kind in KINDS
        for advert in every.values()
        if advert.kind == kind and options.kind in (None, kind) and (task is None or task in (advert.tasks or [task]))
    ]


def _problem(advert: Advert, load: bool) -> str:
    problem = advert.problem()
    if load and not problem:
        try:
            advert.load()
        except ConfigError as error:
            return str(error)
    return problem


def _row(advert: Advert, problem: str) -> dict[str, Any]:
    return {
        "name": advert.name,
        "kind": advert.kind,
        "package": advert.package,
        "class_path": advert.class_path,
        "tasks": advert.tasks,
        "weights_licence": advert.constant("weights_licence") or None,
        "summary": _summary(advert),
        "problem": problem or None,
    }


def _summary(advert: Advert) -> str:
    try:
        return advert.describe().summary
    except SourceError:
        return ""


def _print_table(adverts: Sequence[Advert], problems: dict[str, str]) -> None:
    """Print the plugins by kind, a line each, cut to the width of the terminal."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    name_width = max((len(advert.name) for advert in adverts), default=0)
    package_width = max((len(advert.package) for advert in adverts), default=0)
    for kind in dict.fromkeys(advert.kind for advert in adverts):
        print(kind)
        for advert in (advert for advert in adverts if advert.kind == kind):
            licence = advert.constant("weights_licence")
            text = f"{_summary(advert)}{f' [weights: {licence}]' if licence else ''}"
            if problems[advert.name]:
                text = f"BROKEN: {problems[advert.name]}"
            line = f"  {advert.name:{name_width}}  {advert.package:{package_width}}  {text}"
            print(line if problems[advert.name] else line[:width])


def plugin_of(name: str, given: Sequence[Path]) -> Advert:
    """Return the plugin that a name, a class path or a file stands for.

    Args:
        name: A short name, `module.Class`, or the path of a Python file that holds one plugin.
        given: Further local files and folders whose plugins count.

    Raises:
        ConfigError: There is none, or the file holds several.
    """
    if name.endswith(".py") or Path(name).is_dir():
        file = Path(name)
        adverts = advertised([file, *given])
        inside = [advert for advert in adverts.values() if Path(advert.package) in (file, *file.glob("*.py"))]
        inside += [rival for advert in adverts.values() for rival in advert.rivals if Path(rival.package) == file]
        if len(inside) == 1:
            return inside[0] if not inside[0].rivals else _without_rivals(inside[0])
        names = ", ".join(advert.class_path for advert in inside)
        raise ConfigError(f"{name} holds {len(inside)} plugins: name one, {names}, and add --plugins {name}")
    adverts = advertised(given)
    for advert in adverts.values():
        for candidate in (advert, *advert.rivals):
            if name == candidate.class_path:
                return _without_rivals(candidate)
    if name not in adverts:
        raise ConfigError(f"there is no plugin {name}; {suggest(name, adverts) or 'see: framework plugins list'}")
    return adverts[name]


def _without_rivals(advert: Advert) -> Advert:
    return Advert(advert.name, advert.kind, advert.target, advert.package)
