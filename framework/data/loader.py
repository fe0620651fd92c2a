"""Loaders whose order and randomness are pure functions of (seed, epoch, index)."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from framework.clock import keyed_randomness, permutation
from framework.data.progressive import Stage
from framework.errors import DataError

Sample = dict[str, Any]
Transform = Callable[[Sample], Sample]

PER_OBJECT = ("boxes", "labels", "ignored", "area")  # keys of a sample with an entry for each of its objects


class Samples(Protocol):
    """One split: samples by index, without any randomness."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def read(self, index: int) -> Sample:
        """Return one sample.

        Its keys are `image` (a uint8 tv_tensors.Image (C, H, W)), its targets as tv_tensors, `id`, and
        `original_size`, the (height, width) as stored.
        """

    def problem(self, index: int) -> str | None:
        """Say what is wrong with one sample's files, naming them; None if nothing is."""

    def remarks(self) -> tuple[list[str], list[str]]:
        """Return what is wrong, and what is only odd, with the split as a whole, once every sample was looked at."""

    def sources(self, index: int) -> list[str]:
        """Return the files behind one sample, the image first."""


def reading_problem(samples: Samples, index: int) -> str | None:
    """Say why one sample cannot be read; None if it can."""
    try:
        samples.read(index)
    except DataError as error:
        return str(error)
    return None


