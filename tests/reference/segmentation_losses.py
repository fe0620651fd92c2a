"""Segmentation losses in numpy, pixel by pixel, from their definitions. Logits (B, C, H, W), mask (B, H, W)."""

from itertools import pairwise

import numpy as np


def _pixels(logits, mask, ignore_index):
    """Yield (probabilities (C,), true id) of each pixel that counts."""
    for b, y, x in np.ndindex(mask.shape):
        if mask[b, y, x] != ignore_index:
            e = np.exp(logits[b, :, y, x] - logits[b, :, y, x].max())
            yield e / e.sum(), int(mask[b, y, x])


def cross_entropy(logits, mask, ignore_index, weights=None, smoothing=0.0):
    """Weighted mean of the cross entropy between a smoothed target and p; a weight belongs to a target class."""
    classes = logits.shape[1]
    weights = np.ones(classes) if weights is None else np.asarray(weights)
    total = norm = 0.0
    for p, true in _pixels(logits, mask, ignore_index):
        target = np.full(classes, smoothing / classes)
        target[true] += 1 - smoothing
        total -= float((weights * target * np.log(p)).sum())
        norm += weights[true]
    return total / norm if norm else 0.0


def focal(logits, mask, ignore_index, gamma, weights=None):
    weights = np.ones(logits.shape[1]) if weights is None else np.asarray(weights)
    total = norm = 0.0
    for p, true in _pixels(logits, mask, ignore_index):
        total -= weights[true] * (1 - p[true]) ** gamma * np.log(p[true])
        norm += weights[true]
    return total / norm if norm else 0.0


def dice(logits, mask, ignore_index, smooth, classes):
    pixels = list(_pixels(logits, mask, ignore_index))
    losses = []
    for c in range(logits.shape[1]):
        count = sum(true == c for _, true in pixels)
        if pixels and (count or classes == "all"):
            overlap = sum(p[c] for p, true in pixels if true == c)
            losses.append(1 - (2 * overlap + smooth) / (sum(p[c] for p, _ in pixels) + count + smooth))
    return float(np.mean(losses)) if losses else 0.0


def lovasz(logits, mask, ignore_index, classes, per_image=False):
    """By the integral form of the Lovász extension: the mean of 1 - IoU over all thresholds on the error."""
    if per_image:
        singles = [(logits[b : b + 1], mask[b : b + 1]) for b in range(len(mask)) if (mask[b] != ignore_index).any()]
        values = [lovasz(a, m, ignore_index, classes) for a, m in singles]
        return float(np.mean(values)) if values else 0.0
    pixels = list(_pixels(logits, mask, ignore_index))
    losses = []
    for c in range(logits.shape[1]):
        true = np.array([t == c for _, t in pixels], dtype=bool)
        if pixels and (true.any() or classes == "all"):
            p = np.array([p[c] for p, _ in pixels])
            error = np.where(true, 1 - p, p)
            edges = np.unique(np.concatenate([[0.0], error]))
            losses.append(sum((high - low) * _jaccard_loss(true, error >= high) for low, high in pairwise(edges)))
    return float(np.mean(losses)) if losses else 0.0


def _jaccard_loss(true, wrong):
    """Return 1 - IoU of a class with these true pixels when the prediction is wrong at these."""
    predicted = true ^ wrong
    union = (true | predicted).sum()
    return 1 - (true & predicted).sum() / union if union else 0.0
