"""Pictures: what a person can rely on when looking at them."""

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab

from framework.tracking.drawing import Row, confusion_chart, contact_sheet, error_map, overlay, palette, panel, to_rgb

GREY = np.full((24, 32, 3), 120, np.uint8)


def colours_of(picture):
    return {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}


def hue(picture):
    """Difference between the channels of each pixel; 0 is grey."""
    return picture.max(-1).astype(int) - picture.min(-1)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 21, 151, 1000])
def test_the_first_colours_do_not_depend_on_how_many_there_are(count):
    assert palette(count).shape == (count, 3)
    assert palette(count).dtype == np.uint8
    assert np.array_equal(palette(count), palette(1024)[:count])


def test_colours_are_told_apart():
    assert len(colours_of(palette(1024))) == 1024
    lab = rgb2lab(palette(21)[None])[0]
    difference = deltaE_ciede2000(lab[:, None], lab[None]) + 100 * np.eye(21)
    assert difference.min() > 8  # 2 is just noticeable side by side


def test_the_background_is_dark_and_neutral():
    background = palette(1)
    assert background.max() < 90
    assert hue(background).max() < 16


@pytest.mark.parametrize("count", [-1, 1025])
def test_a_palette_has_limits(count):
    with pytest.raises(ValueError, match=f"not {count}"):
        palette(count)


def test_a_caller_may_change_its_colours():
    palette(30)[:] = 0
    assert palette(30).any()


def test_rgb_is_shown_as_it_is_whatever_its_form():
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    strided = image.transpose(2, 0, 1)  # not contiguous
    for form in (strided, torch.from_numpy(strided), torch.from_numpy(strided) / 255):
        assert np.array_equal(to_rgb(form), image)
    more = np.concatenate([strided, strided[:1]])
    assert np.array_equal(to_rgb(more), image)
    assert np.array_equal(to_rgb(torch.ones(3, 2, 2, dtype=torch.bfloat16)), np.full((2, 2, 3), 255))


def test_one_channel_is_grey_and_stretched_only_if_it_is_dull():
    bright = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    assert np.array_equal(to_rgb(bright), np.repeat(bright[0, ..., None], 3, -1))
    dull = to_rgb(100 + bright // 16)
    assert (dull.min(), dull.max()) == (0, 255)
    assert hue(dull).max() == 0
    assert np.array_equal(to_rgb(np.full((1, 4, 4), 9, np.uint8)), np.full((4, 4, 3), 9))


def test_two_channels_show_the_first_as_colour_over_the_second():
    stain = np.zeros((16, 16), np.uint8)
    stain[4:8, 4:8] = 255
    light = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = to_rgb(np.stack([stain, light]))
    assert np.array_equal(picture[stain == 0], np.repeat(light[stain == 0][:, None], 3, -1))
    assert (picture[stain == 255][:, 2] > light[stain == 255]).all()
    assert hue(picture)[stain == 255].min() > 50


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint16), np.zeros((0, 4, 4))])
def test_an_image_that_cannot_be_shown_is_named(image):
    with pytest.raises(ValueError, match=r"\(C, H, W\).*got"):
        to_rgb(image)


def test_an_overlay_blends_each_class_and_strengthens_its_border():
    mask = np.zeros((24, 32), np.int64)
    mask[:, 16:] = 3
    colours = palette(4).astype(float)
    picture = overlay(GREY, mask, palette(4), alpha=0.5)
    assert np.allclose(picture[5, 5], (120 + colours[0]) / 2, atol=0.51)
    assert np.allclose(picture[5, 25], (120 + colours[3]) / 2, atol=0.51)
    distance = np.abs(picture - colours[mask]).sum(-1)
    assert (distance[:, 16] < distance[:, 25]).all()
    assert (distance[:, 15] < distance[:, 5]).all()


def test_an_overlay_of_no_opacity_changes_nothing():
    mask = np.random.default_rng(0).choice([0, 1, 255], (24, 32))
    assert np.array_equal(overlay(GREY, mask, palette(2), alpha=0, ignore_index=255), GREY)


def test_ignored_pixels_take_no_colour_and_are_hatched():
    image = np.repeat(np.random.default_rng(0).integers(0, 256, (24, 32, 1), dtype=np.uint8), 3, -1)
    mask = np.ones((24, 32), np.uint8)
    mask[:12] = 0
    picture = overlay(image, mask, palette(2), ignore_index=0)
    untouched = (picture[:12] == image[:12]).all(-1).mean()
    assert 0.7 < untouched < 0.8
    assert hue(picture[:12]).max() < 8
    assert (hue(picture[12:]) > 8).all()


@pytest.mark.parametrize("kind", ["bool", "int32", "tensor", "strided"])
def test_masks_of_any_form(kind):
    mask = np.random.default_rng(0).random((24, 32)) > 0.5
    forms = {
        "bool": mask,
        "int32": mask.astype(np.int32),
        "tensor": torch.from_numpy(mask).long(),
        "strided": np.asfortranarray(mask),
    }
    expected = overlay(GREY, mask.astype(np.int64), palette(2))
    assert np.array_equal(overlay(GREY, forms[kind], palette(2)), expected)
    assert np.array_equal(error_map(forms[kind], mask), error_map(mask, mask))
    assert (GREY == 120).all()


