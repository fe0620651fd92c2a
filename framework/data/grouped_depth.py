"""Files of depth data whose frames come from scenes, drives or sequences."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from framework.data.check import report
from framework.data.depth_files import DepthFiles, DepthPair
from framework.errors import DataError


class GroupedDepthFiles(DepthFiles):
    """Image files with depth files, which say in which scene each was taken.

    Args:
        pairs: The files.
        groups: The scene, drive or sequence of each.
        left_out: Which images have no depth and are left out, in words; None: there are none.
        options: What DepthFiles takes besides.
    """

    def __init__(
        self, pairs: Sequence[DepthPair], groups: Sequence[str], left_out: str | None = None, **options: Any
    ) -> None:
        super().__init__(pairs, **options)
        self.groups, self.left_out, self.options = list(groups), left_out, options

    def select(self, indices: Sequence[int]) -> Self:
        """Return some of the samples, in this order."""
        pairs, groups = [self.pairs[index] for index in indices], [self.groups[index] for index in indices]
        return type(self)(pairs, groups, self.left_out, **self.options)

    def remarks(self) -> tuple[list[str], list[str]]:
        """Say what is wrong or odd with the split, and which images were left out."""
        wrong, odd = super().remarks()
        return wrong, [*odd, *([self.left_out] if self.left_out else [])]


def require_files(pairs: Sequence[DepthPair], places: Sequence[str]) -> None:
    """Refuse pairs whose image or depth map is missing.

    Raises:
        DataError: Files are missing; all of them are listed, each with the place that names it.
    """
    problems = [
        f"{place}: there is no {path}"
        for pair, place in zip(pairs, places, strict=True)
        for path in (pair.image, pair.depth)
        if not path.is_file()
    ]
    if problems:
        raise DataError(report(problems, "missing file"))


def pinhole(fx: float, fy: float, cx: float, cy: float) -> NDArray[np.float64]:
    """Return the matrix (3, 3) of a camera, in pixels; the first pixel's centre is at (0, 0)."""
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
