"""The rules of the contract of data modules, one check each."""

import pickle
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten  # private, but what torch.export hands out trees with
from torchvision import tv_tensors

from framework.conformance.check import Check, Maker, demand
from framework.conformance.depth_samples import is_of_depth, wrong_depth, wrong_shown_depth
from framework.data.loader import PER_OBJECT, Sample, SampleKey, Samples

LOOKED_AT = 3  # samples of a split

# What a check needs.


def _build(make: Maker) -> Any:
    """Build the data, with small batches and without loader processes."""
    data = make.anew()
    data.num_workers = 0
    data.batch_size = min(2, len(data.splits()["train"]))
    return data


def _samples(data: Any) -> Iterator[tuple[str, Samples, int]]:
    """Yield the first few samples of every split, as (split, samples, index)."""
    for name, samples in data.splits().items():
        for index in range(min(LOOKED_AT, len(samples))):
            yield name, samples, index


def _equal(one: Sample, other: Sample) -> bool:
    """Tell whether two samples hold the same."""
    (ones, keys), (others, other_keys) = tree_flatten(one), tree_flatten(other)
    return keys == other_keys and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(np.all(a == b))
        for a, b in zip(ones, others, strict=True)
    )


def _draw() -> None:
    """Move every global source of random numbers on."""
    torch.rand(3)
    random.random()
    np.random.rand(3)


# The rules.


def it_has_splits(make: Maker) -> None:
    """There is a training and a validation split, and neither is empty."""
    data = make()
    for name in ("train", "val"):
        samples = data.split(name)
        demand(
            samples is not None and len(samples) > 0,
            f"a split {name} with samples",
            "none" if samples is None else "an empty one",
            f'return samples from `split("{name}")`; only "test" may be None',
        )


def classes_are_stated(make: Maker) -> None:
    """The names of the classes, all different, and the number of channels are known before a file is read.

    Of depth there are no classes.
    """
    data = make()
    classes, channels = getattr(data, "classes", None), getattr(data, "channels", None)
    demand(
        isinstance(classes, tuple)
        and (len(classes) > 0 or is_of_depth(data))
        and all(isinstance(name, str) for name in classes)
        and len(set(classes)) == len(classes),
        "`classes`, a tuple of different names",
        repr(classes)[:200],
        "set `self.classes` in __init__; segmentation data calls `self.state_classes([...])`",
    )
    demand(
        isinstance(channels, int) and channels >= 1,
        "`channels`, a number of at least 1",
        repr(channels),
        "write `channels = 3` in the class, or set it in __init__",
    )


def samples_are_as_documented(make: Maker) -> None:
    """A sample has `image`, uint8 (C, H, W), its targets as tv_tensors, `id` and `original_size`."""
    data = _build(make)
    for name, samples, index in _samples(data):
        sample = samples.read(index)
        wrong = [*_wrong_image(sample, data.channels), *_wrong_targets(sample, data)]
        demand(
            not wrong,
            f"sample {index} of {name} as documented in framework.data.loader.Samples",
            "; ".join(wrong)[:400],
            f"return {{'image': tv_tensors.Image(uint8), {_targets_wanted(data)}, 'id': str, 'original_size': "
            "(height, width)} from `read`",
        )


def _targets_wanted(data: Any) -> str:
    """Say which targets the samples of some data should have."""
    if is_of_depth(data):
        return "'depth': DepthMap(float32 (H, W) in metres, 0 without a reading)"
    if _has_boxes(data):
        return (
            "'boxes': tv_tensors.BoundingBoxes(float32 (N, 4), format='XYXY', canvas_size=original_size), 'labels': "
            "long (N,) from 0, 'ignored': bool (N,), 'area': float32 (N,)"
        )
    return "'mask': tv_tensors.Mask(classes)"


def _has_boxes(data: Any) -> bool:
    return "Detection" in getattr(data, "tasks", ())


