"""What people are shown of classified images: a framed picture, and a row of a table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from framework.tracking.drawing import RIGHT, WRONG, Row, to_rgb


def classified_row(
    image: Tensor, name: str, probabilities: Tensor, true: Sequence[int], predicted: Sequence[int], names: Sequence[str]
) -> Row:
    """Draw an image as the network saw it, in a red frame if its classes were not recognised.

    Args:
        image: (C, H, W), uint8 or float in [0, 1].
        name: What to call it.
        probabilities: Of every class, (classes,).
        true: Its classes.
        predicted: The classes that it was taken for.
        names: Of the classes.
    """
    height, width = image.shape[-2:]
    border = max(1, min(height, width) // 32)
    frame = np.empty((height + 2 * border, width + 2 * border, 3), np.uint8)
    frame[:] = RIGHT if list(predicted) == list(true) else WRONG
    frame[border:-border, border:-border] = to_rgb(image)
    said = ", ".join(f"{names[index]} {100 * float(probabilities[index]):.0f} %" for index in predicted)
    target = ", ".join(names[index] for index in true)
    return Row(f"{target or 'none'}, predicted {said or 'none'} · {name}", [("input", frame)])


def classified_record(
    name: str, probabilities: Tensor, predicted: Sequence[int], names: Sequence[str]
) -> list[tuple[str, Any]]:
    """Return what `predictions.csv` says of one image: its class, and the probability of every class.

    Where images have several classes, `class` lists them with `|` between, and `probability` that of each.

    Args:
        name: What to call the image.
        probabilities: Of every class, (classes,).
        predicted: The classes that it was taken for.
        names: Of the classes.
    """
    every = [(each, f"{value:.6f}") for each, value in zip(names, probabilities.tolist(), strict=True)]
    classes, values = ("|".join(every[index][part] for index in predicted) for part in (0, 1))
    return [("id", name), ("class", classes), ("probability", values), *every]
