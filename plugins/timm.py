"""Any timm model as a backbone: CNNs, hierarchical transformers and plain ViTs."""

import inspect
import socket
from collections.abc import Callable, Iterable, Set
from functools import cache, partial
from math import lcm
from os import PathLike
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from timm.models import adapt_input_conv, group_parameters
from torch import Tensor, nn

from framework.backbone import Backbone, Features, Level
from framework.errors import ConfigError, WeightsError, suggest
from framework.weights import load_strictly, read_weights
from plugins.packaged import PACKAGED, packaged_weights

ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}  # what models call "accept images of any size"
REFUSALS = (AssertionError, RuntimeError, ValueError)  # what models raise for a size they cannot take
Run = Callable[[int, int], Features]  # height and width of images to the shapes of their features
INSTEAD = "vit_small_patch16_224, swin_tiny_patch4_window7_224 or convnext_tiny"


class Timm(Backbone):
    """A timm model by name.

    A CNN or a hierarchical transformer returns a pyramid. A plain ViT returns blocks of one stride, each through the
    final norm, with its class and register tokens as prefix.

    Args:
        name: Model name, with or without the tag of its weights: `resnet50`, `vit_small_patch14_dinov2.lvd142m`.
        pretrained: `true` takes the weights from the Hugging Face hub or its cache, `packaged` from an installed
            package (no network; see `plugins/packaged.py`), `false` initialises at random.
        weights: A file to take the weights from: in timm's layout, or in one that timm converts, such as Meta's DINOv2.
        out_indices: Stages (of a ViT: blocks) to return, ascending, negative ones counted from the end; null: every
            stage coarser than the image, or four blocks evenly spread.
        in_channels: Channels of the images; pretrained filters are repeated or summed over them.
        drop_path: Rate of stochastic depth in training, in [0, 1).

    Raises:
        ConfigError: timm has no such model, or it cannot keep the backbone contract.
        WeightsError: The weights cannot be had, or do not fit.
    """

    net: Any  # timm has no common type for its models

    def __init__(
        self,
        name: str,
        pretrained: bool | Literal["packaged"] = False,
        weights: str | PathLike[str] | None = None,
        out_indices: list[int] | None = None,
        in_channels: int = 3,
        drop_path: float = 0.0,
    ) -> None:
        _check_choice(name, pretrained, weights)
        outline = _outline(name, in_channels, drop_path, None if out_indices is None else tuple(out_indices))
        options, known = outline.options, outline.known
        super().__init__(
            levels=outline.levels,
            multiple=outline.multiple,
            prefix_tokens=outline.prefix_tokens,
            in_channels=in_channels,
            mean=outline.mean,
            std=outline.std,
        )
        net = _from_hub(name, options) if pretrained is True else timm.create_model(name, **options)
        _prune(net, list(outline.taps))
        _drop(net, outline.unused)
        if weights is not None:
            _load(net, read_weights(weights), weights, known, in_channels)
        elif pretrained == "packaged":
            _load(net, packaged_weights(name), f"the packaged {name}", known, in_channels)
        self.taps = list(outline.taps)
        self.norm = _is_plain(net)
        self.net = net

    @classmethod
    def published(cls, *_: Any, name: str, in_channels: int = 3, **others: Any) -> nn.Module:
        """Build timm's whole network with its classifier, at random weights.

        Raises:
            ConfigError: timm has no such model.
        """
        _check_choice(name, False, None)
        net: nn.Module = timm.create_model(name, **_options(name, in_channels, 0.0))
        return net

    def extract(self, images: Tensor) -> Features:
        """Compute the features of normalised images (B, C, H, W), float."""
        return _extract(self.net, images, self.taps, self.norm, self.prefix_tokens)

    def stages(self) -> list[list[nn.Parameter]]:
        """Split the parameters into stem, then stages (of a ViT: blocks), input to output."""
        named = dict(self.net.named_parameters())
        return [[named[name] for name in names] for names in _stage_names(self.net)]


