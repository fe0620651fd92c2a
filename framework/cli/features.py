"""`framework features show`: what a backbone sees in images, as pictures."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from framework.architectures import named
from framework.cli.arguments import CommandParser
from framework.cli.plugins import plugin_of
from framework.errors import ConfigError, suggest
from framework.registry import Advert, advertised, is_trusted

ACTIONS = {"show": "principal components and similarities of the patches of images"}
FORMATS = (".png", ".jpg", ".jpeg", ".webp")
DEFAULT, SIDE = "features.png", 518  # pixels: the shorter side of what DINOv2's position embedding is made for
EPILOG = """Each image is a row of four pictures: the image; the first three principal components of its patches as red,
green and blue, of all images together; how alike each patch is to one patch of the first image (cosine similarity); and
how alike all patches of the image are to each other, row by row. A patch is a cell of a feature map, so that CNNs have
them too.

examples: framework features show cat.jpg --backbone DINOv2 pretrained=true --patch 320,200
          framework features show a.jpg b.jpg --backbone Timm name=resnet50 pretrained=true --level 3 --out features"""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be shown.

    Args:
        images: Files.
        backbone: The plugin.
        words: Its arguments, as `key=value`.
        level: Index of the feature level; a negative one counts from the end.
        size: Shorter side, or (height, width), in pixels, of the images as the backbone is given them.
        patch: (x, y) in pixels of the first image as stored; None: its centre.
        foreground: Whether components are those of the foreground alone.
        out: The file of the sheet, or a folder for every picture.
    """

    images: list[Path]
    backbone: Advert
    words: list[str]
    level: int
    size: int | tuple[int, int]
    patch: tuple[int, int] | None
    foreground: bool
    out: Path


def run(arguments: Sequence[str]) -> int:
    """Run one of the actions; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: framework features ACTION ...\n")
        print("\n".join(f"  {name:6} {what}" for name, what in ACTIONS.items()))
        print("\n`framework features ACTION --help` says more.")
        return 0
    action, *rest = arguments
    if action not in ACTIONS:
        raise ConfigError(f"framework features has no {action}; {suggest(action, ACTIONS)}")
    request = _request(_parser().parse_known(rest))
    from framework.cli.show_features import show_features  # torch: not for --help

    show_features(request)
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="framework features show", description="Show what a backbone sees in images.", epilog=EPILOG
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files")
    parser.add_argument(
        "--backbone", nargs="+", default=[], metavar=("NAME", "key=value"), help="a backbone and its arguments"
    )
    parser.add_argument("--patch", metavar="X,Y", help="in pixels of the first image as stored (default: its centre)")
    parser.add_argument(
        "--size",
        default=str(SIDE),
        metavar="N|HxW",
        help=f"shorter side, or height and width, that the backbone is given, in pixels (default {SIDE})",
    )
    parser.add_argument("--level", type=int, default=-1, help="index of the feature level (default -1, the coarsest)")
    parser.add_argument("--foreground", action="store_true", help="components of the foreground alone")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(DEFAULT),
        metavar="FILE|FOLDER",
        help=f"where the sheet goes; a folder gets every picture (default {DEFAULT})",
    )
    parser.add_plugin_options()
    parser.add_argument(
        "--trust", metavar="MODULE", action="append", default=[], help="let the backbone be of one more module"
    )
    return parser


def _request(options: argparse.Namespace) -> Request:
    """Check everything that can be seen to be wrong before torch is imported.

    Raises:
        ConfigError: Something is; all of it is listed.
    """
    name, *words = options.backbone or [""]
    images = [Path(word) for word in (*options.images, *(word for word in words if "=" not in word))]
    problems = [] if images else ["no image: framework features show IMAGE --backbone NAME"]
    problems += [
        f"{image} is a folder" if image.is_dir() else f"{image} does not exist"
        for image in images
        if not image.is_file()
    ]
    size, patch = _size(options.size), _point(options.patch)
    if size is None:
        problems.append(f"--size: a number of pixels, such as 518, or HEIGHTxWIDTH, not {options.size}")
    if options.patch is not None and patch is None:
        problems.append(f"--patch: x,y in pixels, such as 320,200, not {options.patch}")
    problems += _problems_of_out(options.out)
    try:
        advert, given = _backbone(name, options.plugins, options.trust)
    except ConfigError as error:
        raise ConfigError("\n".join([*problems, str(error)])) from error
    if problems or size is None:
        raise ConfigError("\n".join(problems))
    words = [*given, *(word for word in words if "=" in word)]
    return Request(images, advert, words, options.level, size, patch, options.foreground, options.out)


def _size(text: str) -> int | tuple[int, int] | None:
    """Return a side, or (height, width); None if it is neither."""
    sides = [int(part) if part.isdecimal() else 0 for part in text.lower().split("x")]
    if len(sides) > 2 or not all(sides):
        return None
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _point(text: str | None) -> tuple[int, int] | None:
    """Return (x, y); None if it is none."""
    parts = (text or "").split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        return None
    return int(parts[0]), int(parts[1])


def _problems_of_out(out: Path) -> list[str]:
    """Say what is wrong with where the pictures go."""
    if not out.is_dir() and out.suffix and out.suffix.lower() not in FORMATS:
        hint = suggest(out.suffix.lower(), FORMATS)
        return [f"--out: {out} is no picture, which ends in {', '.join(FORMATS)}; {hint}".rstrip("; ")]
    if not out.parent.is_dir():
        return [f"--out: there is no folder {out.parent}"]
    return [f"--out: {out} is a file without an ending"] if out.is_file() and not out.suffix else []


def _backbone(name: str, plugins: Sequence[Path], trust: Sequence[str]) -> tuple[Advert, list[str]]:
    """Return the backbone of a name, and arguments that the name stands for.

    Args:
        name: An architecture, a plugin, a class path, or the path of a Python file.
        plugins: Local files whose plugins count too.
        trust: Modules whose classes may be named by their path.

    Raises:
        ConfigError: There is none.
    """
    adverts = advertised(plugins)
    backbones = [advert.name for advert in adverts.values() if advert.kind == "backbones"]
    if not name:
        raise ConfigError(f"no backbone: --backbone NAME key=value ...; {suggest('', backbones)}".rstrip("; "))
    found = named(name)
    if len(found) == 1 and found[0].backbone in adverts:
        return adverts[found[0].backbone], list(found[0].words)
    module, dot, last = name.rpartition(".")
    if dot and is_trusted(name, trust):
        sys.path.insert(0, str(Path.cwd()))
        return Advert(last, "backbones", f"{module}:{last}", module), []
    if name not in adverts and not name.endswith(".py") and "." not in name:
        raise ConfigError(f"--backbone: there is no backbone {name}; {suggest(name, backbones)}".rstrip("; "))
    advert = plugin_of(name, plugins)
    if advert.kind != "backbones":
        raise ConfigError(f"--backbone: {name} is no backbone: it is one of {advert.kind}")
    return advert, []
