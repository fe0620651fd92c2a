"""What a strategy of several processes must be told when other parameters are trained than when it began."""

import gc

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel


def rewrap(trainer: Trainer) -> None:
    """Let DDP average the gradients of exactly those parameters that require one now; other strategies need nothing.

    DDP looks once, when it wraps the network, at which parameters require a gradient. What is unfrozen later would
    be trained by every process for itself, without a word (Lightning #20340). All processes must call this at once,
    between two steps: parameters and buffers are those of the first process afterwards, as after any wrapping.

    Args:
        trainer: The trainer; before it has wrapped the network there is nothing to do.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy) or not isinstance(strategy.model, DistributedDataParallel):
        return
    strategy.model = trainer.lightning_module
    gc.collect()  # the old wrapper has hooks on the gradients until it is gone, and hangs in reference cycles
    strategy.configure_ddp()


@torch.no_grad()
def before_toggle(module: nn.Module) -> None:
    """Prepare for changing `requires_grad`: sharded parameters must be those that the module holds.

    While FSDP2 has a layer's parameters gathered, a module holds the gathered ones, and a change to those is lost
    without a word.

    Args:
        module: The network, sharded or not.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
