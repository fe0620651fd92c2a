"""Gathering rows of numbers from all processes."""

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor


def processes() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Return whether this is the first process, or the only one."""
    return processes() == 1 or dist.get_rank() == 0


def gather_rows(rows: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return every process's rows (N, K), in the order of their ranks; N may differ, and be 0.

    Tensors are gathered, padded to the longest: unlike objects, they need no pickle, and cross a GPU's network.
    """
    if processes() == 1:
        return [rows]
    own = torch.from_numpy(rows).to(_device())
    counts = [torch.zeros(1, dtype=torch.long, device=own.device) for _ in range(processes())]
    dist.all_gather(counts, torch.tensor([len(own)], device=own.device))
    lengths = [int(count) for count in counts]
    padded = own.new_zeros(max(lengths), own.shape[1])
    padded[: len(own)] = own
    everyone = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(everyone, padded)
    return [each[:length].cpu().numpy() for each, length in zip(everyone, lengths, strict=True)]


def share_first(values: Tensor) -> Tensor:
    """Return the first process's values, on the CPU; all have given a tensor of one shape and type."""
    if processes() == 1:
        return values
    values = values.to(_device())
    dist.broadcast(values, 0)
    return values.cpu()


def _device() -> torch.device:
    """Return where tensors are when processes exchange them."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
