"""One static partition of all parameters for the optimizer, from step 0 on: by part, learning rate, decay, period."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from framework.errors import ConfigError
from framework.transfer.plan import TrainingPlan
from framework.transfer.selection import Parts, select

NO_DECAY = ("pos_embed", "cls_token", "reg_token", "mask_token", "relative_position_bias_table")


@dataclass(frozen=True)
class Rates:
    """The learning rates of the parts of a network, as shares of the optimizer's, or as they are.

    Layer-wise decay is that of BEiT (Bao et al., arXiv 2106.08254, appendix) and DINOv2's fine-tuning: of S stages the
    one with the number i, from the input on, learns at `layer_decay` to the power of S - i; the head at the full rate.

    Args:
        backbone: Share of the backbone's, at least 0.
        layer_decay: In (0, 1]; 1: all stages learn alike.
        given: Learning rates by part; of several that mean a parameter, that of the smallest part holds.
    """

    backbone: float = 1.0
    layer_decay: float = 1.0
    given: Mapping[str, float] | None = None

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            ConfigError: One is.
        """
        if not self.backbone >= 0:
            raise ConfigError(f"model.backbone_lr_factor: a share of the learning rate is at least 0: {self.backbone}")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"model.layer_decay: it is in (0, 1], got {self.layer_decay}")
        for part, rate in (self.given or {}).items():
            if not rate >= 0:
                raise ConfigError(f"model.learning_rates: that of {part} is at least 0, got {rate}")

    def shares(self, parts: Parts) -> dict[str, float]:
        """Return the share of the optimizer's learning rate of each parameter of which no rate is given."""
        shares = dict.fromkeys(parts.head, 1.0)
        for index, stage in enumerate(parts.stages):
            shares |= dict.fromkeys(stage, self.backbone * self.layer_decay ** (len(parts.stages) - index))
        if self.layer_decay == 1:  # no rounding
            shares |= dict.fromkeys(parts.backbone, self.backbone)
        return shares

    def absolute(self, parts: Parts) -> dict[str, float]:
        """Return the given learning rates by parameter.

        Raises:
            ConfigError: There is no such part.
        """
        given = [(select(parts, word, "output", "model.learning_rates"), r) for word, r in (self.given or {}).items()]
        return {name: rate for names, rate in sorted(given, key=lambda pair: -len(pair[0])) for name in names}


_Kind = tuple[
    bool, float | None, float | None, bool, tuple[bool, ...]
]  # of the backbone?, share, rate, decays, history


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are treated alike from the first step to the last.

    Args:
        name: Such as `stage3/decay`.
        names: Of the parameters, in the order of the network.
        share: Of the optimizer's learning rate; None where `rate` says it.
        rate: The learning rate itself.
        decays: Whether weight decay applies.
        history: Whether they are trained, period by period.
    """

    name: str
    names: tuple[str, ...]
    share: float | None
    rate: float | None
    decays: bool
    history: tuple[bool, ...]


def partition(network: nn.Module, parts: Parts, rates: Rates, plan: TrainingPlan) -> list[ParameterGroup]:
    """Split all parameters of a network, frozen ones too, into as few groups as treat them right.

    Norms, biases and embeddings are not decayed. Neighbouring stages that are treated alike share a group.

    Args:
        network: The whole network.
        parts: What its parameters belong to.
        rates: Their learning rates.
        plan: When they are trained.

    Raises:
        ConfigError: A learning rate is given for a part that there is not.
    """
    shares, absolute = rates.shares(parts), rates.absolute(parts)
    stage_of = {name: index for index, stage in enumerate(parts.stages) for name in stage}
    kinds: dict[_Kind, list[str]] = {}
    for name, parameter in network.named_parameters():
        rate = absolute.get(name)
        share = shares[name] if rate is None else None
        kind = (name in stage_of, share, rate, decays(name, parameter), plan.history(name))
        kinds.setdefault(kind, []).append(name)
    groups = []
    ordered = sorted(kinds.items(), key=lambda item: _order(item[0], item[1], stage_of))
    for (_, share, rate, decay, history), names in ordered:
        part = _label({stage_of.get(name) for name in names}, len(parts.stages))
        label = f"{part}/{'decay' if decay else 'no_decay'}"
        groups.append(ParameterGroup(label, tuple(names), share, rate, decay, history))
    return _numbered(groups)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Tell whether weight decay applies to a parameter: not to norms, biases and embeddings."""
    return parameter.ndim > 1 and not any(word in name for word in NO_DECAY)


def _order(kind: _Kind, names: list[str], stage_of: dict[str, int]) -> tuple[int, int, bool]:
    """Sort groups from the input to the head, those that decay first."""
    stages = [stage_of.get(name, len(stage_of)) for name in names]
    return min(stages), max(stages), not kind[3]


def _label(stages: set[int | None], count: int) -> str:
    """Name what a group's parameters belong to."""
    numbers = sorted(stage for stage in stages if stage is not None)
    if not numbers:
        return "head"
    if len(numbers) == count:
        return "backbone"
    runs = [[numbers[0]]]
    for one, two in pairwise(numbers):
        runs[-1].append(two) if two == one + 1 else runs.append([two])
    return "stage" + "+".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _numbered(groups: list[ParameterGroup]) -> list[ParameterGroup]:
    """Number groups of the same name."""
    seen: dict[str, int] = {}
    named = []
    for group in groups:
        seen[group.name] = seen.get(group.name, 0) + 1
        name = group.name if seen[group.name] == 1 else f"{group.name}/{seen[group.name]}"
        named.append(ParameterGroup(name, group.names, group.share, group.rate, group.decays, group.history))
    return named
