"""`framework plugins show NAME`: what a plugin takes, and, of a backbone, what it gives and costs."""

import inspect
import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch

from framework.backbone import Backbone
from framework.cli.arguments import CommandParser
from framework.cli.construct import lacking, make_without_memory, maker, own_arguments
from framework.cli.plugins import plugin_of
from framework.cli.signature import default_text, type_name
from framework.cost import flop_count, parameter_count
from framework.errors import ConfigError
from framework.registry import Advert

EPILOG = "example: framework plugins show Timm name=convnext_tiny --size 256"


def run(arguments: Sequence[str]) -> int:
    """Print what there is to know of one plugin; returns the exit code."""
    parser = CommandParser(
        prog="framework plugins show", description="Show a plugin; a backbone's levels and cost too.", epilog=EPILOG
    )
    parser.add_argument("name", help="short name, class path, or Python file")
    parser.add_argument("arguments", nargs="*", metavar="key=value", help="arguments of the plugin")
    parser.add_argument("--size", type=int, default=224, help="side of the images, in pixels (default 224)")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.add_plugin_options()
    options = parser.parse_known(arguments)
    if options.size < 1:
        raise ConfigError(f"--size: {options.size} is no number of pixels")
    advert = plugin_of(options.name, options.plugins)
    facts = _facts(advert)
    missing = lacking(advert, options.arguments)
    if advert.kind == "backbones" and not missing:
        facts["backbone"] = _measure(make_without_memory(maker(advert, options.arguments)), options.size)
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    _print_facts(facts)
    if "backbone" in facts:
        _print_backbone(facts["backbone"])
    elif advert.kind == "backbones":
        wanted = " ".join(f"{key}=VALUE" for key in missing)
        print(f"\nfor its levels and cost: framework plugins show {options.name} {wanted}")
    return 0


def _facts(advert: Advert) -> dict[str, Any]:
    target = advert.load()
    doc = inspect.cleandoc(target.__doc__ or "")
    return {
        "name": advert.name,
        "kind": advert.kind,
        "package": advert.package,
        "class_path": advert.class_path,
        "tasks": advert.tasks,
        "weights_licence": getattr(target, "weights_licence", None) or None,
        "doc": doc.partition("\n\nArgs:")[0],
        "arguments": [
            {
                "name": argument.name,
                "type": type_name(argument.type),
                "required": argument.required,
                "default": None if argument.required else default_text(argument.default),
                "doc": argument.doc,
            }
            for argument in own_arguments(advert)
        ],
    }


def _measure(backbone: Backbone, size: int) -> dict[str, Any]:
    """Return what a backbone gives and costs for one square image, padded to what the backbone takes."""
    side = -(-size // backbone.multiple) * backbone.multiple
    images = torch.zeros(1, backbone.in_channels, side, side, device=next(backbone.parameters()).device)
    with torch.no_grad():
        flops = flop_count(backbone, images)
    return {
        "size": side,
        "levels": [
            {"stride": level.stride, "channels": level.channels, "side": -(-side // level.stride)}
            for level in backbone.levels
        ],
        "multiple": backbone.multiple,
        "prefix_tokens": backbone.prefix_tokens,
        "in_channels": backbone.in_channels,
        "parameters": parameter_count(backbone),
        "flops": flops,
        "stages": [sum(parameter.numel() for parameter in stage) for stage in backbone.stages()],
    }


def _print_facts(facts: dict[str, Any]) -> None:
    print(f"{facts['name']}  ({facts['kind']}, {facts['class_path']}, {facts['package']})\n\n{facts['doc']}")
    served = ", ".join(facts["tasks"]) if facts["tasks"] else "all"
    licence = f"\nlicence of the weights: {facts['weights_licence']}" if facts["weights_licence"] else ""
    print(f"\ntasks: {served}{licence}\n\narguments" if facts["arguments"] else f"\ntasks: {served}{licence}")
    for argument in facts["arguments"]:
        end = "required" if argument["required"] else f"default {argument['default']}"
        print(f"  {argument['name']}: {argument['type']}, {end}")
        if argument["doc"]:
            print(f"      {argument['doc']}")


def _print_backbone(facts: dict[str, Any]) -> None:
    size = facts["size"]
    print(f"\nwith these arguments, for an image of {size}x{size}")
    print("  level  stride  channels  map")
    for index, level in enumerate(facts["levels"]):
        print(f"  {index:5}  {level['stride']:6}  {level['channels']:8}  {level['side']}x{level['side']}")
    print(f"  sides must be multiples of {facts['multiple']}; {facts['prefix_tokens']} prefix tokens a level")
    print(
        f"  {facts['parameters'] / 1e6:.2f} M parameters, {facts['flops'] / 1e9:.3f} GFLOPs "
        f"({facts['flops'] / 2e9:.3f} G multiply-adds)"
    )
    sizes = [(text, len(list(equal))) for text, equal in groupby(f"{count / 1e6:.2f} M" for count in facts["stages"])]
    listed = ", ".join(text if count == 1 else f"{count} x {text}" for text, count in sizes)
    print(f"  {len(facts['stages'])} stages, input to output: {listed}")
