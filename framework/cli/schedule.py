"""`framework schedule show`: everything that an experiment schedules, before it runs."""

from collections.abc import Sequence
from pathlib import Path

from framework.cli.layers import class_options_first, take_option, with_underscores
from framework.errors import ConfigError, suggest

ACTIONS = {"show": "print and plot every schedule of an experiment"}
FORMATS = (".csv", ".png", ".svg")
HELP = """usage: framework schedule show EXPERIMENT.yaml [--out FILE] [--json] [--KEY VALUE ...]

Print every schedule of an experiment as `fit` would run it here: the learning rate of each parameter group, and what
changes from stage to stage or epoch to epoch. Data and model are built; nothing is trained, and no run folder is made.

  --out FILE               also a picture, .svg or .png, or every step as .csv
  --json                   as JSON, for programs
  --config FILE            one more experiment, laid over the first
  --KEY VALUE              any option of fit: --trainer.max_epochs 20 --model.schedule OneCycle
  --plugins FILE           use the plugins in a Python file, or in a folder of such
  --trust MODULE           let the experiment import classes from one more module

example: framework schedule show experiments/unet_seg.yaml --out schedule.svg"""


def run(arguments: Sequence[str]) -> int:
    """Run one of the actions; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: framework schedule ACTION ...\n")
        print("\n".join(f"  {name:6} {what}" for name, what in ACTIONS.items()))
        print("\n`framework schedule ACTION --help` says more.")
        return 0
    action, *rest = arguments
    if action not in ACTIONS:
        raise ConfigError(f"framework schedule has no {action}; {suggest(action, ACTIONS)}")
    if "-h" in rest or "--help" in rest:
        print(HELP)
        return 0
    return _show(rest)


def _show(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError("framework schedule show needs an experiment: framework schedule show EXPERIMENT.yaml")
    file, *rest = arguments
    outs, rest = take_option(rest, "--out")
    more, rest = take_option(rest, "--config", "-c")
    trust, rest = take_option(rest, "--trust")
    plugins, rest = take_option(rest, "--plugins")
    out = Path(outs[-1]) if outs else None
    if out is not None and out.suffix.lower() not in FORMATS:
        hint = suggest(out.suffix.lower(), FORMATS)
        raise ConfigError(f"--out: {out} is neither a picture, .svg or .png, nor a table, .csv; {hint}".rstrip("; "))
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out: there is no folder {out.parent}")
    from framework.cli.show_schedule import show_schedule  # torch: not for --help

    options = class_options_first(with_underscores([option for option in rest if option != "--json"]))
    files = [Path(name) for name in (file, *more)]
    show_schedule(files, options, out, "--json" in rest, trust, [Path(name) for name in plugins])
    return 0
