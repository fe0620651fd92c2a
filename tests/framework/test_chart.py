"""Charts: what is drawn is where the axes say, in SVG and PNG alike."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from framework.canvas import Canvas
from framework.chart import COLOURS, LEFT, RIGHT, Axis, Panel, Series, draw_chart
from framework.errors import ConfigError

SVG = "{http://www.w3.org/2000/svg}"


def elements(canvas, kind):
    return list(ElementTree.fromstring(canvas.svg()).iter(SVG + kind))


def test_axes_have_round_ticks():
    assert Axis(0, 0.0043).ticks(4) == pytest.approx([0, 0.002, 0.004])
    assert Axis(0, 1350).ticks(8) == [0, 200, 400, 600, 800, 1000, 1200]
    assert Axis(3, 300, logarithmic=True).ticks(8) == [5, 10, 20, 50, 100, 200]
    assert Axis(1, 1e6, logarithmic=True).ticks(8) == [10.0**power for power in range(7)]
    assert Axis(1, 100, logarithmic=True).share(10) == 0.5


def test_points_stand_where_the_axes_say():
    series = Series("nets", [(0, 1), (50, 3), (100, 2)], joined=False, labels=["a", "b", "c < d"])
    canvas = draw_chart("title", [Panel("accuracy", [series], height=200, from_zero=False)], "cost", width=500)
    (a, b, c) = elements(canvas, "circle")
    xs = [float(disc.get("cx")) for disc in (a, b, c)]
    assert xs == pytest.approx([LEFT, (LEFT + 500 - RIGHT) / 2, 500 - RIGHT])
    ya, yb, yc = (float(disc.get("cy")) for disc in (a, b, c))
    assert ya - yc == pytest.approx(yc - yb, abs=0.02)
    grid = {text.text: float(text.get("y")) - 4 for text in elements(canvas, "text") if text.text in "123"}
    assert [grid["1"], grid["3"], grid["2"]] == pytest.approx([ya, yb, yc], abs=0.02)
    assert {"title", "accuracy", "cost", "nets", "a", "b", "c < d"} <= {text.text for text in elements(canvas, "text")}
    (last,) = (text for text in elements(canvas, "text") if text.text == "c < d")
    assert last.get("text-anchor") == "end"  # it has no room on the right


def test_png_and_svg_show_the_same(tmp_path):
    canvas = Canvas(60, 40)
    canvas.rectangle(10, 10, 20, 5, COLOURS[0])
    canvas.disc(45, 20, 6, COLOURS[1])
    canvas.line([(0, 35), (60, 35)], COLOURS[2], 2)
    canvas.save(tmp_path / "x.png")
    pixels = np.asarray(Image.open(tmp_path / "x.png"))
    assert pixels.shape == (80, 120, 3)
    blue, red, green, white = *COLOURS[:3], (255, 255, 255)
    inside = {(10, 10): blue, (29.5, 14.5): blue, (45, 20): red, (40, 20): red, (5, 35): green}
    outside = dict.fromkeys([(9, 10), (30, 12), (20, 15), (45, 12), (53, 20), (5, 33), (5, 37)], white)
    for (x, y), colour in (inside | outside).items():
        assert tuple(pixels[int(2 * y), int(2 * x)]) == colour, (x, y)
    canvas.save(tmp_path / "x.svg")
    rectangle = list(ElementTree.parse(tmp_path / "x.svg").iter(SVG + "rect"))[1]
    assert [float(rectangle.get(name)) for name in ("x", "y", "width", "height")] == [10, 10, 20, 5]


def test_names_of_borders_do_not_touch():
    lines = [Panel("rate", [Series("", [(0, 0), (100, 1)])])]
    canvas = draw_chart("t", lines, "step", [(float(x), f"epoch {x}") for x in range(1, 100)])
    names = [text for text in elements(canvas, "text") if text.text.startswith("epoch")]
    places = [float(text.get("x")) for text in names]
    assert 5 < len(places) < 30
    assert min(np.diff(places)) > 40


def test_a_constant_has_a_line_too():
    for value in (0, 5, -1):
        canvas = draw_chart("t", [Panel("p", [Series("", [(0, value), (1, value)])])], "step")
        line = elements(canvas, "polyline")[-2 - len(Axis(0, 1).ticks(8))]
        assert line.get("points")


def test_another_suffix_is_refused():
    with pytest.raises(ConfigError, match=r"x\.svgz: a drawing is written as \.svg or \.png; did you mean 'svg'\?"):
        Canvas(1, 1).save(Path("x.svgz"))


def test_names_that_do_not_fit_beside_the_title_are_counted():
    lines = [Series(f"a rather long name {index}", [(0, index), (1, index)]) for index in range(12)]
    canvas = draw_chart("t", [Panel("panel", lines, height=100)], "x")
    canvas.save(Path("many.svg"))
    texts = [element.text for element in ElementTree.parse("many.svg").iter("{http://www.w3.org/2000/svg}text")]
    shown = [text for text in texts if text.startswith("a rather")]
    assert "a rather long name 11" in shown
    assert f"and {12 - len(shown)} more" in texts
