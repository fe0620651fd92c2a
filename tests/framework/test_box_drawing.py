"""Pictures of boxes and of curves: what a person can rely on when looking at them."""

import numpy as np
import pytest
import torch
from PIL import ImageDraw

from framework.tracking.boxes import draw_boxes
from framework.tracking.curves import curve_chart
from framework.tracking.drawing import LARGEST, palette

COLOURS = palette(4)[1:]
NAMES = ["cell", "nucleus", "debris"]


@pytest.fixture
def written(monkeypatch):
    """Texts, in the order in which they are written."""
    texts, write = [], ImageDraw.ImageDraw.text

    def note(self, xy, text, *arguments, **options):
        texts.append(text)
        return write(self, xy, text, *arguments, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    return texts


def grey(height, width):
    return np.full((height, width, 3), 120, np.uint8)


def draw(picture, boxes, labels, scores=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    scores = None if scores is None else torch.tensor(scores)
    return draw_boxes(picture, boxes, torch.tensor(labels, dtype=torch.long), NAMES, COLOURS, scores)


def extent(picture, colour):
    """First and last row and column of a colour."""
    rows, columns = np.nonzero((picture == colour).all(-1))
    return columns.min(), rows.min(), columns.max(), rows.max()


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(480, 640, 1), (330, 330, 1), (200, 150, 3), (1500, 2000, 1), (9, 16, 40)]
)
def test_small_pictures_are_enlarged_by_a_whole_factor(height, width, factor):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    drawn = draw(picture, [], [])
    assert np.array_equal(drawn, picture.repeat(factor, 0).repeat(factor, 1))
    assert factor == 1 or max(drawn.shape) <= LARGEST


def test_a_frame_lies_where_its_box_does():
    drawn = draw(grey(400, 500), [[100, 150, 300, 350]], [1])
    assert extent(drawn[150:], COLOURS[1]) == (100, 0, 299, 199)
    assert (drawn[200:300, 150:250] == 120).all()  # what is inside can be seen
    twice = draw(grey(200, 250), [[50, 75, 150, 175]], [1])
    assert np.array_equal(twice, drawn)


def test_what_is_not_a_box_is_left_as_it_is():
    drawn = draw(grey(400, 500), [[100, 150, 300, 350]], [1], [0.8])
    assert (drawn[352:] == 120).all()
    assert (drawn[:120] == 120).all()
    assert (drawn[:, 302:] == 120).all()


def test_names_and_scores_are_written_the_best_first(written):
    boxes = [[20, 50, 220, 150], [20, 200, 220, 300], [300, 50, 480, 300]]
    draw(grey(400, 500), boxes, [0, 1, 2], [0.5, 0.973, 0.7])
    assert written == ["nucleus 97%", "debris 70%", "cell 50%"]
    written.clear()
    draw(grey(400, 500), boxes, [0, 1, 2])
    assert written == ["cell", "nucleus", "debris"]


def test_the_best_box_lies_above_the_others():
    boxes = [[100, 100, 300, 300], [100, 100, 300, 300]]
    for scores, colour in (([0.4, 0.6], 1), ([0.6, 0.4], 0)):
        drawn = draw(grey(400, 500), boxes, [0, 1], scores)
        assert (drawn[299, 150] == COLOURS[colour]).all()


@pytest.mark.parametrize("box", [[0, 0, 120, 60], [400, 0, 500, 400], [0, 0, 500, 400], [390, 300, 500, 400]])
def test_words_are_inside_the_picture(box, written):
    drawn = draw(grey(400, 500), [box], [0], [0.5])
    assert written == ["cell 50%"]
    left, top, right, bottom = extent(drawn, COLOURS[0])
    assert left >= 0
    assert (drawn[top : bottom + 1, left : right + 1] == COLOURS[0]).all(-1).sum() > 500  # the paper of the words


