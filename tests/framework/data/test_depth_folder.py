"""Every layout of a depth folder gives its frames with their depths, and everything that is missing is said at once."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from framework.data.depth_folder import DepthFolder
from framework.errors import ConfigError, DataError
from tests.folders import depth_frame, write_depth_folder


def folder(root="set", **options):
    return DepthFolder(root, **{"num_workers": 0, "batch_size": 2, "check_cache": "cache", **options})


def ids(data):
    return {name: [pair.id for pair in samples.pairs] for name, samples in data.splits().items()}


def message(**options):
    with pytest.raises(DataError) as caught:
        folder(**options).splits()
    return str(caught.value)


# Layouts.


@pytest.mark.parametrize("layout", ["split", "kind"])
def test_folders_of_splits_give_their_frames_in_metres(layout):
    write_depth_folder(Path("set"), counts=(4, 2, 0), layout=layout)
    data = folder()
    assert ids(data) == {"train": ["0000", "0001", "0002", "0003"], "val": ["0004", "0005"]}  # test may be missing
    assert data.check_files() == []
    pixels, depth = depth_frame(5)
    sample = data.splits()["val"].read(1)
    np.testing.assert_array_equal(sample["image"], pixels.transpose(2, 0, 1))
    depth[:6, :8] = 0  # no reading
    np.testing.assert_allclose(sample["depth"], depth, atol=0.0006)


def test_a_root_alone_is_enough_for_frames_of_a_video():
    write_depth_folder(Path("set"), counts=(200, 0, 0), size=(6, 8), layout="flat")
    found = ids(folder())
    assert {name: len(frames) for name, frames in found.items()} == {"train": 160, "val": 20, "test": 20}
    assert sorted(frame for frames in found.values() for frame in frames) == [f"{number:04d}" for number in range(200)]
    for name in ("val", "test"):
        numbers = np.array([int(frame) for frame in found[name]])
        assert (np.diff(numbers) == 1).sum() >= 18  # neighbours stay together: two blocks of ten
    assert ids(folder(seed=5)) == found  # whatever the run's seed
    [warning] = folder().check_files()
    assert "blocks of consecutive frames were held out (160 train, 20 val, 20 test)" in warning
    assert {name: len(frames) for name, frames in ids(folder(val_share=0.25, test_share=0)).items()} == {
        "train": 150,
        "val": 50,
    }


def test_frames_are_in_the_order_of_their_numbers():
    write_depth_folder(Path("set"), counts=(12, 0, 0), size=(6, 8), layout="flat")
    for path in Path("set").rglob("*.png"):
        path.rename(path.with_name(f"frame{int(path.stem)}.png"))
    assert [int(frame[5:]) for frame in ids(folder())["train"]] == sorted(
        int(frame[5:]) for frame in ids(folder())["train"]
    )


def test_lists_say_which_frames_are_in_a_split():
    write_depth_folder(Path("set"), counts=(6, 0, 0), layout="flat")
    Path("set/depth/0002.png").rename("set/depth/other name.png")
    Path("set/train.txt").write_text(
        "# two ways to name an image\n0000\n\nrgb/0001.png\n0002.png\tdepth/other name.png\n"
    )
    Path("set/val.txt").write_text("rgb/0003.png depth/0003.png\n")
    Path("set/held out.txt").write_text("0005\n0004\n")
    data = folder(test_list="held out.txt")
    assert ids(data) == {"train": ["0000", "0001", "0002"], "val": ["0003"], "test": ["0005", "0004"]}
    assert data.splits()["train"].pairs[2].depth.name == "other name.png"
    assert data.check_files() == []


def test_lists_name_frames_in_folders_of_their_own():
    for scene in ("a", "b"):
        write_depth_folder(Path("parts") / scene, counts=(2, 0, 0), layout="flat")
        for kind in ("rgb", "depth"):
            shutil.copytree(f"parts/{scene}/{kind}", f"set/{kind}/{scene}")
    Path("set/train.txt").write_text("a/0000\na/0001\n")
    Path("set/val.txt").write_text("b/0000.png\n")
    data = folder()
    assert ids(data) == {"train": ["a/0000", "a/0001"], "val": ["b/0000"]}
    assert [pair.depth.as_posix() for pair in data.splits()["val"].pairs] == ["set/depth/b/0000.png"]


@pytest.mark.parametrize(
    ("image", "depth"),
    [
        ("{}_rgb", "{}_depth"),
        ("{}_colors", "{}_depth"),
        ("rgb_{}", "sync_depth_{}"),
        ("frame-{}", "frame-{}"),
        ("{}", "{}-depth"),
    ],
)
def test_names_may_say_what_a_file_is(image, depth):
    write_depth_folder(Path("set"), counts=(2, 1, 0))
    for kind, name in (("rgb", image), ("depth", depth)):
        for path in Path("set").glob(f"*/{kind}/*.png"):
            path.rename(path.with_stem(name.format(path.stem)))
    pairs = folder().splits()["train"].pairs
    assert [pair.depth.stem for pair in pairs] == [depth.format("0000"), depth.format("0001")]


def test_depths_of_all_formats_lie_beside_each_other():
    write_depth_folder(Path("set"), counts=(2, 1, 0))
    np.save("set/train/depth/0001.npy", np.full((48, 64), 2.5))
    Path("set/train/depth/0001.png").unlink()
    assert folder().splits()["train"].read(1)["depth"].unique().tolist() == [2.5]
    assert folder().splits()["train"].read(0)["depth"].max() < 4.1


# What is wrong.


def test_everything_missing_is_said_at_once():
    write_depth_folder(Path("set"), counts=(9, 3, 0))
    for number in range(7):
        Path(f"set/train/depth/{number:04d}.png").unlink()
    Path("set/val/depth/0010.png").unlink()
    Path("set/test/rgb").mkdir(parents=True)
    said = message()
    assert (
        "train: set/train/rgb: 7 images (0000.png, 0001.png, 0002.png, 0003.png, 0004.png and 2 more) have no" in said
    )
    assert "val: set/val/rgb: 1 image (0010.png) has no depth of the same name in set/val/depth" in said
    assert "test: set/test/depth is missing" in said


def test_a_missing_validation_split_is_refused_with_its_remedy():
    write_depth_folder(Path("set"), counts=(3, 0, 0))
    assert message() == ("set has no val split: make val/rgb and val/depth, of frames that are in no other split")
    shutil.rmtree("set")
    write_depth_folder(Path("set"), counts=(3, 0, 0), layout="kind")
    Path("set/rgb/validation").mkdir()
    assert "make rgb/val and depth/val, of frames that are in no other split (or is it validation?)" in message()
    shutil.rmtree("set")
    write_depth_folder(Path("set"), counts=(3, 0, 0), layout="flat")
    Path("set/train.txt").write_text("0000\n")
    assert "write val.txt into set" in message()


def test_files_that_may_be_meant_both_are_refused():
    write_depth_folder(Path("set"), counts=(2, 1, 0))
    shutil.copy("set/train/depth/0001.png", "set/train/depth/0001.tif")
    assert "0001.tif and 0001.png share a name" in message()
    Path("set/train/depth/0001.tif").unlink()
    Path("set/train/depth/0001.png").rename("set/train/depth/0001_depth.png")
    shutil.copy("set/train/depth/0001_depth.png", "set/train/depth/depth_0001.png")
    assert "0001_depth.png, depth_0001.png may all be the depth of image 0001" in message()
    Path("set/train/depth/depth_0001.png").unlink()
    shutil.copy("set/train/rgb/0001.png", "set/train/rgb/0001_rgb.png")
    assert "0001_depth.png may be the depth of 0001.png and of 0001_rgb.png" in message()


def test_lists_are_checked_line_by_line():
    write_depth_folder(Path("set"), counts=(4, 0, 0), layout="flat")
    Path("set/depth/0002.png").unlink()
    Path("set/train.txt").write_text("0000\n9999\n0002\n0000.png\n0001 nowhere.png\n")
    Path("set/val.txt").write_text("0003\n")
    said = message()
    assert "train: set/train.txt: 4 wrong: line 2 names no image: 9999; line 3 has no depth: 0002; " in said
    assert "line 4 lists 0000.png again; line 5 names no depth file: nowhere.png" in said
    Path("set/val.txt").write_text("# nothing\n")
    assert "val: set/val.txt lists no frame" in message()
    assert "nothere.txt is missing" in message(val_list="nothere.txt")


def test_folders_of_other_names_are_said_and_can_be_stated():
    write_depth_folder(Path("set"), counts=(3, 0, 0), layout="flat")
    Path("set/rgb").rename("set/color")
    said = message()
    assert "set/rgb is missing: data.root has color, depth; it needs rgb and depth" in said
    assert "data.rgb is another name for it" in said
    assert folder(rgb="color").counts == {"train": 1, "val": 1, "test": 1}
    Path("set/color/0002.png").unlink()
    assert "2 frames are too few to be divided" in message(rgb="color")


def test_folders_within_folders_are_said():
    write_depth_folder(Path("set"), counts=(3, 2, 0))
    Path("set/train/rgb").rename("set/train/scene")
    Path("set/train/rgb").mkdir()
    Path("set/train/scene").rename("set/train/rgb/scene")
    assert "set/train/rgb has no image" in (said := message())
    assert "folders in it (scene) are read only where a list names their frames" in said
    for split in ("train", "val"):
        Path("set", split, "rgb").rename(Path("set", split, "images"))
        Path("set", split, "depth").rename(Path("set", split, "depths"))
    assert "data.root has train, val, train/depths, train/images; it needs rgb and depth" in message()


def test_depths_without_an_image_are_left_out_and_said():
    write_depth_folder(Path("set"), counts=(3, 2, 0))
    Path("set/val/rgb/0004.png").unlink()
    assert folder().check_files() == ["val: 1 depth files have no image of their name, and are left out"]


def test_options_are_checked_at_the_door():
    write_depth_folder(Path("set"), counts=(3, 2, 0))
    with pytest.raises(ConfigError, match=r"data\.root: nowhere is no folder"):
        folder("nowhere")
    with pytest.raises(ConfigError, match=r"data\.val_share: 0\.6 and data\.test_share: 0\.5 leave nothing"):
        folder(val_share=0.6, test_share=0.5)


def test_a_verdict_depends_on_the_scale_and_the_range():
    write_depth_folder(Path("set"), counts=(3, 2, 0))
    assert folder().check_files() == []  # remembered
    with pytest.raises(DataError, match="these look like millimetres"):
        folder(depth_scale=1).check_files()
    with pytest.raises(DataError, match="no reading at all is within"):
        folder(depth_range=(20, 30)).check_files()


# Loading.


def test_loader_processes_change_nothing():
    write_depth_folder(Path("set"), counts=(5, 2, 0))
    options = {"crop_size": 32, "crop_scale": (0.7, 1.4), "divide_depth": True, "rotation": 5.0}
    one, two = ([*folder(num_workers=count, **options).train_dataloader()] for count in (0, 2))
    assert len(one) == len(two) == 2
    for batch, other in zip(one, two, strict=True):
        for name in ("image", "depth", "photometric"):
            assert torch.equal(batch[name], other[name])
        assert batch["id"] == other["id"]


def test_batches_of_different_sizes_are_padded_without_depth():
    write_depth_folder(Path("set"), counts=(2, 1, 0), size=(8, 10))
    Image.new("RGB", (14, 6), "white").save("set/train/rgb/0001.png")
    Image.fromarray(np.full((6, 14), 2000, np.uint16)).save("set/train/depth/0001.png")
    batch = next(iter(folder(hflip=0, photometric=None).train_dataloader()))
    assert batch["image"].shape == (2, 3, 8, 14)
    row = batch["id"].index("0001")
    assert batch["depth"].dtype == torch.float32
    assert (batch["depth"][row, :6] == 2).all()
    assert (batch["depth"][row, 6:] == 0).all()


def test_depth_stays_as_stored_in_evaluation_while_the_image_is_resized():
    write_depth_folder(Path("set"), counts=(2, 2, 0))
    data = folder(resize=24)
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape == (2, 3, 24, 32)
    assert batch["depth"].shape == (2, 48, 64)
    assert (batch["size"], batch["original_size"]) == ([(24, 32)] * 2, [(48, 64)] * 2)
    assert next(iter(data.train_dataloader()))["depth"].shape == (2, 24, 32)
