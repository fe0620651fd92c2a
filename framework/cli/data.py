"""`framework data`: what is in a data set, and what is wrong with it, without training anything."""

from collections.abc import Sequence
from pathlib import Path

from framework.cli.layers import class_options_first, take_option, with_underscores
from framework.errors import ConfigError, suggest

ACTIONS = {
    "check": "look at every file as fit does; count what there is",
    "show": "draw samples, with rare classes among them; suggest anchors for YOLO",
}
SPLITS = ("train", "val", "test")
COUNT = 12
FORMATS = (".png", ".jpg", ".jpeg", ".webp")
EXPERIMENT = """  --config FILE            an experiment, whose data alone are built; a later one is laid over it
  --data CLASS             a data set without an experiment, or in place of the experiment's
  --data.KEY VALUE         any argument of the data: --data.root DIR
  --plugins FILE           use the plugins in a Python file, or in a folder of such
  --trust MODULE           let the experiment import classes from one more module"""
HELP = {
    "check": f"""usage: framework data check --config EXPERIMENT.yaml [--json] [--data.KEY VALUE ...]

Look at every file of every split, as `fit` does before it trains. All that is wrong is listed, with file and line; else
the samples and classes of each split are counted, the boxes of detection measured, and what is odd is said.

{EXPERIMENT}
  --json                   as JSON, for programs

examples: framework data check --config experiments/faster_rcnn_voc.yaml --data.root my_photos
          framework data check --data COCODetection --data.root coco""",
    "show": f"""usage: framework data show --config EXPERIMENT.yaml [--split SPLIT] [--augmented] [--data.KEY VALUE ...]

Draw samples of a split with what is annotated in them, chosen so that rare classes are among them; of detection, also
suggest anchors for YOLO that suit the boxes at the size the network sees.

{EXPERIMENT}
  --split SPLIT            train (the default), val or test
  --count NUMBER           how many samples; {COUNT} by default
  --augmented              training samples as the network sees them in an epoch
  --out FILE               the picture, {", ".join(FORMATS)}; data_SPLIT.png by default

example: framework data show --config experiments/fcos_cells.yaml --augmented --out cells.png""",
}


def run(arguments: Sequence[str]) -> int:
    """Run one of the actions; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: framework data ACTION ...\n")
        print("\n".join(f"  {name:6} {what}" for name, what in ACTIONS.items()))
        print("\n`framework data ACTION --help` says more.")
        return 0
    action, *rest = arguments
    if action not in ACTIONS:
        raise ConfigError(f"framework data has no {action}; {suggest(action, ACTIONS)}")
    if "-h" in rest or "--help" in rest:
        print(HELP[action])
        return 0
    return _check(rest) if action == "check" else _show(rest)


def _check(arguments: Sequence[str]) -> int:
    as_json, arguments = take_flag(arguments, "--json")
    source = take_source("check", arguments)
    from framework.cli.check_data import check_data  # torch: not for --help

    check_data(*source, as_json)
    return 0


def _show(arguments: Sequence[str]) -> int:
    augmented, arguments = take_flag(arguments, "--augmented")
    splits, arguments = take_option(arguments, "--split")
    counts, arguments = take_option(arguments, "--count")
    outs, arguments = take_option(arguments, "--out")
    split, count = (splits or ["train"])[-1], (counts or [str(COUNT)])[-1]
    if split not in SPLITS:
        raise ConfigError(f"--split: there is no split {split}; {suggest(split, SPLITS)}")
    if augmented and split != "train":
        raise ConfigError(f"--augmented: only training samples are augmented, not those of {split}")
    if not count.isdecimal() or not int(count):
        raise ConfigError(f"--count: how many samples, at least 1, not {count}")
    out = Path((outs or [f"data_{split}.png"])[-1])
    if out.suffix.lower() not in FORMATS:
        hint = suggest(out.suffix.lower(), FORMATS)
        raise ConfigError(f"--out: {out} is no picture, which ends in {', '.join(FORMATS)}; {hint}".rstrip("; "))
    if not out.parent.is_dir():
        raise ConfigError(f"--out: there is no folder {out.parent}")
    source = take_source("show", arguments)
    from framework.cli.show_data import show_data

    show_data(*source, split, int(count), augmented, out)
    return 0


def take_flag(arguments: Sequence[str], name: str) -> tuple[bool, list[str]]:
    """Separate an option without a value from the other arguments."""
    return name in arguments, [argument for argument in arguments if argument != name]


OPTIONS = {"check": ("--json",), "show": ("--split", "--count", "--augmented", "--out")}
"""What only one of the actions takes."""


def take_source(action: str, arguments: Sequence[str]) -> tuple[list[Path], list[str], list[str], list[Path]]:
    """Return the experiments, the options over them, the modules to trust and the plugin files.

    Raises:
        ConfigError: Something is left over, or neither an experiment nor data is given.
    """
    configs, rest = take_option(with_underscores(arguments), "--config", "-c")
    trust, rest = take_option(rest, "--trust")
    plugins, rest = take_option(rest, "--plugins")
    while rest and not rest[0].startswith("-"):
        configs, rest = [*configs, rest[0]], rest[1:]
    for other, names in OPTIONS.items():
        stray = next((option for option in rest if option.partition("=")[0] in names), None)
        if stray is not None:
            raise ConfigError(f"framework data {action} has no option {stray}: it is one of framework data {other}")
    options = class_options_first(rest)
    if not configs and not any(option.partition("=")[0] in ("--data", "--data.class_path") for option in options):
        found = ", ".join(str(path) for path in sorted(Path("experiments").glob("*.yaml"))[:8])
        raise ConfigError(
            f"framework data {action} needs data: --config EXPERIMENT.yaml, or --data CLASS --data.root DIR"
            + (f" (here: {found})" if found else "")
        )
    return [Path(name) for name in configs], options, trust, [Path(name) for name in plugins]
