"""How a dense prediction is made from a network: whole image or window by window, flipped, at several scales."""

from collections.abc import Callable, Iterator
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from framework.errors import ConfigError
from framework.preprocessing import resize_image, resize_logits, to_unit

Network = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to logits (B, K, H, W), any size."""


class DenseInference:
    """Sliding windows and test-time augmentation for per-pixel classes.

    Logits of overlapping windows are averaged; probabilities of flips and scales are averaged.

    Args:
        window: Height and width of the windows, one number for squares; null: the whole image at once.
        overlap: Fraction of a window that the next one shares, at least.
        flip: Average with the prediction for the mirrored image.
        scales: Average over the image at these sizes relative to its own.
        batch_size: Windows at a time.
    """

    tasks: ClassVar[tuple[str, ...]] = ("Segmentation",)

    def __init__(
        self,
        window: int | tuple[int, int] | None = None,
        overlap: float = 1 / 3,
        flip: bool = False,
        scales: tuple[float, ...] = (1.0,),
        batch_size: int = 8,
    ) -> None:
        if not 0 <= overlap < 1:
            raise ConfigError(f"inference.overlap must be in [0, 1), got {overlap}")
        if not scales or min(scales) <= 0:
            raise ConfigError(f"inference.scales must be positive, got {list(scales)}")
        self.window = (window, window) if isinstance(window, int) else window
        if self.window is not None and min(self.window) < 1:
            raise ConfigError(f"inference.window must be at least 1 pixel, got {self.window}")
        self.overlap, self.flip, self.scales, self.batch_size = overlap, flip, scales, batch_size

    def __call__(self, network: Network, images: Tensor) -> Tensor:
        """Predict class probabilities.

        Args:
            network: The network.
            images: (B, C, H, W), uint8 or float in [0, 1].

        Returns:
            Log-probabilities (B, K, H, W).
        """
        if not self.flip and self.scales == (1.0,):
            return self._logits(network, images).log_softmax(1)
        size = (int(images.shape[-2]), int(images.shape[-1]))
        total: Tensor | None = None
        views = list(self._views(images, size))
        for view, mirrored in views:
            logits = self._logits(network, view)
            logits = resize_logits(logits.flip(-1) if mirrored else logits, size)
            probabilities = logits.softmax(1)
            total = probabilities if total is None else total + probabilities
        assert total is not None
        return (total / len(views)).clamp_min(torch.finfo(total.dtype).tiny).log()

    def _views(self, images: Tensor, size: tuple[int, int]) -> Iterator[tuple[Tensor, bool]]:
        for scale in self.scales:
            scaled = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
            view = resize_image(to_unit(images), scaled)
            yield view, False
            if self.flip:
                yield view.flip(-1), True

    def _logits(self, network: Network, images: Tensor) -> Tensor:
        if self.window is None:
            return network(images)
        height, width = images.shape[-2:]
        window = (min(self.window[0], height), min(self.window[1], width))
        rows, columns = (window_starts(*sides, self.overlap) for sides in zip((height, width), window, strict=True))
        places = [(image, top, left) for image in range(len(images)) for top in rows for left in columns]
        total: Tensor | None = None
        count: Tensor | None = None
        for start in range(0, len(places), self.batch_size):
            group = places[start : start + self.batch_size]
            crops = [images[i, :, top : top + window[0], left : left + window[1]] for i, top, left in group]
            logits = network(torch.stack(crops))
            if total is None or count is None:
                total = logits.new_zeros(len(images), logits.shape[1], height, width)
                count = logits.new_zeros(len(images), 1, height, width)
            for (i, top, left), part in zip(group, logits, strict=True):
                total[i, :, top : top + window[0], left : left + window[1]] += part
                count[i, :, top : top + window[0], left : left + window[1]] += 1
        assert total is not None
        assert count is not None
        return total / count


def window_starts(side: int, window: int, overlap: float) -> list[int]:
    """Return evenly spread starts of windows that cover `side`, each sharing at least that fraction with the next."""
    if window >= side:
        return [0]
    steps = ceil((side - window) / max(1, int(window * (1 - overlap))))
    return [round(i * (side - window) / steps) for i in range(steps + 1)]