def _wrong_image(sample: Sample, channels: int) -> list[str]:
    """Say what is wrong with the image of a sample, and with what names it."""
    image, size = sample.get("image"), sample.get("original_size")
    wrong = []
    if not isinstance(image, tv_tensors.Image) or image.dtype != torch.uint8 or image.ndim != 3:
        wrong.append(f"image is {type(image).__name__} {getattr(image, 'dtype', '')}")
    elif image.shape[0] != channels:
        wrong.append(f"image has {image.shape[0]} channels, and the data states {channels}")
    if not isinstance(sample.get("id"), str):
        wrong.append(f"id is {sample.get('id')!r}, no str")
    if not (isinstance(size, tuple) and len(size) == 2 and all(isinstance(side, int) for side in size)):
        wrong.append(f"original_size is {size!r}, no (height, width)")
    return wrong


def _wrong_targets(sample: Sample, data: Any) -> list[str]:
    """Say what is wrong with the depth, the mask, the label or the objects of a sample."""
    if is_of_depth(data):
        return wrong_depth(sample)
    if _has_boxes(data):
        return _wrong_objects(sample, data.num_classes)
    wrong = []
    if "mask" in sample:
        mask = sample["mask"]
        if not isinstance(mask, tv_tensors.Mask):
            return [f"mask is {type(mask).__name__}, no tv_tensors.Mask"]
        if mask.shape != sample["image"].shape[-2:]:
            wrong.append(f"mask is {tuple(mask.shape)}, its image {tuple(sample['image'].shape[-2:])}")
        strange = [x for x in mask.unique().tolist() if not 0 <= x < data.num_classes and x != data.ignore_index]
        if strange:
            wrong.append(f"mask holds {strange[:5]}, neither classes nor ignore_index={data.ignore_index}")
    wrong += _wrong_label(sample["label"], data) if "label" in sample else []
    if "mask" not in sample and "label" not in sample:
        wrong.append(f"no target among {', '.join(sample)}")
    return wrong


def _wrong_objects(sample: Sample, num_classes: int) -> list[str]:
    """Say what is wrong with the objects of a sample as read."""
    boxes, size = sample.get("boxes"), sample.get("original_size")
    if not isinstance(boxes, tv_tensors.BoundingBoxes) or boxes.format.value != "XYXY":
        return [f"boxes is {type(boxes).__name__}, no tv_tensors.BoundingBoxes of format XYXY"]
    wrong = [f"boxes has canvas_size {boxes.canvas_size}"] if tuple(boxes.canvas_size) != size else []
    wrong += _wrong_boxes(boxes, boxes.canvas_size, sample.get("labels"), num_classes)
    for name, dtype in (("ignored", torch.bool), ("area", torch.float32)):
        values = sample.get(name)
        if not isinstance(values, Tensor) or values.dtype != dtype or values.shape != (len(boxes),):
            wrong.append(f"{name} is {_shown(values)}, no {dtype} ({len(boxes)},)")
    return wrong


def _wrong_boxes(boxes: Any, size: tuple[int, int], labels: Any, num_classes: int) -> list[str]:
    """Say what is wrong with the boxes and labels of an image of a size."""
    if not isinstance(boxes, Tensor) or boxes.dtype != torch.float32 or boxes.shape[1:] != (4,):
        return [f"boxes is {_shown(boxes)}, no float32 (N, 4)"]
    wrong = []
    x1, y1, x2, y2 = boxes.as_subclass(Tensor).unbind(1)
    if not ((x1 >= 0) & (y1 >= 0) & (x2 <= size[1]) & (y2 <= size[0])).all():
        wrong.append(f"boxes reach beyond the image of {size[0]}x{size[1]}")
    if not ((x1 < x2) & (y1 < y2)).all():
        wrong.append("boxes are without area, or reversed")
    if not isinstance(labels, Tensor) or labels.dtype != torch.long or labels.shape != (len(boxes),):
        wrong.append(f"labels is {_shown(labels)}, no torch.int64 ({len(boxes)},)")
    elif not ((labels >= 0) & (labels < num_classes)).all():
        wrong.append(f"labels are {labels.tolist()}, not from 0 to {num_classes - 1}")
    return wrong


