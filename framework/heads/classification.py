"""Classification heads: from features to one value per output and image. The contract, and the heads."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from framework.backbone import Features, Level
from framework.errors import ConfigError
from framework.heads.dense import require_fraction, require_positive

Pool = Literal["auto", "cls", "mean", "cls+mean"]


class ClassificationHead(nn.Module, ABC):
    """Features in, one value per output and image out: the logits of the classes.

    A head is built as `Head(levels, prefix_tokens, outputs, ...)`: the first three come from the backbone and the
    task, and what follows is the head's own and can be set in an experiment.

    Args:
        levels: What the backbone returns, fine to coarse.
        prefix_tokens: Tokens that the backbone returns beside each map, the class token first; 0 for a CNN.
        outputs: Values per image, such as the number of classes.

    Attributes:
        used: Indices of the backbone's levels that the head reads.
    """

    tasks: ClassVar[tuple[str, ...]] = ("Classification",)

    used: tuple[int, ...]

    @abstractmethod
    def forward(self, features: Features) -> Tensor:
        """Compute (B, outputs), float, unbounded."""


ClassificationHeadFactory = Callable[[tuple[Level, ...], int, int], ClassificationHead]
"""Builds a head from (levels, prefix_tokens, outputs): the type of a task's `head` argument."""


class Pooling:
    """What stands for an image, out of the features of it.

    Args:
        levels: What the backbone returns, fine to coarse.
        prefix_tokens: Tokens that the backbone returns beside each map.
        pool: What stands for an image: the class token, the mean of the map, both, or `auto`, the class token where
            there is one and else the mean.
        layers: Of how many of the last levels, concatenated; all, if the backbone returns fewer. With `cls+mean` the
            mean is that of the last map alone.

    Raises:
        ConfigError: The backbone has no class token to pool, or `layers` is not positive.
    """

    used: tuple[int, ...]

    def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, pool: Pool, layers: int) -> None:
        require_positive(layers=layers)
        if pool in ("cls", "cls+mean") and not prefix_tokens:
            raise ConfigError(f"pool: {pool} needs a class token, and the backbone has none: set pool: mean")
        self.used = tuple(range(len(levels)))[-layers:]
        if pool == "auto":
            pool = "cls" if prefix_tokens else "mean"
        self.with_token = self.used if pool in ("cls", "cls+mean") else ()
        self.with_mean = {"cls": (), "mean": self.used, "cls+mean": self.used[-1:]}[pool]
        self.channels = sum(levels[index].channels for index in (*self.with_token, *self.with_mean))

    def pool(self, features: Features) -> Tensor:
        """Return what stands for each image, (B, channels)."""
        tokens = [features.prefix[index][:, 0] for index in self.with_token]
        means = [features.maps[index].mean((2, 3)) for index in self.with_mean]
        return torch.cat([*tokens, *means], dim=1)


class _Pooled(Pooling, ClassificationHead):
    """A head over pooled features; its arguments are those of `Pooling`."""

    def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, pool: Pool, layers: int) -> None:
        ClassificationHead.__init__(self)
        Pooling.__init__(self, levels, prefix_tokens, pool, layers)


