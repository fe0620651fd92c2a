"""Depth files as stored: PNG, PGM, TIFF, PFM, npy, npz and EXR to one array, or an error that names the file."""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from framework.data.images import errors_named
from framework.errors import DataError, suggest

Stored = NDArray[np.integer] | NDArray[np.floating]

DEPTH_SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".npz", ".exr", ".pfm", ".pgm")
_KEPT = "save depth as a 16-bit PNG in millimetres, or as floats in metres (npy, TIFF, EXR)"
_DEEP = ("I", "F")  # Pillow's modes of more than 8 bits begin so
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of either byte order, and of BigTIFF
_USUAL = ("depth", "Z", "depth.Z", "Y", "V", "R")  # names of an array or channel that holds depth, likeliest first


def load_depth(path: Path, key: str | None = None) -> Stored:
    """Return the values of a depth file as stored, (H, W). EXIF rotation is not heeded: no camera writes depth.

    Args:
        path: The file; its suffix says what it is.
        key: Name of the array in an npz, or of the channel in an EXR. None: the only one, else the one named `depth`,
            or an EXR's `Z`.

    Raises:
        DataError: The file cannot be read, has 8 bits or colour, or holds no single map of numbers.
    """
    suffix = path.suffix.lower()
    if suffix == ".exr":
        values = _load_exr(path, key)
    elif suffix in (".npy", ".npz"):
        values = _load_arrays(path, key)
    else:
        values = _load_picture(path)
    return _require_map(path, values)


def _load_picture(path: Path) -> Stored:
    with errors_named(path), _open(path) as image:
        mode, frames = image.mode, getattr(image, "n_frames", 1)
        if frames > 1:
            raise DataError(f"{path} holds {frames} pictures: a depth file holds one")
        if mode in ("1", "L", "P"):
            raise DataError(f"{path} has 8 bits a pixel, so 256 steps of depth at most: {_KEPT}")
        if not mode.startswith(_DEEP):
            raise DataError(f"{path} is a colour image ({mode}), and depth has one channel: {_KEPT}")
        image.load()
        return np.asarray(image)


def _open(path: Path) -> Image.Image:
    """Open a picture; of a TIFF that is whole, but of numbers that Pillow does not know, say so."""
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        with path.open("rb") as file:
            if file.read(4) not in _TIFF_HEADS:
                raise
        raise DataError(
            f"{path} is a TIFF of a kind that is not read, such as 16-bit or 64-bit floats: save it as 32-bit floats "
            "in metres, or as 16-bit whole numbers"
        ) from None


def _load_arrays(path: Path, key: str | None) -> Stored:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else _choose(path, dict(loaded), "arrays", key)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} is damaged, or no array of numbers ({error}): replace or remove it") from None


def _load_exr(path: Path, key: str | None) -> Stored:
    try:
        import OpenEXR
    except ImportError:
        raise DataError(f'{path} needs a reader of EXR: pip install "vision-plugin-framework[exr]"') from None
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            channels = {name: np.array(channel.pixels) for name, channel in file.channels().items()}
    except Exception as error:  # its own errors have no common type
        raise DataError(f"{path} is damaged, or no EXR ({error}): replace or remove it") from None
    maps = list(channels.values())
    if key is None and set(channels) <= {"R", "G", "B", "A"} and len(maps) > 1:  # Blender repeats depth in R, G and B
        grey = [channels[name] for name in ("R", "G", "B") if name in channels]
        if not all(np.array_equal(grey[0], other, equal_nan=True) for other in grey):
            raise DataError(f"{path} is a colour image (R, G and B differ), and depth has one channel: {_KEPT}")
        return np.asarray(grey[0])
    return _choose(path, channels, "channels", key)


def _choose(path: Path, arrays: dict[str, Stored], kind: str, key: str | None) -> Stored:
    """Return the array that holds depth."""
    if key is not None and key not in arrays:
        raise DataError(f"{path} has no '{key}' among its {kind}; {suggest(key, arrays)}".rstrip("; "))
    if key is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    chosen = key or next((name for name in _USUAL if name in arrays), None)
    if chosen is None:
        raise DataError(f"{path} has {len(arrays)} {kind}, {', '.join(arrays)}: say which is depth by data.depth_key")
    return arrays[chosen]


def _require_map(path: Path, values: Stored) -> Stored:
    """Return values as (H, W), refusing what is none."""
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2 or not values.size:
        raise DataError(f"{path} is {tuple(values.shape)}, no map of depth (height, width)")
    if values.dtype.kind not in "iuf":
        raise DataError(f"{path} holds {values.dtype}, no numbers: {_KEPT}")
    if values.dtype.itemsize == 1:
        raise DataError(f"{path} has 8 bits a pixel, so 256 steps of depth at most: {_KEPT}")
    return values