def _shown(values: Any) -> str:
    return f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__


def _wrong_label(label: Any, data: Any) -> list[str]:
    """Say what is wrong with the label of a sample."""
    if data.multi_label:
        marks = isinstance(label, Tensor) and label.is_floating_point() and label.shape == (data.num_classes,)
        return (
            []
            if marks and label.unique().tolist() in ([0], [1], [0, 1])
            else [f"label is {label}, no marks of 0 and 1"]
        )
    if not isinstance(label, int) and not (isinstance(label, Tensor) and label.dtype == torch.long and label.ndim == 0):
        return [f"label is {label}, no class index"]
    return (
        []
        if 0 <= int(label) < data.num_classes
        else [f"label is {int(label)}, and there are {data.num_classes} classes"]
    )


def boxes_lie_where_the_network_looks(make: Maker) -> None:
    """In training, boxes lie inside of what the image fills of its picture; evaluation leaves them as they are read."""
    data = _build(make)
    if not _has_boxes(data):
        return
    training, validation = data.train_dataloader().dataset, data.val_dataloader().dataset
    for index, epoch in product(range(min(LOOKED_AT, len(training.samples))), range(4)):
        sample = training[SampleKey(index, epoch)]
        size = sample.get("size", (0, 0))
        wrong = _wrong_boxes(sample.get("boxes"), size, sample.get("labels"), data.num_classes)
        if any(side > whole for side, whole in zip(size, sample["image"].shape[-2:], strict=True)):
            wrong.append(f"size is {size}, the image {tuple(sample['image'].shape[-2:])}")
        demand(
            not wrong,
            f"boxes of training sample {index}, epoch {epoch}, inside of `size`, with a label each",
            "; ".join(wrong)[:400],
            "clip boxes after they are moved, drop what nothing is left of together with its label, and set `size`",
        )
    for index in range(min(LOOKED_AT, len(validation.samples))):
        sample, stored = validation[SampleKey(index, 0)], validation.samples.read(index)
        changed = [name for name in PER_OBJECT if not torch.equal(sample[name], stored[name].as_subclass(Tensor))]
        demand(
            not changed and {"size", "canvas"} <= sample.keys(),
            f"validation sample {index} with its objects as they are read, `size` and `canvas`",
            f"other {', '.join(changed)}" if changed else f"only {', '.join(sample)}",
            "change the image alone in evaluation: predictions are brought to the pixels of the image as stored",
        )


def depth_goes_with_the_image(make: Maker) -> None:
    """Depth is as large as the image in training and stays as stored in evaluation; it is in `depth_range`, or 0."""
    data = _build(make)
    if not is_of_depth(data):
        return
    training, validation = data.train_dataloader().dataset, data.val_dataloader().dataset
    for index, epoch in product(range(min(LOOKED_AT, len(training.samples))), range(4)):
        sample = training[SampleKey(index, epoch)]
        wrong = wrong_shown_depth(sample, sample["image"].shape[-2:], data.depth_range)
        demand(
            not wrong,
            f"depth of training sample {index}, epoch {epoch}, of the size of its image, in metres of depth_range or 0",
            "; ".join(wrong),
            "keep `depth` a DepthMap, so that transforms move it with the image, and end `train_transform` as "
            "DepthTrainTransform does",
        )
    for index in range(min(LOOKED_AT, len(validation.samples))):
        sample = validation[SampleKey(index, 0)]
        wrong = wrong_shown_depth(sample, sample["original_size"], data.depth_range)
        demand(
            not wrong and "size" in sample,
            f"validation sample {index} with its depth as stored, in metres of depth_range or 0, and `size`",
            "; ".join(wrong) or f"only {', '.join(sample)}",
            "change the image alone in evaluation, as DepthEvalTransform does: predictions are brought to its size",
        )


