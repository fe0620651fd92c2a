"""`framework plugins check NAME_OR_FILE`: the conformance kit on the command line."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from framework.cli.arguments import CommandParser
from framework.cli.construct import maker
from framework.cli.plugins import plugin_of
from framework.conformance import Verdict, run_checks
from framework.conformance.kits import kit

EPILOG = """examples:
  framework plugins check my_net.py
  framework plugins check Timm name=resnet18
exit code 0: it conforms, 1: it breaks a rule, 2: there is no such plugin"""


def run(arguments: Sequence[str]) -> int:
    """Check one plugin; returns the exit code: 1 if it breaks a rule."""
    parser = CommandParser(
        prog="framework plugins check", description="Try a plugin against its contract.", epilog=EPILOG
    )
    parser.add_argument("name", help="short name, class path, or Python file")
    parser.add_argument("arguments", nargs="*", metavar="key=value", help="arguments of the plugin: keep it small")
    parser.add_argument("--only", metavar="CHECK", action="append", default=[], help="this check alone; repeatable")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.add_plugin_options()
    options = parser.parse_known(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a check builds the plugin again and again: never over the network
    advert = plugin_of(options.name, options.plugins)
    checks = kit(advert.kind, options.only, advert.load())
    verdicts = run_checks(maker(advert, options.arguments), checks)
    if options.json:
        found = list(verdicts)
        report = {"plugin": advert.class_path, "kind": advert.kind, "checks": [asdict(verdict) for verdict in found]}
        print(json.dumps(report | {"conforms": all(verdict.outcome == "passed" for verdict in found)}, indent=2))
    else:
        found = list(_printed(verdicts))
        failed, left = (sum(verdict.outcome == outcome for verdict in found) for outcome in ("failed", "left out"))
        end = f"{failed} failed{f', {left} left out' if left else ''}" if failed else f"{advert.name} conforms"
        print(f"\n{len(found) - failed - left} passed, {end}")
    return int(any(verdict.outcome == "failed" for verdict in found))


def _printed(verdicts: Iterable[Verdict]) -> Iterable[Verdict]:
    """Print verdicts as they come."""
    for verdict in verdicts:
        mark = {"passed": "ok  ", "failed": "FAIL", "left out": "-   "}[verdict.outcome]
        print(f"{mark} {verdict.name}" + (f" (rests on {verdict.rests_on})" if verdict.rests_on else ""), flush=True)
        if verdict.outcome == "failed":
            print(f"       {verdict.rule}")
            for what, text in (
                ("expected", verdict.expected),
                ("found", verdict.found),
                ("to mend it", verdict.remedy),
            ):
                print(f"       {what}: {text}")
        sys.stdout.flush()
        yield verdict
