"""Vision models of transformers as backbones: CNNs, hierarchical transformers and plain ViTs."""

import inspect
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from math import isqrt, lcm
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves  # private, but what torch.export hands out trees with
from transformers import CONFIG_MAPPING, MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING, AutoConfig, PretrainedConfig
from transformers import __version__ as version
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES, MODEL_FOR_IMAGE_MAPPING_NAMES
from transformers.utils import logging

from framework.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, Features, Level
from framework.errors import ConfigError, WeightsError, suggest
from framework.weights import COUNTER

PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # where a model's mean and std stand
SAFE = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")  # read as tensors only
ARGUMENTS = {  # fields of a config that have an argument of their own
    "drop_path_rate": "drop_path",
    "num_channels": "in_channels",
    "out_features": "out_indices",
    "out_indices": "out_indices",
}
SAME_NETWORK = {"vit_mae": "vit"}  # whose encoder leaves out no patch
LOSSY = ("mobilevitv2",)  # cuts its maps into patches again, and loses what is left over at the border
INSTEAD = "{class_path: Timm, init_args: {name: vit_small_patch16_224}}, or another model of timm"


class Tap(NamedTuple):
    """A level among the states that a network returns.

    Args:
        state: Its index among them.
        level: What it is.
        prefix: Tokens before those of the patches.
        channels_last: Whether channels come last: tokens (B, N, C), or maps (B, H, W, C), not (B, C, H, W).
    """

    state: int
    level: Level
    prefix: int
    channels_last: bool


@dataclass(frozen=True)
class Plan:
    """How a network is built and read.

    Args:
        kind: Its class in transformers.
        settings: Its config.
        options: What its `forward` is called with.
        channels: Channels of the images it was made for.
        unit: Side of a small image, in pixels, whose multiples give exact fractions.
        taps: Where its levels are.
        norm: Name of its final norm, which a plain ViT's levels go through; empty without one.
        embeds: Whether the first state is what goes into a plain ViT's first layer.
        normed: Which state has gone through it already, as the library has it; -1 for none.
    """

    kind: Any
    settings: Any
    options: dict[str, bool]
    channels: int
    unit: int
    taps: tuple[Tap, ...]
    norm: str = ""
    embeds: bool = False
    normed: int = -1

    @property
    def is_plain(self) -> bool:
        """Whether the network is a plain ViT, or another of one stride, and no pyramid."""
        return len(self.taps) > 1 and len({tap.level.stride for tap in self.taps}) == 1

    @property
    def prefix_tokens(self) -> int:
        """Tokens before those of the patches on every level; a pyramid's own are left out."""
        counts = {tap.prefix for tap in self.taps}
        return counts.pop() if len(counts) == 1 else 0


