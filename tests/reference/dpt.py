"""The DPT head in numpy, from the paper's figure 1, for one image; parameters by their names in the head."""

import math

import numpy as np

from tests.reference.resampling import resize


def readout(tokens, class_token, weight, bias):
    """Concatenate the class token (C,) to every patch token (N, C), then linear and GELU."""
    both = np.concatenate([tokens, np.broadcast_to(class_token, tokens.shape)], axis=1)
    x = both @ weight.T + bias
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def conv(x, weight, bias=None):
    """Convolve (C, h, w) with (O, C, k, k), zero padding, same size."""
    k = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(1, 2))
    out = np.einsum("chwij,ocij->ohw", windows, weight)
    return out if bias is None else out + bias[:, None, None]


def dpt(maps, class_tokens, parameters, size):
    """Compute (outputs, *size) from maps (C, h, w) and class tokens (C,), one of each per level, all of one stride."""
    p = parameters
    base = [math.ceil(side / 32) for side in size]
    pyramid = []
    for i, (x, token) in enumerate(zip(maps, class_tokens, strict=True)):
        grid = x.shape[1:]
        x = readout(x.reshape(len(x), -1).T, token, p[f"readouts.{i}.project.weight"], p[f"readouts.{i}.project.bias"])
        x = resize(x.T.reshape(-1, *grid), [cells * 2 ** (3 - i) for cells in base])
        name = f"neck.resample.{4 * 2**i}.project"
        pyramid.append(conv(conv(x, p[f"{name}.weight"], p[f"{name}.bias"]), p[f"reduce.{i}.weight"]))

    def unit(x, name):
        y = conv(np.maximum(x, 0), p[f"{name}.residual.1.weight"], p[f"{name}.residual.1.bias"])
        return x + conv(np.maximum(y, 0), p[f"{name}.residual.3.weight"], p[f"{name}.residual.3.bias"])

    x = None
    for step, skip in enumerate(reversed(pyramid)):
        if x is not None:
            skip = x + unit(skip, f"skips.{step - 1}")
        x = unit(skip, f"fusions.{step}.0")
        x = resize(x, [2 * side for side in x.shape[1:]])  # the paper enlarges before the 1x1 convolution
        x = conv(x, p[f"fusions.{step}.1.weight"], p[f"fusions.{step}.1.bias"])
    x = np.maximum(conv(x, p["classify.0.weight"], p["classify.0.bias"]), 0)
    return resize(conv(x, p["classify.4.weight"], p["classify.4.bias"]), size)
