import json

import numpy as np
import pytest
import torch
from PIL import Image

from framework.data.mask_folder import MaskFolder
from framework.data.masks import read_classes
from framework.errors import ConfigError, DataError
from tests.folders import write_mask_folder


@pytest.fixture
def root(tmp_path):
    return write_mask_folder(tmp_path / "set")


def data(root, **options):
    return MaskFolder(str(root), **{"batch_size": 2, "num_workers": 0, "crop_size": 32, **options})


def test_it_states_what_the_model_needs_to_know(root):
    module = data(root)
    assert module.classes == ("class 0", "class 1", "class 2")
    assert (module.num_classes, module.channels, module.ignore_index) == (3, 3, 255)
    assert module.counts == {"train": 4, "val": 2, "test": 2}


def test_training_batches_are_uint8_crops_with_long_masks(root):
    module = data(root, photometric=None)
    batch = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert batch["image"].shape == (2, 3, 32, 32)
    assert batch["image"].dtype == torch.uint8
    assert batch["mask"].shape == (2, 32, 32)
    assert batch["mask"].dtype == torch.long


def test_evaluation_keeps_every_image_as_stored(root):
    module = data(root)
    batch = next(iter(module.val_dataloader()))
    pixels = np.asarray(Image.open(root / "images/val/004.png"))
    assert np.array_equal(batch["image"][0].permute(1, 2, 0).numpy(), pixels)
    assert batch["original_size"] == [(48, 56)] * 2


def test_repeats_visit_each_image_again_with_another_crop(root):
    module = data(root, repeats=3)
    module.check_files()
    batches = list(module.train_dataloader())
    ids = [name for batch in batches for name in batch["id"]]
    assert len(batches) == module.train_batches() == 6
    assert all(ids.count(name) == 3 for name in set(ids))
    crops = [
        image for batch in batches for image, name in zip(batch["image"], batch["id"], strict=True) if name == ids[0]
    ]
    assert not torch.equal(crops[0], crops[1])


def test_a_missing_test_split_is_fine_a_missing_val_split_is_not(tmp_path):
    root = write_mask_folder(tmp_path / "set", counts=(2, 1, 0))
    assert data(root).counts == {"train": 2, "val": 1}
    (root / "images/val").rename(root / "images/valid")
    with pytest.raises(DataError, match=r"images/val is missing"):
        data(root).check_files()


def test_an_empty_split_is_refused(root):
    for path in (root / "images/val").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"images/val is empty: it has no file that ends in"):
        data(root).check_files()


def test_an_image_without_a_mask_is_named(root):
    (root / "masks/train/001.png").unlink()
    with pytest.raises(DataError, match=r"1 images have no mask.*001\.png"):
        data(root).check_files()


def spoil_size(root):
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(root / "masks/train/001.png")
    return r"001\.png is 12x10 but its image 001\.png is 56x48"


def spoil_turned(root):
    Image.fromarray(np.zeros((56, 48), np.uint8)).save(root / "masks/train/001.png")
    return "EXIF"


def spoil_value(root):
    Image.fromarray(np.full((48, 56), 9, np.uint8)).save(root / "masks/val/004.png")
    return r"val: .*masks/val/004\.png: 2688 pixels have values that are no class: 9"


def spoil_ignored(root):
    Image.fromarray(np.full((48, 56), 255, np.uint8)).save(root / "masks/test/007.png")
    return r"masks/test/007\.png: every pixel is ignored"


def spoil_truncated(root):
    path = root / "images/train/002.png"
    path.write_bytes(path.read_bytes()[:100])
    return r"images/train/002\.png is damaged"


def spoil_empty(root):
    (root / "images/train/002.png").write_bytes(b"")
    return r"002\.png is empty \(0 bytes\)"


SPOILS = [spoil_size, spoil_turned, spoil_value, spoil_ignored, spoil_truncated, spoil_empty]


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_bad_file_stops_before_training(root, spoil):
    expected = spoil(root)
    with pytest.raises(DataError, match=expected):
        data(root).check_files()


def test_all_bad_files_are_listed_at_once(tmp_path):
    root = write_mask_folder(tmp_path / "set", counts=(12, 1, 0))
    for path in (root / "masks/train").iterdir():
        Image.fromarray(np.full((48, 56), 77, np.uint8)).save(path)
    with pytest.raises(DataError, match="12 bad samples") as error:
        data(root).check_files()
    assert len(str(error.value).splitlines()) <= 10
    assert len((tmp_path / "data_problems.txt").read_text().splitlines()) == 12


