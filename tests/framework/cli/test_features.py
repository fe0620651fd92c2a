"""`framework features show`: pictures of patches, of a backbone whose patches are the mean colours of an image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from framework.cli.main import main
from framework.tracking.features import heat

MEANS = """
import torch.nn.functional as F
from torch import Tensor, nn
from framework.backbone import Backbone, Features, Level

class Means(Backbone):
    def __init__(self, in_channels: int = 3, weights: str | None = None) -> None:
        super().__init__([Level(in_channels, 4), Level(in_channels, 8)], multiple=8, in_channels=in_channels)
        self.scale = nn.Parameter(self.std.new_ones(1))

    def extract(self, images: Tensor) -> Features:
        assert not self.training and not self.scale.requires_grad
        images = self.scale * (images * self.std + self.mean)
        return Features([F.avg_pool2d(images, 4), F.avg_pool2d(images, 8)], [])

    def stages(self) -> list[list[nn.Parameter]]:
        return [[self.scale]]
"""
WHATS = ("image", "components", "similarity", "matrix")
LEFT, RIGHT = (200, 20, 0), (0, 30, 240)


@pytest.fixture
def show(capsys):
    """Call `framework features show`; return what is printed, errors where it fails."""
    Path("means.py").write_text(MEANS)
    pixels = np.zeros((48, 80, 3), np.uint8)
    pixels[:, :40], pixels[:, 40:] = LEFT, RIGHT
    Image.fromarray(pixels).save("halves.png")
    Image.fromarray(pixels[:, ::-1]).save("turned.png")

    def run(*arguments, code=0):
        assert main(["features", "show", *arguments]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return run


def picture(name):
    return np.asarray(Image.open(name)).astype(int)


def test_patches_that_are_alike_have_the_same_colours(show):
    printed = show(
        "halves.png", "turned.png", "--backbone", "means.py", "--size", "48", "--patch", "10,20", "--out", "all"
    )
    assert "Means, level -1: 3 channels, patches of 8 pixels" in printed
    assert "halves.png: 48x80 resized to 48x80 (height x width), 6x10 patches" in printed
    assert "the patch at 10,20 of halves.png: row 2, column 1" in printed
    assert "--size:" not in printed  # nothing had to be rounded
    files = {f"all/{one}_{what}.png" for one in ("halves", "turned") for what in WHATS} | {"all/features.png"}
    assert {str(path) for path in Path("all").iterdir()} == files
    assert {line.removeprefix("wrote ") for line in printed.splitlines() if line.startswith("wrote")} == files
    one, other = picture("all/halves_components.png"), picture("all/turned_components.png")
    assert one.shape == (48, 80, 3)
    assert np.array_equal(one, other[:, ::-1])
    assert (one[:, :40] == one[0, 0]).all()
    assert np.abs(one[0, 0] - one[0, -1]).max() == 255
    cosine = np.dot(LEFT, RIGHT) / np.linalg.norm(LEFT) / np.linalg.norm(RIGHT)
    rows = np.tile(np.repeat([1.0, cosine], 5), (6, 1))
    matrix = np.where(rows.ravel()[:, None] == rows.ravel(), 1, cosine)
    assert np.abs(picture("all/halves_matrix.png") - heat(matrix)).max() <= 4
    over = picture("all/turned_similarity.png").sum(-1)  # a patch of the first image against the second
    assert over[:, 40:].min() > 2 * over[:, :40].max()


def test_one_sheet_of_a_level_and_rounded_sides(show):
    printed = show(
        "halves.png", "turned.png", "--backbone", "means.py", "--size", "50x85", "--level", "0", "--out", "a.png"
    )
    assert printed.count("48x88 (height x width), 12x22 patches") == 2
    assert printed.count("--size: sides are the nearest that divide by 8, as Means needs them") == 1
    assert "the patch at 40,24 of halves.png: row 6, column 11" in printed  # the centre
    sheet = picture("a.png")
    for colour in (LEFT, RIGHT, heat(np.array([[1.0]]))[0, 0]):
        assert (sheet == colour).all(-1).any()
    assert printed.rstrip().endswith("wrote a.png")


def test_grey_images_and_plugins_by_name_and_class_path(show):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48), dtype=np.uint8)).save("grey.png")
    words = ("Means", "in_channels=1", "grey.png")  # an image after the backbone's arguments is one
    printed = show("--plugins", "means.py", "--size", "40", "--backbone", *words)
    assert "Means, level -1: 1 channels" in printed
    assert "the weights are random: add weights=..." in printed
    assert Path("features.png").exists()
    printed = show("grey.png", "--backbone", "means.Means", "weights=x", "--trust", "means", "--size", "40")
    assert "random" not in printed


def test_files_of_one_name_do_not_overwrite_each_other(show):
    show("halves.png", "halves.png", "--backbone", "means.py", "--size", "16", "--out", "all")
    assert len(list(Path("all").iterdir())) == 9


def test_an_architecture_by_its_name(show):
    printed = show("halves.png", "--backbone", "lenet5", "in_channels=1", "--size", "32", "--out", "lenet.png")
    assert "LeNet, level -1" in printed


def test_all_that_is_wrong_is_said_at_once(show):
    Path("folder").mkdir()
    message = show("none.png", "folder", "--backbone", "Tim", "--patch", "3", "--size", "0", "--out", "a.gif", code=2)
    assert [line.removeprefix("error: ") for line in message.splitlines()] == [
        "none.png does not exist",
        "folder is a folder",
        "--size: a number of pixels, such as 518, or HEIGHTxWIDTH, not 0",
        "--patch: x,y in pixels, such as 320,200, not 3",
        "--out: a.gif is no picture, which ends in .png, .jpg, .jpeg, .webp; valid: .jpeg, .jpg, .png, .webp",
        "--backbone: there is no backbone Tim; did you mean 'Timm'?",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--patch", "80,10"], "80,10 is outside the first image, which is 80 pixels wide and 48 high: x is 0 to 79"),
        (["--level", "2"], "Means has no level 2; valid: 0: stride 4, 1: stride 8"),
        (["--levels", "2"], "unknown argument --levels; did you mean '--level'?"),
        (["--out", "none/a.png"], "there is no folder none"),
        (["--backbone", "UNet"], "UNet is no backbone: it is one of heads"),
        (["--backbone", "means.Means"], "there is no plugin means.Means"),
        (["--backbone", "Timm"], "Timm needs name: add name=VALUE"),
        (["--backbone", "means.py", "width=3"], "Means has no argument width"),
        (["--backbone", "means.py", "in_channels=2"], "1, 3 or 4 channels, not 2"),
    ],
)
def test_mistakes_are_named(show, arguments, message):
    given = [] if "--backbone" in arguments else ["--backbone", "means.py"]
    assert message in show("halves.png", *arguments, *given, code=2)


def test_damaged_images_are_all_listed(show):
    Path("empty.png").touch()
    Path("text.jpg").write_text("hello")
    message = show("halves.png", "empty.png", "text.jpg", "--backbone", "means.py", code=2)
    assert "empty.png is empty" in message
    assert "text.jpg is no image" in message


def test_no_image_or_no_backbone(show):
    message = show(code=2)
    assert "no image" in message
    assert "no backbone: --backbone NAME" in message


def test_help_names_the_action(capsys):
    assert main(["features"]) == 0
    assert "show" in capsys.readouterr().out
    assert main(["features", "shw"]) == 2
    assert "did you mean 'show'?" in capsys.readouterr().err