@pytest.mark.parametrize("stranger", [-1, 3, 255])
def test_an_id_without_a_colour_is_named(stranger):
    mask = np.zeros((24, 32), np.int64)
    mask[3, 4] = stranger
    with pytest.raises(ValueError, match=f"class {stranger}, but there are colours for 0 to 2"):
        overlay(GREY, mask, palette(3))


def test_sizes_that_differ_are_named():
    with pytest.raises(ValueError, match=r"\(24, 32, 3\).*\(24, 30\)"):
        overlay(GREY, np.zeros((24, 30), int), palette(2))
    with pytest.raises(ValueError, match=r"\(24, 32\).*\(24, 30\)"):
        error_map(np.zeros((24, 32), int), np.zeros((24, 30), int))


def test_an_error_map_shows_exactly_the_wrong_pixels():
    rng = np.random.default_rng(0)
    target, prediction = rng.choice([0, 1, 2, 255], (24, 32)), torch.from_numpy(rng.integers(0, 3, (24, 32)))
    picture = error_map(target, prediction, ignore_index=255)
    wrong = (target != prediction.numpy()) & (target != 255)
    assert np.array_equal(hue(picture) > 100, wrong)
    assert len(colours_of(picture)) == 4  # right, wrong, and two of the hatching


def test_a_small_picture_grows_by_a_whole_factor():
    picture = np.random.default_rng(0).integers(0, 256, (28, 20, 3), dtype=np.uint8)
    big = picture.repeat(9, 0).repeat(9, 1)
    sheet = panel([("digit", picture)])
    where = np.argwhere((sheet[:, :, None] == big[0, 0]).all(-1).squeeze())
    assert any(np.array_equal(sheet[y : y + 252, x : x + 180], big) for y, x in where)


def test_large_pictures_shrink_and_keep_their_shape():
    red = np.zeros((1000, 3000, 3), np.uint8) + np.array([200, 0, 0], np.uint8)
    for count in (1, 4):
        sheet = panel([("red", red)] * count)
        assert sheet.shape[1] <= 1680
        rows, columns = np.nonzero((sheet == [200, 0, 0]).all(-1))
        width, height = len(np.unique(columns)) // count, len(np.unique(rows))
        assert 400 < width <= 640
        assert abs(width / height - 3) < 0.05
    tall = panel([("red", red.transpose(1, 0, 2))])
    assert tall.shape[0] < 720


def test_text_is_written_and_never_makes_a_sheet_wider():
    rows = [Row("sample 7", [("input", GREY), ("target", GREY)])]
    plain = contact_sheet([Row("", [("", GREY), ("", GREY)])])
    sheet = contact_sheet(rows)
    long = contact_sheet([Row("sample\n" * 200, [("input " * 99, GREY), ("target", GREY)])], "caption " * 99)
    assert sheet.shape[1] == plain.shape[1] == long.shape[1]
    assert plain.shape[0] < sheet.shape[0] < long.shape[0]
    assert (plain.min(-1) >= 100).all()
    assert ((sheet.max(-1) < 60).sum()) > 50
    other = contact_sheet([Row("sample 8", rows[0].columns)])
    assert other.shape == sheet.shape
    assert not np.array_equal(other, sheet)
    assert np.array_equal(contact_sheet(rows), sheet)


def test_the_legend_shows_every_class_and_wraps():
    names = [f"class number {i}" for i in range(30)]
    sheet = contact_sheet([Row("", [("", GREY)])], legend=list(zip(names, palette(30), strict=True)))
    assert {tuple(colour) for colour in palette(30).tolist()} <= colours_of(sheet)
    assert sheet.shape[1] == panel([("", GREY)]).shape[1]


def test_titles_come_once_and_rows_may_differ_in_size():
    small, large = Row("a", [("x", GREY)]), Row("b", [("x", GREY.repeat(20, 0).repeat(20, 1))])
    renamed = Row("b", [("y", large.columns[0][1])])
    assert contact_sheet([small, large]).shape[0] < contact_sheet([small, renamed]).shape[0]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [Row("", [])],
        [Row("", [("a", GREY)]), Row("", [("a", GREY), ("b", GREY)])],
        [Row("", [("a", GREY[..., 0])])],
    ],
)
def test_a_sheet_that_cannot_be_drawn_is_an_error(rows):
    with pytest.raises(ValueError, match=r"same number of pictures|is \(H, W, 3\)"):
        contact_sheet(rows)


def test_a_confusion_matrix_is_darkest_where_most_images_are():
    confusion = np.array([[9, 1, 0], [0, 10, 0], [5, 0, 5]])
    picture = confusion_chart(confusion, ["cat", "dog", "a name that is far too long for the space that there is"])
    left, top = picture.shape[1] - 16 - 3 * 40, 40
    cells = [[picture[top + 40 * row + 5, left + 40 * column + 5].tolist() for column in range(3)] for row in range(3)]
    assert cells[0][2] == cells[1][0] == cells[1][2] == cells[2][1] == [255, 255, 255]
    assert cells[1][1] == [8, 69, 148]
    assert sum(cells[1][1]) < sum(cells[0][0]) < sum(cells[2][0]) < sum(cells[0][1])
    assert cells[2][0] == cells[2][2]


def test_a_large_confusion_matrix_is_drawn_without_words():
    picture = confusion_chart(torch.eye(100), [str(index) for index in range(100)])
    assert picture.shape == (800, 800, 3)
    assert picture[4, 4].tolist() == [8, 69, 148]
    assert picture[4, 12].tolist() == [255, 255, 255]
