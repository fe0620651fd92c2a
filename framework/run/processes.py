"""Whether a run can use several processes as it is asked to, and the strategy that it uses."""

import subprocess
import time
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy

from framework.errors import ConfigError
from framework.transfer.sharding import FullySharded

PATIENCE = 5  # seconds that the other processes of a run that failed get to fail too
FSDP2 = ("fsdp2", "ModelParallelStrategy", "FullySharded")


def trainer_strategy(configured: Any, built: Any) -> dict[str, Any]:
    """Return the trainer's arguments for the strategy that is configured: for FSDP2 those of ours.

    Args:
        configured: What `trainer.strategy` says: an alias, or a class with its arguments.
        built: The same, built.

    Raises:
        ConfigError: FSDP2 is asked for tensor parallelism.
    """
    name = str(getattr(configured, "class_path", configured)).rpartition(".")[2]
    if name not in FSDP2:
        return {"strategy": built or "auto"}
    options = dict(getattr(configured, "init_args", None) or {})
    if options.pop("tensor_parallel_size", "auto") not in ("auto", 1):
        raise ConfigError("trainer.strategy: tensor_parallel_size: networks are spread by FSDP2 alone: leave it out")
    options.pop("save_distributed_checkpoint", None)  # a checkpoint is one file: it alone is enough
    # What is gathered in inference mode could not be trained afterwards.
    return {"strategy": FullySharded(**options), "inference_mode": False}


def check_processes(trainer: Trainer, synced: bool, is_found_again: bool) -> None:
    """Check that a run can use the processes that it is given.

    Args:
        trainer: The trainer.
        synced: Whether `trainer.sync_batchnorm` is set.
        is_found_again: Whether the user, or a launcher, says what the run is called.

    Raises:
        ConfigError: It cannot.
    """
    strategy = trainer.strategy
    if synced and strategy.root_device.type == "cpu":
        raise ConfigError("trainer.sync_batchnorm: SyncBatchNorm runs on GPUs only: leave it out on a CPU")
    if synced and trainer.world_size > 1 and not isinstance(strategy, DDPStrategy):
        raise ConfigError("trainer.sync_batchnorm: it takes trainer.strategy: ddp")
    if isinstance(strategy, FSDPStrategy):
        raise ConfigError("trainer.strategy: fsdp, the first one, cannot freeze parts of a network: take fsdp2")
    if isinstance(strategy, FullySharded) and strategy.data_parallel_size not in ("auto", trainer.world_size):
        raise ConfigError(
            f"trainer.strategy: data_parallel_size: the network is spread over all {trainer.world_size} processes, not "
            f"over {strategy.data_parallel_size}: leave it out"
        )
    if trainer.num_nodes > 1 and not is_found_again:
        raise ConfigError(
            f"trainer.num_nodes: {trainer.num_nodes} machines must agree on the run's folder, which all of them "
            "see: give --run.id NAME, the same on each"
        )


def end_children(trainer: Trainer, patience: float = PATIENCE) -> None:
    """End the processes that Lightning started, unless they end by themselves: they may wait for this one for ever.

    Args:
        trainer: The trainer.
        patience: Seconds that they get.
    """
    started: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    children, started[:] = list(started), []  # out of Lightning's sight, which kills this process when one has ended
    deadline = time.monotonic() + patience
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
