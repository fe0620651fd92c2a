"""Images with depth maps in files: reading them in metres, and what is wrong with them."""

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from framework.data.depth_formats import Stored, load_depth
from framework.data.depth_spread import DepthSpread
from framework.data.depth_transforms import keep_readings
from framework.data.images import read_image
from framework.data.loader import Sample
from framework.errors import DataError

MILLIMETRES = 1000.0  # of whole numbers, stored units of a metre unless said otherwise
SATURATED = 65535  # the largest of 16 bits: no reading, or one that was clipped
NAMED = 5  # files in a message

_COUNTING = threading.Lock()  # of the module, because samples are pickled


class DepthPair(NamedTuple):
    """An image file, its depth file, and what to call them.

    Args:
        image: The image.
        depth: Its depth, of the same size.
        id: What to call them.
        intrinsics: Pinhole matrix (3, 3), in pixels of the image as stored, if it is known.
    """

    image: Path
    depth: Path
    id: str
    intrinsics: NDArray[np.float64] | None = None


def stored_scale(stored: Stored, depth_scale: float | None) -> float:
    """Return the stored units of a metre: as given, else 1000 for whole numbers and 1 for floats."""
    if depth_scale is not None:
        return depth_scale
    return MILLIMETRES if stored.dtype.kind in "iu" else 1.0


