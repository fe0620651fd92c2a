"""Score baselines without learning on the test frames of the embedded cells, as a Markdown table.

python benchmarks/cells_baseline.py        # some seconds on one core; numpy and Pillow only

Nuclei are where the Hoechst channel is bright. Cells are where the oblique channel is rough: its deviation from the
median of the training frames, averaged over a window. Thresholds and windows are the best of a grid on the training
frames: for nuclei by their IoU, then for cytoplasm by mIoU. IoU comes from one confusion matrix over all test pixels.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CELLS = Path(__file__).parents[1] / "framework" / "data" / "cells"
Array = NDArray[np.float64]
Mask = NDArray[np.int64]


class Frames(NamedTuple):
    """The frames of a split, each (N, H, W): two channels in their own units, and class indices."""

    hoechst: Array
    oblique: Array
    mask: Mask


class Thresholds(NamedTuple):
    """What is fitted; radii in pixels, thresholds in the channels' units."""

    nucleus_radius: int
    nucleus: float
    median: float
    grain_radius: int
    window_radius: int
    roughness: float


def read(root: Path, split: str) -> Frames:
    """Read a split."""
    stems = sorted(path.stem for path in (root / "masks" / split).glob("*.png"))
    names = [("images", ".hoechst.png"), ("images", ".oblique.png"), ("masks", ".png")]
    stacks = [
        np.stack([np.asarray(Image.open(root / kind / split / f"{stem}{suffix}")) for stem in stems])
        for kind, suffix in names
    ]
    return Frames(stacks[0].astype(float), stacks[1].astype(float), stacks[2].astype(np.int64))


def box_mean(images: Array, radius: int) -> Array:
    """Average (N, H, W) over squares of 2 radius + 1 pixels, edges repeated."""
    for axis in (1, 2):
        margin = [(0, 0)] * 3
        margin[axis] = (radius + 1, radius)
        total = np.pad(images, margin, mode="edge").cumsum(axis)
        size = images.shape[axis]
        images = total.take(range(2 * radius + 1, size + 2 * radius + 1), axis) - total.take(range(size), axis)
        images = images / (2 * radius + 1)
    return images


def roughness(oblique: Array, median: float, grain: int, window: int) -> Array:
    """Return the mean over a window of how far the oblique channel, freed of grain, is from its median."""
    return box_mean(np.abs(box_mean(oblique, grain) - median), window)


def predict(frames: Frames, fitted: Thresholds) -> Mask:
    """Return class indices (N, H, W)."""
    rough = roughness(frames.oblique, fitted.median, fitted.grain_radius, fitted.window_radius) > fitted.roughness
    nucleus = box_mean(frames.hoechst, fitted.nucleus_radius) > fitted.nucleus
    return np.where(nucleus, 2, rough.astype(np.int64))


def iou(prediction: Mask, mask: Mask, classes: int = 3) -> Array:
    """Return the IoU per class (classes,) from one confusion matrix over all pixels."""
    pairs = np.bincount(mask.ravel() * classes + prediction.ravel(), minlength=classes**2)
    confusion = pairs.reshape(classes, classes)
    hit = np.diag(confusion)
    per_class: Array = hit / (confusion.sum(0) + confusion.sum(1) - hit)
    return per_class


def fit(frames: Frames) -> Thresholds:
    """Search the grid on every second pixel of the frames."""
    thin, mask = np.s_[:, ::2, ::2], frames.mask[:, ::2, ::2]
    candidates = []
    for radius in (0, 1, 2):
        bright = box_mean(frames.hoechst, radius)[thin]
        for level in np.quantile(bright, np.linspace(0.85, 0.99, 100)):
            candidates.append((iou(np.where(bright > level, 2, 0), mask)[2], radius, float(level)))
    _, nucleus_radius, nucleus = max(candidates)
    found = box_mean(frames.hoechst, nucleus_radius)[thin] > nucleus
    median = float(np.median(frames.oblique))
    options = []
    for grain in (0, 1, 2, 3):
        for window in (4, 8, 12, 16, 24):
            rough = roughness(frames.oblique, median, grain, window)[thin]
            for level in np.quantile(rough, np.linspace(0.3, 0.9, 40)):
                prediction = np.where(found, 2, (rough > level).astype(np.int64))
                options.append((iou(prediction, mask).mean(), grain, window, float(level)))
    _, grain, window, level = max(options)
    return Thresholds(nucleus_radius, nucleus, median, grain, window, level)


def main() -> None:
    """Fit on the training frames, score on the test frames, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=CELLS, help="data set (default: %(default)s)")
    root = parser.parse_args().root
    train, test = read(root, "train"), read(root, "test")
    fitted = fit(train)
    names = (root / "classes.txt").read_text().split()
    rows = {
        "background everywhere": np.zeros_like(test.mask),
        "mask of the last training frame": np.broadcast_to(train.mask[-1], test.mask.shape),
        "thresholds on both channels": predict(test, fitted),
    }
    print(f"| baseline, {len(test.mask)} test frames | {' | '.join(names)} | mIoU |")
    print("|---" * (len(names) + 2) + "|")
    for name, prediction in rows.items():
        scores = iou(prediction, test.mask, len(names))
        print(f"| {name} | {' | '.join(f'{score:.3f}' for score in scores)} | **{scores.mean():.3f}** |")
    print(f"\nFitted: {fitted}")


if __name__ == "__main__":
    main()
