"""What a network costs: its parameters, and its floating-point operations as torch counts them."""

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


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
    with counter:
        module.eval()(images)
    module.train(training)
    return int(counter.get_total_flops())
