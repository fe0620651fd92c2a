"""The entry points: help and mistakes are answered before torch is imported; one place turns errors into exit codes."""

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from framework import __version__
from framework.cli.layers import class_options_first, option_layer, read_layer, take_option, with_underscores
from framework.errors import ConfigError, UserError, suggest

COMMANDS = {
    "fit": "train, then validate and test the best checkpoint",
    "validate": "validate a checkpoint",
    "test": "test a checkpoint",
    "predict": "predict a folder of images with a checkpoint",
}
OTHERS = {
    "plugins": "list, show, write and check plugins",
    "compare": "architectures side by side: counted, measured and published",
    "config": "check experiment files without training",
    "data": "check and count the files of a data set, and draw samples of it",
    "features": "pictures of what a backbone sees: principal components and similarities of patches",
    "schedule": "print and plot every schedule of an experiment before it runs",
    "schema": "print the JSON Schema of experiments, for editors",
    "replay": "run a training step again whose loss was not finite",
    "doctor": "print what fit would use here, and what would stop it",
}
DEFAULTS = Path(__file__).with_name("defaults.yaml")

HELP = """usage: {command} --config EXPERIMENT.yaml [--config MORE.yaml ...] [--KEY VALUE ...]

{what}

  --config FILE            an experiment; a later one overrides an earlier one
  --model.KEY VALUE        any argument of the task, dotted: --model.backbone.name resnet50
  --data.KEY VALUE         any argument of the data; --data CLASS chooses another data set
  --trainer.KEY VALUE      any argument of Lightning's Trainer: --trainer.max_epochs 20
  --trainer.callbacks+=C   add a callback
  --run.name, --run.root, --run.id    where the run's folder is; fit goes on from what an earlier start left there
  --run.checkpoint_minutes, --run.checkpoint_steps    how often fit writes a checkpoint within an epoch
  --resume auto|must|never    whether fit goes on: if it can (the default), or it is an error, or never
  --on_nan stop|skip       what fit does about a step whose loss is not finite
  --allow_changes KEY ...  keys in which the experiment may differ from that of the run that goes on
  --ckpt_path FILE         a checkpoint{checkpoint}
  --print_config           print the resolved experiment, and stop
  --plugins FILE           use the plugins in a Python file, or in a folder of such
  --trust MODULE           let the experiment import classes from one more module
  --debug                  show tracebacks
  --help-all               every argument there is (takes the seconds that importing torch takes)"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `framework`; returns the exit code."""
    try:
        return _answer(list(sys.argv[1:] if arguments is None else arguments))
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _throw_output_away()


def _answer(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: framework COMMAND ...\n")
        print("\n".join(f"  {name:10} {what}" for name, what in {**COMMANDS, **OTHERS}.items()))
        print("\n`framework COMMAND --help` says more.")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"vision-plugin-framework {__version__}")
        return 0
    debug = "--debug" in arguments
    try:
        return _run(arguments[0], [argument for argument in arguments[1:] if argument != "--debug"])
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        if isinstance(error, BrokenPipeError) and arguments[0] in OTHERS:  # `framework plugins list | head`
            _throw_output_away()
            return 0
        code, message = _explain(error)
        print(message, file=sys.stderr)
        return code


def _throw_output_away() -> None:
    """Send what is still to be printed nowhere, since nobody reads it any more; else Python complains when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: Exception) -> tuple[int, str]:
    """Return the exit code and the message of an error: 2 for what the user can mend, 1 for a bug of ours."""
    text = str(error).strip()
    if isinstance(error, UserError):
        if "Original Traceback" in text:  # from a loader's worker, which prefixes its whole traceback
            text = text.rpartition(f"{type(error).__name__}: ")[2]
        return 2, f"error: {text}"
    if isinstance(error, OSError) and error.filename is not None:
        return 2, f"error: {error.filename}: {error.strerror}: check the path, its permissions and the free space"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return 2, f"error: {error.strerror}: no room to write; earlier checkpoints are whole"
    if isinstance(error, RuntimeError) and "by peer" in text and "gloo" in text:
        return 1, "error: another process of this run has ended before its time: its own message says why"
    lines = "\n".join(text.splitlines()[:6])[:800]
    if isinstance(error, ValueError) or type(error).__name__ == "MisconfigurationException":
        return 2, f"error: {lines}\n(add --debug for the traceback)"
    return 1, (
        f"internal error: {type(error).__name__}: {lines}\n"
        "this is a bug of ours or of a plugin: add --debug for the traceback"
    )


def _run(command: str, arguments: list[str]) -> int:
    if command in OTHERS:
        run_command = import_module(f"framework.cli.{command}").run
        return int(run_command(arguments))
    if command not in COMMANDS:
        raise ConfigError(f"there is no command {command}; {suggest(command, [*COMMANDS, *OTHERS])}")
    if "-h" in arguments or "--help" in arguments:
        role = " to go on from" if command == "fit" else "; it brings its experiment with it"
        print(HELP.format(command=command, what=COMMANDS[command], checkpoint=role))
        return 0
    configs, options = take_option(with_underscores(arguments), "--config", "-c")
    trust, options = take_option(options, "--trust")
    named, options = take_option(options, "--plugins")
    files, plugins = [Path(config) for config in configs], [Path(name) for name in named]
    if "--help-all" not in options and not files:
        if command == "fit" and not any(option.startswith("--model") for option in options):
            found = ", ".join(str(path) for path in sorted(Path("experiments").glob("*.yaml")))
            raise ConfigError(f"fit needs an experiment: fit --config FILE{f' (here: {found})' if found else ''}")
        checkpoint = option_layer(options).values.get("ckpt_path")
        if command != "fit" and checkpoint is not None:
            from framework.run.checkpoint import experiment_of

            with experiment_of(Path(checkpoint), plugins) as file:
                try:
                    return _run_layers(command, [file], options, trust, plugins)
                except ConfigError as error:
                    raise _told_of_checkpoint(error, str(checkpoint), options) from error
        if command != "fit":
            raise ConfigError(f"{command} needs a checkpoint: {command} --ckpt_path runs/NAME/ID/checkpoints/best.ckpt")
    return _run_layers(command, [DEFAULTS, *files], options, trust, plugins)


def _told_of_checkpoint(error: ConfigError, checkpoint: str, options: Sequence[str]) -> ConfigError:
    """Say of a data folder that is not there that the checkpoint brought it, if no option did."""
    given = any(option.partition("=")[0] in ("--data.root", "--data.init_args.root") for option in options)
    if given or not str(error).startswith("data.root: "):
        return error
    return ConfigError(f"{error} (data.root is what {checkpoint} was trained with; --data.root DIR gives another)")


def _run_layers(command: str, files: list[Path], options: list[str], trust: list[str], plugins: list[Path]) -> int:
    options = class_options_first(options)
    layers = [*(read_layer(file) for file in files), option_layer(options)]  # mistakes in YAML cost no import of torch
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported; see docs/configuration.md
    from framework.cli.run_experiment import run_experiment

    return run_experiment(command, files, options, layers, trust, plugins)


def fit() -> int:
    """Run `fit`."""
    return main(["fit", *sys.argv[1:]])


def validate() -> int:
    """Run `validate`."""
    return main(["validate", *sys.argv[1:]])


def test() -> int:
    """Run `test`."""
    return main(["test", *sys.argv[1:]])


def predict() -> int:
    """Run `predict`."""
    return main(["predict", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
