"""How depths are spread over many maps: their number, their percentiles, and which unit they look like."""

import math

import numpy as np
from numpy.typing import NDArray

DECADES = (-6, 9)  # powers of ten in metres, beyond which depths count as those at the end
STEPS = 500  # of the histogram, in a decade: a percentile is right to 0.3 %
PLAUSIBLE = (0.3, 80.0)  # metres, between which the median of most indoor and outdoor data lies
CREDIBLE = (0.01, 1000.0)  # metres, outside of which a median says that the unit is wrong
UNITS = {1000.0: "millimetres", 1.0: "metres", 100.0: "centimetres", 1e6: "micrometres", 1e4: "tenths of a millimetre"}
"""Units by how many make a metre, the usual ones first."""


class DepthSpread:
    """The distribution of the depths of many maps, in memory that does not grow with them.

    Args:
        depth_range: Smallest and largest depth in metres that count.
    """

    def __init__(self, depth_range: tuple[float, float]) -> None:
        self.depth_range = depth_range
        self.pixels = 0
        self.readings = 0  # pixels with a depth
        self.inside = 0  # of these within the range
        self.histogram = np.zeros((DECADES[1] - DECADES[0]) * STEPS, np.int64)

    def add(self, metres: NDArray[np.float32]) -> tuple[int, int]:
        """Add one map, 0 where there is no reading; returns its readings, and those within the range."""
        known = metres[metres > 0]
        least, most = np.float32(self.depth_range[0]), np.float32(self.depth_range[1])
        inside = int(np.count_nonzero((known >= least) & (known <= most)))
        steps = ((np.log10(known) - DECADES[0]) * STEPS).astype(np.int64)
        self.histogram += np.bincount(steps.clip(0, len(self.histogram) - 1), minlength=len(self.histogram))
        self.pixels += metres.size
        self.readings += known.size
        self.inside += inside
        return known.size, inside

    def quantile(self, share: float) -> float:
        """Return the depth in metres below which a share of the readings lies; NaN if there is none."""
        if not self.readings:
            return math.nan
        step = int(np.searchsorted(self.histogram.cumsum(), max(1, share * self.readings)))
        return float(10 ** (DECADES[0] + (step + 0.5) / STEPS))

    def unit_words(self, depth_scale: float) -> str | None:
        """Say that the unit seems wrong, and which scale is likely; None where it seems right.

        Args:
            depth_scale: Stored units of a metre, by which the depths were made.
        """
        median = self.quantile(0.5)
        if not self.readings or CREDIBLE[0] <= median <= CREDIBLE[1]:
            return None
        said = f"half of the readings are {'below' if median < 1 else 'above'} {median:.4g} m"
        for per_metre, unit in UNITS.items():
            if PLAUSIBLE[0] <= median * depth_scale / per_metre <= PLAUSIBLE[1]:
                return f"{said}: these look like {unit}: data.depth_scale: {per_metre:.0f} (now {depth_scale:g})"
        return f"{said}: data.depth_scale is how many stored units make a metre (now {depth_scale:g})"
