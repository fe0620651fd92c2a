"""Small data sets on disk for tests."""

import json
import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SPLITS = ("train", "val", "test")
COLOURS = ((60, 60, 220), (60, 200, 60), (220, 60, 60), (220, 220, 60), (60, 220, 220), (220, 60, 220))


def write_mask_folder(root: Path, classes=3, counts=(4, 2, 2), size=(48, 56), sizes=None, names=None) -> Path:
    """Images whose brightness in each quadrant gives the class away, with index masks."""
    rng = np.random.default_rng(0)
    number = 0
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        for _ in range(count):
            height, width = sizes[number % len(sizes)] if sizes else size
            mask = np.zeros((height, width), np.uint8)
            for _ in range(3):
                top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
                mask[top : top + height // 2, left : left + width // 2] = rng.integers(0, classes)
            colours = np.linspace(30, 220, classes)[mask][..., None] + rng.normal(0, 8, (height, width, 3))
            for kind, array in (("images", colours.clip(0, 255).astype(np.uint8)), ("masks", mask)):
                folder = root / kind / split
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / f"{number:03d}.png")
            number += 1
    (root / "classes.txt").write_text("\n".join(names or [f"class {index}" for index in range(classes)]) + "\n")
    return root


def write_image_folder(
    root: Path, counts=(6, 3, 3), classes=("blue", "green", "red"), size=(40, 48), mode="RGB"
) -> Path:
    """Images whose colour, or brightness, gives the class away, in `root/SPLIT/CLASS/`; one count: in `root/CLASS/`."""
    rng = np.random.default_rng(0)
    depth = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    splits = ("train", "val", "test") if len(counts) > 1 else ("",)
    for split, count in zip(splits, counts, strict=True):
        for label, name in enumerate(classes if count else ()):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.normal(90, 20, (*size, depth))
                pixels[..., -1 - label % depth if depth > 1 else 0] += 80 if depth > 1 else 60 * label
                picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8).squeeze(), mode)
                picture.save(folder / f"{split}{number:03d}.png")
    return root


def write_cifar10(root: Path, per_file: int = 4) -> Path:
    """CIFAR-10's layout: five training files and a test file of images whose brightness tells the class."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index, name in enumerate((*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")):
        labels = np.arange(index * per_file, (index + 1) * per_file) % 10
        pixels = np.clip(25 * labels[:, None] + rng.integers(0, 25, (per_file, 3072)), 0, 255).astype(np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels.tolist()}, protocol=4))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    return folder


class BoxScene(NamedTuple):
    """An image with the boxes (x1, y1, x2, y2) of its objects and their classes."""

    name: str
    pixels: np.ndarray
    boxes: list[tuple[int, int, int, int]]
    labels: list[int]


def box_scenes(classes=3, counts=(6, 3, 3), size=(64, 80)) -> dict[str, list[BoxScene]]:
    """Rectangles on a dark ground, whose colours give their classes away; the last image of a split has none."""
    rng = np.random.default_rng(0)
    height, width = size
    scenes = {}
    for split, count in zip(SPLITS, counts, strict=True):
        scenes[split] = []
        for number in range(count):
            pixels = rng.normal(25, 5, (*size, 3)).clip(0, 255)
            boxes, labels = [], []
            for corner in range(0 if count > 1 and number == count - 1 else 1 + number % 3):
                left, top = corner % 2 * width // 2, corner // 2 * height // 2
                x1, y1 = left + rng.integers(0, width // 8), top + rng.integers(0, height // 8)
                x2, y2 = x1 + rng.integers(width // 5, width // 3), y1 + rng.integers(height // 5, height // 3)
                boxes.append((int(x1), int(y1), int(x2), int(y2)))
                labels.append((number + corner) % classes)
                pixels[y1:y2, x1:x2] = COLOURS[labels[-1]]
            scenes[split].append(BoxScene(f"{split}{number:03d}", pixels.astype(np.uint8), boxes, labels))
    return scenes


def write_coco(root: Path, classes=("blue", "green", "red"), counts=(6, 3, 3), size=(64, 80)) -> Path:
    """COCO's layout: `annotations/instances_SPLIT2017.json` and `SPLIT2017/`; the ids of classes are 1, 3, 5, ..."""
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": 1 + 2 * index, "name": name} for index, name in enumerate(classes)]
    for split, scenes in box_scenes(len(classes), counts, size).items():
        (root / f"{split}2017").mkdir()
        images, annotations = [], []
        for number, scene in enumerate(scenes):
            file = {"file_name": f"{scene.name}.png", "height": size[0], "width": size[1]}
            images.append({"id": 10 + number, **file})
            Image.fromarray(scene.pixels).save(root / f"{split}2017/{scene.name}.png")
            for (x1, y1, x2, y2), label in zip(scene.boxes, scene.labels, strict=True):
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                where = {"id": len(annotations) + 1, "image_id": 10 + number, "category_id": 1 + 2 * label}
                annotations.append({**where, **box})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    return root


