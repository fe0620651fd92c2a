"""Building the data of an experiment alone, with the errors that `fit` would have."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

from framework.cli.data import OPTIONS
from framework.cli.keys import TOP_KEYS, check_keys
from framework.cli.layers import option_layer, plugin_files, read_layer
from framework.cli.main import DEFAULTS
from framework.cli.parser import Parser, explained_error
from framework.cli.silence import hush
from framework.data.datamodule import VisionData
from framework.errors import ConfigError, suggest
from framework.registry import advertised

OWN = ("data", "seed_everything")
"""The top-level keys that say what the data are."""


def build_data(
    files: Sequence[Path], options: Sequence[str], trust: Sequence[str], plugins: Sequence[Path]
) -> VisionData:
    """Build the data of an experiment, whose every key and class is checked; the rest of it is not built.

    Args:
        files: The experiment, and more laid over it; perhaps none.
        options: Options of `fit`, laid over those.
        trust: Modules that it may import beside the usual ones.
        plugins: Local files whose plugins it may use.

    Raises:
        ConfigError: Something in the experiment is wrong, or it has no data.
        DataError: The data cannot be read.
    """
    layers = [read_layer(DEFAULTS), *(read_layer(file) for file in files), option_layer(options)]
    if not any("data" in layer.values for layer in layers):
        raise ConfigError(f"{files[-1]}: the experiment has no data: add --data CLASS --data.root DIR")
    hush()
    plugins = [*plugins, *(path for layer in layers for path in plugin_files(layer))]
    check_keys(layers, trust, plugins)
    Parser.layers, Parser.adverts = layers, advertised(plugins)
    parser = _parser()
    configs = [part for file in (DEFAULTS, *files) for part in ("--config", str(file))]
    config = parser.parse_args([*configs, *_own_options(options)])
    try:
        data: VisionData = parser.instantiate(config).data
    except Exception as error:
        explained = explained_error(error, yaml.safe_load(parser.dump(config, skip_none=False)), layers)
        if explained is None or explained is error:
            raise
        raise explained from error
    return data


def _parser() -> Parser:
    """Return a parser that takes whole experiments, and of which only the data are more than plain values."""
    parser = Parser(allow_abbrev=False)
    parser.add_argument("-c", "--config", action=ActionConfigFile)
    for key in sorted(TOP_KEYS - {*OWN}):
        parser.add_argument(f"--{key}", type=Any)
    parser.add_argument("--seed_everything", type=int, default=0)
    parser.add_subclass_arguments(VisionData, "data", fail_untyped=False, required=True)
    parser.link_arguments("seed_everything", "data.init_args.seed")
    return parser


def _own_options(options: Sequence[str]) -> Iterator[str]:
    """Leave out the options that are about something else than the data; the keys of all are checked.

    Raises:
        ConfigError: An argument is no option of an experiment.
    """
    own = False
    for option in options:
        if option.startswith("-"):
            key = option.partition("=")[0].removeprefix("--").partition(".")[0].removesuffix("+")
            if key not in TOP_KEYS:
                known = [
                    *(f"--{each}" for each in sorted(TOP_KEYS)),
                    *(name for names in OPTIONS.values() for name in names),
                ]
                raise ConfigError(f"there is no option {option}; {suggest(option, known)}".rstrip("; "))
            own = key in OWN
        if own:
            yield option