class HuggingFace(Backbone):
    """A vision model of transformers, from a local folder or the Hugging Face hub.

    A CNN or a hierarchical transformer returns a pyramid. A plain ViT returns layers of one stride, each through the
    final norm, with its class and register tokens as prefix. Of a model of text and images it is the image tower.
    Mean and std are those of the model's `preprocessor_config.json`, or, without one, ImageNet's. No code from a
    folder or the hub is ever run.

    Args:
        name: A local folder with `config.json` and weights, or a model on the hub, `facebook/dinov2-small`; with
            `pretrained: false` also an architecture, `resnet`, `swin`, `vit`, ..., in its default size.
        pretrained: Load the weights of the folder, or of the hub or its cache; false initialises at random.
        config: Fields of the model's config to change, such as `{hidden_size: 192, num_hidden_layers: 6}`.
        out_indices: Stages (of a ViT: layers) to return, ascending, negative ones counted from the end; null: every
            stage coarser than the image, or four layers evenly spread.
        in_channels: Channels of the images; pretrained filters are repeated or summed over them.
        drop_path: Rate of stochastic depth in training, in [0, 1).

    Raises:
        ConfigError: There is no such model or field, or the model cannot keep the backbone contract.
        WeightsError: The weights cannot be had, or do not fit.
    """

    weights_licence: ClassVar[str] = "varies: see the model card"
    net: Any  # transformers has no common type for its models' outputs

    def __init__(
        self,
        name: str,
        pretrained: bool = True,
        config: dict[str, int | float | str | bool | list[int]] | None = None,
        out_indices: list[int] | None = None,
        in_channels: int = 3,
        drop_path: float = 0.0,
    ) -> None:
        folder = _folder(name, pretrained)
        plan, outline = _choose(_plan(_settings(name, folder, config or {}, drop_path)), out_indices)
        unused = _drop_unused(outline, plan)
        plan = replace(plan, normed=_normed(outline, plan))
        mean, std, is_bgr = _statistics(folder)
        super().__init__(
            levels=[tap.level for tap in plan.taps],
            multiple=_multiple(outline, plan),
            prefix_tokens=plan.prefix_tokens,
            in_channels=in_channels,
            mean=mean,
            std=std,
        )
        source = folder if pretrained and torch.get_default_device().type != "meta" else None
        net = plan.kind(plan.settings) if source is None else _load(plan, source, unused)
        _cut(net, unused)
        _fix_constants(net)
        _check_prefix(net, plan)
        if in_channels != plan.channels or is_bgr:
            _widen(net, _stem(outline, plan), in_channels, source is not None, is_bgr)
        self.plan = plan
        self.stage_names = _stage_names(outline, plan)
        self.net = net.train()

    def extract(self, images: Tensor) -> Features:
        """Compute the features of normalised images (B, C, H, W), float."""
        return _extract(self.net, self.plan, images)

    def stages(self) -> list[list[nn.Parameter]]:
        """Split the parameters into embeddings, then stages (of a ViT: layers), then final norms, input to output."""
        named = dict(self.net.named_parameters())
        return [[named[name] for name in names] for names in self.stage_names]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the hooks by which transformers reads hidden states: they cannot be pickled, and come back."""
        for module in self.net.modules():
            for key, hook in list(module._forward_hooks.items()):
                if getattr(hook, "__module__", "").startswith("transformers."):
                    del module._forward_hooks[key]
            module.__dict__.pop("_output_capturing_hooks_installed", None)
        return self.__dict__


def _folder(name: str, pretrained: bool) -> Path | None:
    """Return the folder of a model, that of the hub's cache included; None for an architecture.

    Raises:
        ConfigError: There is no such model.
        WeightsError: It is neither on the hub nor in its cache.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name in CONFIG_MAPPING:
        if pretrained:
            raise ConfigError(
                f"{name} is an architecture, without weights: set pretrained: false, or give a local folder, or a "
                "model of the hub as owner/name"
            )
        return None
    if name.count("/") != 1 or name[0] in "/.~":
        known = {*MODEL_FOR_BACKBONE_MAPPING_NAMES, *MODEL_FOR_IMAGE_MAPPING_NAMES}
        raise ConfigError(
            f"there is no folder {name}, and transformers {version} has no architecture of that name; "
            f"{suggest(name, known)}".rstrip("; ")
            + "\n  give a local folder, a model of the hub as owner/name, or, "
            "with pretrained: false, an architecture"
        )
    return _from_hub(name, pretrained)


def _from_hub(name: str, pretrained: bool) -> Path:
    """Return the folder in the hub's cache, filled from the hub where that can be reached."""
    offline = _offline()
    for files in (SAFE, PICKLED):
        try:
            patterns = ["config.json", *PROCESSORS, *(files if pretrained else ())]
            folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=bool(offline)))
        except RepositoryNotFoundError as error:
            raise ConfigError(
                f"there is no folder {name}, and {constants.ENDPOINT} has no model of that name: is it spelt right? "
                "For a private one, run `hf auth login`"
            ) from error
        except Exception as error:  # of the hub, of HTTP, of the network, of the disk
            raise WeightsError(_no_model(name, offline or _line(error))) from error
        if not pretrained or any(path for pattern in files for path in folder.glob(pattern)):
            break
    if offline and pretrained and not any((folder / file).is_file() for file in PROCESSORS):
        raise WeightsError(
            f"{name} is in the hub's cache without {PROCESSORS[0]}, which says what mean and std its images need: with "
            f"a network, run `hf download {name} {PROCESSORS[0]}`\n"
            f"  if it has no such file and ImageNet's mean and std are right, set name: {folder}"
        )
    return folder