def reading_is_pure(make: Maker) -> None:
    """Reading a sample involves no random numbers, and does not depend on what was read before."""
    data = _build(make)
    for name, samples, index in _samples(data):
        first = samples.read(index)
        for _ in range(4):
            _draw()
            demand(
                _equal(first, samples.read(index)),
                f"sample {index} of {name} to be the same whenever it is read",
                "another one",
                "leave random crops, flips and noise to `default_transforms`, which get random numbers of their own",
            )


def augmentation_is_keyed(make: Maker) -> None:
    """A training sample depends on its index and epoch alone, whatever was drawn or read before."""
    data = _build(make)
    dataset = data.train_dataloader().dataset
    for index in range(min(LOOKED_AT, len(dataset.samples))):
        first = dataset[SampleKey(index, 1)]
        for epoch in (0, 2):
            _draw()
            dataset[SampleKey(index, epoch)]
            demand(
                _equal(first, dataset[SampleKey(index, 1)]),
                f"training sample {index} of epoch 1 to be the same whenever it is asked for",
                "another one",
                "draw random numbers from torch, not from NumPy or `random`, and keep no state in transforms",
            )


def batches_fit_together(make: Maker) -> None:
    """The first batch of training and of validation can be put together."""
    data = _build(make)
    for name, loader in (("training", data.train_dataloader()), ("validation", data.val_dataloader())):
        remedy = "samples of a split have the same keys, and training images one size: set `crop_size` or `resize`"
        try:
            batch = next(iter(loader))
        except Exception as error:
            demand(False, f"a batch for {name}", f"{type(error).__name__}: {str(error).strip()[:400]}", remedy)
        image = batch["image"]
        demand(
            image.ndim == 4 and image.shape[1] == data.channels and len(batch["id"]) == len(image),
            f"a batch for {name} with an image (B, {data.channels}, H, W) and B ids",
            f"{tuple(image.shape)}, {len(batch['id'])} ids",
            remedy,
        )


def it_can_be_pickled(make: Maker) -> None:
    """What loader processes get can be pickled, and reads the same there."""
    data = _build(make)
    for dataset in (data.train_dataloader().dataset, data.val_dataloader().dataset):
        remedy = "keep open files, locks, lambdas and local functions out of the samples and the transforms"
        try:
            other = pickle.loads(pickle.dumps(dataset))
        except Exception as error:
            demand(False, "samples and transforms that can be pickled", f"{type(error).__name__}: {error}", remedy)
        demand(
            _equal(dataset[SampleKey(0, 0)], other[SampleKey(0, 0)]),
            "the same sample after pickling",
            "another one",
            remedy,
        )


def files_can_be_checked(make: Maker) -> None:
    """Nothing is wrong with the first few samples, and the files behind them are named."""
    data = _build(make)
    for name, samples, index in _samples(data):
        problem = samples.problem(index)
        demand(
            problem is None,
            f"no problem with sample {index} of {name}",
            problem,
            "mend the file; `problem` returns None for what can be used",
        )
        lacking = [path for path in samples.sources(index) if not Path(path).is_file()]
        demand(
            not lacking,
            f"files behind sample {index} of {name} that exist",
            f"no file {', '.join(lacking[:3])}",
            "return the paths that `read` opens from `sources`, [] if there are none",
        )


SPLIT = (it_has_splits,)
STATED = (*SPLIT, classes_are_stated)
READ = (*STATED, samples_are_as_documented)

CHECKS = (
    Check(it_has_splits),
    Check(classes_are_stated),
    Check(samples_are_as_documented, STATED),
    Check(boxes_lie_where_the_network_looks, READ),
    Check(depth_goes_with_the_image, READ),
    Check(reading_is_pure, READ),
    Check(augmentation_is_keyed, (*READ, reading_is_pure)),
    Check(batches_fit_together, READ),
    Check(it_can_be_pickled, (*READ, reading_is_pure, augmentation_is_keyed)),
    Check(files_can_be_checked, READ),
)