class LinearClassifier(_Pooled):
    """One linear layer over pooled features.

    With `pool: cls` or `cls+mean` it is DINOv2's linear evaluation (arXiv 2304.07193, section 7.1, and
    github.com/facebookresearch/dinov2, `eval/linear.py`), which tries `layers` 1 and 4.

    Args:
        pool: What stands for an image: the class token, the mean of the map, both, or `auto`, the class token where
            there is one and else the mean.
        layers: Of how many of the last levels, concatenated; all, if the backbone returns fewer. With `cls+mean` the
            mean is that of the last map alone.
        dropout: Probability of dropping a feature before the layer, in [0, 1).

    Raises:
        ConfigError: The backbone has no class token to pool, or `layers` or `dropout` is out of range.
    """

    def __init__(
        self,
        levels: tuple[Level, ...],
        prefix_tokens: int,
        outputs: int,
        *,
        pool: Pool = "auto",
        layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(levels, prefix_tokens, pool, layers)
        require_fraction(dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.classify = classifier(self.channels, outputs)

    def forward(self, features: Features) -> Tensor:
        """Compute (B, outputs)."""
        logits: Tensor = self.classify(self.dropout(self.pool(features)))
        return logits


class MLPClassifier(_Pooled):
    """A perceptron over pooled features: normalisation, then hidden layers with GELU, then a linear layer.

    Args:
        hidden: Width of each hidden layer.
        depth: Number of hidden layers.
        pool: What stands for an image: the class token, the mean of the map, both, or `auto`, the class token where
            there is one and else the mean.
        layers: Of how many of the last levels, concatenated; all, if the backbone returns fewer. With `cls+mean` the
            mean is that of the last map alone.
        dropout: Probability of dropping a feature before each linear layer but the first, in [0, 1).

    Raises:
        ConfigError: The backbone has no class token to pool, or a number is out of range.
    """

    def __init__(
        self,
        levels: tuple[Level, ...],
        prefix_tokens: int,
        outputs: int,
        *,
        hidden: int = 512,
        depth: int = 1,
        pool: Pool = "auto",
        layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(levels, prefix_tokens, pool, layers)
        require_positive(hidden=hidden, depth=depth)
        require_fraction(dropout=dropout)
        parts: list[nn.Module] = [nn.LayerNorm(self.channels)]
        for width in [self.channels, *[hidden] * (depth - 1)]:
            parts += [nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout)]
        self.classify = nn.Sequential(*parts, classifier(hidden, outputs))

    def forward(self, features: Features) -> Tensor:
        """Compute (B, outputs)."""
        logits: Tensor = self.classify(self.pool(features))
        return logits


class AttentiveClassifier(ClassificationHead):
    """A learned query attends to the cells of the last map and its prefix tokens; a linear layer over what it gathers.

    The attentive probe of CAE (Chen et al., arXiv 2202.03026, section 4.2) and of V-JEPA (arXiv 2404.08471), without
    their feed-forward part: cross attention of one query, keys and values from the normalised tokens.

    Args:
        heads: Attention heads, which divide `width`; null: one for every 64 channels of it, at least one.
        width: Channels of keys and values; null: those of the last level.
        dropout: Probability of dropping a feature before the linear layer, in [0, 1).

    Raises:
        ConfigError: `heads` does not divide `width`, or a number is out of range.
    """

    def __init__(
        self,
        levels: tuple[Level, ...],
        prefix_tokens: int,
        outputs: int,
        *,
        heads: int | None = None,
        width: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels = levels[-1].channels
        width = width or channels
        heads = heads or next(count for count in range(max(1, width // 64), 0, -1) if width % count == 0)
        require_positive(heads=heads, width=width)
        require_fraction(dropout=dropout)
        if width % heads:
            raise ConfigError(f"heads must divide the width of {width}, got {heads}")
        self.used = (len(levels) - 1,)
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Parameter(torch.empty(1, 1, width))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.attention = nn.MultiheadAttention(width, heads, kdim=channels, vdim=channels, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.classify = classifier(width, outputs)

    def forward(self, features: Features) -> Tensor:
        """Compute (B, outputs)."""
        last = self.used[0]
        tokens = features.maps[last].flatten(2).transpose(1, 2)
        if features.prefix:
            tokens = torch.cat([features.prefix[last], tokens], dim=1)
        tokens = self.norm(tokens)
        gathered, _ = self.attention(self.query.expand(len(tokens), -1, -1), tokens, tokens, need_weights=False)
        logits: Tensor = self.classify(self.dropout(gathered[:, 0]))
        return logits


def classifier(channels: int, outputs: int) -> nn.Linear:
    """Return the last layer, which begins near 0, so that no class is preferred."""
    layer = nn.Linear(channels, outputs)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
