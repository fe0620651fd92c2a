"""What the data check finds, from the command line: a few lines, before anything is trained."""

import builtins
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from framework.cli.main import main
from framework.data.image_folder import ImageFolder
from framework.data.mask_folder import MaskFolder
from tests.folders import write_image_folder, write_mask_folder

EXPERIMENT = """
model:
  class_path: Classification
  init_args: {backbone: {class_path: Timm, init_args: {name: test_resnet}}}
data:
  class_path: ImageFolder
  init_args: {root: set, image_size: 32, batch_size: 4, num_workers: 0}
trainer: {max_epochs: 1, accelerator: cpu, limit_train_batches: 1, limit_val_batches: 1, limit_test_batches: 1}
"""


@pytest.fixture
def fit(tmp_path, capsys):
    """Fit on `set`, and return what was said of what is wrong."""
    write_image_folder(tmp_path / "set")
    Path("x.yaml").write_text(EXPERIMENT)

    def call(*options, code=2):
        assert main(["fit", "--config", "x.yaml", *options]) == code
        message = capsys.readouterr().err
        assert len(message.splitlines()) <= 10
        assert not list(Path("runs").glob("*/*/checkpoints/*")) or code == 0
        return message

    return call


def remove(folder):
    for path in Path(folder).iterdir():
        path.unlink()


def test_a_class_that_only_validation_has(fit):
    shutil.copytree("set/val/red", "set/val/yellow")
    assert "train: no image of class yellow (its folder is missing or empty)" in fit()


def test_a_class_without_images(fit):
    remove("set/train/green")
    assert "train: no image of class green (its folder is missing or empty)" in fit()


def test_images_that_cannot_be_read(fit):
    for number in range(3):
        Path(f"set/train/red/train00{number}.png").write_bytes(b"\x89PNG")
    for path in Path("set/val").glob("*/*"):
        path.write_text("")
    message = fit()
    assert "12 bad samples in the data" in message
    assert "set/train/red/train000.png is no image that Pillow can read (4 bytes)" in message
    assert len(Path("data_problems.txt").read_text().splitlines()) == 12


def test_images_smaller_than_the_net_takes(fit):
    source = (Path(__file__).parents[2] / "tiny.py").read_text().replace("class Tiny", "class Large")
    check = '        assert min(images.shape[-2:]) >= 24, "at least 24 pixels"\n'
    Path("large_net.py").write_text(source.replace('        """Compute both maps."""\n', check))
    message = fit("--data.image_size", "16", "--model.backbone", "large_net.Large", "--trust", "large_net")
    assert "Large cannot take images of 16x16" in message
    assert "at least 24 pixels; set" in message
    assert "data.image_size" in message


def test_what_is_only_odd_is_a_warning(fit):
    remove("set/val/blue")
    for number in range(5):
        shutil.copy(f"set/train/red/train00{number}.png", f"set/test/green/copy{number}.png")
    message = fit(code=0)
    assert "warning: val: no image of class blue (its folder is missing or empty)" in message
    assert "warning: 5 images stand in another split too, to the byte: set/test/green/copy0.png (test) = " in message
    assert "and 2 more, all listed in" in message
    assert len(Path("data_duplicates.txt").read_text().splitlines()) == 5


# Duplicates.


def folder(**options):
    return ImageFolder("set", num_workers=0, batch_size=2, image_size=16, **options)


def test_duplicates_are_counted_and_named_whatever_they_are_called(tmp_path):
    write_image_folder(tmp_path / "set")
    shutil.copy("set/train/blue/train001.png", "set/val/blue/other.png")
    (warning,) = folder().check_files()
    assert warning == (
        "1 image stands in another split too, to the byte: "
        "set/val/blue/other.png (val) = set/train/blue/train001.png (train)"
    )
    assert folder().check_files() == [warning]  # as remembered
    Path("set/val/blue/other.png").unlink()
    assert folder().check_files() == []


def test_duplicates_in_one_split_and_images_that_only_look_alike_are_none(tmp_path):
    write_image_folder(tmp_path / "set")
    shutil.copy("set/train/blue/train001.png", "set/train/blue/other.png")
    with Image.open("set/train/red/train001.png") as image:
        image.save("set/val/red/same_pixels.bmp")
    assert folder().check_files() == []


def test_masks_are_no_duplicates_but_their_images_are(tmp_path):
    root = write_mask_folder(tmp_path / "set", counts=(2, 1, 1))
    for kind in ("images", "masks"):
        shutil.copy(root / kind / "train/000.png", root / kind / "test/again.png")
    shutil.copy(root / "masks/train/001.png", root / "masks/val/002.png")
    warnings = MaskFolder(str(root), num_workers=0, batch_size=2, crop_size=16).check_files()
    assert sum("to the byte" in warning for warning in warnings) == 1
    assert f"1 image stands in another split too, to the byte: {root}/images/test/again.png (test)" in str(warnings)


def test_only_files_of_equal_size_are_read_again(tmp_path, monkeypatch):
    write_image_folder(tmp_path / "set")
    for number, path in enumerate(sorted(Path("set").glob("*/*/*.png"))):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path.with_suffix(".bmp"))
        path.with_suffix(".bmp").write_bytes(path.with_suffix(".bmp").read_bytes() + bytes(number))
        path.unlink()
    shutil.copy("set/val/red/val000.bmp", "set/test/red/copy.bmp")
    opened = []
    monkeypatch.setattr("builtins.open", partial(_open, opened, builtins.open))
    (warning,) = folder().check_files()
    assert warning.startswith("1 image stands in another split")
    assert sorted(opened) == ["set/test/red/copy.bmp", "set/val/red/val000.bmp"]


def _open(opened, real, path, *arguments, **options):
    if str(path).endswith(".bmp") and sys._getframe(1).f_code.co_name == "_digest":
        opened.append(str(path))
    return real(path, *arguments, **options)
