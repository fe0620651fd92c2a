"""The labelled .mat file of NYU Depth v2: MATLAB v7.3, which is HDF5, with everything transposed."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from framework.data.loader import Sample, reading_problem
from framework.data.transforms import DepthMap
from framework.errors import ConfigError, DataError

LABELLED = "nyu_depth_v2_labeled.mat"
SPLITS = {"train": "trainNdxs", "test": "testNdxs"}  # arrays of splits.mat
DEPTHS = {"raw": "rawDepths", "filled": "depths"}
EXTRA = 'pip install "vision-plugin-framework[nyu]"'


class LabelledFrames:
    """Frames of the labelled file. Each process opens it for itself, when it first reads: HDF5 cannot share a handle.

    Args:
        path: The .mat file.
        numbers: Which frames, from 0.
        groups: The place in which each was taken.
        depth: `raw`, as the camera read it, or `filled`.
        intrinsics: (3, 3) in pixels.
    """

    def __init__(
        self,
        path: Path,
        numbers: Sequence[int],
        groups: Sequence[str],
        depth: Literal["raw", "filled"],
        intrinsics: NDArray[np.float64],
    ) -> None:
        self.path, self.numbers, self.groups = path, list(numbers), list(groups)
        self.depth, self.intrinsics = depth, intrinsics
        self._opened: tuple[int, Any] | None = None  # the process, and its handle

    def __len__(self) -> int:
        return len(self.numbers)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the handle behind: a worker opens its own."""
        return {**self.__dict__, "_opened": None}

    def select(self, indices: Sequence[int]) -> Self:
        """Return some of the frames, in this order."""
        numbers, groups = [self.numbers[index] for index in indices], [self.groups[index] for index in indices]
        return type(self)(self.path, numbers, groups, self.depth, self.intrinsics)

    @property
    def file(self) -> Any:
        """The open file of this process."""
        process = os.getpid()
        if self._opened is None or self._opened[0] != process:
            self._opened = (process, open_mat(self.path))
        return self._opened[1]

    def read(self, index: int) -> Sample:
        """Return `image`, `depth` in metres, `intrinsics`, `id`, its number from 1, and `original_size`.

        Raises:
            DataError: The frame cannot be read.
        """
        number = self.numbers[index]
        try:
            image = self.file["images"][number].swapaxes(1, 2)  # (3, W, H) as stored
            depth = self.file[depth_name(self.file, self.depth)][number].T.astype(np.float32)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{self.path}: image {number + 1} cannot be read ({error}): fetch it anew") from None
        known = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))
        return {
            "image": tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(image))),
            "depth": DepthMap(torch.from_numpy(np.ascontiguousarray(known))),
            "intrinsics": torch.from_numpy(self.intrinsics.astype(np.float32)),
            "id": f"{number + 1:04d}",
            "original_size": (image.shape[1], image.shape[2]),
        }

    def problem(self, index: int) -> str | None:
        """Say what is wrong with one frame."""
        return reading_problem(self, index)

    def remarks(self) -> tuple[list[str], list[str]]:
        """Say that the file lacks the depth that was asked for."""
        name = depth_name(self.file, self.depth)
        if name == DEPTHS[self.depth]:
            return [], []
        return [], [f"{self.path} has no {DEPTHS[self.depth]}, so that depth is taken from {name}"]

    def sources(self, index: int) -> list[str]:
        """Return no files: all frames are in one, which NYUv2's rules name."""
        return []


def open_mat(path: Path) -> Any:
    """Open the labelled file.

    Raises:
        ConfigError: h5py is not installed.
        DataError: It is no HDF5 file, or lacks images or depth.
    """
    try:
        import h5py
    except ImportError as error:
        raise ConfigError(f"{path} needs h5py ({error}): {EXTRA}") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} is no MATLAB v7.3 file, or is damaged ({error}): fetch it anew") from None
    lacking = [name for name, there in (("images", "images" in file), ("depths", _has_depth(file))) if not there]
    if lacking:
        raise DataError(f"{path} has no {' and no '.join(lacking)}: is it {LABELLED}?")
    return file


def _has_depth(file: Any) -> bool:
    return any(name in file for name in DEPTHS.values())


def depth_name(file: Any, depth: Literal["raw", "filled"]) -> str:
    """Return the name of the depth that was asked for, or of the other one, if only that is there."""
    return next(name for name in (DEPTHS[depth], *DEPTHS.values()) if name in file)


def read_scenes(file: Any) -> list[str]:
    """Return where each frame was taken, `kitchen_0028` for `kitchen_0028b`; its number if the file does not say."""
    count = len(file["images"])
    if "scenes" not in file:
        return [str(number) for number in range(count)]
    names = ("".join(map(chr, file[reference][()].ravel())) for reference in file["scenes"][()].ravel())
    return [place_of(name) for name in names]


def place_of(scene: str) -> str:
    """Return the place that a scene is a take of: `kitchen_0028` for `kitchen_0028b`."""
    return re.sub(r"(?<=\d)[a-z]+$", "", scene)


def read_numbers(mat: Path, part: Literal["train", "test"], given: str | None, count: int) -> list[int]:
    """Return which frames are to train on, or to test on, from 0.

    Args:
        mat: The labelled file.
        part: Which.
        given: A text file of numbers from 1; None: `splits.mat` beside the labelled file.
        count: How many frames there are.

    Raises:
        ConfigError: The file that says it is missing, or a package.
        DataError: It cannot be read, or names a frame that is not there.
    """
    path = mat.with_name("splits.mat") if given is None else Path(given)
    if not path.is_file():
        raise ConfigError(
            f"data.{part}_list: {path} is missing, which says which images are for what: put splits.mat there, or give "
            "data.train_list and data.test_list, files with a number a line, from 1"
        )
    numbers = _numbers_of_mat(path, SPLITS[part]) if path.suffix == ".mat" else _numbers_of_text(path)
    strange = [number for number in numbers if not 1 <= number <= count]
    if strange or not numbers:
        said = f"names image {strange[0]}" if strange else "names no image"
        raise DataError(f"{path} {said}, of {count} in {mat}, counted from 1")
    return [number - 1 for number in numbers]


def _numbers_of_mat(path: Path, name: str) -> list[int]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ConfigError(f"{path} needs scipy ({error}): {EXTRA}") from error
    try:
        return [int(number) for number in loadmat(path)[name].ravel()]
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise DataError(f"{path} has no {name}, or is damaged ({error})") from None


def _numbers_of_text(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_text(encoding="utf-8-sig").split()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no list of numbers, one a line ({error})") from None