def _offline() -> str:
    """Say why the hub is not to be asked, which huggingface_hub would find out only after many attempts."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    host = str(urlsplit(constants.ENDPOINT).hostname)
    try:
        if not getproxies():
            socket.getaddrinfo(host, 443)
    except OSError as error:
        return f"{host} has no address here ({error.strerror or error})"
    return ""


def _no_model(name: str, reason: str) -> str:
    """Say what to do about a model that cannot be had."""
    return (
        f"no model {name}: {reason}\n"
        f"  it is no folder, and neither on {constants.ENDPOINT} nor whole in its cache, {constants.HF_HUB_CACHE}\n"
        f"  with a network, unset HF_HUB_OFFLINE and run once more, or `hf download {name}`, and copy the cache\n"
        "  or give a folder with config.json and model.safetensors as name\n"
        "  without, give an architecture (resnet, swin, vit, dinov2, ...) and pretrained: false, or use the plugin Timm"
    )


def _settings(name: str, folder: Path | None, changes: Mapping[str, Any], drop_path: float) -> Any:
    """Return the config of the network, with changes: of a model of text and images, that of its image tower.

    Raises:
        ConfigError: The model is unknown to transformers, or a field is to its config.
        WeightsError: The folder has no config.
    """
    if folder is not None and not (folder / "config.json").is_file():
        entries = sorted(entry.name for entry in folder.iterdir())[:6]
        raise WeightsError(
            f"{folder} has no config.json, but {', '.join(entries) or 'nothing'}: name the folder that "
            "save_pretrained() wrote, or that `hf download` printed"
        )
    try:
        if folder is None:
            kind: Any = CONFIG_MAPPING[name]
            settings = kind.from_dict(json.loads(kind().to_json_string(use_diff=False)))  # lists, as a file has them
        else:
            settings = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of JSON, of an unknown model type, of a field's type
        raise ConfigError(f"{folder or name}: transformers {version} cannot read its config: {_line(error)}") from error
    tower = getattr(settings, "vision_config", None)
    settings = tower if isinstance(tower, PretrainedConfig) else settings
    same = SAME_NETWORK.get(settings.model_type)
    if changes or same is not None:
        settings = _rebuilt(name, settings, type(settings) if same is None else CONFIG_MAPPING[same], changes)
    if not 0 <= drop_path < 1:
        raise ConfigError(f"drop_path is a rate in [0, 1), not {drop_path}")
    if hasattr(settings, "drop_path_rate"):
        old = settings.drop_path_rate  # of CvT one for each stage, of LeViT a whole number
        settings.drop_path_rate = [drop_path] * len(old) if isinstance(old, list) else drop_path or type(old)()
    elif drop_path:
        raise ConfigError(f"transformers' {settings.model_type} has no stochastic depth: leave drop_path out")
    return settings


def _rebuilt(name: str, settings: Any, kind: Any, changes: Mapping[str, Any]) -> Any:
    """Return a config of `kind` with the fields of another, changed: built anew, so that derived fields follow."""
    fields = set(inspect.signature(kind).parameters) - set(inspect.signature(PretrainedConfig).parameters)
    fields = {field for field in fields if not field.startswith("_")}
    for field in changes:
        if field in ARGUMENTS:
            raise ConfigError(f"config: {field} of {name} is set by the argument {ARGUMENTS[field]}")
        if field not in fields:
            raise ConfigError(f"config: {kind.model_type} has no field {field}; {suggest(field, fields)}".rstrip("; "))
    derived = ("out_features", "out_indices")
    kept = {field: getattr(settings, field) for field in fields if field not in derived and hasattr(settings, field)}
    try:
        return kind(**{**kept, **changes})
    except Exception as error:  # configs check their fields each in their own way
        raise ConfigError(f"config of {name}: {_line(error)}") from error


def _plan(settings: Any) -> Plan:
    """Find the class that serves best, with all that it can return as taps.

    Raises:
        ConfigError: None keeps the backbone contract.
    """
    if getattr(settings, "backbone_config", None) is not None:
        raise ConfigError(_unfit(settings, "it is a whole detector or segmenter"))
    plan = None
    problem = ConfigError(_unfit(settings, "it is no vision model, or one for a single task"))
    for mapping in (MODEL_MAPPING, MODEL_FOR_BACKBONE_MAPPING):
        kind: Any = mapping.get(type(settings), None)
        if kind is None:
            continue
        try:
            plan = _measure(kind, settings)
        except ConfigError as error:
            plan, problem = None, error
            continue
        if plan.is_plain:  # with its prefix tokens, which the library's own backbones drop
            break
    if plan is None:
        raise problem
    return plan


def _measure(kind: Any, settings: Any) -> Plan:
    """Run small images of two sizes through a network without memory, and read its levels from the shapes.

    Raises:
        ConfigError: It does not take images of any size, or its maps are no whole fractions of the image.
    """
    if getattr(kind, "main_input_name", "") != "pixel_values":
        raise ConfigError(_unfit(settings, "it is no vision model"))
    if kind.__name__.startswith("Timm"):
        raise ConfigError(f"transformers' {settings.model_type} is a model of timm: use the plugin Timm")
    settings, outline = _with_all_stages(kind, settings)
    channels = getattr(settings, "num_channels", 3)
    problem = ""
    for unit in _units(settings):
        for options in ({"interpolate_pos_encoding": True}, {}):
            try:
                small = _run(outline, options, channels, 2 * unit, 3 * unit)
                taps = tuple(_read(small, _run(outline, options, channels, 3 * unit, 5 * unit), unit))
            except Exception as error:  # models refuse sizes in every way there is
                problem = problem or ("" if "interpolate_pos_encoding" in str(error) else _line(error))
                continue
            return Plan(kind, settings, options, channels, unit, taps)
    raise ConfigError(_unfit(settings, f"it does not take images alone, of any size: {problem}"))


def _with_all_stages(kind: Any, settings: Any) -> tuple[Any, Any]:
    """Return a config that asks for everything, and the network, without memory, that returns it."""
    settings = deepcopy(settings)
    problem = ""
    for first in (0, 1):  # MaskFormer's Swin refuses to return the stem
        try:
            if hasattr(kind, "out_features"):  # a backbone of the library, which returns what its config says
                settings.out_indices = list(range(first, len(settings.stage_names)))
            return settings, _outline(kind, settings)
        except Exception as error:
            problem = problem or _line(error)
    raise ConfigError(_unfit(settings, problem))


def _outline(kind: Any, settings: Any) -> Any:
    """Build a network without memory, to be measured."""
    with torch.device("meta"):
        net = kind(deepcopy(settings)).eval()
    _fix_constants(net)
    return net


def _fix_constants(net: Any) -> None:
    """Turn parameters that are not meant to be trained, such as sine embeddings, into buffers, which thawing skips."""
    for module in net.modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                delattr(module, key)
                module.register_buffer(key, parameter.detach())


def _units(settings: Any) -> list[int]:
    """Return image sizes, in pixels, whose multiples a network is likely to take, small ones first."""
    sizes = tree_leaves([getattr(settings, field, None) for field in ("patch_size", "image_size")])
    sizes = [size for size in sizes if isinstance(size, int) and size > 1]
    return sorted({64, *sizes, *(lcm(size, 32) for size in sizes[:1])})


def _run(net: Any, options: Mapping[str, bool], channels: int, height: int, width: int) -> list[Tensor]:
    """Run a network on the meta device: shapes and graph, no values."""
    with torch.device("meta"):
        return _states(net, torch.empty(2, channels, height, width), options)


def _states(net: Any, images: Tensor, options: Mapping[str, bool]) -> list[Tensor]:
    """Return all that a network can be tapped at: its feature maps, or its hidden states."""
    output = net(pixel_values=images, output_hidden_states=True, return_dict=True, **options)
    maps = getattr(output, "feature_maps", None)
    states = getattr(output, "hidden_states", None) if maps is None else maps
    if not states or not all(isinstance(state, Tensor) for state in states):
        raise ValueError("it returns no hidden states")
    return list(states)


def _read(small: list[Tensor], large: list[Tensor], unit: int) -> Iterator[Tap]:
    """Read levels from the states that images of 2 x 3 and of 3 x 5 units give.

    Raises:
        ValueError: Their sizes are no whole fractions of the images'.
    """
    for index, (a, b) in enumerate(zip(small, large, strict=True)):
        for tap in _guesses(index, a, b, unit):
            if unit % tap.level.stride == 0 and _fits(tap, a, 2 * unit, 3 * unit) and _fits(tap, b, 3 * unit, 5 * unit):
                yield tap
                break
        else:
            raise ValueError(f"{3 * unit}x{2 * unit} images give states of shape {tuple(a.shape)}")


def _guesses(index: int, small: Tensor, large: Tensor, unit: int) -> Iterator[Tap]:
    """Yield how the states of images of 2 x 3 and of 3 x 5 units may lie."""
    if small.ndim == 3 and large.shape[1] > small.shape[1]:  # 6 and 15 square units over the stride's, and a prefix
        stride = max(1, isqrt(9 * unit**2 // (large.shape[1] - small.shape[1])))
        prefix = small.shape[1] - 6 * unit**2 // stride**2
        yield Tap(index, Level(small.shape[2], stride), max(0, prefix), True)
    elif small.ndim == 4:
        for channels, height in ((1, 2), (3, 1)):
            yield Tap(index, Level(small.shape[channels], max(1, 2 * unit // small.shape[height])), 0, channels == 3)


def _fits(tap: Tap, state: Tensor, height: int, width: int) -> bool:
    """Return whether a state is as a tap says for images of that size: the size over the stride, rounded up."""
    channels, stride = tap.level.channels, tap.level.stride
    rows, columns = -(-height // stride), -(-width // stride)
    if state.ndim == 3:
        return tuple(state.shape[1:]) == (tap.prefix + rows * columns, channels)
    return tuple(state.shape[1:]) == ((rows, columns, channels) if tap.channels_last else (channels, rows, columns))


def _choose(plan: Plan, out_indices: list[int] | None) -> tuple[Plan, Any]:
    """Reduce the taps to those asked for, and return the network, without memory, that has them.

    Raises:
        ConfigError: There are no such stages.
    """
    if all(tap.level.stride == 1 for tap in plan.taps):
        raise ConfigError(_unfit(plan.settings, "it has no stage coarser than the image"))
    choices = list({tap.level.stride: tap for tap in plan.taps}.values())  # of every stride the last
    chosen = [index for index, tap in enumerate(choices) if tap.level.stride > 1]
    depth = len(plan.taps)
    if plan.is_plain:
        depth = min(depth, getattr(plan.settings, "num_hidden_layers", depth))
        choices = list(plan.taps[len(plan.taps) - depth :])  # without what goes into the first layer
        chosen = [(i + 1) * depth // min(4, depth) - 1 for i in range(min(4, depth))]
    if out_indices is not None:
        chosen = [index + len(choices) if index < 0 else index for index in out_indices]
    if not chosen or chosen != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= len(choices):
        raise ConfigError(
            f"out_indices {out_indices} of {plan.settings.model_type}: give ascending indices in "
            f"0..{len(choices) - 1} (-1: the last)"
        )
    taps = tuple(choices[index] for index in chosen)
    settings = deepcopy(plan.settings)
    if hasattr(plan.kind, "out_features"):
        settings.out_indices = [settings.out_indices[tap.state] for tap in taps]
        taps = tuple(tap._replace(state=index) for index, tap in enumerate(taps))
    outline = _outline(plan.kind, settings)
    norm = _norm(outline, plan, depth) if plan.is_plain else ""
    return replace(plan, settings=settings, taps=taps, norm=norm, embeds=depth < len(plan.taps)), outline


class _Uses(TorchFunctionMode):
    """Notes when parameters are first and last an argument of a torch function."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in net.named_parameters()}
        self.first: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self.calls = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        for leaf in tree_leaves((args, kwargs)):
            name = self.names.get(id(leaf))
            if name is not None:
                self.first.setdefault(name, self.calls)
                self.last[name] = self.calls
        return function(*args, **(kwargs or {}))


