"""Choosing a few samples to look at, so that rare classes are among them."""

from collections import Counter
from collections.abc import Sequence

from framework.clock import permutation
from framework.data.counts import image_classes, kind_of
from framework.data.datamodule import VisionData
from framework.data.loader import Samples

LOOKED_AT = 400  # samples, where each has to be read to know its classes
WITH_NEGATIVE = 4  # samples, from which on one without objects is among them


def choose_samples(data: VisionData, samples: Samples, count: int) -> list[int]:
    """Return the indices of `count` samples, rising; the same on every call.

    Every class is shown about as often, as far as there are samples; of detection one without objects is shown too.
    """
    kind = kind_of(data)
    candidates = permutation(len(samples), "data show")
    if kind == "Depth":  # of which there are no classes
        return sorted(candidates[:count])
    if kind == "Segmentation" or not any(hasattr(samples, name) for name in ("class_indices", "labels")):
        candidates = candidates[: max(LOOKED_AT, count)]
    found = image_classes(samples, data.num_classes, kind, candidates)
    return sorted(balanced(dict(zip(candidates, found, strict=True)), count))


def balanced(classes: dict[int, Sequence[int]] | dict[int, list[int]], count: int) -> list[int]:
    """Choose some samples so that every class is among them about as often, the rarest first.

    Args:
        classes: The classes of each sample; of samples that serve alike, the first is taken.
        count: How many.
    """
    common = Counter(label for labels in classes.values() for label in labels)
    holders = {label: [index for index, labels in classes.items() if label in labels] for label in common}
    negatives = [index for index, labels in classes.items() if not labels]
    chosen = dict.fromkeys(negatives[:1] if count >= WITH_NEGATIVE else [])
    shown: Counter[int] = Counter()
    while len(chosen) < count and holders:
        label = min(holders, key=lambda label: (shown[label], common[label], label))
        rest = holders[label] = [index for index in holders[label] if index not in chosen]
        if not rest:
            del holders[label]
            continue
        chosen[rest[0]] = None
        shown.update(classes[rest[0]])
    chosen |= dict.fromkeys(negatives)
    return list(chosen)[:count]
