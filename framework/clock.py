"""Pure functions of the step: keys for randomness, and learning-rate schedules. Nothing else decides *when*."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def key(*parts: int | str) -> int:
    """Hash (seed, epoch, index, ...) to a 63-bit integer, the same in every process and version."""
    plain = tuple(part if isinstance(part, str) else int(part) for part in parts)  # numpy's integers print otherwise
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def keyed_randomness(*parts: int | str) -> Iterator[None]:
    """Draw torch's random numbers from a key inside the block, and leave the stream outside untouched."""
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(key(*parts))
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


def permutation(length: int, *parts: int | str) -> list[int]:
    """Return a random order of `range(length)` that depends on the key alone."""
    generator = torch.Generator().manual_seed(key(*parts))
    return torch.randperm(length, generator=generator).tolist()


class Schedule(ABC):
    """A learning-rate factor as a pure function of the step."""

    @abstractmethod
    def factor(self, step: int, total: int) -> float:
        """Return what the base rate is multiplied with at optimizer step `step` of `total`."""


class Constant(Schedule):
    """The base rate, always."""

    def factor(self, step: int, total: int) -> float:
        """Return 1."""
        return 1.0


class WarmupCosine(Schedule):
    """Linear warmup to the base rate, then half a cosine down to `end`.

    Loshchilov and Hutter, SGDR (arXiv 1608.03983), equation 5 without restarts.

    Args:
        warmup: Fraction of all steps spent warming up, in [0, 1).
        start: Factor at the first step.
        end: Factor at the last step.
    """

    def __init__(self, warmup: float = 0.05, start: float = 0.01, end: float = 0.0) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is the fraction of all steps spent warming up, in [0, 1), got {warmup}")
        self.warmup, self.start, self.end = warmup, start, end

    def factor(self, step: int, total: int) -> float:
        """Return the factor at `step` of `total`."""
        warm = round(self.warmup * total)
        if step < warm:
            return self.start + (1 - self.start) * step / warm
        progress = min(1.0, (step - warm) / max(1, total - warm))
        return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * progress))
