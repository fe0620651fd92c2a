"""Pictures of depth: one scale for all, an honest bar, and errors where they are."""

import numpy as np
import pytest
import torch
from PIL import ImageDraw
from skimage.color import deltaE_ciede2000, rgb2lab

from framework.tracking.colour_scale import BAR, BLUSH, EMBER, colour_table
from framework.tracking.depth import colour_depth, depth_bar, depth_error_map, depth_legend, error_bar
from framework.tracking.drawing import HATCH, INK, PAPER, Row, contact_sheet

INDOORS = (0.001, 10.0)


@pytest.fixture
def written(monkeypatch):
    """(text, column of its middle) of every label."""
    texts, write = [], ImageDraw.ImageDraw.text

    def note(self, xy, text, *arguments, **options):
        texts.append((text, xy[0]))
        return write(self, xy, text, *arguments, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    return texts


def dense(*values):
    return np.array(values, np.float32).reshape(1, -1)


def is_hatched(colours):
    return ((colours == HATCH) | (colours == PAPER)).all(-1)


@pytest.mark.parametrize("scale", [EMBER, BLUSH])
def test_equal_steps_look_equal_and_darken_throughout(scale):
    lab = rgb2lab(colour_table(scale)[None])[0]
    assert (np.diff(lab[:, 0]) < 0).all()  # in grey, and to any colour-blind eye, ends and order are told apart
    assert lab[0, 0] - lab[-1, 0] > 70
    steps = deltaE_ciede2000(lab[:-16:16], lab[16::16])
    assert steps.min() > 3
    assert steps.max() < 2.5 * steps.min()


def test_a_depth_has_one_colour_whatever_else_is_in_the_image():
    one, other = colour_depth(dense(2, 3, 0.5), INDOORS), colour_depth(dense(9, 2, 2, 2.5), INDOORS)
    assert (one[0, 0] == other[0, 1]).all()
    assert (one[0, 0] == other[0, 2]).all()
    assert (one[0, 0] != other[0, 3]).any()


@pytest.mark.parametrize("depth_range", [INDOORS, (0.5, 5.0), (1.0, 80.0)])
def test_colours_follow_the_stated_formula(depth_range):
    near, far = depth_range
    depth = np.random.default_rng(0).uniform(near, far, (6, 7))
    share = np.log((depth + far / 10) / (near + far / 10)) / np.log(1.1 * far / (near + far / 10))
    expected = colour_table(EMBER)[np.rint(255 * share).astype(int)]
    assert np.abs(colour_depth(depth, depth_range).astype(int) - expected).max() <= 4  # a step, where rounding differs
    ends = colour_depth(dense(near / 2, near, far, 2 * far), depth_range)[0]
    assert np.array_equal(ends, colour_table(EMBER)[[0, 0, 255, 255]])


def test_what_has_no_reading_is_hatched_and_nothing_else():
    depth = np.full((16, 16), 3.0)
    depth[0], depth[1], depth[2], depth[3] = 0, np.nan, np.inf, -1
    drawn = is_hatched(colour_depth(depth, INDOORS))
    assert drawn[:4].all()
    assert not drawn[4:].any()
    assert is_hatched(colour_depth(depth, INDOORS, unknown=3)).all()
    assert is_hatched(colour_depth(np.zeros((9, 9)), INDOORS)).all()


def test_tensors_of_any_type_are_drawn_as_arrays_are():
    depth = torch.tensor([[1.0, 2.0], [0.0, 8.0]])
    for form in (depth, depth.double(), depth.bfloat16(), depth.requires_grad_()):
        assert np.array_equal(colour_depth(form, INDOORS), colour_depth(depth.detach().numpy(), INDOORS))


def test_few_readings_are_drawn_as_blots_and_the_nearest_lies_above():
    depth = np.zeros((40, 60))
    depth[10, 10], depth[10, 12], depth[30, 50] = 4, 2, 6
    drawn = colour_depth(depth, INDOORS)
    colours = colour_depth(dense(4, 2, 6), INDOORS)[0]
    assert (~is_hatched(drawn)).sum() == 5 * 7 + 25
    assert (drawn[28:33, 48:53] == colours[2]).all()
    assert (drawn[10, 10] == colours[0]).all()  # a reading itself stays
    assert (drawn[9, 11] == colours[1]).all()
    wrong = depth_error_map(np.where(depth > 0, 1.1 * depth, 1), depth)
    assert (~is_hatched(wrong)).sum() == 5 * 7 + 25
    depth[:, ::2] = 5  # no longer few
    assert is_hatched(colour_depth(depth, INDOORS))[:, 1::2].mean() > 0.99


@pytest.mark.parametrize("depth_range", [INDOORS, (0.5, 5.0), (0.001, 80.0), (0.0, 0.3), (2.0, 900.0)])
def test_the_bar_says_what_colours_mean(written, depth_range):
    bar = depth_bar(depth_range)
    labels = {float(text): x for text, x in written}
    assert {*depth_range} <= set(labels)
    assert len(labels) >= 5
    ticks = np.flatnonzero((bar[BAR] == INK).all(-1))
    assert len(ticks) == len(labels)
    for column, metres in zip(ticks, sorted(labels), strict=True):
        assert np.abs(bar[0, column].astype(int) - colour_depth(dense(max(metres, 1e-6)), depth_range)[0, 0]).max() <= 8
        assert labels[metres] == pytest.approx(column, abs=14)
    assert (bar[-1] == PAPER).all()


def test_an_error_map_shows_relative_errors():
    rng = np.random.default_rng(0)
    target, prediction = rng.uniform(1, 9, (8, 9)), rng.uniform(1, 9, (8, 9))
    target[0], target[1] = 0, np.nan
    prediction[7] = np.nan  # is as bad as can be
    drawn = depth_error_map(torch.from_numpy(prediction), target)
    assert is_hatched(drawn[:2]).all()
    share = np.clip(np.abs(prediction - target)[2:7] / target[2:7] / 0.5, 0, 1)
    expected = colour_table(BLUSH)[np.rint(255 * share).astype(int)]
    assert np.abs(drawn[2:7].astype(int) - expected).max() <= 4
    assert (drawn[7] == colour_table(BLUSH)[255]).all()
    assert (depth_error_map(target, target)[2:] == colour_table(BLUSH)[0]).all()


def test_the_bar_of_errors_is_in_percent(written):
    error_bar()
    assert [text for text, _ in written] == ["0 %", "50 % or more", "25 %"]


def test_a_sheet_has_both_scales_in_its_legend(written):
    row = Row("", [("depth", colour_depth(np.full((30, 40), 3.0), INDOORS))])
    sheet, bare = contact_sheet([row], legend=depth_legend(INDOORS)), contact_sheet([row])
    assert sheet.shape[1] == bare.shape[1]
    shown = {tuple(colour) for colour in sheet[bare.shape[0] :].reshape(-1, 3).tolist()}
    for scale in (EMBER, BLUSH):
        assert {tuple(colour) for colour in colour_table(scale)[[0, 255]].tolist()} <= shown
    assert {"depth in metres", "relative error", "hatched: no reading"} <= {text for text, _ in written}


def test_what_cannot_be_drawn_is_named():
    with pytest.raises(ValueError, match=r"is \(H, W\), got \(1, 4, 4\)"):
        colour_depth(np.ones((1, 4, 4)), INDOORS)
    with pytest.raises(ValueError, match=r"got 5 to 5 m"):
        colour_depth(np.ones((4, 4)), (5, 5))
    with pytest.raises(ValueError, match=r"\(4, 4\).*\(4, 5\)"):
        depth_error_map(np.ones((4, 4)), np.ones((4, 5)))
