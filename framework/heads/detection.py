"""The contract of detection heads: from features to boxes with classes and scores."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn

from framework.backbone import Features, Level
from framework.boxes import Detections, Frame, Objects
from framework.errors import ConfigError


class DetectionHead(nn.Module, ABC):
    """Features in, boxes out; in training, losses.

    A head is built as `Head(levels, prefix_tokens, num_classes, ...)`: the first three come from the backbone and the
    task, and what follows is the head's own and can be set in an experiment.

    Args:
        levels: What the backbone returns, fine to coarse.
        prefix_tokens: Tokens that the backbone returns beside each map, the class token first; 0 for a CNN.
        num_classes: Number of classes, without a background.

    Attributes:
        multiple: What the height and width of the canvas must be divisible by, beside the backbone's own.
        used: Indices of the backbone's levels that the head reads.
        loss_names: Names of what `losses` returns, the same in every step.
        nms_iou: Two detections of one class that overlap by more than this are one object, in (0, 1]; by it, too, are
            those of several tiles put together.
    """

    tasks: ClassVar[tuple[str, ...]] = ("Detection",)
    trial: ClassVar[dict[str, Any]] = {}  # options of a small one, with which backbones are tried

    multiple: int
    used: tuple[int, ...]
    loss_names: tuple[str, ...]
    nms_iou: float = 0.5

    @abstractmethod
    def losses(self, features: Features, frame: Frame, objects: Sequence[Objects]) -> dict[str, Tensor]:
        """Compute the terms of the training loss, scalars whose sum is minimised.

        Every parameter that is trained gets a gradient in every step, also where no image has an object.

        Args:
            features: What the backbone made of the canvas.
            frame: Where the images lie.
            objects: What is in each image; perhaps nothing.
        """

    @abstractmethod
    def detect(self, features: Features, frame: Frame) -> list[Detections]:
        """Find the objects of each image; no image's result depends on another's."""

    @overload
    def forward(self, features: Features, frame: Frame, objects: Sequence[Objects]) -> dict[str, Tensor]: ...
    @overload
    def forward(self, features: Features, frame: Frame, objects: None = None) -> list[Detections]: ...
    def forward(
        self, features: Features, frame: Frame, objects: Sequence[Objects] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Compute the losses for given objects, or find them: the one way in, which hooks and compilers know."""
        return self.detect(features, frame) if objects is None else self.losses(features, frame, objects)


DetectionHeadFactory = Callable[[tuple[Level, ...], int, int], DetectionHead]
"""Builds a head from (levels, prefix_tokens, num_classes): the type of a task's `head` argument."""


def class_weight_tensor(class_weights: Sequence[float] | None, num_classes: int) -> Tensor | None:
    """Return what the loss of each class counts, float (num_classes,).

    Raises:
        ConfigError: There is not one for every class, or one is not above 0.
    """
    if class_weights is None:
        return None
    if len(class_weights) != num_classes:
        raise ConfigError(f"model.head.class_weights: {len(class_weights)} weights for {num_classes} classes")
    if min(class_weights) <= 0:
        raise ConfigError(f"model.head.class_weights must be above 0, got {list(class_weights)}")
    return torch.tensor(class_weights, dtype=torch.float32)