def _check_choice(name: str, pretrained: bool | Literal["packaged"], weights: str | PathLike[str] | None) -> None:
    """Refuse what no network needs to be built for."""
    architecture, _, tag = name.partition(".")
    tagged = timm.list_models(f"{architecture}*", include_tags=True)
    if not timm.is_model(architecture) or (tag and name not in tagged):
        nearest = suggest(name, tagged if tag and tagged else timm.list_models())
        raise ConfigError(f"timm {timm.__version__} has no model {name}{nearest and ', ' + nearest}")
    if pretrained and weights is not None:
        raise ConfigError(f"{name}: give pretrained: {str(pretrained).lower()} or weights: {weights}, not both")
    if pretrained == "packaged" and name not in PACKAGED:
        raise ConfigError(
            f"no package has weights for {name}, only for {', '.join(PACKAGED)}: set pretrained: true for those of the "
            "hub, or false to start at random"
        )
    published: Any = timm.models.get_pretrained_cfg(name)
    if pretrained is True and published and not published.has_weights:
        tags = timm.list_pretrained(f"{architecture}.*")
        raise ConfigError(
            f"timm has no weights for {name}: " + (f"it has {', '.join(tags[:8])}" if tags else "set pretrained: false")
        )


class Outline(NamedTuple):
    """What is the same for all networks of one name and settings, found without their values.

    Args:
        options: The arguments that the model takes.
        taps: The absolute indices of what to return.
        known: The names of all tensors of the whole network.
        levels: What is returned.
        unused: The names of parameters that no level uses.
        multiple: What image sizes must be divisible by.
        prefix_tokens: The number of class and register tokens.
        mean: Of each channel of the images that the weights were made for.
        std: Their standard deviation.
    """

    options: dict[str, Any]
    taps: tuple[int, ...]
    known: frozenset[str]
    levels: tuple[Level, ...]
    unused: tuple[str, ...]
    multiple: int
    prefix_tokens: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@cache
def _outline(name: str, in_channels: int, drop_path: float, out_indices: tuple[int, ...] | None) -> Outline:
    """Measure a network on the meta device, once: it takes as long as building a small one."""
    options = _options(name, in_channels, drop_path)
    with torch.device("meta"):
        net: Any = timm.create_model(name, **options)  # the same network without memory
    taps = _taps(net, None if out_indices is None else list(out_indices))
    known = frozenset({*net.state_dict(), *_classifier(net)})
    _prune(net, taps)
    run = partial(_run, net, taps, in_channels)
    levels, unit = _levels(net, run)
    unused = _drop_unused(net, run, unit)
    multiple = _multiple(net, run, levels, unit)
    mean, std = (tuple(net.pretrained_cfg[key]) for key in ("mean", "std"))
    return Outline(options, tuple(taps), known, tuple(levels), tuple(unused), multiple, _prefix_tokens(net), mean, std)


def _options(name: str, in_channels: int, drop_path: float) -> dict[str, Any]:
    """Return the arguments that this model takes."""
    with torch.device("meta"):
        kind = type(timm.create_model(name))
    accepted: set[str] = set()
    for base in kind.__mro__:
        parameters = inspect.signature(base).parameters
        accepted |= set(parameters)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break  # a class without **kwargs hands nothing on
    if not 0 <= drop_path < 1:
        raise ConfigError(f"drop_path is a rate in [0, 1), not {drop_path}")
    if drop_path and "drop_path_rate" not in accepted:
        raise ConfigError(f"timm's {name} has no stochastic depth: leave drop_path out")
    options = {"in_chans": in_channels, "drop_path_rate": drop_path, **ANY_SIZE}
    return {key: value for key, value in options.items() if key in accepted or key == "in_chans"}


def _is_plain(net: Any) -> bool:
    """Tell a plain ViT, or another network of one stride, from a pyramid."""
    return len(net.feature_info) > 1 and len(set(_strides(net))) == 1


