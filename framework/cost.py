"""What a network costs: parameters, floating-point operations, the memory of its activations; and how far it sees."""

from bisect import bisect_left
from collections.abc import Callable
from math import lcm
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

WIDEST = 8192  # pixels: what reaches farther than half of it is taken to see the whole image

# What keeps every NaN in its place, and makes no new one of finite numbers.
ELEMENTWISE = {F.batch_norm, F.dropout, F.relu, F.relu6, F.hardtanh, F.hardswish, F.gelu, F.silu, torch.relu_}


def parameter_count(module: nn.Module) -> int:
    """Return the number of parameters, trainable or not, each counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def flop_count(module: nn.Module, images: Tensor) -> int:
    """Return the floating-point operations of one forward pass in eval mode.

    A multiplication and an addition count as two; convolutions, matrix products and attention are counted, what is
    done element by element is not. Papers often count a multiply-add as one: halve it to compare.

    Args:
        module: A network; on the meta device nothing is computed.
        images: Its input, (B, C, H, W), on the same device.
    """
    training = module.training
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module.eval()(images)
    module.train(training)
    return int(counter.get_total_flops())


def activation_bytes(module: nn.Module, images: Tensor) -> int:
    """Return the bytes that a forward pass in training keeps for the backward pass, parameters and buffers excluded.

    What two layers keep of one tensor counts once. The images themselves count, since the first layer keeps them.

    Args:
        module: A network, all of which is trained; on the meta device nothing is computed. Batch norm in it counts
            these images in its statistics.
        images: Its input, (B, C, H, W), on the same device; batch norm wants two images or more.
    """
    own = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    kept: list[Tensor] = []  # held, so that no address is used again

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    training = module.training
    with torch.enable_grad(), _FusedAttention(), saved_tensors_hooks(keep, lambda tensor: tensor):
        output = module.train()(images)
    module.train(training)
    sizes = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in kept}
    del output  # the graph, and what it holds, had to live until here
    return sum(size for address, size in sizes.items() if address not in own)


def receptive_field(
    last_map: Callable[[Tensor], Tensor], stride: int, multiple: int = 1, in_channels: int = 3
) -> int | None:
    """Return how many input pixels wide the region is on which one cell of a network's coarsest map depends.

    NaN spreads through every operation that depends on it, so an image is made NaN from one edge up to a column, and
    it is seen whether the cell in the middle becomes NaN: bisection finds the region's two ends. It is what the
    architecture allows: how much of it a trained network uses is another matter (Luo et al., arXiv 1701.04128).
    The cell is that in the middle of a wide strip; with windows at fixed places, as in Swin, others see more or less.

    Args:
        last_map: Computes the coarsest map (B, channels, H/stride, W/stride) of images (B, C, H, W) in eval mode, with
            finite weights of any value.
        stride: Input pixels per cell of it.
        multiple: What height and width of the images must be divisible by.
        in_channels: Channels of the images.

    Returns:
        Its width in pixels; None if it is the whole image, as with global attention or squeeze-and-excitation.
    """
    unit = lcm(stride, multiple)
    width = 1024
    while True:
        width = -(-width // (2 * unit)) * 2 * unit

        def reached(columns: slice, width: int = width) -> bool:
            images = torch.zeros(1, in_channels, unit, width)
            images[..., columns] = torch.nan
            with torch.no_grad(), _Spread():
                cells = last_map(images)
            return bool(cells[0, :, 0, cells.shape[-1] // 2].isnan().any())

        if not reached(slice(0, 1)) and not reached(slice(width - 1, None)):
            break
        if width >= WIDEST:
            return None
        width = min(4 * width, WIDEST)
    middle = width // 2  # a column of the cell itself
    first = bisect_left(range(middle), True, key=lambda column: reached(slice(0, column + 1)))
    beyond = bisect_left(range(middle, width), True, key=lambda column: not reached(slice(column, None)))
    return middle + beyond - first


class _FusedAttention(TorchFunctionMode):
    """Lets attention on the meta device keep what a fused kernel keeps, as on real devices: no matrix of weights."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        """Call a function, or its fused counterpart."""
        options = options or {}
        if function is F.scaled_dot_product_attention and arguments and arguments[0].is_meta:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*arguments, **options)[0]
        return function(*arguments, **options)


class _Spread(TorchFunctionMode):
    """Lets layers spread NaN without computing anything else, which takes little time."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        """Call a function, or what stands in for it."""
        options = options or {}
        if function in ELEMENTWISE:
            return arguments[0]
        if function is torch.conv2d:
            return _spread_convolution(*arguments, **options)
        if function is F.linear:
            x, weight = arguments[:2]
            spread = torch.where(x.sum(-1, keepdim=True).isnan(), torch.nan, 0.0)
            return spread.expand(*x.shape[:-1], weight.shape[0]).contiguous()
        return function(*arguments, **options)


def _spread_convolution(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Return NaN where a convolution would have any from its input, 0 elsewhere."""
    # A filter sees all channels of its group.
    poisoned = images.reshape(len(images), groups, -1, *images.shape[2:]).sum(2).isnan().float()
    ones = torch.ones(groups, 1, *weight.shape[2:])
    spread = torch.where(torch.conv2d(poisoned, ones, None, stride, padding, dilation, groups) > 0.5, torch.nan, 0.0)
    return spread.repeat_interleave(weight.shape[0] // groups, 1)