def _norm(net: Any, plan: Plan, depth: int) -> str:
    """Return the name of the norm that comes right after the layers, or nothing."""
    layers = next((name for name, x in net.named_modules() if isinstance(x, nn.ModuleList) and len(x) == depth), None)
    with _Uses(net) as uses:
        _run(net, plan.options, plan.channels, 2 * plan.unit, 3 * plan.unit)
    order = sorted(uses.last, key=lambda name: uses.last[name])
    inside = [index for index, name in enumerate(order) if name.startswith(f"{layers}.")]
    if not inside or inside[-1] + 1 == len(order):
        return ""
    owner: str = order[inside[-1] + 1].rpartition(".")[0]
    channels = plan.taps[-1].level.channels
    is_norm = all(tuple(parameter.shape) == (channels,) for parameter in net.get_submodule(owner).parameters())
    return owner if is_norm and plan.taps[-1].channels_last else ""


@torch.enable_grad()
def _normed(net: Any, plan: Plan) -> int:
    """Return which state has gone through the final norm inside the network, or -1."""
    if not plan.norm:
        return -1
    states = _run(net, plan.options, plan.channels, 2 * plan.unit, 3 * plan.unit)
    weight = next(net.get_submodule(plan.norm).parameters())
    (gradient,) = torch.autograd.grad(states[-1].sum(), weight, allow_unused=True)
    return -1 if gradient is None else len(states) - 1


