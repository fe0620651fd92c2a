"""The parts of a network by the words that an experiment uses for them: `head`, `stage0`, `norms`, a pattern."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from framework.backbone import Backbone
from framework.errors import ConfigError, suggest

Selection = int | str | list[int | str]
"""Parts of a network.

A number counts stages of the backbone. A word is `head`, `backbone`, `all`, `stage0` and so on from the input, `norms`
or `biases` (those of the backbone), `lora` (adapters), or a pattern such as `backbone.*.attn.*` on parameter names. A
list takes them together; after `!` a word takes parts out again, as in `[backbone, "!norms"]`.
"""

PATTERN = re.compile(r"[*?\[.]")


@dataclass(frozen=True)
class Parts:
    """What every parameter of a network belongs to, by name.

    Args:
        stages: Names of the backbone's parameters, stage by stage from the input on.
        head: Names of all others.
        norms: Names of the backbone's parameters that lie in normalisation layers.
    """

    stages: tuple[frozenset[str], ...]
    head: frozenset[str]
    norms: frozenset[str]

    @property
    def backbone(self) -> frozenset[str]:
        """Names of the backbone's parameters."""
        return frozenset().union(*self.stages)

    @property
    def all(self) -> frozenset[str]:
        """Names of all parameters."""
        return self.backbone | self.head

    def words(self) -> list[str]:
        """Return every word that there is, patterns left out."""
        return ["all", "backbone", "head", "norms", "biases", "lora", *(f"stage{i}" for i in range(len(self.stages)))]


def parts_of(network: nn.Module, backbone: Backbone) -> Parts:
    """Sort the parameters of a network.

    Args:
        network: The whole network.
        backbone: Its backbone, whose stages hold each of its parameters once.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    stages = tuple(frozenset(names[id(parameter)] for parameter in stage) for stage in backbone.stages())
    norms = {names[id(parameter)] for layer in _norms(backbone) for parameter in layer.parameters(recurse=False)}
    return Parts(stages, frozenset(names.values()).difference(*stages), frozenset(norms))


def _norms(network: nn.Module) -> Iterator[nn.Module]:
    """Give the normalisation layers, those of libraries and users too, which are known by their names alone."""
    for layer in network.modules():
        if "norm" in type(layer).__name__.lower() and all(p.ndim <= 1 for p in layer.parameters(recurse=False)):
            yield layer


def select(parts: Parts, selection: Selection, counted: Literal["input", "output"], place: str) -> frozenset[str]:
    """Return the names of the selected parameters.

    Args:
        parts: The network.
        selection: The parts meant.
        counted: What a number means: `input`, the first stages of the backbone; `output`, the last ones with the head.
        place: Where the selection is written, for errors.

    Raises:
        ConfigError: There is no such part, with the nearest one.
    """
    selected: frozenset[str] = frozenset()
    for word in selection if isinstance(selection, list) else [selection]:
        if isinstance(word, str) and word.startswith("!"):
            selected -= _meant(parts, word[1:], place)
        elif isinstance(word, str):
            selected |= _meant(parts, word, place)
        else:
            selected |= _count(parts, word, counted, place)
    return selected


def _count(parts: Parts, count: int, counted: str, place: str) -> frozenset[str]:
    most = len(parts.stages)
    if isinstance(count, bool) or not 0 <= count <= most:
        raise ConfigError(f"{place}: the backbone has {most} stages, so a number is 0 to {most}, not {count}")
    if counted == "input":
        return frozenset().union(*parts.stages[:count])
    return parts.head.union(*parts.stages[most - count :])


def _meant(parts: Parts, word: str, place: str) -> frozenset[str]:
    """Return the parameters that one word means."""
    if re.fullmatch(r"\d+", word):
        raise ConfigError(f"{place}: {word!r} is text; a number of stages is written without quotes")
    if PATTERN.search(word):
        meant = frozenset(name for name in parts.all if fnmatchcase(name, word))
    elif word in parts.words():
        meant = _named(parts, word)
    else:
        hint = suggest(word, parts.words()) or f"there are {', '.join(parts.words())}"
        raise ConfigError(f"{place}: the network has no part {word}; {hint}")
    if not meant:
        raise ConfigError(f"{place}: no parameter of the network is meant by {word}{_nearest(parts, word)}")
    return meant


def _named(parts: Parts, word: str) -> frozenset[str]:
    if word.startswith("stage"):
        return parts.stages[int(word.removeprefix("stage"))]
    if word == "biases":
        return frozenset(name for name in parts.backbone if name.endswith(("bias", "_bias")))
    if word == "lora":
        return frozenset(name for name in parts.all if "lora_" in name)
    meant: frozenset[str] = getattr(parts, word)
    return meant


def _nearest(parts: Parts, word: str) -> str:
    """Suggest names near to a pattern that matches none."""
    if not PATTERN.search(word):
        return ""
    hint = suggest(re.sub(r"[*?\[\]]", "", word), parts.all)
    return f"; {hint}" if hint else f"; names are such as {min(parts.all)}"
