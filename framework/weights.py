"""Reading weights files, and loading them into a network all or nothing."""

import pickle
import zipfile
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from framework.errors import WeightsError

# What training scripts call the state dict inside their checkpoints; averaged weights first, as they are the better ones.
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
        Parameters and buffers by name, on the CPU, without the prefixes of wrappers.

    Raises:
        WeightsError: The file is missing, damaged, holds no state dict, or could only be read by unpickling.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file {path}{_nearest(path)}")
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
    if missing or unexpected or unequal:
        problems = [
            f"  {len(entries)} {what}: {', '.join(entries[:3])}{', ...' if len(entries) > 3 else ''}"
            for what, entries in (
                (f"of {len(own)} keys are missing", missing),
                ("keys are not in the network", unexpected),
                ("shapes differ", unequal),
            )
            if entries
        ]
        raise WeightsError(
            f"{source} does not fit {type(net).__name__}, nothing was loaded:\n"
            + "\n".join(problems)
            + "\n  is it the file of another model or variant, or a checkpoint of more than the network?"
        )
    net.load_state_dict({name: tensor for name, tensor in state.items() if name in own}, strict=False)


def _read(path: Path) -> Any:
    """Return what the file holds."""
    damaged = f"{path} is damaged or no weights file: copy or download it again"
    with path.open("rb") as file:
        if file.read(20).startswith(b"version https://git-"):
            raise WeightsError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull`")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise WeightsError(f"{damaged} ({error})") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        if blocked := _pickled(path):
            raise WeightsError(
                f"{path} needs unpickling, which can run any code: it holds {', '.join(blocked[:3])}; where you trust "
                "it, load it once with torch.load(..., weights_only=False) and save its state_dict() alone"
            ) from error
        raise WeightsError(f"{damaged} ({str(error).strip().splitlines()[0]})") from error


def _pickled(path: Path) -> list[str]:
    """Name the classes in a torch file that are no weights."""
    if not zipfile.is_zipfile(path):
        return []
    return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the state dict in what a file holds: names to tensors, other entries left out."""
    while isinstance(content, Mapping):
        state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
        inner = [name for name, value in content.items() if _holds_tensors(value)]
        named = [name for name in WRAPPERS if name in inner]
        if state and not named:
            return state
        if not named and len(inner) != 1:
            break
        content = content[(named or inner)[0]]
    found = f"the keys {', '.join(map(str, list(content)[:8]))}" if isinstance(content, Mapping) else type(content).__name__
    raise WeightsError(f"{path} holds no state dict but {found}: save model.state_dict(), names to tensors")


def _holds_tensors(value: Any) -> bool:
    """Tell whether a value is a mapping with tensors in it, or in one of its own mappings."""
    return isinstance(value, Mapping) and any(
        isinstance(entry, Tensor) or (isinstance(entry, Mapping) and _holds_tensors(entry)) for entry in value.values()
    )


def _nearest(path: Path) -> str:
    """Say what is there instead of a missing file."""
    if path.is_dir():
        return ": that is a folder, name a file in it"
    if not path.parent.is_dir():
        return f": there is no folder {path.parent.absolute()}"
    names = [entry.name for entry in path.parent.iterdir()]
    close = get_close_matches(path.name, names, n=1)
    return f": did you mean {path.with_name(close[0])}?" if close else f" in {path.parent.absolute()}"
