"""Reading weights files, and loading them into a network all or nothing."""

import re
from argparse import Namespace
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from framework.errors import WeightsError, suggest

# What training scripts call the state dict inside a checkpoint; averaged weights first: they are the better ones
WRAPPERS = (
    *("state_dict_ema", "model_ema", "teacher", "state_dict", "model_state_dict", "model"),
    *("student", "net", "module", "backbone", "encoder", "weights"),
)
PREFIXES = ("module.", "_orig_mod.")  # left by DistributedDataParallel and torch.compile
COUNTER = "num_batches_tracked"  # a batch-norm buffer that older and converted files lack, and inference does not read


def read_weights(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict from a file, without running any code that the file may hold.

    Args:
        path: A `.safetensors` file, or a torch file of any other suffix (`.pth`, `.pt`, `.bin`, `.ckpt`), bare or as
            one entry of a training checkpoint (`WRAPPERS`).

    Returns:
        Parameters and buffers by name, on the CPU, without the prefixes that wrappers leave.

    Raises:
        WeightsError: The file is missing, damaged, holds no state dict, or could only be read by unpickling.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path} is a folder: name a weights file in it")
    if not path.is_file():
        raise WeightsError(f"no weights file {path}: {_nearest(path)}")
    state = _unwrap(_read(path), path)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def load_strictly(
    net: nn.Module,
    state: Mapping[str, Tensor],
    source: str | PathLike[str],
    may_lack: Collection[str] = (),
    may_exceed: Collection[str] = (),
) -> None:
    """Load `state` into `net`, or nothing of it.

    Args:
        net: Network to fill.
        state: Parameters and buffers by name.
        source: What to call the weights in an error, such as their path.
        may_lack: Names in `net` that `state` need not have; they keep their values.
        may_exceed: Names in `state` that are ignored where `net` does not have them.

    Raises:
        WeightsError: Keys are missing or unexpected, or shapes differ; `net` is left untouched.
    """
    own = net.state_dict()
    missing = [name for name in own if name not in state and name not in may_lack and not name.endswith(COUNTER)]
    unexpected = [name for name in state if name not in own and name not in may_exceed]
    unequal = [
        f"{name} is {tuple(state[name].shape)}, wanted {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        f"  {len(entries)} {what}: {', '.join(entries[:3])}{', ...' if len(entries) > 3 else ''}"
        for what, entries in (
            (f"of {len(own)} keys missing", missing),
            ("not in the network", unexpected),
            ("of another shape", unequal),
        )
        if entries
    ]
    if problems:
        raise WeightsError(
            f"{source} does not fit {type(net).__name__}, nothing was loaded:\n"
            + "\n".join(problems)
            + "\n  is it the file of another model or variant, or of more than this network?"
        )
    own.update(
        (name, tensor) for name, tensor in state.items() if name in own
    )  # keeps the version that MNASNet asks for
    net.load_state_dict(own)


def fit_channels(filters: Tensor, channels: int) -> Tensor:
    """Give the filters of a first convolution other input channels, so that equal channels give what they gave.

    Args:
        filters: (outputs, inputs, height, width).
        channels: Channels of the images. Where there are more than inputs, filters are repeated and their weights
            shared out among the copies; where there are fewer, those that are too many are added to the others.

    Returns:
        (outputs, channels, height, width).
    """
    inputs = filters.shape[1]
    if channels <= inputs:
        return filters[:, :channels] + filters[:, channels:].sum(1, keepdim=True) / channels
    index = torch.arange(channels) % inputs
    return filters[:, index] / torch.bincount(index)[index].view(-1, 1, 1)


def _read(path: Path) -> Any:
    """Return what the file holds."""
    with path.open("rb") as file:
        if file.read(32).startswith(b"version https://git-lfs"):
            raise WeightsError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull`")
    damaged = f"{path} is damaged, or no weights file: copy or download it again"
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise WeightsError(f"{damaged} ({error})") from error
    try:
        with torch.serialization.safe_globals([Namespace]):  # plain data, and in many a checkpoint as `args`
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make an unpickler raise anything
        blocked = re.findall(r"GLOBAL (\S+)", str(error))
        if blocked:
            raise WeightsError(
                f"{path} needs unpickling, which can run any code: it holds {', '.join(blocked)}; if you trust it, "
                "load it once with torch.load(..., weights_only=False) and save its state_dict() alone"
            ) from error
        reason = str(error).strip().split(". ")[0].splitlines()
        raise WeightsError(f"{damaged} ({type(error).__name__}: {' '.join(reason)[:200]})") from error


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the state dict in what a file holds: names to tensors, all else left out."""
    while isinstance(content, Mapping):
        inner = [name for name, value in content.items() if _holds_tensors(value)]
        wrapper = next((name for name in WRAPPERS if name in inner), inner[0] if len(inner) == 1 else None)
        state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if state and wrapper not in WRAPPERS:
            return state
        if wrapper is None:
            break
        content = content[wrapper]
    keys = (
        f"the keys {', '.join(map(str, list(content)[:8]))}"
        if isinstance(content, Mapping)
        else f"a {type(content).__name__}"
    )
    raise WeightsError(f"{path} holds no state dict, but {keys}: save model.state_dict(), names to tensors")


def _holds_tensors(value: Any) -> bool:
    """Tell a state dict, and a mapping with one in it, from an optimizer's state, which lies deeper."""
    if not isinstance(value, Mapping):
        return False
    entries = [*value.values(), *(x for entry in value.values() if isinstance(entry, Mapping) for x in entry.values())]
    return any(isinstance(entry, Tensor) for entry in entries)


def _nearest(path: Path) -> str:
    """Say what is there instead of a missing file."""
    folder = path.parent.absolute()
    if not folder.is_dir():
        return f"there is no folder {folder}"
    return suggest(path.name, (entry.name for entry in folder.iterdir())) or f"nothing like it in {folder}"
