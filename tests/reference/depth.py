"""Depth losses and errors in numpy, pixel by pixel, from their definitions. Prediction, target (B, H, W)."""

import math

import numpy as np

EPS = 0.001


def readings(prediction, target):
    """Yield (predicted, measured) of each pixel with a reading."""
    for place in np.ndindex(target.shape):
        if math.isfinite(target[place]) and target[place] > 0:
            yield float(prediction[place]), float(target[place])


def si_log(prediction, target, variance_focus=0.85, scale=1.0, warming_up=False):
    gaps = [math.log(p + EPS) - math.log(t + EPS) for p, t in readings(prediction, target)]
    if not gaps:
        return 0.0
    mean = sum(gaps) / len(gaps)
    spread = sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1) if len(gaps) > 1 else 0.0
    return scale * math.sqrt((0.0 if warming_up else spread) + (1 - variance_focus) * mean**2)


def l1(prediction, target):
    return float(np.mean([abs(p - t) for p, t in readings(prediction, target)]))


def log_l1(prediction, target):
    return float(np.mean([abs(math.log((p + EPS) / (t + EPS))) for p, t in readings(prediction, target)]))


def berhu(prediction, target, threshold=0.2):
    errors = [abs(p - t) for p, t in readings(prediction, target)]
    c = threshold * max(errors)
    return float(np.mean([x if x <= c else (x**2 + c**2) / (2 * c) for x in errors]))


SPACES = {"log": lambda x: math.log(x + EPS), "depth": float, "disparity": lambda x: 1 / x}


def steepness(residual, counted, scales):
    """Of one image: the sum over scales of differences between neighbours, per pixel that counts."""
    total = 0.0
    for step in (2**k for k in range(scales)):
        r, c = residual[::step, ::step], counted[::step, ::step]
        height, width = r.shape
        added = 0.0
        for y in range(height):
            for x in range(width):
                if x + 1 < width and c[y, x] and c[y, x + 1]:
                    added += abs(r[y, x + 1] - r[y, x])
                if y + 1 < height and c[y, x] and c[y + 1, x]:
                    added += abs(r[y + 1, x] - r[y, x])
        if c.any():
            total += added / c.sum()
    return total


def per_image(prediction, target, function):
    """Average a function of (prediction, target, counted) over the images with a reading."""
    values = []
    for p, t in zip(prediction, target, strict=True):
        counted = np.isfinite(t) & (t > 0)
        if counted.any():
            values.append(function(p, t, counted))
    return float(np.mean(values))


def gradient_matching(prediction, target, scales, space):
    def one(p, t, counted):
        residual = np.zeros(t.shape)
        for place in np.argwhere(counted):
            residual[tuple(place)] = SPACES[space](p[tuple(place)]) - SPACES[space](t[tuple(place)])
        return steepness(residual, counted, scales)

    return per_image(prediction, target, one)


def scale_shift_invariant(prediction, target, alignment, trim, gradient_weight, scales):
    def one(p, t, counted):
        d, truth = 1 / p[counted], 1 / t[counted]
        if alignment == "median":
            d, truth = ((x - np.median(x)) / np.mean(np.abs(x - np.median(x))) for x in (d, truth))
            r = d - truth
            errors = np.sort(np.abs(r))
        else:
            (s, shift), *_ = np.linalg.lstsq(np.stack([d, np.ones_like(d)], 1), truth, rcond=None)
            r = s * d + shift - truth
            errors = np.sort(r**2)
        kept = math.floor((1 - trim) * len(errors) + 1e-9)
        residual = np.zeros(t.shape)
        residual[counted] = r
        return errors[:kept].sum() / (2 * len(errors)) + gradient_weight * steepness(residual, counted, scales)

    return per_image(prediction, target, one)


def errors(prediction, target):
    """The nine errors of pixels (N,), as they are published."""
    p, t = np.asarray(prediction, float), np.asarray(target, float)
    ratio = np.maximum(p / t, t / p)
    return {
        "rmse": np.sqrt(np.mean((p - t) ** 2)),
        "rmse_log": np.sqrt(np.mean((np.log(p) - np.log(t)) ** 2)),
        "abs_rel": np.mean(np.abs(p - t) / t),
        "sq_rel": np.mean((p - t) ** 2 / t),
        "log10": np.mean(np.abs(np.log10(p) - np.log10(t))),
        "silog": 100 * np.std(np.log(p) - np.log(t)),
        **{f"delta{k}": np.mean(ratio < 1.25**k) for k in (1, 2, 3)},
    }


def align(prediction, target, alignment):
    """Pixels (N,) brought to the target's scale."""
    p, t = np.asarray(prediction, float), np.asarray(target, float)
    if alignment == "median":
        return p * np.median(t) / np.median(p)
    if alignment == "least_squares":
        return np.polyval(np.polyfit(p, t, 1), p)
    disparity = np.polyval(np.polyfit(1 / p, 1 / t, 1), 1 / p)
    return np.where(disparity > 0, 1 / np.where(disparity > 0, disparity, 1), np.inf)