class SampleKey(NamedTuple):
    """What travels from the sampler to a worker, so that no worker holds any state."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    epoch: int
    is_pad: bool = False
    stage: Stage | None = None


class KeyedSamples(Dataset[Sample]):
    """A split with its transforms, whose randomness comes from the key of each sample alone.

    Args:
        samples: The split.
        transform: Applied to each sample inside its own random stream.
        seed: The run's seed.
    """

    def __init__(self, samples: Samples, transform: Transform, seed: int) -> None:
        self.samples, self.transform, self.seed = samples, transform, seed

    def __getitem__(self, key: SampleKey) -> Sample:
        """Read and transform one sample; `is_pad` marks one that only evens out the processes.

        Where training goes by stages, the transform finds the sample's under `stage`, and takes it out.
        """
        sample = self.samples.read(key.index % len(self.samples))
        if key.stage is not None:
            sample = {**sample, "stage": key.stage}
        with keyed_randomness(self.seed, "sample", key.epoch, key.index):
            sample = self.transform(sample)
        return {**sample, "is_pad": key.is_pad}


class KeyedBatches:
    """Batches of sample keys for one process of many.

    Training: a fresh permutation each epoch, or the order given, dealt out round robin, the incomplete last batch left
    out. Evaluation: in order, the last batch kept; processes that would get one sample less get a pad, which metrics
    leave out.

    Args:
        length: Samples an epoch.
        batch_size: Samples a batch and process.
        seed: The run's seed.
        shuffle: Training order instead of evaluation order.
        reshuffle: A new order each epoch; False keeps the first, for overfitting a few batches on purpose.
        rank: This process.
        world_size: All processes.
        order: Gives the `length` samples of an epoch in training order; None: a permutation of all of them.
        stage: Gives the stage of an epoch, which travels with its keys and may have a batch size of its own.
        began: Told the epoch whose order comes next.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
        reshuffle: bool = True,
        order: Callable[[int], list[int]] | None = None,
        stage: Callable[[int], Stage] | None = None,
        began: Callable[[int], None] | None = None,
    ) -> None:
        self.length, self.batch_size, self.seed, self.shuffle = length, batch_size, seed, shuffle
        self.rank, self.world_size, self.reshuffle = rank, world_size, reshuffle
        self.order, self.stage, self.began = order or self._permutation, stage, began
        self.epoch = 0
        self.start = 0  # batches of this epoch that an interrupted run has already seen
        self.sampler = self  # Lightning calls set_epoch on batch_sampler.sampler, not on the batch sampler

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0
        if self.began is not None:
            self.began(epoch)

    def __len__(self) -> int:
        if self.shuffle:
            return self.length // (self._size() * self.world_size)
        return -(-self._own() // self.batch_size)

    def _size(self) -> int:
        """Return the batch size of this epoch."""
        stage = self.stage(self.epoch) if self.stage is not None else None
        return stage.batch_size if stage is not None and stage.batch_size is not None else self.batch_size

    def _permutation(self, epoch: int) -> list[int]:
        return permutation(self.length, self.seed, "order", epoch)

    def _own(self) -> int:
        return -(-self.length // self.world_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        start, self.start, size = self.start, 0, self._size()
        if self.shuffle:
            stage = self.stage(self.epoch) if self.stage is not None else None
            order = self.order(self.epoch if self.reshuffle else 0)
            keys = [SampleKey(index, self.epoch, stage=stage) for index in order[self.rank :: self.world_size]]
        else:
            indices = range(self.rank, self._own() * self.world_size, self.world_size)
            keys = [SampleKey(min(index, self.length - 1), 0, index >= self.length) for index in indices]
        for batch in range(start, len(self)):
            yield keys[batch * size : (batch + 1) * size]


class KeyedLoader:
    """A DataLoader that knows where it is: `state_dict` holds the epoch and the batches handed out.

    It holds a DataLoader rather than being one, because Lightning rebuilds those with samplers of its own.

    Args:
        dataset: The samples.
        batches: Their order.
        options: Arguments of torch's DataLoader.
    """

    def __init__(self, dataset: KeyedSamples, batches: KeyedBatches, **options: Any) -> None:
        self.dataset, self.batch_sampler = dataset, batches
        self._loader: DataLoader[Sample] = DataLoader(dataset, batch_sampler=batches, **options)
        self._handed_out = 0
        self._loaded: dict[str, int] | None = None  # until a batch is asked for

    def __iter__(self) -> Iterator[Sample]:
        # A generator: workers start at the first next(), after set_epoch (Lightning #21938).
        self._handed_out, self._loaded = self.batch_sampler.start, None
        with _sigterm_held():
            batches = iter(self._loader)
        for batch in batches:
            self._handed_out += 1
            yield batch

    def __len__(self) -> int:
        return len(self.batch_sampler)

    @property
    def _iterator(self) -> Any:
        """The iterator that persistent workers serve: Lightning looks for it to end them when a run ends."""
        return self._loader._iterator

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        self._loader._iterator = iterator

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, the number of its batches already handed out, and how many samples there are."""
        if self._loaded is not None:  # a run that goes on after the last batch of an epoch asks for none of it again
            return dict(self._loaded)
        done = self._handed_out >= len(self)
        batch = 0 if done else self._handed_out
        return {"epoch": self.batch_sampler.epoch + done, "batch": batch, "samples": self.batch_sampler.length}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            DataError: It was taken within an epoch, of whose order nothing is left: there are more samples, or fewer.
        """
        known, found = state.get("samples", self.batch_sampler.length), self.batch_sampler.length
        if state["batch"] and known != found:
            raise DataError(
                f"the checkpoint was written within an epoch of {known} training samples, and now there are {found}: "
                "go on with the same files, or from a checkpoint at the end of an epoch"
            )
        self._loaded = dict(state)
        self.batch_sampler.epoch, self.batch_sampler.start = state["epoch"], state["batch"]


def heed_parent_alone(worker: int) -> None:
    """Let a worker end when the process that started it says so, and leave other signals to that process.

    A scheduler signals every process of a job. The workers of a run that is told to stop have to serve it until it has
    saved; a worker that is killed makes it fail instead.

    Args:
        worker: Its number.
    """
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS has no schedulers either
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # for a thread that a library started, and that does not hold it


@contextmanager
def _sigterm_held() -> Iterator[None]:
    """Hold SIGTERM back, so that workers begin with it held, and so do all threads that libraries start in them."""
    if not hasattr(signal, "sigwaitinfo"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def collate(samples: list[Sample], fills: dict[str, int]) -> Sample:
    """Batch samples: tensors are stacked, smaller ones padded at the bottom and right; the rest becomes lists.

    What there is per object, of which an image has any number, becomes lists of tensors.

    Args:
        samples: Samples with the same keys.
        fills: Padding value by key; 0 where none is given.
    """
    batch: Sample = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        if isinstance(first, Tensor) and name in PER_OBJECT:
            batch[name] = [value.as_subclass(Tensor) for value in values]
        elif isinstance(first, Tensor):
            batch[name] = _stack([value.as_subclass(Tensor) for value in values], fills.get(name, 0))
        elif isinstance(first, bool):
            batch[name] = torch.tensor(values)
        else:
            batch[name] = values
    return batch


def _stack(tensors: list[Tensor], fill: int) -> Tensor:
    if all(tensor.shape == tensors[0].shape for tensor in tensors):
        return torch.stack(tensors)
    shape = [max(sides) for sides in zip(*(tensor.shape for tensor in tensors), strict=True)]
    out = tensors[0].new_full((len(tensors), *shape), fill)
    for row, tensor in zip(out, tensors, strict=True):
        row[tuple(slice(side) for side in tensor.shape)] = tensor
    return out
