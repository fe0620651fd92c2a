import math

import numpy as np
import pytest
import torch

from framework.errors import ConfigError
from framework.heads.depth_output import AdaptiveBins, Bins, DisparityRegression, LinearRegression, LogRegression

NEAR, FAR = RANGE = (0.5, 20.0)
OUTPUTS = {
    "uniform": Bins(16),
    "log": Bins(16, "log"),
    "softmax": Bins(16, normalisation="softmax"),
    "sigmoid": Bins(16, normalisation="sigmoid"),
    "adaptive": AdaptiveBins(8),
    "log regression": LogRegression(),
    "linear regression": LinearRegression(),
    "disparity": DisparityRegression(),
    "relu": LinearRegression("relu"),
}
every_output = pytest.mark.parametrize("name", OUTPUTS)
GEOMETRIC, ARITHMETIC = math.sqrt(NEAR * FAR), (NEAR + FAR) / 2


def raw_of(output, scale=2.0, batch=2):
    return scale * torch.randn(batch, output.channels, 3, 4, generator=torch.Generator().manual_seed(0))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def weigh(normalisation, values):
    if normalisation == "linear":
        weights = [max(value, 0) + 0.1 for value in values]
    else:
        weights = [math.exp(value) if normalisation == "softmax" else sigmoid(value) for value in values]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("normalisation", ["linear", "softmax", "sigmoid"])
@pytest.mark.parametrize("spacing", ["uniform", "log"])
def test_bins_average_their_centres(spacing, normalisation):
    output = Bins(5, spacing, normalisation)
    raw = raw_of(output).double().numpy()
    steps = [i / 4 for i in range(5)]
    centres = [NEAR + (FAR - NEAR) * t if spacing == "uniform" else NEAR * (FAR / NEAR) ** t for t in steps]
    wanted = np.zeros((2, 1, 3, 4))
    for image, _, row, column in np.ndindex(wanted.shape):
        weights = weigh(normalisation, raw[image, :, row, column])
        wanted[image, 0, row, column] = sum(w * c for w, c in zip(weights, centres, strict=True))
    np.testing.assert_allclose(output(raw_of(output), RANGE).numpy(), wanted, rtol=1e-5)


def test_adaptive_bins_divide_the_range_anew_for_each_image():
    output = AdaptiveBins(4)
    raw = raw_of(output).double().numpy()
    for image, got in zip(raw, output(raw_of(output), RANGE), strict=True):
        widths = weigh("softmax", [votes.mean() for votes in image[4:]])
        edges = [NEAR + (FAR - NEAR) * sum(widths[:i]) for i in range(5)]
        assert edges[-1] == pytest.approx(FAR)
        for row, column in np.ndindex(3, 4):
            weights = weigh("softmax", image[:4, row, column])
            wanted = sum(w * (a + b) / 2 for w, a, b in zip(weights, edges, edges[1:], strict=False))
            assert float(got[0, row, column]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("output", "formula"),
    [
        (LogRegression(), lambda x: NEAR * (FAR / NEAR) ** sigmoid(x)),
        (LinearRegression(), lambda x: NEAR + (FAR - NEAR) * sigmoid(x)),
        (LinearRegression("relu"), lambda x: NEAR + np.maximum(x, 0)),
        # monodepth2's disp_to_depth, of a sigmoid that is moved so that 0 gives the geometric mean
        (
            DisparityRegression(),
            lambda x: 1 / (1 / FAR + (1 / NEAR - 1 / FAR) * sigmoid(x + math.log(math.sqrt(NEAR / FAR)))),
        ),
    ],
    ids=["log", "linear", "relu", "disparity"],
)
def test_regressions_are_their_formulas(output, formula):
    raw = raw_of(output)
    np.testing.assert_allclose(output(raw, RANGE).numpy(), formula(raw.double().numpy()), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("uniform", ARITHMETIC),
        ("softmax", ARITHMETIC),
        ("adaptive", ARITHMETIC),
        ("linear regression", ARITHMETIC),
        ("log regression", GEOMETRIC),
        ("disparity", GEOMETRIC),
        ("relu", NEAR),
    ],
)
def test_depth_begins_where_its_docstring_says(name, depth):
    output = OUTPUTS[name]
    assert float(output(torch.zeros(1, output.channels, 1, 1), RANGE)) == pytest.approx(depth, rel=1e-6)


@pytest.mark.parametrize("output", [LogRegression(), DisparityRegression()])
@pytest.mark.parametrize(("depth_range", "depth"), [((0.001, 10.0), 1.0), ((0.001, 80.0), 8.0), ((0.5, 8.0), 2.0)])
def test_regression_begins_within_the_farther_two_decades_of_a_wide_range(output, depth_range, depth):
    assert float(output(torch.zeros(1, 1, 1, 1), depth_range)) == pytest.approx(depth, rel=1e-4)


@every_output
@pytest.mark.parametrize("depth_range", [(0.001, 10.0), (1e-3, 80.0)])
def test_depth_stays_in_the_range_and_gradients_finite_whatever_the_raw_values(name, depth_range):
    output = OUTPUTS[name]
    for scale in (0.0, 1.0, 30.0, 1e4):
        raw = raw_of(output, scale).requires_grad_()
        depth = output(raw, depth_range)
        values = depth.detach().numpy()
        assert values.shape == (2, 1, 3, 4)
        assert values.min() >= np.float32(depth_range[0])
        assert values.max() <= np.float32(depth_range[1]) or name == "relu"
        depth.log().sum().backward()
        assert raw.grad.isfinite().all()
        assert raw.grad.any() or scale in (0.0, 1e4)


@every_output
def test_16_bit_values_become_32_bit_metres_inside_autocast(name):
    output = OUTPUTS[name]
    raw = raw_of(output).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        depth = output(raw, RANGE)
    assert depth.dtype == torch.float32
    assert torch.equal(depth, output(raw.float(), RANGE))
    try:
        torch.set_default_dtype(torch.bfloat16)  # as under trainer.precision bf16-true
        true = output(raw, RANGE)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(true, depth)


def test_an_output_that_loses_a_dimension_is_named():
    class Flat(LogRegression):
        def to_metres(self, raw, depth_range):
            return super().to_metres(raw, depth_range)[:, 0]

    with pytest.raises(ConfigError, match=r"Flat\.to_metres made \(2, 3, 4\) of \(2, 1, 3, 4\): it returns \(B, 1"):
        Flat()(torch.zeros(2, 1, 3, 4), RANGE)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Bins(1), "count is a number of bins, at least 2, not 1"),
        (lambda: AdaptiveBins(0), "at least 2, not 0"),
        (lambda: Bins(spacing="uniformly"), "no spacing 'uniformly', did you mean 'uniform'"),
        (lambda: Bins(normalisation="softmx"), "no normalisation 'softmx', did you mean 'softmax'"),
        (lambda: LinearRegression("tanh"), "no activation 'tanh', valid: relu, sigmoid"),
    ],
)
def test_bad_options_are_refused_at_construction(build, words):
    with pytest.raises(ConfigError, match=words):
        build()
