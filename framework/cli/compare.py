"""`framework compare`: architectures side by side, as counted, as measured and as published."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from framework.architectures import Architecture, named, read_architectures
from framework.cli.arguments import CommandParser
from framework.cli.plugins import plugin_of
from framework.errors import ConfigError, suggest
from framework.registry import Advert, advertised

if TYPE_CHECKING:
    from framework.compare import Row

EPILOG = """A NAME is one of `framework compare --list`, a pattern such as 'resnet*', or a backbone plugin, whose
arguments follow it as key=value: framework compare resnet50 Timm name=resnet50d mynet.py width=64

columns, for --sort: name, plugin, size, parameters, published_parameters, multiply_adds, published_multiply_adds,
activations, receptive_field, top1, trained_on, source; where measured also throughput, latency

example: framework compare 'convnext_*' swin_tiny --sort multiply_adds --measure"""
TABLES, PICTURES = (".md", ".csv", ".html"), (".svg", ".png")


@dataclass(frozen=True, slots=True)
class Choice:
    """A network that was asked for.

    Args:
        name: What it is called.
        advert: Its plugin.
        words: The plugin's arguments, as `key=value`.
        known: What is known of it, if it is one of architectures.yaml.
    """

    name: str
    advert: Advert
    words: list[str]
    known: Architecture | None = None


def run(arguments: Sequence[str]) -> int:
    """Compare networks; returns the exit code."""
    options = _parser().parse_known(arguments)
    _check(options)
    if options.list:
        print("\n".join(read_architectures()))
        return 0
    choices = list(_choices(options.names or ["*"], options.plugins))
    if options.yaml:
        print("\n".join(_experiment(choice) for choice in choices))
        return 0
    return _compare(choices, options)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="framework compare",
        description="Compare architectures: size and cost as counted, speed as measured, beside what was published.",
        epilog=EPILOG,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which (default: every architecture there is)")
    parser.add_argument("--size", type=int, help="side of the images, in pixels (default: as published, else 224)")
    parser.add_argument("--measure", action="store_true", help="measure throughput and latency on this machine")
    parser.add_argument("--batch", type=int, default=8, help="images at once when measuring throughput (default 8)")
    parser.add_argument("--sort", metavar="COLUMN", help="sort by a column, ascending")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table: .md, .csv or .html")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw accuracy against cost: .svg or .png")
    parser.add_argument("--list", action="store_true", help="list the names, and stop")
    parser.add_argument("--yaml", action="store_true", help="print what makes each the backbone of an experiment")
    parser.add_plugin_options()
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuse what can be seen to be wrong before anything is imported."""
    for option, value in (("--size", options.size), ("--batch", options.batch)):
        if value is not None and value < 1:
            raise ConfigError(f"{option}: {value} is less than 1")
    for option, file, endings in (("--out", options.out, TABLES), ("--plot", options.plot, PICTURES)):
        if file is not None and file.suffix not in endings:
            raise ConfigError(f"{option}: {file} ends neither in {' nor in '.join(endings)}")
        if file is not None and not file.parent.is_dir():
            raise ConfigError(f"{option}: there is no folder {file.parent}")


def _choices(names: Sequence[str], plugins: Sequence[Path]) -> Iterator[Choice]:
    """Yield the networks that names, patterns and plugins with their arguments stand for.

    Raises:
        ConfigError: There is nothing of a name.
    """
    adverts = advertised(plugins)
    for name, words in _groups(names):
        found = named(name)
        if found and words:
            raise ConfigError(
                f"{name} takes no arguments, such as {words[0]}: its plugin does: "
                f"{found[0].backbone} {' '.join([*found[0].words, *words])}"
            )
        for row in found:
            if row.backbone not in adverts:
                raise ConfigError(f"{row.name} needs the plugin {row.backbone}, which is not installed")
            yield Choice(row.name, adverts[row.backbone], row.words, row)
        if not found:
            yield _plugin(name, words, plugins, adverts)


def _plugin(name: str, words: list[str], plugins: Sequence[Path], adverts: dict[str, Advert]) -> Choice:
    """Return the choice of a plugin by its name, class path or file."""
    if name not in adverts and not name.endswith(".py") and "." not in name:
        backbones = [advert.name for advert in adverts.values() if advert.kind == "backbones"]
        nearest = suggest(name, [*read_architectures(), *backbones])
        raise ConfigError(f"there is no architecture or plugin {name}; {nearest or 'see: framework compare --list'}")
    advert = plugin_of(name, plugins)
    if advert.kind != "backbones":
        raise ConfigError(f"{name} is no backbone: it is one of {advert.kind}")
    return Choice(" ".join([advert.name, *words]), advert, words)


def _groups(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Split words into names, each with the `key=value` words that follow it; `Timm:name=x` is `Timm name=x`."""
    groups: list[tuple[str, list[str]]] = []
    for word in names:
        head, equals, _ = word.partition("=")
        plugin, colon, argument = word.partition(":")
        if equals and colon and len(plugin) < len(head):
            groups.append((plugin, [argument]))
        elif equals and groups:
            groups[-1][1].append(word)
        elif equals:
            raise ConfigError(f"{word} is an argument, but of which plugin? write PLUGIN {word}")
        else:
            groups.append((word, []))
    return groups


def _experiment(choice: Choice) -> str:
    """Return the line that makes a network the backbone of an experiment."""
    arguments = ", ".join(word.replace("=", ": ", 1) for word in choice.words)
    name = choice.advert.class_path if choice.advert.package.endswith(".py") else choice.advert.name
    filled = f"{{class_path: {name}, init_args: {{{arguments}}}}}" if arguments else f"{{class_path: {name}}}"
    return f"backbone: {filled}  # {choice.name}"


def _compare(choices: Sequence[Choice], options: argparse.Namespace) -> int:
    """Count, measure, print, write and draw."""
    from rich.console import Console

    from framework.compare import measure
    from framework.comparison import order, print_table, sorting_column, write_table

    column = sorting_column(options.sort, options.measure) if options.sort is not None else None
    rows = []
    with Console(stderr=True).status("counting") as status:  # nothing where there is no terminal
        for choice in choices:
            status.update(f"counting {choice.name}")
            rows.append(_count(choice, options.size))
    measured_on = measure(rows, options.batch) if options.measure else None
    rows = order(rows, column)
    print_table(rows, measured_on)
    if options.out is not None:
        write_table(rows, measured_on, options.out)
    if options.plot is not None:
        from framework.scatter import write_scatter

        write_scatter(rows, options.plot)
    for file in (options.out, options.plot):
        if file is not None:
            print(f"wrote {file}")
    return 0


def _count(choice: Choice, size: int | None) -> "Row":
    """Build a network without memory, and count what it costs."""
    from framework.cli.construct import make_without_memory, maker
    from framework.compare import Row, count, reach

    backbone, build = maker(choice.advert, choice.words), maker(choice.advert, choice.words, by="published")
    net = make_without_memory(build)
    alone = net is None
    if alone:
        build, net = backbone, make_without_memory(backbone)
    row = Row(choice.name, " ".join([choice.advert.name, *choice.words]), build, alone, choice.known)
    row.cost = count(net, size or (choice.known.size if choice.known else 224))
    row.receptive_field = choice.known.receptive_field if choice.known else reach(backbone())
    return row