def write_voc(root: Path, classes=("blue", "green", "red"), counts=(6, 3, 3), size=(64, 80)) -> Path:
    """Pascal VOC's layout: `JPEGImages/`, `Annotations/` and `ImageSets/Main/SPLIT.txt`; the first pixel is 1."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, scenes in box_scenes(len(classes), counts, size).items():
        if scenes:
            (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{scene.name}\n" for scene in scenes))
        for scene in scenes:
            Image.fromarray(scene.pixels).save(root / f"JPEGImages/{scene.name}.jpg", quality=95)
            objects = "".join(
                f"<object><name>{classes[label]}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1}</xmin>"
                f"<ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
                for (x1, y1, x2, y2), label in zip(scene.boxes, scene.labels, strict=True)
            )
            (root / f"Annotations/{scene.name}.xml").write_text(
                f"<annotation><filename>{scene.name}.jpg</filename>\n<size><width>{size[1]}</width>"
                f"<height>{size[0]}</height><depth>3</depth></size>\n{objects}</annotation>\n"
            )
    return root


def write_yolo(root: Path, classes=("blue", "green", "red"), counts=(6, 3, 3), size=(64, 80)) -> Path:
    """YOLO's layout: `data.yaml`, `images/SPLIT/` and `labels/SPLIT/`; images without objects have no label file."""
    for split, scenes in box_scenes(len(classes), counts, size).items():
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for scene in scenes:
            Image.fromarray(scene.pixels).save(root / f"images/{split}/{scene.name}.png")
            lines = [
                f"{label} {(x1 + x2) / 2 / size[1]} {(y1 + y2) / 2 / size[0]} "
                f"{(x2 - x1) / size[1]} {(y2 - y1) / size[0]}\n"
                for (x1, y1, x2, y2), label in zip(scene.boxes, scene.labels, strict=True)
            ]
            if lines:
                (root / f"labels/{split}/{scene.name}.txt").write_text("".join(lines))
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(classes))
    splits = "".join(f"{split}: images/{split}\n" for split, count in zip(SPLITS, counts, strict=True) if count)
    (root / "data.yaml").write_text(f"path: .\n{splits}names:\n{names}")
    return root


def depth_frame(number, size=(48, 64), near=1.0, far=4.0):
    """An image (H, W, 3), brighter where it is near, and its depth in metres: a ramp that turns from frame to frame."""
    rng = np.random.default_rng(number)
    height, width = size
    down, right = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    angle = 2 * np.pi * number / 7
    slope = 0.5 + 0.35 * (np.cos(angle) * (2 * right - 1) + np.sin(angle) * (2 * down - 1))
    depth = near + (far - near) * slope.clip(0, 1)
    grey = 230 - 200 * (depth - near) / (far - near)
    pixels = (grey[..., None] + rng.normal(0, 10, (height, width, 3))).clip(0, 255).astype(np.uint8)
    return pixels, depth.astype(np.float32)


def write_depth_folder(
    root: Path, counts=(6, 3, 3), size=(48, 64), layout="split", scale=1000, near=1.0, far=4.0, sizes=None
):
    """Images and depth as 16-bit PNG, `scale` units a metre, 0 in a corner; frames are told apart by their number.

    `layout`: `split` is `train/rgb` and `train/depth`, `kind` is `rgb/train` and `depth/train`, `flat` is `rgb` and
    `depth` of all frames together.
    """
    number = 0
    for split, count in zip(SPLITS, counts, strict=True):
        for _ in range(count):
            size = sizes[number % len(sizes)] if sizes else size
            pixels, depth = depth_frame(number, size, near, far)
            stored = np.round(depth * scale).astype(np.uint16)
            stored[: size[0] // 8, : size[1] // 8] = 0
            for kind, array in (("rgb", pixels), ("depth", stored)):
                folder = root / {"split": f"{split}/{kind}", "kind": f"{kind}/{split}", "flat": kind}[layout]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / f"{number:04d}.png")
            number += 1
    return root


def write_nyu(root: Path, counts=(6, 3), size=(48, 64)) -> Path:
    """BTS's layout of NYUv2: `sync/`, `official_splits/test/`, and lists of images, depth in millimetres, and focal."""
    number = 0
    for part, folder, count in zip(("train", "test"), ("sync", "official_splits/test"), counts, strict=True):
        lines = []
        for _ in range(count):
            scene = f"{'kitchen' if part == 'test' else 'office'}_{number // 2:04d}{'ab'[number % 2]}"
            (root / folder / scene).mkdir(parents=True)
            pixels, depth = depth_frame(number, size)
            stored = np.round(1000 * depth).astype(np.uint16)
            stored[:6, :8] = 0
            Image.fromarray(pixels).save(root / folder / scene / f"rgb_{number:05d}.jpg")
            Image.fromarray(stored).save(root / folder / scene / f"sync_depth_{number:05d}.png")
            slash = "/" if part == "train" else ""  # as the published lists have it
            lines.append(f"{slash}{scene}/rgb_{number:05d}.jpg {slash}{scene}/sync_depth_{number:05d}.png 518.8579\n")
            number += 1
        (root / f"nyudepthv2_{part}_files_with_gt.txt").write_text("".join(lines))
    return root
