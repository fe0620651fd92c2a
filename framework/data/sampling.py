"""Sampling: how often an epoch visits each training image, by its classes. Pure functions of (seed, epoch)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat
from torch import Tensor

from framework.clock import key, permutation

GOLDEN = (5**0.5 - 1) / 2  # multiples of no other number lie as evenly between whole ones


class Labels(NamedTuple):
    """Which image has which classes: an entry for each class of each image.

    Args:
        images: Image indices, long (M,).
        classes: Class indices, long (M,).
        num_images: How many images there are, those without a class included.
        num_classes: How many classes there are.
    """

    images: Tensor
    classes: Tensor
    num_images: int
    num_classes: int

    @classmethod
    def of(cls, labels: Sequence[int] | Sequence[Sequence[int]], num_classes: int) -> "Labels":
        """Gather the class, or the classes, of every image."""
        several = [(label,) if isinstance(label, int) else label for label in labels]
        counts = torch.tensor([len(classes) for classes in several])
        images = torch.arange(len(several)).repeat_interleave(counts)
        classes = torch.tensor([index for classes in several for index in classes], dtype=torch.long)
        return cls(images, classes, len(several), num_classes)

    def counts(self) -> Tensor:
        """Return the number of images of each class, long (num_classes,)."""
        return self.classes.bincount(minlength=self.num_classes)


class Sampling(ABC):
    """How often an epoch visits each training image.

    A rule gives the visits that an image has in an epoch on average. In each epoch it has the next whole number below
    or above: the images lie on a line, each as long as its visits, and are visited where evenly spaced points fall on
    them. This keeps the length of an epoch fixed, and every class within one visit of its share, of an image's first
    class at least. From epoch to epoch the points move on by the golden ratio, so that the visits of an image are
    spread evenly over the epochs.
    """

    @abstractmethod
    def visits(self, labels: Labels) -> Tensor:
        """Return how often each image is visited in an epoch on average, float64 (num_images,)."""

    def epoch_length(self, labels: Labels, repeats: int = 1) -> int:
        """Return the visits of an epoch, the same in every epoch; at least 1."""
        return max(1, round(float(self.visits(labels).sum()) * repeats))

    def order(self, labels: Labels, length: int, seed: int, epoch: int) -> list[int]:
        """Return the images of an epoch in random order.

        Args:
            labels: The classes of each image.
            length: Visits of the epoch.
            seed: The run's seed.
            epoch: The epoch.

        Returns:
            `length` numbers; n * num_images + i is the visit number n, from 0, to image i.
        """
        line = _line(labels, seed)
        ends = self.visits(labels)[line].cumsum(0)
        ends = (ends * (length / ends[-1])).clamp(max=length)
        ends[-1] = length
        offset = (key(seed, "sampling") / 2**63 + epoch * GOLDEN) % 1
        counts = (ends + offset).floor().long().diff(prepend=torch.zeros(1, dtype=torch.long))
        first = counts.cumsum(0) - counts
        number = torch.arange(length) - first.repeat_interleave(counts)
        visited = (line.repeat_interleave(counts) + number * labels.num_images).tolist()
        return [visited[place] for place in permutation(length, seed, "order", epoch)]


def _line(labels: Labels, seed: int) -> Tensor:
    """Return all images class by class, in a random order within each class, long (num_images,)."""
    first = torch.full((labels.num_images,), labels.num_classes)
    first = first.scatter_reduce(0, labels.images, labels.classes, "amin")
    line = torch.tensor(permutation(labels.num_images, seed, "sampling"))
    return line[first[line].argsort(stable=True)]


class ClassBalanced(Sampling):
    """Visits every class equally often, or in proportion to a power of its number of images.

    Kang et al., arXiv 1910.09217, equation 1: class j has the share n_j^q / sum_i n_i^q of an epoch, which is as long
    as without sampling. An image of several classes has its share of each; those without a class count as one more.

    Args:
        power: q, in [0, 1]. 0: every class equally often; 0.5: by the square root of its number of images; 1: as
            stored.
    """

    def __init__(self, power: ClosedUnitInterval = 0.0) -> None:
        self.power = power

    def visits(self, labels: Labels) -> Tensor:
        """Return each image's visits, float64 (num_images,)."""
        bare = torch.ones(labels.num_images, dtype=torch.bool).index_fill(0, labels.images, False).nonzero()[:, 0]
        images = torch.cat([labels.images, bare])
        classes = torch.cat([labels.classes, torch.full_like(bare, labels.num_classes)])
        counts = classes.bincount(minlength=labels.num_classes + 1).double()
        shares = torch.where(counts > 0, counts**self.power, 0.0)
        each = shares / shares.sum() / counts.clamp(min=1)
        return (
            torch.zeros(labels.num_images, dtype=torch.double).index_add(0, images, each[classes]) * labels.num_images
        )


class RepeatFactor(Sampling):
    """Visits images of rare classes several times an epoch, and all others once.

    Gupta et al., LVIS, arXiv 1908.03195, "repeat factor sampling": class c, which the share f_c of all images has, is
    given r_c = max(1, sqrt(t / f_c)), and an image the largest r_c of its classes. An epoch grows to the sum of these.

    Args:
        threshold: t, the share of all images below which a class counts as rare, in (0, 1]. LVIS, of 1,203 classes,
            takes 0.001; with few classes, take about the share that each would have if all were equally frequent.
    """

    def __init__(self, threshold: PositiveFloat) -> None:
        if threshold > 1:
            raise ValueError(f"threshold is a share of all images, in (0, 1], got {threshold}")
        self.threshold = threshold

    def visits(self, labels: Labels) -> Tensor:
        """Return each image's repeat factor, float64 (num_images,)."""
        shares = labels.counts().double() / labels.num_images
        factors = (self.threshold / shares.clamp(min=1 / labels.num_images)).sqrt().clamp(min=1)
        once = torch.ones(labels.num_images, dtype=torch.double)
        return once.scatter_reduce(0, labels.images, factors[labels.classes], "amax")
