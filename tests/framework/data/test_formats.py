"""Data sets that are more than a folder of masks."""

import numpy as np
import pytest
import torch
from PIL import Image

from framework.data.sample_cells import ROOT, SampleCells
from framework.data.scenes import render_scene
from framework.data.synthetic import SyntheticScenes
from framework.data.voc import VOCSegmentation
from framework.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


def write_voc(root):
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        ids = [f"{split}_{i}" for i in range(count)]
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(ids))
        for name in ids:
            Image.fromarray(RNG.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(root / f"JPEGImages/{name}.jpg")
            if split != "test":
                mask = RNG.integers(0, 21, (30, 40), dtype=np.uint8)
                mask[0] = 255
                picture = Image.fromarray(mask)
                picture.putpalette(RNG.integers(0, 255, 768, dtype=np.uint8).tobytes())
                picture.save(root / f"SegmentationClass/{name}.png")
    return root


def test_voc_reads_palette_masks_with_their_ignored_border(tmp_path):
    module = VOCSegmentation(str(write_voc(tmp_path / "VOC2012")), batch_size=2)
    assert module.num_classes == 21
    assert module.counts == {"train": 3, "val": 2}  # VOC publishes no test masks
    assert module.check_files() == []
    sample = module.splits()["val"].read(0)
    assert sample["mask"][0].eq(255).all()
    assert set(sample["mask"][1:].unique().tolist()) <= set(range(21))


def test_voc_says_what_is_missing(tmp_path):
    root = write_voc(tmp_path / "VOCdevkit/VOC2012")
    with pytest.raises(ConfigError, match=r"did you mean .*VOC2012"):
        VOCSegmentation(str(tmp_path / "VOCdevkit"))
    (root / "SegmentationClass/val_1.png").unlink()
    with pytest.raises(DataError, match=r"val_1\.png is missing, but .*val\.txt lists val_1"):
        VOCSegmentation(str(root)).check_files()


def test_cells_are_two_channels_in_their_published_windows():
    module = SampleCells(batch_size=2)
    assert module.classes == ("background", "cytoplasm", "nucleus")
    assert module.counts == {"train": 6, "val": 2, "test": 2}
    assert module.check_files() == []
    sample = module.splits()["test"].read(0)
    stored = np.asarray(Image.open(ROOT / "images/test/frame_5.oblique.png")).astype(float)
    expected = np.clip(np.round(255 * (stored - 6700) / 3000), 0, 255)
    assert np.abs(sample["image"][1].numpy() - expected).max() <= 1
    assert sample["image"].shape == (2, 210, 576)


def test_splits_of_cells_share_no_frame():
    module = SampleCells(batch_size=2)
    ids = [samples.read(i)["id"] for samples in module.splits().values() for i in range(len(samples))]
    assert sorted(ids) == [f"frame_{i}" for i in range(10)]


def test_new_frames_can_be_predicted(tmp_path):
    for channel in ("hoechst", "oblique"):
        source = ROOT / f"images/val/frame_4.{channel}.png"
        (tmp_path / f"new.{channel}.png").write_bytes(source.read_bytes())
    module = SampleCells(predict_dir=str(tmp_path), num_workers=0)
    (batch,) = module.predict_dataloader()
    assert torch.equal(batch["image"][0], module.splits()["val"].read(0)["image"])


def test_scenes_carry_exact_targets_of_all_tasks():
    module = SyntheticScenes(train=4, val=2, test=0, size=(40, 56), batch_size=2, num_workers=0)
    assert module.counts == {"train": 4, "val": 2}
    samples = module.splits()["train"]
    scene, sample = render_scene(samples.seed, 1, (40, 56)), samples.read(1)
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), scene.image)
    for name in ("mask", "depth", "boxes", "labels"):
        assert np.array_equal(sample[name].numpy(), getattr(scene, name))
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (2, 3, 256, 256)


def test_splits_of_scenes_share_no_scene():
    module = SyntheticScenes(train=3, val=3, test=3, size=(24, 24), batch_size=1)
    images = [samples.read(i)["image"] for samples in module.splits().values() for i in range(3)]
    assert len({image.numpy().tobytes() for image in images}) == 9