def _prefix_tokens(net: Any) -> int:
    """Return the number of class and register tokens that a network hands out."""
    accepted = inspect.signature(net.forward_intermediates).parameters
    return int(getattr(net, "num_prefix_tokens", 0)) if "return_prefix_tokens" in accepted else 0


def _taps(net: Any, out_indices: list[int] | None) -> list[int]:
    """Return the absolute indices of what to return."""
    name, depth = net.pretrained_cfg["architecture"], len(net.feature_info)
    if out_indices is None:
        if _is_plain(net):
            return [(i + 1) * depth // min(4, depth) - 1 for i in range(min(4, depth))]
        return [index for index, stride in enumerate(_strides(net)) if stride > 1]
    taps = [index + depth if index < 0 else index for index in out_indices]
    if not taps or taps != sorted(set(taps)) or taps[0] < 0 or taps[-1] >= depth:
        raise ConfigError(
            f"out_indices {out_indices} of {name}: give ascending indices in 0..{depth - 1} (-1: the last)"
        )
    return taps


def _prune(net: Any, taps: list[int]) -> None:
    """Drop what no level needs."""
    net.prune_intermediate_layers(taps, prune_norm=not _is_plain(net))


def _drop(net: Any, unused: Iterable[str]) -> None:
    """Drop parameters that timm's own pruning leaves although no level uses them."""
    for key in unused:
        owner, _, leaf = key.rpartition(".")
        setattr(net.get_submodule(owner), leaf, None)


def _extract(net: Any, images: Tensor, taps: list[int], norm: bool, prefix_tokens: int) -> Features:
    """Run the network up to its last tap."""
    options = {"indices": taps, "norm": norm, "stop_early": True, "intermediates_only": True}
    if not prefix_tokens:
        return Features(list(net.forward_intermediates(images, **options)), [])
    maps, prefix = zip(*net.forward_intermediates(images, **options, return_prefix_tokens=True), strict=True)
    return Features(list(maps), list(prefix))


def _levels(net: Any, run: Run) -> tuple[list[Level], int]:
    """Return the levels as measured, and an image size, in pixels, whose multiples give exact fractions.

    Raises:
        ConfigError: The network takes images of one size only, or its maps are no whole fractions of the image.
    """
    problem = ""
    for unit in (lcm(*_strides(net)), net.pretrained_cfg["input_size"][-1]):
        try:
            maps = run(2 * unit, 3 * unit).maps
        except REFUSALS as error:
            problem = next(iter(str(error).strip().splitlines()), repr(error))
            continue
        levels = [Level(x.shape[1], 2 * unit // x.shape[2]) for x in maps]
        exact = [(2 * unit / level.stride, 3 * unit / level.stride) for level in levels]
        if [tuple(x.shape[2:]) for x in maps] == exact:
            return levels, unit
        problem = f"{3 * unit}x{2 * unit} images give maps of {', '.join(f'{x.shape[3]}x{x.shape[2]}' for x in maps)}"
    raise ConfigError(
        f"timm's {net.pretrained_cfg['architecture']} cannot be a backbone, because it does not take images of any "
        f"size: {problem}\n  use a network that does, such as {INSTEAD}"
    )


def _multiple(net: Any, run: Run, levels: list[Level], unit: int) -> int:
    """Find what image sizes must be divisible by, so that the maps are the image over the stride, rounded up."""
    for multiple in sorted({1, *_strides(net)}):
        height, width = 2 * unit + multiple, 3 * unit + multiple
        try:
            maps = run(height, width).maps
        except REFUSALS:
            continue
        wanted = [(-(-height // level.stride), -(-width // level.stride)) for level in levels]
        if [tuple(x.shape[2:]) for x in maps] == wanted:
            return multiple
    return unit


@torch.enable_grad()
def _drop_unused(net: Any, run: Run, unit: int) -> list[str]:
    """Drop the parameters that timm's own pruning leaves although no level uses them, and return their names.

    Raises:
        ConfigError: They cannot be dropped, because the network computes with them all the same.
    """
    features = run(unit, unit)
    torch.autograd.backward([x.sum() for x in [*features.maps, *features.prefix]])
    unused = [key for key, parameter in net.named_parameters() if parameter.grad is None]
    _drop(net, unused)
    try:
        run(unit, unit)
    except TypeError as error:
        raise ConfigError(
            f"timm's {net.pretrained_cfg['architecture']} needs parameters that no level uses if only these "
            f"are returned, such as {unused[0]}: leave out_indices out"
        ) from error
    return unused


def _strides(net: Any) -> list[int]:
    """Return the strides that timm declares, input to output."""
    return [info["reduction"] for info in net.feature_info]


def _run(net: Any, taps: list[int], in_channels: int, height: int, width: int) -> Features:
    """Run a network on the meta device: shapes and graph, no values."""
    images = torch.empty(2, in_channels, height, width, device="meta")
    return _extract(net, images, taps, _is_plain(net), _prefix_tokens(net))


def _stage_names(net: Any) -> list[list[str]]:
    """Group the names of the parameters into stages, input to output."""
    try:
        matcher = net.group_matcher(coarse=True)
    except (AttributeError, AssertionError):  # MetaFormer, CSATv2 and others have none, RDNet no coarse one
        stages: dict[str, list[str]] = {}
        for key, _ in net.named_parameters():
            child = key.split(".")[0]
            depth = 2 if isinstance(getattr(net, child), nn.Sequential | nn.ModuleList) else 1
            stages.setdefault(".".join(key.split(".")[:depth]), []).append(key)
        return list(stages.values())
    groups = group_parameters(net, matcher)
    return [groups[index] for index in sorted(groups)]


def _from_hub(name: str, options: dict[str, Any]) -> Any:
    """Build a network with the weights that its name stands for."""
    try:
        _check_network(name)
        return timm.create_model(name, pretrained=True, **options)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"no weights for timm's {name}: {str(error).strip().splitlines()[0]}\n"
            f"  neither from {constants.ENDPOINT} nor in its cache, {constants.HF_HUB_CACHE}\n"
            "  with a network, run it once more there and copy the cache, or download the file and set weights: PATH\n"
            f"  without, set pretrained: false, or pretrained: packaged with {', '.join(PACKAGED)}"
        ) from error


def _check_network(name: str) -> None:
    """Fail at once where the hub has no address, which timm retries for a minute.

    Raises:
        OSError: There is none, nor a file in the cache.
    """
    published: Any = timm.models.get_pretrained_cfg(name)
    if published and published.hf_hub_id and not getproxies():
        files = ("model.safetensors", "pytorch_model.bin")
        if not any(isinstance(try_to_load_from_cache(published.hf_hub_id, file), str) for file in files):
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)


def _classifier(net: Any) -> list[str]:
    """Name the parameters of a network's classifiers, which a file may have although the network has none."""
    layers = net.pretrained_cfg.get("classifier") or ()
    return [
        f"{layer}.{leaf}" for layer in ([layers] if isinstance(layers, str) else layers) for leaf in ("weight", "bias")
    ]


def _load(net: Any, state: dict[str, Tensor], source: str | PathLike[str], known: Set[str], in_channels: int) -> None:
    """Load weights in timm's layout, or one that the model's own module converts, into a pruned network.

    Raises:
        WeightsError: They do not fit.
    """
    convert = getattr(inspect.getmodule(type(net)), "checkpoint_filter_fn", None)
    if convert is not None:
        try:
            state = convert(state, net)
        except Exception as error:  # converters take the layout for granted and raise anything
            raise WeightsError(
                f"{source} does not fit {type(net).__name__}: timm cannot convert it ({error!r})"
            ) from error
    first = net.pretrained_cfg.get("first_conv") or ()
    for layer in [first] if isinstance(first, str) else first:
        key = f"{layer}.weight"
        if in_channels != 3 and key in state and state[key].shape != net.get_parameter(key).shape:
            state[key] = adapt_input_conv(in_channels, state[key])
    load_strictly(net, state, source, may_exceed=known)
