"""Small data sets on disk for tests."""

import pickle
from pathlib import Path

import numpy as np
from PIL import Image


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
