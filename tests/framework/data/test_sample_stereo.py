import hashlib
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.extract_stereo import COLUMNS, bin_depth, motorcycle_depth
from benchmarks.stereo_baseline import constant_scores
from framework.conformance import check_plugin
from framework.data.depth_folder import DepthFolder
from framework.data.sample_stereo import ROOT, SampleStereo
from framework.data.synthetic import SyntheticScenesDepth

PICTURES = ("motorcycle", "bin")


@pytest.fixture(scope="module")
def stereo():
    return SampleStereo(num_workers=0, batch_size=4, check_cache="")


def depths(picture):
    splits = SampleStereo(picture=picture).splits()
    return {name: samples.read(0)["depth"].numpy() for name, samples in splits.items()}


# What is embedded.


def test_files_are_small_complete_and_in_one_split_each():
    want = {
        f"{split}/{kind}/{name}.png"
        for split in ("train", "val", "test")
        for kind in ("rgb", "depth")
        for name in PICTURES
    }
    files = sorted(ROOT.rglob("*.png"))
    assert {path.relative_to(ROOT).as_posix() for path in files} == want
    assert sum(path.stat().st_size for path in files) < 1.5e6
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in files}) == 12


def test_the_motorcycle_is_scikit_images_to_the_pixel_and_the_tenth_of_a_millimetre():
    data = pytest.importorskip("skimage.data")
    left, _, disparity = data.stereo_motorcycle()
    with np.errstate(divide="ignore"):
        metres = 994.978 * 193.001 / (disparity.astype(np.float64) + 31.086) / 1000
    metres[~np.isfinite(disparity)] = 0
    for split, (first, end) in COLUMNS["motorcycle"].items():
        image = np.asarray(Image.open(ROOT / split / "rgb" / "motorcycle.png"))
        depth = np.asarray(Image.open(ROOT / split / "depth" / "motorcycle.png"))
        assert depth.dtype == np.uint16
        assert np.array_equal(image, left[:, first:end])
        assert np.abs(depth / 10_000 - metres[:, first:end]).max() < 5.1e-5
    assert np.allclose(motorcycle_depth(disparity), metres)


def test_readings_of_the_bin_that_are_mistakes_are_left_out():
    assert bin_depth(np.array([[np.nan, 0.5, 2.1, 79.0]], np.float32)).tolist() == [[0, 0.5, 0, 0]]


def test_licences_and_sources_are_stated():
    licence, readme = (ROOT / "LICENSE").read_text(), (ROOT / "README.md").read_text()
    for said in ("We grant permission to use and publish all images", "the scikit-image team", "Kentaro Wada"):
        assert said in licence
    for digest in (
        "db18e9c4157617403c3537a6ba355d",
        "2e49c8cebff3fa20359a0cc6880c82",
        "b952bc1b5e182f35db663e03c62b8c",
    ):
        assert digest in readme


# What the data module makes of it.


def test_it_states_what_the_model_needs_to_know(stereo):
    assert stereo.counts == {"train": 2, "val": 2, "test": 2}
    assert (stereo.depth_range, stereo.channels, stereo.classes) == ((0.3, 6.0), 3, ())
    assert SampleStereo(picture="bin").counts["train"] == 1


@pytest.mark.parametrize("picture", PICTURES)
def test_parts_are_apart_and_as_the_readme_says(picture):
    readme = (ROOT / "README.md").read_text()
    ends = [COLUMNS[picture][split] for split in ("train", "val", "test")]
    assert all(later[0] - earlier[1] >= 32 for earlier, later in pairwise(ends))
    for split, depth in depths(picture).items():
        known = depth[depth > 0]
        low, five, median, most, high = np.percentile(known, (0, 5, 50, 95, 100))
        first, end = COLUMNS[picture][split]
        row = f"| {picture} | {split} | {first} to {end - 1} | {depth.shape[1]}x{depth.shape[0]} | {depth.size} | "
        row += f"{known.size / depth.size:.1%}".replace("%", " %")
        row += f" | {low:.2f} | {five:.2f} | {median:.2f} | {most:.2f} | {high:.2f} |"
        assert row in readme


