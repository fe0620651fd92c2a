"""Decoding: any image or mask file to integers, or an error that names the file."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from framework.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".jp2")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def list_images(folder: Path) -> list[Path]:
    """Return the image files in a folder, sorted by name; hidden files are passed over."""
    files = sorted(folder.iterdir())
    return [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")]


def images_to_predict(folder: Path) -> list[Path]:
    """Return the image files in a folder as `list_images` does.

    Raises:
        DataError: There is none.
    """
    found = list_images(folder)
    if not found:
        raise DataError(
            f"data.predict_dir: {folder} has no image (a file that ends in {', '.join(IMAGE_SUFFIXES)}); folders "
            "inside it are not searched"
        )
    return found


def find_images(folder: Path) -> dict[str, Path]:
    """Map file stems to image files in a folder, sorted by name; hidden files are passed over.

    Raises:
        DataError: Two images share a stem, so that a mask could belong to either.
    """
    found: dict[str, Path] = {}
    for path in list_images(folder):
        if path.stem in found:
            raise DataError(f"{path} and {found[path.stem].name} share a name: keep one, or rename it and its mask")
        found[path.stem] = path
    return found


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return what to call each file of a folder: its stem, or its whole name where another file has the same stem."""
    stems = Counter(path.stem for path in paths)
    names = [path.stem if stems[path.stem] == 1 else path.name for path in paths]
    return names if len(set(names)) == len(names) else [path.name for path in paths]


class Decoded(NamedTuple):
    """A decoded file.

    Args:
        picture: As it is to be seen, perhaps at a fraction of its size.
        size: Its (height, width) in full.
        deep: Whether the file has more than 8 bits a channel, which Pillow may have cut.
        lossy: Whether it is a JPEG.
    """

    picture: Image.Image
    size: tuple[int, int]
    deep: bool
    lossy: bool