def to_metres(stored: Stored, depth_scale: float | None) -> NDArray[np.float32]:
    """Return stored values as metres, float32 (H, W), 0 where there is no reading.

    No reading are 0, NaN, what is infinite or negative, and 65535 of whole numbers, where 16 bits end.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        metres = (stored / stored_scale(stored, depth_scale)).astype(np.float32)
        known = np.isfinite(metres) & (metres > 0)
    if stored.dtype.kind in "iu":
        known &= stored != SATURATED
    return np.where(known, metres, np.float32(0))


def read_depth(path: Path, scale: float | None = None, key: str | None = None) -> NDArray[np.float32]:
    """Read a depth file as metres, float32 (H, W), 0 where there is no reading.

    Args:
        path: PNG, PGM, TIFF, PFM, npy, npz or EXR, of 16 bits at least.
        scale: Stored units of a metre: 1000 for millimetres, 256 in KITTI, 5000 in TUM RGB-D. None: 1000 for whole
            numbers, 1 for floats.
        key: Name of the array in an npz, or of the channel in an EXR; None: the only one, or the usual name.

    Raises:
        DataError: The file cannot be read, has 8 bits or colour, or is no single map of depth.
    """
    return to_metres(load_depth(path, key), scale)


class DepthFiles:
    """Image files with depth files.

    Args:
        pairs: The files.
        channels: Channels the images are brought to.
        depth_scale: Stored units of a metre; None: 1000 for whole numbers, 1 for floats.
        depth_range: Smallest and largest depth in metres; readings outside count as none.
        resize: Shorter side the images will be brought to, if any.
        key: Name of the array in an npz, or of the channel in an EXR.
        notes: What else is odd about them, said with the data check.
    """

    def __init__(
        self,
        pairs: Sequence[DepthPair],
        channels: int,
        depth_scale: float | None,
        depth_range: tuple[float, float],
        resize: int | None = None,
        key: str | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.pairs, self.channels, self.resize, self.key = list(pairs), channels, resize, key
        self.notes = list(notes)
        self.depth_scale, self.depth_range = depth_scale, depth_range
        self._spread = DepthSpread(depth_range)
        self._counted: dict[int, tuple[int, int]] = {}  # readings of a file, and those within the range
        self._negative: Counter[float] = Counter()  # files by the one negative value in them
        self._scale = 1.0  # what makes a metre of the files that were counted

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> Sample:
        """Return `image`, `depth` in metres, `id`, `original_size`, and `intrinsics` if they are known.

        Raises:
            DataError: A file cannot be read, or image and depth differ in size.
        """
        pair = self.pairs[index]
        image, size, stored = self._load(pair)
        depth = torch.from_numpy(to_metres(stored, self.depth_scale))
        sample = {"image": image, "depth": keep_readings(depth, self.depth_range), "id": pair.id, "original_size": size}
        if pair.intrinsics is not None:
            sample["intrinsics"] = torch.from_numpy(np.asarray(pair.intrinsics, np.float32))
        return sample

    def depth(self, index: int) -> NDArray[np.float32]:
        """Return all readings of one depth file in metres, float32 (H, W), those outside of the range too."""
        return to_metres(load_depth(self.pairs[index].depth, self.key), self.depth_scale)

    def _load(self, pair: DepthPair) -> tuple[tv_tensors.Image, tuple[int, int], Stored]:
        """Return the image, its (height, width) as stored, and the stored depth of the same size."""
        values, size = read_image(pair.image, self.channels, self.resize)
        stored = load_depth(pair.depth, self.key)
        if stored.shape != size:
            turned = " (turned by 90°: does the image carry an EXIF rotation?)" if stored.shape == size[::-1] else ""
            raise DataError(
                f"{pair.depth} is {stored.shape[1]}x{stored.shape[0]} but its image {pair.image.name} is "
                f"{size[1]}x{size[0]}{turned}: make them the same size"
            )
        return tv_tensors.Image(torch.from_numpy(values).permute(2, 0, 1)), size, stored

    # What is wrong.

    def problem(self, index: int) -> str | None:
        """Say what is wrong with one pair of files."""
        pair = self.pairs[index]
        try:
            _, _, stored = self._load(pair)
        except DataError as error:
            return str(error)
        below = stored[(stored < 0) & np.isfinite(stored)]
        least, most = (float(below.min()), float(below.max())) if below.size else (0.0, 0.0)
        if least != most:
            return (
                f"{pair.depth}: {below.size} pixels are negative, from {least:g} to {most:g}: negate distances along "
                "an axis that points backwards; if they mean nothing, store 0"
            )
        with _COUNTING:
            if index not in self._counted:
                self._counted[index] = self._spread.add(to_metres(stored, self.depth_scale))
                self._negative.update([least] if below.size else [])
                self._scale = stored_scale(stored, self.depth_scale)
        return None

    def remarks(self) -> tuple[list[str], list[str]]:
        """Say which files hold no depth, which is wrong in training, and what is odd about the depths of all."""
        blank = [self.pairs[index].depth for index, (readings, _) in sorted(self._counted.items()) if not readings]
        wrong = []
        if blank:
            wrong += [
                f"{_files(blank)} no reading (0, NaN or infinite throughout): remove {_these(blank)} and the image"
            ]
        if self.wrong_in_every_split and self._spread.readings:
            least, most = self.depth_range
            unit = self._spread.unit_words(self._scale)
            wrong += [f"no reading at all is within data.depth_range [{least:g}, {most:g}] m; {unit or self._middle()}"]
        return wrong, self._odd()

    @property
    def wrong_in_every_split(self) -> bool:
        """Whether nothing can be measured: no reading at all is within the range."""
        return bool(self._counted) and not self._spread.inside

    def _odd(self) -> list[str]:
        spread, odd = self._spread, list(self.notes)
        unit = spread.unit_words(self._scale)
        odd += [unit] if unit is not None else []
        outside = 1 - spread.inside / max(1, spread.readings)
        if outside > 0.5:
            least, most = self.depth_range
            odd += [
                f"{outside:.0%} of the readings are outside of data.depth_range [{least:g}, {most:g}] m and count as "
                f"none; {self._middle()}"
            ]
        useless = [self.pairs[i].depth for i, (all_, inside) in sorted(self._counted.items()) if all_ and not inside]
        if useless and spread.inside:
            odd += [
                f"{_files(useless)} no reading within data.depth_range: nothing can be learned from {_these(useless)}"
            ]
        for value, count in self._negative.items():
            odd += [f"{value:g}, the only negative value in {count} depth files, is taken for no reading"]
        return odd

    def _middle(self) -> str:
        """Say between which depths most readings lie."""
        low, median, high = (self._spread.quantile(share) for share in (0.01, 0.5, 0.99))
        return f"98 % of them are from {low:.3g} to {high:.3g} m, the median is {median:.3g} m"

    def sources(self, index: int) -> list[str]:
        """Return the image and depth files."""
        return [str(self.pairs[index].image), str(self.pairs[index].depth)]


def _files(paths: Sequence[Path]) -> str:
    """Name some files, five at most, and say that they hold something."""
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    named = ", ".join(str(path) for path in paths[:NAMED])
    return f"{named} holds" if len(paths) == 1 else f"{len(paths)} depth files ({named}{more}) hold"


def _these(paths: Sequence[Path]) -> str:
    return "it" if len(paths) == 1 else "them"