def test_a_narrow_box_has_its_score_alone_or_nothing(written):
    draw(grey(400, 640), [[100, 100, 145, 300]], [1], [0.5])
    assert written == ["50%"]
    written.clear()
    draw(grey(400, 640), [[100, 100, 120, 300]], [1], [0.5])
    draw(grey(400, 640), [[100, 100, 130, 300]], [1])
    assert written == []


def test_words_do_not_cover_those_of_better_boxes(written):
    """Boxes on top of each other: there are three places for words."""
    draw(grey(400, 640), [[100, 100, 300, 300]] * 5, [0, 1, 2, 0, 1], [0.1, 0.9, 0.8, 0.7, 0.2])
    assert written == ["nucleus 90%", "debris 80%", "cell 70%"]


def test_words_do_not_hide_small_boxes(written):
    above = [[110, 80, 130, 98]]  # where the words would be
    draw(grey(400, 640), [[100, 100, 300, 300], *above], [1, 0], [0.9, 0.5])
    assert written == ["nucleus 90%"]
    drawn = draw(grey(400, 640), [[100, 100, 300, 300], *above], [1, 0], [0.9, 0.5])
    assert extent(drawn[:99], COLOURS[0]) == (110, 80, 129, 97)


def test_a_crowd_can_still_be_seen(written):
    rng = np.random.default_rng(0)
    corner = rng.random((300, 2)) * 80
    boxes = np.concatenate([corner, corner + 4], 1)
    drawn = draw(grey(90, 90), boxes, rng.integers(0, 3, 300))
    assert len(written) < 40  # of 300
    assert (drawn == 120).all(-1).mean() > 0.1


def test_boxes_beyond_the_picture_are_cut():
    drawn = draw(grey(400, 500), [[-50, -60, 800, 900], [600, 500, 700, 600], [10.2, 10.4, 10.3, 10.45]], [0, 1, 2])
    assert drawn.shape == (400, 500, 3)
    assert (drawn[399, 250] == COLOURS[0]).all()


def test_the_picture_that_was_given_stays_as_it_was():
    picture = grey(400, 500)
    draw(picture, [[100, 150, 300, 350]], [1])
    assert (picture == 120).all()


@pytest.mark.parametrize("colour", palette(21)[1:].tolist())
def test_words_stand_out_from_their_paper(colour):
    drawn = draw_boxes(
        grey(400, 500), np.array([[50, 100, 400, 300.0]]), np.array([0]), ["class"], np.array([colour], np.uint8)
    )
    paper = drawn[80:98, 52:90].reshape(-1, 3)
    linear = np.where(paper <= 10, paper / 3294.6, ((paper / 255 + 0.055) / 1.055) ** 2.4)
    light = linear @ [0.2126, 0.7152, 0.0722]
    assert (light.max() + 0.05) / (light.min() + 0.05) > 3  # WCAG 2, for large text


def test_curves_go_where_they_should():
    drawn = curve_chart(
        {"all": np.array([[0.0, 1.0], [1.0, 1.0]]), "one": np.array([[0, 0.5], [1, 0.5]])}, "recall", "precision"
    )
    first, second = (0, 114, 178), (213, 94, 0)
    plot = drawn[:, :720]
    left, top, right, bottom = extent(plot, first)
    assert right - left == pytest.approx(600, abs=8)
    assert bottom - top < 8
    assert extent(plot, second)[1] - top == pytest.approx(300, abs=8)


def test_a_chart_may_have_many_curves_or_none_and_gaps(written):
    curve = np.array([[0.0, 1.0], [0.5, np.nan], [1.0, 0.0]])
    assert curve_chart({}, "x", "y").shape == curve_chart({f"class {i}": curve for i in range(40)}, "x", "y").shape
    assert "and 26 more" in written
    assert "class 13" in written
    assert "class 14" not in written
    curve_chart({"a name that is so long that there is no room": curve}, "x", "y")
    assert any(text.startswith("a name") and text.endswith("…") for text in written)