@pytest.mark.parametrize("picture", PICTURES)
def test_scores_of_a_constant_depth_are_those_of_the_readme(picture):
    found = depths(picture)
    median = np.median(found["train"][found["train"] > 0])
    for split in ("val", "test"):
        truth = found[split][found[split] > 0].astype(np.float64)
        worst = np.maximum(median / truth, truth / median)
        want = np.abs(truth - median).__truediv__(truth).mean(), (truth - median).std(), (worst < 1.25).mean()
        scores = constant_scores(found[split], float(median))
        assert scores[0] == pytest.approx(want[0])
        assert scores[1] == pytest.approx(np.hypot(want[1], (truth - median).mean()))
        assert scores[2] == pytest.approx(want[2])
        row = " | ".join(f"{score:.3f}" for score in scores)
        assert f"| {picture} | {median:.3f} m | {split} | {row} |" in (ROOT / "README.md").read_text()


def test_intrinsics_put_a_point_of_the_picture_where_it_is_in_every_part(stereo):
    for split, samples in stereo.splits().items():
        for index, name in enumerate(PICTURES):
            focal, _, centre = samples.read(index)["intrinsics"][0]
            whole = {"motorcycle": (994.978, (1244.772 + 0.5) / 4 - 0.5), "bin": (517.62, 317.96)}[name]
            assert float(focal) == pytest.approx(whole[0], abs=1e-3)
            assert float(centre) + COLUMNS[name][split][0] == pytest.approx(whole[1], abs=1e-2)


def test_training_batches_are_crops_that_keep_their_depth(stereo):
    batch = next(iter(stereo.train_dataloader()))
    assert (batch["image"].shape, batch["depth"].shape) == ((4, 3, 256, 256), (4, 256, 256))
    for name, depth in zip(batch["id"], batch["depth"], strict=True):
        low, high = {"motorcycle": (2.1, 5.1), "bin": (0.4, 2.0)}[name]
        known = depth[depth > 0]
        assert low < known.min() <= known.max() < high


def test_it_is_a_folder_of_depth_data_too(stereo):
    folder = DepthFolder(str(ROOT), depth_scale=10_000, depth_range=(0.3, 6.0))
    for split, samples in folder.splits().items():
        mine = {sample["id"]: sample["depth"] for sample in map(stereo.splits()[split].read, range(2))}
        theirs = {sample["id"].split("/")[-1]: sample["depth"] for sample in map(samples.read, range(len(samples)))}
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    "kind", [SampleStereo, partial(SyntheticScenesDepth, train=4, val=2, test=0, size=(48, 64), crop_size=32)]
)
def test_it_passes_every_check_of_data_modules(kind):
    assert {v.name: v.found for v in check_plugin(kind, "data") if v.outcome != "passed"} == {}


# Rendered scenes, which know their depth.


def test_the_ground_of_rendered_scenes_is_as_far_as_its_camera_says():
    data = SyntheticScenesDepth(train=3, val=1, test=0, size=(48, 64), num_workers=0, batch_size=2)
    assert data.counts == {"train": 3, "val": 1}
    for index in range(3):
        sample = data.splits()["train"].read(index)
        depth, camera = sample["depth"].double(), sample["intrinsics"].double()
        assert 0.5 < depth.min() < depth.max() < 10
        rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
        rays = torch.linalg.inv(camera) @ torch.stack([columns, rows, torch.ones(48, 64)]).double().flatten(1)
        points = (rays * depth.flatten()).reshape(3, 48, 64)
        # A level camera's ground is a plane without a slope to the side: all of the bottom row that is on it, is on it.
        bottom = points[:, -6:].flatten(1)
        normal, distance = plane(bottom)
        near = (normal @ bottom - distance).abs() < 1e-3
        assert near.float().mean() > 0.5
        assert abs(normal[0]) < 1e-3
        assert 1.2 <= abs(distance) <= 1.9


def plane(points):
    """The plane that most of the points (3, N) lie on: its unit normal, and its distance from the camera."""
    draw = np.random.default_rng(0)
    best = None
    for _ in range(200):
        a, b, c = points[:, draw.choice(points.shape[1], 3, replace=False)].T
        normal = torch.linalg.cross(b - a, c - a)
        if normal.norm() < 1e-9:
            continue
        normal = normal / normal.norm()
        count = ((normal @ points - normal @ a).abs() < 1e-3).sum()
        if best is None or count > best[0]:
            best = count, normal, normal @ a
    return best[1], best[2]
