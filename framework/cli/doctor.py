"""`framework doctor`: what `fit` would use here, and what would stop it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framework.cli.arguments import CommandParser

EPILOG = "example: framework doctor --config experiments/unet_seg.yaml"


def run(arguments: Sequence[str]) -> int:
    """Print the facts and the problems; returns 2 if one of them would stop a run."""
    parser = CommandParser(
        prog="framework doctor",
        description="Print what fit would use here: versions, devices, precision, processes, loader workers, logger,\n"
        "plugins, disk and memory; and what is wrong with it, with remedies. Nothing is trained or written.\n"
        "The exit code is 2 if something would stop a run. The network is used only to ask whether the server of\n"
        "Weights & Biases answers, and only for an experiment that logs to it, with an API key.",
        epilog=EPILOG,
    )
    parser.add_argument("--config", "-c", metavar="FILE", type=Path, action="append", help="answer for this experiment")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.add_argument(
        "--trust", metavar="MODULE", action="append", default=[], help="let it import classes from one more module"
    )
    parser.add_plugin_options()
    options = parser.parse_known(arguments)
    from framework.cli.diagnosis import diagnose  # torch: not for --help

    diagnosis = diagnose(options.config or [], options.trust, options.plugins)
    if options.json:
        problems = [{"problem": p.text, "remedy": p.remedy, "stops": p.stops} for p in diagnosis.problems]
        print(json.dumps({**diagnosis.facts, "problems": problems}, indent=2))
    else:
        print("\n".join(_lines(diagnosis.facts)))
        for problem in sorted(diagnosis.problems, key=lambda problem: not problem.stops):
            print(f"\n{'stops a run' if problem.stops else 'note'}: {problem.text}\n  {problem.remedy}")
        if not diagnosis.problems:
            print("\nno problem found")
    return 2 if any(problem.stops for problem in diagnosis.problems) else 0


def _lines(facts: dict[str, dict[str, Any]]) -> list[str]:
    """Write sections of facts a line each."""
    lines: list[str] = []
    for section, inside in facts.items():
        lines += ["", section] if lines else [section]
        width = max(map(len, inside), default=0)
        for name, value in inside.items():
            values = value if isinstance(value, list) else [value]
            first, *others = values or ["none"]
            lines += [f"  {name:{width}}  {first}", *(f"  {'':{width}}  {other}" for other in others)]
    return lines
