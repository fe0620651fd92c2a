"""`framework data show`: a sheet of samples with what is annotated in them, and anchors that suit the boxes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from framework.boxes import Size, scale_boxes
from framework.cli.build_data import build_data
from framework.data.choice import choose_samples
from framework.data.counts import kind_of, object_table
from framework.data.datamodule import VisionData
from framework.data.loader import Sample, SampleKey, collate
from framework.data.transforms import DepthMap
from framework.errors import DataError
from framework.heads.yolo import ANCHORS, fit_anchors
from framework.preprocessing import resize_image
from framework.tracking.boxes import draw_boxes
from framework.tracking.depth import colour_depth, depth_bar
from framework.tracking.drawing import HATCH, PAPER, SWATCH, Picture, Row, contact_sheet, overlay, palette, to_rgb

SIDES = {1: 640, 2: 640, 3: 538, 6: 256}  # pixels of a picture's longer side, by the columns of the sheet
WIDE = 2  # times as wide as high: two of such pictures in a row
SMALL = 128  # pixels: six pictures of a class each in a row, if none is larger
DRAWN = ("Detection", "Segmentation", "Depth")  # tasks with something to be seen in every picture
GAP = 4  # pixels between an image and its depth
COARSE = 4  # times a picture is enlarged, from which on its pixels are left to be seen
IGNORED = (128, 128, 128)  # colour of objects that do not count
FEWEST = 50  # boxes from which on anchors are fitted to them
MOST = 100_000  # boxes that they are fitted to
STRIDES = (8, 16, 32)


def show_data(
    files: Sequence[Path],
    options: Sequence[str],
    trust: Sequence[str],
    plugins: Sequence[Path],
    split: str,
    count: int,
    augmented: bool,
    out: Path,
) -> None:
    """Draw samples of a split, and say where the picture is; of detection data, suggest anchors.

    Args:
        files: The experiment, and more laid over it; perhaps none.
        options: Options of `fit`, laid over those.
        trust: Modules that it may import beside the usual ones.
        plugins: Local files whose plugins it may use.
        split: Which split.
        count: How many samples.
        augmented: Show them as the network sees them in training.
        out: The picture.

    Raises:
        ConfigError: Something in the experiment is wrong.
        DataError: The data cannot be read, or there is no such split.
    """
    data = build_data(files, options, trust, plugins)
    splits = data.splits()
    if split not in splits:
        raise DataError(f"--split: {type(data).__name__} has no {split} split here; it has {', '.join(splits)}")
    samples = splits[split]
    chosen = choose_samples(data, samples, count)
    shown = augmented_samples(data, chosen) if augmented else [samples.read(index) for index in chosen]
    caption = f"{type(data).__name__}, {split}: {len(chosen)} of {len(samples)}{', augmented' if augmented else ''}"
    Image.fromarray(draw_sheet(data, shown, caption)).save(out)
    print(f"{len(chosen)} of {len(samples)} {split} samples: {out}")
    if kind_of(data) == "Detection":
        print("".join(f"{line}\n" for line in anchor_lines(data)), end="")


def augmented_samples(data: VisionData, indices: Sequence[int]) -> list[Sample]:
    """Return training samples as the network sees them in the first epoch, what is done on the device included."""
    dataset = data.train_dataloader().dataset
    batch = collate([dataset[SampleKey(index, 0)] for index in indices], fills={"mask": data.ignore_index or 0})
    batch = data.on_after_batch_transfer(batch, 0)
    return [{name: values[row] for name, values in batch.items()} for row in range(len(indices))]


# Pictures.


def draw_sheet(data: VisionData, samples: Sequence[Sample], caption: str) -> Picture:
    """Draw samples with their targets, in rows under a heading."""
    kind = kind_of(data)
    images = [_own_part(sample) for sample in samples]
    columns = min(columns_for(images, kind), len(images))
    side = SIDES[next(number for number in SIDES if number >= columns)]
    pictures = [_draw(data, kind, sample, image, side) for sample, image in zip(samples, images, strict=True)]
    empty: tuple[str, Picture] = ("", np.full((SWATCH, SWATCH, 3), PAPER, np.uint8))
    pictures += [empty] * (-len(pictures) % columns)
    rows = [Row("", pictures[start : start + columns]) for start in range(0, len(pictures), columns)]
    legend: list[tuple[str, Any]] = []
    if kind in ("Detection", "Segmentation"):
        legend = list(zip(data.classes, _colours(data, kind), strict=True))
    elif kind == "Depth" and data.depth_range is not None:
        legend = [("depth in metres", depth_bar(data.depth_range)), ("hatched: no reading", HATCH)]
    return contact_sheet(rows, caption, legend)


def columns_for(images: Sequence[Tensor], kind: str | None) -> int:
    """Return how many pictures stand in a row: few of wide ones, many of small ones on which nothing is drawn."""
    wide = sorted(image.shape[-1] / image.shape[-2] for image in images)[len(images) // 2]
    wide *= 2 if kind == "Depth" else 1  # its depth stands beside each image
    small = max(max(image.shape[-2:]) for image in images) <= SMALL
    return 6 if small and kind not in DRAWN else 2 if wide >= WIDE else 3


def _own_part(sample: Sample) -> Tensor:
    """Return the image (C, H, W) of a sample without what pads it to others of its batch."""
    image: Tensor = sample["image"].as_subclass(Tensor)
    height, width = sample.get("size", image.shape[-2:])
    return image[:, :height, :width]


def _draw(data: VisionData, kind: str | None, sample: Sample, image: Tensor, side: int) -> tuple[str, Picture]:
    """Draw one sample with its targets, and say in a line what it is."""
    if kind == "Detection":
        return _draw_objects(data, sample, image, side)
    if kind == "Segmentation":
        return str(sample["id"]), _draw_mask(data, sample["mask"].as_subclass(Tensor), image, side)
    if kind == "Depth" and data.depth_range is not None:
        return str(sample["id"]), _draw_depth(
            data.depth_range, sample["depth"].as_subclass(Tensor), image, (side - GAP) // 2
        )
    return _label_words(data, sample), to_rgb(_fit(image, side) if max(image.shape[-2:]) > side else image)


def _draw_objects(data: VisionData, sample: Sample, image: Tensor, side: int) -> tuple[str, Picture]:
    stored = _size(image) if "size" in sample else sample["original_size"]  # boxes of training lie in the picture
    image = _fit(image, side)
    boxes, labels = scale_boxes(sample["boxes"].as_subclass(Tensor), stored, _size(image)), sample["labels"].clone()
    if "ignored" in sample:
        labels[sample["ignored"]] = data.num_classes
    colours = np.concatenate([_colours(data, "Detection"), np.array([IGNORED], np.uint8)])
    picture = draw_boxes(to_rgb(image), boxes, labels, [*data.classes, "ignored"], colours)
    return f"{sample['id']}: {len(boxes)} object{'' if len(boxes) == 1 else 's'}", picture


def _draw_mask(data: VisionData, mask: Tensor, image: Tensor, side: int) -> Picture:
    image = _fit(resize_image(image, _size(mask)), side)  # a large JPEG may have been decoded at a fraction
    mask = tv.resize(mask[None], list(_size(image)), interpolation=tv.InterpolationMode.NEAREST)[0]
    return overlay(to_rgb(image), mask, _colours(data, "Segmentation"), ignore_index=data.ignore_index)


def _draw_depth(depth_range: tuple[float, float], depth: Tensor, image: Tensor, side: int) -> Picture:
    image = _fit(resize_image(image, _size(depth)), side)
    colours = colour_depth(tv.resize(DepthMap(depth), list(_size(image))), depth_range)
    return np.concatenate([to_rgb(image), np.full((len(colours), GAP, 3), PAPER, np.uint8), colours], 1)


def _label_words(data: VisionData, sample: Sample) -> str:
    """Name an image, and its class, its classes, or the shares of those that were mixed in it."""
    name, label = str(sample["id"]), sample.get("label")
    if label is None or (label.dim() == 0 and name.startswith(f"{data.classes[int(label)]}/")):
        return name
    if label.dim() == 0:
        return f"{name}: {data.classes[int(label)]}"
    shares = [(data.classes[index], float(label[index])) for index in label.nonzero()[:, 0].tolist()]
    words = ", ".join(each if share == 1 else f"{each} {share:.0%}" for each, share in shares)
    return f"{name}: {words or 'no class'}"


def _fit(image: Tensor, side: int) -> Tensor:
    """Bring an image (C, H, W) to the size at which the sheet shows it, so that words drawn on it can be read."""
    height, width = _size(image)
    scale = side / max(height, width)
    size = [max(1, round(scale * height)), max(1, round(scale * width))]
    kind = tv.InterpolationMode.NEAREST if scale >= COARSE else tv.InterpolationMode.BILINEAR
    resized: Tensor = tv.resize(image, size, interpolation=kind, antialias=True)
    return resized


def _size(image: Tensor) -> Size:
    return int(image.shape[-2]), int(image.shape[-1])


def _colours(data: VisionData, kind: str) -> Picture:
    """Return the colours of the classes; the neutral first one is that of a background, which only masks have."""
    return palette(data.num_classes) if kind == "Segmentation" else palette(1 + data.num_classes)[1:]


# Anchors.


def anchor_lines(data: VisionData) -> list[str]:
    """Suggest anchors for YOLO that suit the training boxes at the size the network sees; nothing if there are few."""
    objects, fit = object_table(data.splits()["train"]), getattr(data, "fit", None)
    sides = objects.sides_at(fit.size) if fit is not None else objects.sides[objects.counted]
    if len(sides) < FEWEST:
        return []
    sizes = torch.from_numpy(sides[:: -(-len(sides) // MOST)]).float()
    fitted = fit_anchors(sizes, sum(map(len, ANCHORS)))
    usual = torch.tensor(ANCHORS) * torch.tensor(STRIDES)[:, None, None]
    maps = [
        [[round(side, 1) for side in pair] for pair in part] for part in fitted.reshape(len(STRIDES), -1, 2).tolist()
    ]
    return [
        "",
        f"anchors for YOLO (model.head.anchors) that suit the {len(sides):,} training boxes as the network sees them:",
        f"  {maps}",
        f"mean IoU of a box with the best of them {mean_best_iou(sizes, fitted):.2f}, of YOLOv3's own "
        f"{mean_best_iou(sizes, usual.reshape(-1, 2)):.2f}",
    ]


def mean_best_iou(sizes: Tensor, anchors: Tensor) -> float:
    """Return the mean, over sizes (N, 2), of the IoU with the best of the anchors (A, 2) at the same centre."""
    overlap = torch.minimum(sizes[:, None], anchors).prod(2)
    union = sizes.prod(1)[:, None] + anchors.prod(1) - overlap
    return float((overlap / union).max(1).values.mean())
