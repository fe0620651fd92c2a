"""Whether the weights in a checkpoint are those of a network, and if not, what else they seem to be."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from framework.errors import ConfigError, suggest
from framework.tasks.base import Task

MOST_NAMES = 3  # of one kind of mismatch


def check_network(checkpoint: dict[str, Any], model: Task, source: str = "the checkpoint") -> None:
    """Compare the weights of a checkpoint with those that a network has room for, before anything is loaded.

    Args:
        checkpoint: With `state_dict`.
        model: The network; on any device.
        source: What to call the checkpoint.

    Raises:
        ConfigError: Its outputs mean something else, weights are missing or unknown, or have other shapes.
    """
    model.check_outputs(checkpoint)
    trained, given = _shapes(checkpoint["state_dict"]), _shapes(model.state_dict())
    missing = [name for name in given if name not in trained]
    unknown = [name for name in trained if name not in given]
    other = [name for name in given if name in trained and given[name] != trained[name]]
    if not (missing or unknown or other):
        return
    shapes = [f"{name} {_sides(trained[name])} there, {_sides(given[name])} here" for name in other]
    nearest = [f"{name}{_hint(name, missing)}" for name in unknown]
    raise ConfigError(
        "\n".join(
            [
                f"--ckpt_path: {source} holds another network{_suspicion(missing, unknown, other)}:",
                *_listed("missing there", missing, len(given)),
                *_listed("unknown here", nearest, len(trained)),
                *_listed("of other shapes", shapes, len(given)),
                "build the network that was trained (framework validate --ckpt_path FILE without --config does), or "
                "begin a new run",
            ]
        )
    )


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}


def _listed(what: str, entries: Sequence[str], total: int) -> list[str]:
    """Say in one line, or in none, how many weights differ in some way, and which the first of them are."""
    more = ", ..." if len(entries) > MOST_NAMES else ""
    return [f"{len(entries)} of {total} {what}: {', '.join(entries[:MOST_NAMES])}{more}"] if entries else []


def _suspicion(missing: Sequence[str], unknown: Sequence[str], other: Sequence[str]) -> str:
    """Guess what differs from where the weights lie that do not fit."""
    parts = {name.partition(".")[0] for name in (*missing, *unknown, *other)}
    if parts == {"head"} and not missing and not unknown and len(other) <= 2:
        return ", it seems with another number of classes"
    named = [f"another {part}" for part in ("backbone", "head", "loss") if part in parts]
    return f", it seems with {' and '.join(named)}" if named else ""


def _hint(name: str, missing: Sequence[str]) -> str:
    close = suggest(name, missing) if len(missing) > 1 else ""
    return f" ({close})" if close.startswith("did you") else ""


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
