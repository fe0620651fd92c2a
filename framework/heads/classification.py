"""Classification heads: from features to one value per output and image. The contract, and the simplest head."""

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


class LinearClassifier(ClassificationHead):
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
        super().__init__()
        require_positive(layers=layers)
        require_fraction(dropout=dropout)
        if pool in ("cls", "cls+mean") and not prefix_tokens:
            raise ConfigError(f"pool: {pool} needs a class token, and the backbone has none: set pool: mean")
        self.used = tuple(range(len(levels)))[-layers:]
        if pool == "auto":
            pool = "cls" if prefix_tokens else "mean"
        self.with_token = self.used if pool in ("cls", "cls+mean") else ()
        self.with_mean = {"cls": (), "mean": self.used, "cls+mean": self.used[-1:]}[pool]
        channels = sum(levels[index].channels for index in (*self.with_token, *self.with_mean))
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(channels, outputs)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)

    def forward(self, features: Features) -> Tensor:
        """Compute (B, outputs)."""
        tokens = [features.prefix[index][:, 0] for index in self.with_token]
        means = [features.maps[index].mean((2, 3)) for index in self.with_mean]
        logits: Tensor = self.classify(self.dropout(torch.cat([*tokens, *means], dim=1)))
        return logits