def test_a_good_verdict_is_remembered_until_a_file_changes(root, tmp_path):
    data(root).check_files()
    (verdict,) = (tmp_path / "runs/.data_check").iterdir()
    assert json.loads(verdict.read_text()) == []
    spoil_value(root)
    with pytest.raises(DataError):
        data(root).check_files()


def test_the_same_image_in_two_splits_is_warned_of(root):
    (root / "images/val/004.png").write_bytes((root / "images/train/000.png").read_bytes())
    (warning,) = data(root).check_files()
    assert "val/004.png" in warning
    assert "train/000.png" in warning


def test_fewer_samples_than_a_batch_are_refused(root):
    with pytest.raises(DataError, match=r"lower data\.batch_size to at most 4"):
        data(root, batch_size=5).check_files()


def test_an_ignore_index_that_is_a_class_is_refused(root):
    with pytest.raises(ConfigError, match="also the class 'class 2'"):
        data(root, ignore_index=2)


def test_classes_with_colours_grey_values_and_ignored_ones(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("# a comment\nroad = 128 64 128\nlane 1: #ffff00\nignore = 0,0,0\n")
    assert read_classes(path) == (["road", "lane 1"], [(128, 64, 128), (255, 255, 0)], [(0, 0, 0)])
    path.write_text("background\t0\ncell\t255\n")
    assert read_classes(path) == (["background", "cell"], [0, 255], [])
    path.write_text("background\ncell 2\n")
    assert read_classes(path) == (["background", "cell 2"], None, [])
    path.write_text("background = 0\ncell\n")
    with pytest.raises(DataError, match="these have none: cell"):
        read_classes(path)
    with pytest.raises(DataError, match="one class name a line"):
        read_classes(tmp_path / "nothing.txt")


def test_resizing_shrinks_the_image_and_leaves_the_mask(root):
    batch = next(iter(data(root, resize=24).val_dataloader()))
    assert batch["image"].shape[-2:] == (24, 28)
    assert batch["mask"].shape[-2:] == (48, 56)
    assert batch["size"] == [(24, 28)] * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_training_batch_is_the_same_for_any_number_of_workers(root, workers):
    reference = next(iter(data(root).train_dataloader()))
    batch = next(iter(data(root, num_workers=workers).train_dataloader()))
    for name in ("image", "mask", "photometric"):
        assert torch.equal(batch[name], reference[name])


def test_binary_masks_of_0_and_255_are_not_taken_for_ignored(tmp_path):
    root = write_mask_folder(tmp_path / "set", classes=2, names=["background", "foreground"])
    for path in root.glob("masks/*/*.png"):
        Image.fromarray(np.asarray(Image.open(path)) * 255).save(path)
    with pytest.raises(DataError, match=r"class 0 alone.*`foreground = 255`"):
        data(root).check_files()
    (root / "classes.txt").write_text("background = 0\nforeground = 255\n")
    assert data(root).check_files() == []


def test_a_class_without_a_pixel_is_warned_of(root):
    (root / "classes.txt").write_text("a\nb\nc\nd\n")
    assert "train: no pixel of class 3" in data(root).check_files()


def test_a_cache_that_is_broken_or_cannot_be_written_stops_nothing(root, tmp_path):
    data(root).check_files()
    (verdict,) = (tmp_path / "runs/.data_check").iterdir()
    verdict.write_text("")
    assert data(root).check_files() == []
    (tmp_path / "file").write_text("")
    assert data(root, check_cache=str(tmp_path / "file")).check_files() == []


def test_a_dangling_link_is_named(root):
    (root / "images/train/000.png").unlink()
    (root / "images/train/000.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"000\.png does not exist"):
        data(root).check_files()


def test_classes_in_another_encoding_or_with_one_value_twice_are_refused(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("Straße\nBürgersteig\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_classes(path)
    path.write_text("a = 0\nb = 1\nc = 1\n")
    with pytest.raises(DataError, match="1 stands for two classes"):
        read_classes(path)
    path.write_text("a = 0 0 0\nb = 300 0 0\n")
    with pytest.raises(DataError, match="0 to 255"):
        read_classes(path)
