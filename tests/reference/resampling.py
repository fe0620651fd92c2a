"""Bilinear resampling in numpy: a triangle of one source cell, widened to one target cell when shrinking."""

import numpy as np


def resize(x, size):
    """Resize (..., h, w) to (..., *size), edges aligned, antialiased when shrinking."""
    rows, columns = (_weights(old, new) for old, new in zip(x.shape[-2:], size, strict=True))
    return rows @ x @ columns.T


def _weights(old, new):
    """Return (new, old): what each source cell gives to each target cell, by the distance of their centres."""
    step = old / new
    centres = (np.arange(new) + 0.5) * step
    if step < 1:  # beyond the first and last centre of the source, its edge goes on
        centres = centres.clip(0.5, old - 0.5)
    distance = np.abs(centres[:, None] - (np.arange(old) + 0.5))
    weights = np.maximum(0, 1 - distance / max(step, 1))
    return weights / weights.sum(axis=1, keepdims=True)