def decode(path: Path, at_least: int | None = None, content: bytes | None = None) -> Decoded:
    """Decode a whole file with its EXIF rotation applied.

    Pillow, because torchvision's decoder crashes the process on a damaged PNG.

    Args:
        path: The file.
        at_least: Shorter side that will be needed: a much larger JPEG is decoded at a half, quarter or eighth, the
            smallest of those that divide both sides.
        content: The file's bytes, where they do not lie at `path`, which then only names them.

    Raises:
        DataError: The file is missing, empty, truncated, no image, or animated.
    """
    with errors_named(path, content):
        image = Image.open(path if content is None else BytesIO(content))
        if image.format == "GIF" and getattr(image, "n_frames", 1) > 1:
            raise DataError(f"{path} is animated: save the frame that is meant as an image of its own")
        width, height = image.size
        if at_least is not None and image.format == "JPEG":
            divisor = _divisor(image.size, at_least)
            image.draft(None, (width // divisor, height // divisor))
        rotated = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # by a quarter turn
        image.load()
    full = (width, height) if rotated else (height, width)
    return Decoded(ImageOps.exif_transpose(image), full, _is_deep(path, image, content), image.format == "JPEG")


@contextmanager
def errors_named(path: Path, content: bytes | None = None) -> Iterator[None]:
    """Turn what Pillow raises as it decodes into an error that names the file.

    Args:
        path: The file.
        content: The file's bytes, where they do not lie at `path`.

    Raises:
        DataError: The file is missing, empty, damaged, or no image.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except UnidentifiedImageError:
        size = path.stat().st_size if content is None else len(content)
        what = "is empty (0 bytes)" if size == 0 else f"is no image that Pillow can read ({size} bytes)"
        raise DataError(f"{path} {what}: replace or remove it") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is larger than Pillow allows ({error}): cut it into tiles") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): replace or remove it") from None


def _divisor(size: tuple[int, int], at_least: int) -> int:
    """Return by how much a JPEG of a size can be divided as it is decoded, so that `at_least` is left.

    Of a side of 1601 pixels, an eighth would be 201, which show 1608: what is at the far edge would move by 7 pixels.
    """
    exact = (by for by in (8, 4, 2) if not any(side % by for side in size) and min(size) >= at_least * by)
    return next(exact, 1)


def _is_deep(path: Path, image: Image.Image, content: bytes | None) -> bool:
    if image.format == "PNG":
        with path.open("rb") if content is None else BytesIO(content) as file:
            return file.read(25)[24] > 8  # the header's bit depth
    bits = getattr(image, "tag_v2", {}).get(258, 8)  # a TIFF's BitsPerSample
    return image.mode.startswith(("I", "F")) or max(bits if isinstance(bits, tuple) else (bits,)) > 8


class Pixels(NamedTuple):
    """An image as uint8 (H, W, channels), and its (height, width) as stored."""

    values: NDArray[np.uint8]
    size: tuple[int, int]


def read_image(path: Path, channels: int = 3, at_least: int | None = None, content: bytes | None = None) -> Pixels:
    """Read an image file, or one whose bytes are given.

    Grey is repeated to RGB, alpha is dropped, palettes and CMYK become RGB.

    Raises:
        DataError: The file cannot be read, or has more than 8 bits a channel, which would be clipped silently.
    """
    image, size, deep, _ = decode(path, at_least, content)
    if deep:
        raise DataError(
            f"{path} has more than 8 bits a channel (mode {image.mode}): convert it to 8 bits with a range you choose"
        )
    if channels not in _MODES:
        raise DataError(f"{path}: an image file gives 1, 3 or 4 channels, not {channels}: set channels")
    values = np.array(image.convert(_MODES[channels]))  # a copy: torch wants it writable
    return Pixels(values if values.ndim == 3 else values[..., None], size)


def read_grey16(path: Path) -> NDArray[np.uint16]:
    """Read a 16-bit grey image as stored, (H, W)."""
    return np.asarray(decode(path).picture).astype(np.uint16)


class MaskTable:
    """What the values in mask files mean.

    Args:
        values: Per class, the grey value (an int) or the colour (r, g, b) that stands for it in the files;
            None: index masks, the value is the class.
        ignore: Values that stand for "do not count", likewise.
        num_classes: Number of classes.
        ignore_index: The class index given to ignored pixels.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int,
        values: list[int | tuple[int, int, int]] | None = None,
        ignore: list[int | tuple[int, int, int]] | None = None,
    ) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.coloured = values is not None and any(isinstance(value, tuple) for value in values)
        pairs = [(value, index) for index, value in enumerate(values or [])]
        pairs += [(value, ignore_index) for value in ignore or []]
        self.lookup = {self._code(value): index for value, index in pairs}

    @staticmethod
    def _code(value: int | tuple[int, int, int]) -> int:
        return value if isinstance(value, int) else value[0] << 16 | value[1] << 8 | value[2]

    def read(self, path: Path) -> NDArray[np.uint8]:
        """Read a mask file as class indices, uint8 (H, W), ignored pixels as `ignore_index`.

        Raises:
            DataError: The file cannot be read, or holds a value that is no class.
        """
        image, _, _, lossy = decode(path)
        if lossy:
            raise DataError(f"{path} is a JPEG, which changes values along every edge: save masks as PNG")
        if self.coloured:
            red, green, blue = (np.asarray(band, dtype=np.uint32) for band in image.convert("RGB").split())
            stored = red << 16 | green << 8 | blue
        elif image.mode in ("1", "L", "P") or image.mode.startswith("I"):
            stored = np.asarray(image).astype(np.int64)
        else:
            raise DataError(
                f"{path} is a colour mask (mode {image.mode}), but the classes have no colours: "
                "save it as an index mask, or write `name = R G B` lines in classes.txt"
            )
        return self._to_classes(stored, path)

    def _to_classes(self, stored: NDArray[np.integer], path: Path) -> NDArray[np.uint8]:
        present, inverse = np.unique(stored, return_inverse=True)
        classes = np.empty(len(present), dtype=np.uint8)
        wrong = []
        for i, value in enumerate(present.tolist()):
            index = self.lookup.get(value) if self.lookup else value
            if index is None or not (0 <= index < self.num_classes or index == self.ignore_index):
                wrong.append(value)
            else:
                classes[i] = index
        if wrong:
            raise DataError(self._explain(wrong, stored, path))
        return classes[inverse].reshape(stored.shape)

    def _explain(self, wrong: list[int], stored: NDArray[np.integer], path: Path) -> str:
        pixels = int(np.isin(stored, wrong).sum())
        shown = [f"#{value:06x}" if self.coloured else str(value) for value in wrong[:5]]
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        if self.lookup:
            fix = "add them to classes.txt (a line `ignore = ...` leaves pixels out)"
        else:
            fix = f"values must be 0 to {self.num_classes - 1}, or {self.ignore_index} for pixels to ignore"
        return f"{path}: {pixels} pixels have values that are no class: {', '.join(shown)}{more}; {fix}"
