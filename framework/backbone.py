"""The backbone contract: what a plugin promises, and nothing else.

A plugin subclasses `Backbone`, calls `super().__init__(levels=...)`, and writes two methods:
`extract` (normalised images to features) and `stages` (its parameters, input to output).
Nothing in it knows about tasks, learning rates, losses or logging.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import lcm
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Level:
    """One feature map.

    Args:
        channels: Depth of the map.
        stride: Input pixels per cell, the same in height and width.
    """

    channels: int
    stride: int


class Features(NamedTuple):
    """What a backbone returns: one type, always.

    Args:
        maps: Per level (B, channels, H/stride, W/stride), float, NCHW, fine to coarse.
        prefix: Per level (B, P, channels), the class token first, then registers; empty for a CNN.
    """

    maps: list[Tensor]
    prefix: list[Tensor]


class Backbone(nn.Module, ABC):
    """Images in, feature levels out.

    Args:
        levels: What `forward` returns, fine to coarse.
        multiple: Height and width must be divisible by this many pixels.
        prefix_tokens: Tokens before the patch tokens (class token and registers); 0 for a CNN.
        in_channels: Channels of the input images.
        mean: Per-channel mean of the images the weights were trained on, in [0, 1] units. With
            `in_channels` other than its length, its average is used for every channel.
        std: Per-channel standard deviation, likewise.

    Raises:
        ValueError: `levels` is empty, no list of `Level`, or does not go fine to coarse.
    """

    weights_licence: ClassVar[str] = ""  # of the pretrained weights, where there are any; `plugins list` shows it

    mean: Tensor
    std: Tensor
    frozen: int  # how many stages are frozen, from the input on
    is_frozen: bool  # whether every parameter is
    frozen_dtype: torch.dtype | None = None  # what a frozen backbone computes in; None: as everything else does

    def __init__(
        self,
        levels: Sequence[Level],
        multiple: int = 1,
        prefix_tokens: int = 0,
        in_channels: int = 3,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if not levels or not all(isinstance(level, Level) for level in levels):
            raise ValueError(f"{type(self).__name__}: levels is a list of Level(channels, stride), not {levels!r}")
        strides = [level.stride for level in levels]
        if strides != sorted(strides):
            raise ValueError(f"{type(self).__name__}: levels go fine to coarse, got strides {strides}: turn them round")
        self.levels = tuple(levels)
        self.multiple = multiple
        self.prefix_tokens = prefix_tokens
        self.in_channels = in_channels
        self.frozen = 0
        self.is_frozen = False
        self._rests = False  # whether any parameter is frozen
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, _per_channel(values, in_channels), persistent=False)

    @abstractmethod
    def extract(self, images: Tensor) -> Features:
        """Compute the features of normalised images (B, C, H, W), float."""

    @abstractmethod
    def stages(self) -> list[list[nn.Parameter]]:
        """Split the parameters into stages, input to output, every parameter in exactly one."""

    @classmethod
    def published(cls, *_: Any, **arguments: Any) -> nn.Module | None:
        """Build the whole network as its paper counts it, so mostly with its classifier; optional.

        `framework compare` counts this network, so that its figures can be held against published ones.

        Args:
            arguments: Those of the constructor. What does not change the architecture, such as `pretrained`, is left
                out of account.

        Returns:
            The network at random weights, on the default device, for images (B, C, H, W), float. What it returns is
            not looked at. None: the plugin does not say, and the backbone alone is counted.
        """
        return None

    def forward(self, images: Tensor) -> Features:
        """Compute the features of images (B, C, H, W), float in [0, 1].

        Raises:
            ValueError: Height or width is not divisible by `multiple`, or the channels are not `in_channels`.
            TypeError: `extract` returns something else than `Features`.
        """
        channels, height, width = images.shape[-3:]
        if channels != self.in_channels:
            raise ValueError(
                f"{type(self).__name__} was built for {self.in_channels} channels, got {channels}: "
                f"set in_channels: {channels}"
            )
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"{type(self).__name__} needs height and width divisible by {self.multiple}, "
                f"got {height}x{width}: pad or resize the images"
            )
        # A frozen backbone builds no graph and keeps no activations, whatever its plugin does inside.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen), self._precision(images.device):
            features = self.extract((images - self.mean) / self.std)
        if not isinstance(features, Features):
            raise TypeError(
                f"{type(self).__name__}.extract must return Features(maps, prefix), not {type(features).__name__}"
            )
        if self.is_frozen and self.frozen_dtype is not None:  # the head computes as it would by itself
            return Features([x.to(images.dtype) for x in features.maps], [x.to(images.dtype) for x in features.prefix])
        return features

    def _precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context in which features are computed: weights stay as they are."""
        if not self.is_frozen or self.frozen_dtype is None:
            return nullcontext()
        if self.frozen_dtype == torch.float32:
            return torch.autocast(device.type, enabled=False)
        return torch.autocast(device.type, dtype=self.frozen_dtype)

    def freeze(self, stages: int | Literal["all"] = "all") -> None:
        """Freeze the first `stages` stages and thaw the rest.

        Frozen layers get no gradient and rest in eval mode whatever `train` is told, so that batch-norm
        statistics and dropout rest too.

        Raises:
            ValueError: There are fewer stages than that.
        """
        every = self.stages()
        count = len(every) if stages == "all" else stages
        if not 0 <= count <= len(every):
            raise ValueError(f"{type(self).__name__} has {len(every)} stages, so freeze 0 to {len(every)}, not {count}")
        for index, parameters in enumerate(every):
            for parameter in parameters:
                parameter.requires_grad_(index >= count)
                if index < count:
                    parameter.grad = None  # else momentum and weight decay go on
        self.settle()
        self.frozen = count

    def settle(self) -> None:
        """Let the layers of frozen parameters rest, and wake those of others; for who sets `requires_grad` by hand."""
        stages = [any(parameter.requires_grad for parameter in stage) for stage in self.stages()]
        self.frozen = stages.index(True) if True in stages else len(stages)
        trained = [parameter.requires_grad for parameter in self.parameters()]
        self.is_frozen = bool(trained) and not any(trained)
        self._rests = not all(trained)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":
        """Set training mode, but let frozen layers rest in eval mode."""
        super().train(mode)  # `self.training` stays what was asked for, so that thawing can restore it
        if self.is_frozen:
            for child in self.children():
                child.train(False)
        elif self._rests and mode:
            rest_frozen(self.children())
        return self

    def probe(self) -> None:
        """Run one small image through and compare what comes out with `levels` and `prefix_tokens`.

        Raises:
            ValueError: They differ; the message holds the table of declared and real shapes.
        """
        parameter = next(self.parameters(), None)
        if parameter is None or parameter.is_meta:
            return
        unit = lcm(self.multiple, *(level.stride for level in self.levels))
        height, width = unit * max(1, -(-64 // unit)), unit * (1 + max(1, -(-64 // unit)))  # not square on purpose
        images = torch.zeros(1, self.in_channels, height, width, device=parameter.device)
        training = self.training
        self.eval()
        with torch.no_grad():
            maps, prefix = self(images)
        self.train(training)
        want: list[tuple[int, ...]] = [
            (1, level.channels, height // level.stride, width // level.stride) for level in self.levels
        ]
        want += [(1, self.prefix_tokens, level.channels) for level in self.levels if self.prefix_tokens]
        got = [tuple(x.shape) for x in [*maps, *prefix]]
        if got != want:
            rows = [
                f"  {str(want[i]) if i < len(want) else '-':24} {got[i] if i < len(got) else '-'}"
                for i in range(max(len(want), len(got)))
            ]
            raise ValueError(
                f"{type(self).__name__} declares other features than it returns for a {height}x{width} image:\n"
                f"  {'declared':24} returned\n" + "\n".join(rows)
            )


def _per_channel(values: Sequence[float], channels: int) -> Tensor:
    """Shape statistics as (channels, 1, 1); their average where the number of channels differs."""
    if len(values) != channels:
        values = [sum(values) / len(values)] * channels
    return torch.tensor(values).view(-1, 1, 1)


def rest_frozen(modules: Iterable[nn.Module]) -> None:
    """Put every module, or part of one, whose parameters are all frozen into eval mode, with what it contains."""
    for module in modules:
        trained = [parameter.requires_grad for parameter in module.parameters()]
        if trained and not any(trained):
            module.train(False)
        else:
            rest_frozen(module.children())
