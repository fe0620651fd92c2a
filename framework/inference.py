"""How a dense prediction is made from a network: whole image or window by window, flipped, at several scales."""

from collections.abc import Callable, Iterator
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from framework.errors import ConfigError
from framework.preprocessing import resize_image, resize_logits, to_unit

Network = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to maps of their size: logits (B, K, H, W), or depth (B, H, W)."""


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
        self.window = _check_window(window, overlap)
        if not scales or min(scales) <= 0:
            raise ConfigError(f"inference.scales must be positive, got {list(scales)}")
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
        return slide(network, images, self.window, self.overlap, self.batch_size)


class DepthInference:
    """Sliding windows and a mirrored view for depth; what overlaps is averaged, in metres.

    Args:
        window: Height and width of the windows, one number for squares; null: the whole image at once.
        overlap: Fraction of a window that the next one shares, at least.
        flip: Average with the prediction for the mirrored image.
        batch_size: Windows at a time.

    Raises:
        ConfigError: A number is out of range.
    """

    tasks: ClassVar[tuple[str, ...]] = ("Depth",)

    def __init__(
        self,
        window: int | tuple[int, int] | None = None,
        overlap: float = 1 / 3,
        flip: bool = False,
        batch_size: int = 8,
    ) -> None:
        self.window = _check_window(window, overlap)
        self.overlap, self.flip, self.batch_size = overlap, flip, batch_size

    def __call__(self, network: Network, images: Tensor) -> Tensor:
        """Predict depth.

        Args:
            network: Images (B, C, H, W) to depth (B, H, W).
            images: (B, C, H, W), uint8 or float in [0, 1].

        Returns:
            Depth (B, H, W) in metres.
        """
        depth = self._depth(network, images)
        return (depth + self._depth(network, images.flip(-1)).flip(-1)) / 2 if self.flip else depth

    def _depth(self, network: Network, images: Tensor) -> Tensor:
        if self.window is None:
            return network(images)
        return slide(_Deepened(network), images, self.window, self.overlap, self.batch_size)[:, 0]


class _Deepened:
    """A network whose maps (B, H, W) are given a channel, (B, 1, H, W)."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def __call__(self, images: Tensor) -> Tensor:
        return self.network(images)[:, None]


def slide(network: Network, images: Tensor, window: tuple[int, int] | None, overlap: float, batch_size: int) -> Tensor:
    """Run a network window by window, and average where windows overlap.

    Args:
        network: The network.
        images: (B, C, H, W).
        window: Height and width of the windows; None: the whole image at once.
        overlap: Fraction of a window that the next one shares, at least.
        batch_size: Windows at a time.

    Returns:
        Maps (B, K, H, W).
    """
    if window is None:
        return network(images)
    height, width = images.shape[-2:]
    window = (min(window[0], height), min(window[1], width))
    rows, columns = (window_starts(*sides, overlap) for sides in zip((height, width), window, strict=True))
    places = [(image, top, left) for image in range(len(images)) for top in rows for left in columns]
    total: Tensor | None = None
    count: Tensor | None = None
    for start in range(0, len(places), batch_size):
        group = places[start : start + batch_size]
        crops = [images[i, :, top : top + window[0], left : left + window[1]] for i, top, left in group]
        maps = network(torch.stack(crops))
        if total is None or count is None:
            total = maps.new_zeros(len(images), maps.shape[1], height, width)
            count = maps.new_zeros(len(images), 1, height, width)
        for (i, top, left), part in zip(group, maps, strict=True):
            total[i, :, top : top + window[0], left : left + window[1]] += part
            count[i, :, top : top + window[0], left : left + window[1]] += 1
    assert total is not None
    assert count is not None
    return total / count


def _check_window(window: int | tuple[int, int] | None, overlap: float) -> tuple[int, int] | None:
    """Return the height and width of windows.

    Raises:
        ConfigError: A number is out of range.
    """
    if not 0 <= overlap < 1:
        raise ConfigError(f"inference.overlap must be in [0, 1), got {overlap}")
    pair = (window, window) if isinstance(window, int) else window
    if pair is not None and min(pair) < 1:
        raise ConfigError(f"inference.window must be at least 1 pixel, got {pair}")
    return pair


def window_starts(side: int, window: int, overlap: float) -> list[int]:
    """Return evenly spread starts of windows that cover `side`, each sharing at least that fraction with the next."""
    if window >= side:
        return [0]
    steps = ceil((side - window) / max(1, int(window * (1 - overlap))))
    return [round(i * (side - window) / steps) for i in range(steps + 1)]