def _extract(net: Any, plan: Plan, images: Tensor) -> Features:
    """Run a network and lay out its levels."""
    states = _states(net, images, plan.options)
    norm = net.get_submodule(plan.norm) if plan.norm else nn.Identity()
    features = Features([], [])
    for tap in plan.taps:
        state = states[tap.state] if tap.state == plan.normed else norm(states[tap.state])
        if state.ndim == 3:
            prefix, state = state.tensor_split([tap.prefix], 1)
            if plan.prefix_tokens:
                features.prefix.append(prefix)
            rows, columns = (-(-side // tap.level.stride) for side in images.shape[-2:])
            state = state.unflatten(1, (rows, columns))
        features.maps.append(state.permute(0, 3, 1, 2) if tap.channels_last else state)
    return features


class Skipped(nn.Module):
    """Stands where a network calls layers that no level needs."""

    def forward(self, hidden: Any, *_: Any, **__: Any) -> Any:
        """Hand the first argument on."""
        return hidden


def _drop_unused(net: Any, plan: Plan) -> set[str]:
    """Drop the parameters that no level uses, and return their names.

    Raises:
        ConfigError: They cannot be dropped, because the network computes with them all the same.
    """
    unused = _without_gradient(net, plan)
    _cut(net, unused)
    try:
        left = _without_gradient(net, plan)
    except Exception as error:  # what a network raises that misses a part
        raise ConfigError(
            f"transformers' {plan.settings.model_type} cannot do without layers that no level uses ({_line(error)}): "
            f"leave out_indices out, or use {INSTEAD}"
        ) from error
    if left:
        raise ConfigError(
            _unfit(plan.settings, f"parameters that no level uses cannot be cut off, such as {min(left)}")
        )
    return unused


@torch.enable_grad()
def _without_gradient(net: Any, plan: Plan) -> set[str]:
    """Return the names of the parameters that get no gradient from any level."""
    net.zero_grad()
    with torch.device("meta"):
        images = torch.empty(2, plan.channels, 2 * plan.unit, 3 * plan.unit)
        features = _extract(net, plan, images)
        torch.autograd.backward([x.sum() for x in [*features.maps, *features.prefix]])
    return {name for name, parameter in net.named_parameters() if parameter.grad is None}


def _cut(module: Any, unused: set[str]) -> None:
    """Drop parameters with the layers that have no others."""
    for key, _ in list(module.named_parameters(recurse=False)):
        if key in unused:
            setattr(module, key, None)
    for name, child in list(module.named_children()):
        own = {key for key, _ in child.named_parameters()}
        dead = {key for key in own if f"{name}.{key}" in unused}
        if not dead:
            continue
        if isinstance(child, nn.ModuleList):
            needed = {int(key.partition(".")[0]) for key in own - dead}
            del child[max(needed, default=-1) + 1 :]
        elif own == dead:
            setattr(module, name, Skipped())
            continue
        _cut(child, dead)


def _multiple(net: Any, plan: Plan) -> int:
    """Find what image sizes must be divisible by, so that the maps are the image over the stride, rounded up."""
    unit, strides = plan.unit, [tap.level.stride for tap in plan.taps]
    if plan.settings.model_type in LOSSY:
        return int(strides[-1] * plan.settings.patch_size)
    for multiple in sorted({1, *strides}):
        size = (2 * unit + multiple, 3 * unit + multiple)
        try:
            states = _run(net, plan.options, plan.channels, *size)
        except Exception:  # models refuse sizes in every way there is
            continue
        if all(_fits(tap, states[tap.state], *size) for tap in plan.taps):
            return multiple
    return unit


def _stem(net: Any, plan: Plan) -> list[str]:
    """Return the path of the convolution that sees the image.

    Raises:
        ConfigError: There is none.
    """
    with _Uses(net) as uses:
        _run(net, plan.options, plan.channels, 2 * plan.unit, 3 * plan.unit)
    for name in sorted(uses.first, key=lambda name: uses.first[name]):
        path: list[str] = name.split(".")[:-1]
        layer = net.get_submodule(".".join(path))
        if isinstance(layer, nn.Conv2d) and layer.in_channels == plan.channels:
            return path
    raise ConfigError(f"transformers' {plan.settings.model_type} takes images of {plan.channels} channels only")


def _stage_names(net: Any, plan: Plan) -> list[list[str]]:
    """Group the names of the parameters into stages, in the order in which the network is through with them."""
    with _Uses(net) as uses, torch.device("meta"):
        _extract(net, plan, torch.empty(2, plan.channels, 2 * plan.unit, 3 * plan.unit))
    stages: dict[tuple[str, str], list[str]] = {}
    for name, _ in net.named_parameters():
        stages.setdefault(_stage(net, name.split(".")), []).append(name)
    return sorted(stages.values(), key=lambda names: max(uses.last.get(name, 0) for name in names))


def _stage(net: Any, path: list[str]) -> tuple[str, str]:
    """Return the stage of a parameter: the outermost part without a list of layers, or one layer of a list.

    Lists side by side, as of patch embeddings and of blocks, make one stage of what has one index.
    """
    for depth, part in enumerate(path[:-1]):
        child = getattr(net, part)
        if isinstance(child, nn.ModuleList):
            return ".".join(path[:depth]), path[depth + 1]
        net = child
        if not any(isinstance(module, nn.ModuleList) for module in child.modules()):
            return ".".join(path[: depth + 1]), ""
    return ".".join(path[:-1]), ""


@torch.no_grad()
def _check_prefix(net: Any, plan: Plan) -> None:
    """Check that the tokens without a place in the image come first: those that are equal for two images.

    Raises:
        ConfigError: They do not.
    """
    if not plan.prefix_tokens or not plan.embeds or next(net.parameters()).is_meta:
        return
    images = torch.zeros(2, plan.channels, 2 * plan.unit, 3 * plan.unit)
    images[1] = torch.linspace(-1, 1, images[1].numel()).view_as(images[1])
    net.eval()
    one, other = _states(net, images, plan.options)[0]
    net.train()
    same = torch.isclose(one, other).all(1).tolist()
    if same != [index < plan.prefix_tokens for index in range(len(same))]:
        where = [index for index, is_same in enumerate(same) if is_same]
        raise ConfigError(
            _unfit(
                plan.settings, f"{len(where)} of its {len(same)} tokens see no image, and not all of them come first"
            )
        )


def _load(plan: Plan, folder: Path, unused: set[str]) -> Any:
    """Build the network with a folder's weights.

    Raises:
        WeightsError: They cannot be read, or do not fit where it matters.
    """
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True, "local_files_only": True}
    try:
        with _quiet():
            net, report = plan.kind.from_pretrained(folder, config=deepcopy(plan.settings), **options)
    except Exception as error:  # of safetensors, of an unpickler that refuses code, of a missing file
        raise WeightsError(f"{folder}: its weights cannot be read: {_line(error)}") from error
    _cut(net, unused)
    own = set(net.state_dict())
    missing = [key for key in sorted(own & {*report["missing_keys"]} - _added(own, plan)) if not key.endswith(COUNTER)]
    shapes = dict(
        (entry, "") if isinstance(entry, str) else (entry[0], entry[1:]) for entry in report["mismatched_keys"]
    )
    unequal = [f"{key} {', wanted '.join(str(tuple(x)) for x in shapes[key])}".rstrip() for key in shapes if key in own]
    problems = [
        f"  {len(entries)} of {len(own)} {what}: {', '.join(entries[:3])}{', ...' if len(entries) > 3 else ''}"
        for what, entries in (("keys missing", missing), ("of another shape", unequal))
        if entries
    ]
    if problems:
        raise WeightsError(
            f"{folder} does not fit {plan.kind.__name__}:\n"
            + "\n".join(problems)
            + "\n  are its weights those of config.json, whole, and of this model alone?"
        )
    return net.float()


def _added(keys: set[str], plan: Plan) -> set[str]:
    """Return those keys that the library's backbone has and its model has not: norms of every level.

    A checkpoint of the model lacks them; they begin as norms without scale or shift.
    """
    kind: Any = MODEL_MAPPING.get(type(plan.settings), plan.kind)
    known = set(_outline(kind, plan.settings).state_dict())
    return {key for key in keys if key not in known and key.partition(".")[2] not in known}


def _widen(net: Any, path: list[str], channels: int, is_loaded: bool, is_bgr: bool) -> None:
    """Give the first convolution filters for other channels; loaded ones give on equal channels what they gave."""
    layer = net.get_submodule(".".join(path))
    filters = layer.weight.detach().flip(1) if is_bgr else layer.weight.detach()  # (O, C, H, W)
    count = layer.in_channels
    if channels != count and not is_loaded:
        filters = filters.std() * torch.randn(filters.shape[0], channels, *filters.shape[2:])
    elif channels == 1:
        filters = filters.sum(1, keepdim=True)
    elif channels != count:
        filters = filters.repeat(1, -(-channels // count), 1, 1)[:, :channels] * (count / channels)
    layer.weight = nn.Parameter(filters)
    layer.in_channels = channels
    for depth in range(len(path)):  # what it is a part of may compare this with the images
        whole = net.get_submodule(".".join(path[:depth]))
        if hasattr(whole, "num_channels"):
            whole.num_channels = channels


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing what is no news here: progress, and a table of the heads left out."""
    talk: Any = logging  # which has no types
    level, has_bar = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    try:
        yield
    finally:
        talk.set_verbosity(level)
        if has_bar:
            talk.enable_progress_bar()


def _statistics(folder: Path | None) -> tuple[list[float], list[float], bool]:
    """Return mean and std of images in [0, 1], and whether the channels are blue, green, red.

    Raises:
        WeightsError: The file that has them is damaged.
    """
    path = next((folder / file for file in PROCESSORS if folder is not None and (folder / file).is_file()), None)
    if path is None:
        return list(IMAGENET_MEAN), list(IMAGENET_STD), False
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        entries = entries.get("image_processor", entries)
        is_normalised = entries.get("do_normalize", "image_mean" in entries)
        mean, std = (entries["image_mean"], entries["image_std"]) if is_normalised else ([0.0] * 3, [1.0] * 3)
        again = entries["image_std"] if entries.get("include_top") else [1.0] * len(std)  # of EfficientNet
        scale = 255 * ((entries.get("rescale_factor") or 1 / 255) if entries.get("do_rescale", True) else 1)
        shift = 1.0 if entries.get("rescale_offset") else 0.0
        mean = [(float(x) + shift) / scale for x in mean]
        std = [float(x) * float(y) / scale for x, y in zip(std, again, strict=True)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} is damaged, or gives no image_mean and image_std: {error!r}") from error
    return mean, std, bool(entries.get("do_flip_channel_order"))


def _line(error: Exception) -> str:
    """Return what an error says on one line, or the beginning of it."""
    text = " ".join(str(error).split()) or repr(error)
    return text if len(text) <= 240 else f"{text[:240]} ..."


def _unfit(settings: Any, why: str) -> str:
    """Say that a model cannot be a backbone, and what to take instead."""
    return f"transformers' {settings.model_type} cannot be a backbone: {why}\n  use {INSTEAD}"
