import os
import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from framework.data.image_folder import ImageFolder, hold_out
from framework.data.synthetic import SyntheticScenes
from framework.errors import ConfigError, DataError
from tests.folders import write_image_folder


@pytest.fixture
def root(tmp_path):
    return write_image_folder(tmp_path / "set")


@pytest.fixture
def flat(tmp_path):
    return write_image_folder(tmp_path / "flat", counts=(10,))


def data(root, **options):
    return ImageFolder(str(root), **{"batch_size": 2, "num_workers": 0, "image_size": 32, **options})


def ids(module, split):
    samples = module.splits()[split]
    return [samples.read(index)["id"] for index in range(len(samples))]


def test_it_states_what_the_model_needs_to_know(root):
    module = data(root)
    assert module.classes == ("blue", "green", "red")
    assert (module.num_classes, module.channels, module.ignore_index) == (3, 3, None)
    assert module.counts == {"train": 18, "val": 9, "test": 9}
    assert module.check_files() == []


def test_every_image_has_the_class_of_its_folder(root):
    for split in ("train", "val", "test"):
        samples = data(root).splits()[split]
        for index in range(len(samples)):
            sample = samples.read(index)
            folder, file = sample["id"].split("/")
            assert sample["label"] == ["blue", "green", "red"].index(folder)
            stored = np.asarray(Image.open(root / split / folder / file))
            assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), stored)


def test_training_batches_are_uint8_crops_with_long_classes(root):
    module = data(root, image_size=[24, 40], photometric=None)
    batch = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert (batch["image"].shape, batch["image"].dtype) == ((2, 3, 24, 40), torch.uint8)
    assert (batch["label"].shape, batch["label"].dtype) == ((2,), torch.long)


def test_training_crops_show_the_share_of_the_area_that_was_asked_for(tmp_path):
    root = write_image_folder(tmp_path / "set", counts=(1, 1, 0), size=(60, 80))
    ramp = np.linspace(0, 239, 60 * 80).reshape(60, 80).astype(np.uint8) // 3 * 3  # a row per step of the ramp
    for path in root.glob("train/*/*.png"):
        Image.fromarray(ramp).save(path)
    options = {"photometric": None, "hflip": 0, "channels": 1, "repeats": 8, "batch_size": 1}

    def rows(area):
        batches = data(root, crop_area=area, image_size=64, **options).train_dataloader()
        return [(float(b["image"].max()) - float(b["image"].min())) / 239 for b in batches]

    assert min(rows((1.0, 1.0))) > 0.95  # all of them
    small = rows((0.1, 0.1))  # a crop 3/4 to 4/3 as wide as high: 0.1 ** 0.5 * 1.15 of the height, at most 0.42
    assert max(small) < 0.5
    assert len(set(small)) > 4


def reference_crop(pixels, size, kept):
    """The centre window of the shape of `size` in an image (H, W, 3), resized by Pillow."""
    height, width = pixels.shape[:2]
    scale = Fraction(kept) * min(Fraction(height, size[0]), Fraction(width, size[1]))
    rows, columns = round(scale * size[0]), round(scale * size[1])
    top, left = (height - rows) // 2, (width - columns) // 2
    window = Image.fromarray(pixels[top : top + rows, left : left + columns])
    return np.asarray(window.resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)


