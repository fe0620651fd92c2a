"""Keys: randomness as a pure function of (seed, epoch, step, ...)."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def key(*parts: int | str) -> int:
    """Hash (seed, epoch, index, ...) to a 63-bit integer, the same in every process and version."""
    plain = tuple(part if isinstance(part, str) else int(part) for part in parts)  # numpy's integers print otherwise
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def key_step(seed: int, step: int, batch: int, rank: int) -> None:
    """Let all that a training step draws depend on its place in the run alone.

    Args:
        seed: The run's seed.
        step: Optimizer steps before it.
        batch: Its batch, counted within the epoch.
        rank: The process.
    """
    torch.manual_seed(key(seed, "step", step, batch, rank))


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
