"""The embedded cells: complete, consistent, and cut from the source as their README says."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
CELLS = ROOT / "framework" / "data" / "cells"
SPLITS = {"train": (0, 1, 2, 3, 8, 9), "val": (4, 7), "test": (5, 6)}
FRAMES = [(split, frame) for split, frames in SPLITS.items() for frame in frames]


def pixels(kind: str, split: str, name: str) -> np.ndarray:
    with Image.open(CELLS / kind / split / f"{name}.png") as image:
        return np.asarray(image)


def test_every_frame_is_in_one_split_and_nothing_else_is_there():
    names = {
        "images": ["frame_{}.hoechst.png", "frame_{}.oblique.png"],
        "masks": ["frame_{}.png"],
        "instances": ["frame_{}.nuclei.png", "frame_{}.cells.png"],
    }
    want = {f"{kind}/{split}/{name.format(frame)}" for kind in names for name in names[kind] for split, frame in FRAMES}
    assert {path.relative_to(CELLS).as_posix() for path in CELLS.rglob("*.png")} == want
    assert (CELLS / "classes.txt").read_text().split() == ["background", "cytoplasm", "nucleus"]
    assert sum(path.stat().st_size for path in CELLS.rglob("*")) < 4e6


def test_no_image_occurs_twice():
    hashes = [hashlib.sha256(np.asarray(Image.open(path)).tobytes()).digest() for path in CELLS.glob("images/*/*.png")]
    assert len(set(hashes)) == len(hashes) == 20


@pytest.mark.parametrize(("split", "frame"), FRAMES)
def test_masks_follow_from_the_instances(split, frame):
    nuclei, cells = (
        pixels("instances", split, f"frame_{frame}.nuclei"),
        pixels("instances", split, f"frame_{frame}.cells"),
    )
    mask = pixels("masks", split, f"frame_{frame}")
    assert nuclei.dtype == cells.dtype == np.uint16
    assert mask.dtype == np.uint8
    assert nuclei.shape == cells.shape == mask.shape == (210, 576)
    want = np.zeros_like(mask)
    want[cells > 0] = 1
    want[nuclei > 0] = 2
    assert np.array_equal(mask, want)
    for instances in (nuclei, cells):
        ids = np.unique(instances)
        assert ids.tolist() == list(range(len(ids)))
        assert len(ids) > 50


@pytest.mark.parametrize(("split", "frame"), FRAMES)
def test_labels_lie_on_what_the_images_show(split, frame):
    hoechst = pixels("images", split, f"frame_{frame}.hoechst")
    oblique = pixels("images", split, f"frame_{frame}.oblique")
    mask = pixels("masks", split, f"frame_{frame}")
    assert hoechst.dtype == oblique.dtype == np.uint16
    medians = [np.median(hoechst[mask == label]) for label in range(3)]
    assert medians[2] > 1.4 * max(medians[:2])
    spread = [np.abs(oblique[mask == label] - np.median(oblique)).mean() for label in range(3)]
    assert spread[1] > 1.02 * spread[0]
    for axis in (0, 1):  # moved labels fit worse
        assert hoechst[np.roll(mask, 12, axis) == 2].mean() < 0.8 * hoechst[mask == 2].mean()


@pytest.mark.parametrize(("channel", "low", "high"), [("hoechst", 400, 2500), ("oblique", 6700, 9700)])
def test_windows_of_the_readme_clip_next_to_nothing(channel, low, high):
    assert f"| {channel} | {low} | {high} |" in (CELLS / "README.md").read_text()
    for split, frame in FRAMES:
        image = pixels("images", split, f"frame_{frame}.{channel}")
        assert ((image < low) | (image > high)).mean() < 0.004
        assert np.diff(np.percentile(image, [0.5, 99.5])) > 0.3 * (high - low)  # nor is the window too wide


def test_masks_carry_a_palette_that_tells_the_classes_apart():
    with Image.open(CELLS / "masks" / "train" / "frame_0.png") as image:
        assert image.mode == "P"
        colours = image.convert("RGB").getcolors()
    assert len(colours) == 3


def test_licence_and_source_are_stated():
    licence, readme = (CELLS / "LICENSE").read_text(), (CELLS / "README.md").read_text()
    assert "Tim Monko" in licence
    assert "Redistribution and use in source and binary forms" in licence
    assert "ndev-sampledata" in readme
    assert "34fcba5444b6b5c8d5635553ad73df3a48d2d43390b465dab71986586cfcc892" in readme


def test_extraction_keeps_every_pixel_and_renumbers_instances(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    draw = np.random.default_rng(0)
    stack = draw.integers(0, 2**16, (4, 10, 12, 20), dtype=np.uint16)
    stack[2:] = draw.choice([0, 7, 300], (2, 10, 12, 20))
    tifffile.imwrite(tmp_path / "source.tiff", stack)
    script = [sys.executable, ROOT / "benchmarks" / "extract_cells.py"]
    subprocess.run([*script, tmp_path / "source.tiff", "--out", tmp_path / "out"], check=True, capture_output=True)
    for split, frame in FRAMES:
        for channel, name in enumerate(("images/{}/frame_{}.hoechst.png", "images/{}/frame_{}.oblique.png")):
            read = np.asarray(Image.open(tmp_path / "out" / name.format(split, frame)))
            assert np.array_equal(read, stack[channel, frame])
        for channel, name in ((2, "nuclei"), (3, "cells")):
            read = np.asarray(Image.open(tmp_path / "out" / "instances" / split / f"frame_{frame}.{name}.png"))
            assert np.array_equal(read, np.searchsorted([0, 7, 300], stack[channel, frame]))


def test_baseline_scores_are_those_of_the_readme():
    script = [sys.executable, ROOT / "benchmarks" / "cells_baseline.py"]
    printed = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    rows = [row.replace("*", "") for row in printed.splitlines() if row.startswith("| ") and "mIoU" not in row]
    assert len(rows) == 3
    readme = (CELLS / "README.md").read_text()
    assert all(row in readme for row in rows)