@pytest.mark.parametrize("stored", [(40, 64), (61, 37), (20, 20), (160, 144)])
@pytest.mark.parametrize(("size", "kept"), [((32, 32), 0.875), ((24, 40), 1.0), ((48, 16), 0.5)])
def test_evaluation_sees_the_centre_in_one_resize(tmp_path, stored, size, kept):
    root = write_image_folder(tmp_path / "set", size=stored, counts=(1, 1, 0))
    module = data(root, image_size=list(size), eval_crop=kept)
    batch = next(iter(module.val_dataloader()))
    assert batch["size"] == [size] * 2
    assert batch["original_size"] == [stored] * 2
    expected = reference_crop(np.asarray(Image.open(root / "val/blue/val000.png")), size, kept)
    got = batch["image"][0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(got - expected).max() <= 1


def test_images_of_any_size_stack_and_those_of_the_right_size_are_copied(root):
    Image.fromarray(np.full((90, 33, 3), 7, np.uint8)).save(root / "val/blue/val001.png")
    batch = next(iter(data(root, image_size=[40, 48], eval_crop=1.0).val_dataloader()))
    assert np.array_equal(
        batch["image"][0].permute(1, 2, 0).numpy(), np.asarray(Image.open(root / "val/blue/val000.png"))
    )
    assert batch["image"].shape == (2, 3, 40, 48)


def test_large_photographs_are_decoded_no_larger_than_needed(tmp_path):
    root = write_image_folder(tmp_path / "set", counts=(1, 1, 0))
    for path in root.glob("*/*/*.png"):
        Image.fromarray(np.zeros((640, 960, 3), np.uint8)).save(path.with_suffix(".jpg"))
        path.unlink()
    sample = data(root, image_size=32).splits()["val"].read(0)
    assert sample["original_size"] == (640, 960)
    needed = 32 / (0.25 * 3 / 4) ** 0.5  # the smallest training crop: a quarter of the area, a third wider than high
    assert needed <= min(sample["image"].shape[-2:]) < 2 * needed
    assert next(iter(data(root, image_size=32).val_dataloader()))["image"].shape == (2, 3, 32, 32)


def test_resize_comes_first(root):
    image = next(iter(data(root, resize=8, image_size=32).val_dataloader()))["image"][0]
    whole = np.asarray(Image.open(root / "val/blue/val000.png")).astype(float)
    assert image.shape[-2:] == (32, 32)
    assert image.float().std((1, 2)).max() < 0.3 * whole.std((0, 1)).min()  # the noise is averaged away


def test_new_images_are_seen_as_those_of_validation(root):
    module = data(root, predict_dir=str(root / "val/blue"), batch_size=3)
    predicted, validated = next(iter(module.predict_dataloader())), next(iter(module.val_dataloader()))
    assert torch.equal(predicted["image"], validated["image"])
    assert predicted["id"] == ["val000", "val001", "val002"]
    assert "label" not in predicted


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_channels(tmp_path, channels, mode):
    root = write_image_folder(tmp_path / "set", mode=mode)
    assert next(iter(data(root, channels=channels).val_dataloader()))["image"].shape == (2, channels, 32, 32)


# Without a validation split.


def test_class_folders_alone_are_divided_class_by_class(flat):
    module = data(flat, val_fraction=0.3)
    assert module.counts == {"train": 21, "val": 9}
    train, val = ids(module, "train"), ids(module, "val")
    assert sorted([*train, *val]) == sorted(f"{p.parent.name}/{p.name}" for p in flat.glob("*/*.png"))
    assert [sum(name.startswith(c) for name in val) for c in module.classes] == [3, 3, 3]


def test_the_division_depends_on_names_alone(flat, tmp_path):
    shutil.copytree(flat, tmp_path / "elsewhere/copy")
    for path in (tmp_path / "elsewhere/copy").glob("*/*.png"):
        Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(path)
    expected = ids(data(flat), "val")
    assert ids(data(tmp_path / "elsewhere/copy", seed=7), "val") == expected
    # Written down, because a release that divides otherwise would mix up the data of runs that go on.
    assert expected == EXPECTED


EXPECTED = ["blue/003.png", "blue/004.png", "green/000.png", "green/008.png", "red/005.png", "red/007.png"]


def test_more_images_move_hardly_any_other(flat):
    before = set(ids(data(flat), "val"))
    for number in range(5):
        shutil.copy(flat / "red/000.png", flat / f"red/new{number}.png")
    after = set(ids(data(flat), "val"))
    moved = {name for name in before ^ after if "new" not in name}
    assert len(moved) <= 1


def test_a_lone_image_is_for_training_and_one_of_two_for_validation(tmp_path):
    paths = [tmp_path / name for name in "abcdef"]
    assert [len(hold_out(paths[:count], 0.2)) for count in (0, 1, 2, 3, 6)] == [0, 0, 1, 1, 1]
    assert len(hold_out(paths, 0.99)) == 5


def test_without_val_a_share_of_train_is_held_out_and_test_is_kept(root):
    shutil.rmtree(root / "val")
    assert data(root).counts == {"train": 15, "val": 3, "test": 9}


def test_a_folder_that_may_be_the_validation_split_is_asked_about(root):
    (root / "val").rename(root / "valid")
    with pytest.raises(DataError, match=r"has train and valid, but no val: name the validation split val"):
        data(root)


def test_a_class_may_be_called_train(tmp_path):
    root = write_image_folder(tmp_path / "set", counts=(4,), classes=("bus", "train"))
    assert data(root).classes == ("bus", "train")
    assert data(root).counts == {"train": 6, "val": 2}


def test_hidden_and_other_files_are_passed_over(flat):
    (flat / ".cache").mkdir()
    (flat / "red/notes.txt").write_text("")
    (flat / "red/._000.png").write_bytes(b"")
    module = data(flat)
    assert module.classes == ("blue", "green", "red")
    assert module.check_files() == []
    assert sum(module.counts.values()) == 30


# What is wrong.


def test_all_bad_files_are_listed_at_once(root):
    (root / "train/red/train001.png").write_bytes(b"")
    whole = (root / "val/blue/val002.png").read_bytes()
    (root / "val/blue/val002.png").write_bytes(whole[:100])
    (root / "test/green/test000.png").write_text("<html>")
    with pytest.raises(DataError, match="3 bad samples") as error:
        data(root).check_files()
    for part in ("train001.png is empty (0 bytes)", "val002.png is damaged", "test000.png is no image"):
        assert part in str(error.value)


def test_classes_without_a_training_image_are_all_named(root):
    for name in ("yellow", "white"):
        (root / "val/red").rename(root / "val" / name) if name == "yellow" else (root / "train" / name).mkdir()
    with pytest.raises(DataError, match="2 bad samples") as error:
        data(root).check_files()
    assert "train: no image of class yellow" in str(error.value)
    assert "train: no image of class white" in str(error.value)


def test_a_class_without_a_validation_image_is_warned_of(root):
    shutil.rmtree(root / "val/green")
    assert data(root).check_files() == ["val: no image of class green (its folder is missing or empty)"]


def test_an_empty_split_is_refused(root):
    for path in (root / "val").glob("*/*"):
        path.unlink()
    with pytest.raises(DataError, match=r"val: none of its class folders has a file that ends in \.jpg"):
        data(root).check_files()


def test_the_same_image_in_two_splits_is_warned_of(root):
    shutil.copy(root / "train/blue/train000.png", root / "test/red/other.png")
    (warning,) = data(root).check_files()
    assert "test/red/other.png" in warning
    assert "train/blue/train000.png" in warning


def test_a_root_without_classes_is_refused(tmp_path, flat):
    with pytest.raises(ConfigError, match=r"data\.root: .*nowhere is no folder"):
        data(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"a folder for each of at least 2 classes.*found none"):
        data(flat / "red")
    shutil.rmtree(flat / "red")
    shutil.rmtree(flat / "blue")
    with pytest.raises(DataError, match="found green"):
        data(flat)


def test_a_folder_whose_name_is_no_text_is_named(flat):
    (flat / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(DataError, match=r"a class is named 'caf\\udce9', which is no UTF-8: rename it, or its folder"):
        data(flat)


def test_shares_out_of_range_are_refused(root):
    with pytest.raises(ConfigError, match=r"data\.crop_area: .*got \[0\.5, 0\.2\]"):
        data(root, crop_area=(0.5, 0.2))
    with pytest.raises(ConfigError, match=r"data\.eval_crop: .*got 1\.5"):
        data(root, eval_crop=1.5)


# Scenes.


def test_scenes_carry_the_class_of_their_largest_object():
    module = SyntheticScenes(train=4, val=3, test=0, size=(40, 56), crop_size=32, batch_size=2, num_workers=0)
    batch = next(iter(module.train_dataloader()))
    assert (batch["label"].shape, batch["label"].dtype) == ((2,), torch.long)
    for batch in module.val_dataloader():
        assert batch["image"].shape[1:] == (3, 40, 56)
        for mask, label in zip(batch["mask"], batch["label"], strict=True):
            assert int(label) in mask.unique()
