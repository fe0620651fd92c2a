"""Depth files of every format are read as metres, and what is wrong with them is said before training."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from framework.data.check import check_splits
from framework.data.depth_files import DepthFiles, DepthPair, read_depth
from framework.data.depth_spread import DepthSpread
from framework.errors import DataError

METRES = np.array([[0.5, 1.0, 2.25], [3.0, 0.0, 40.0]], np.float32)  # 0: no reading
MILLIMETRES = (METRES * 1000).astype(np.uint16)


def write_pfm(path):
    path.write_bytes(b"Pf\n3 2\n-1.0\n" + METRES[::-1].astype("<f4").tobytes())  # rows from the bottom up


def write_pgm(path):
    path.write_bytes(b"P5\n3 2\n65535\n" + MILLIMETRES.astype(">u2").tobytes())


def write_exr(path, channel="Z", kind=np.float32, others=()):
    exr = pytest.importorskip("OpenEXR")
    channels = {channel: METRES.astype(kind), **{name: np.ones_like(METRES) for name in others}}
    with exr.File({"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}, channels) as file:
        file.write(str(path))


FORMATS = {
    "16 bits.png": lambda path: Image.fromarray(MILLIMETRES).save(path),
    "16 bits.tif": lambda path: Image.fromarray(MILLIMETRES).save(path, compression="tiff_lzw"),
    "big-endian.tiff": lambda path: Image.fromarray(MILLIMETRES.astype(">u2")).save(path),
    "float.tif": lambda path: Image.fromarray(METRES).save(path, compression="tiff_adobe_deflate"),
    "float16.npy": lambda path: np.save(path, METRES.astype(np.float16)),
    "float64.npy": lambda path: np.save(path, METRES.astype(np.float64)[None]),
    "whole.npy": lambda path: np.save(path, MILLIMETRES.astype(np.int32)[..., None]),
    "one.npz": lambda path: np.savez_compressed(path, anything=METRES),
    "several.npz": lambda path: np.savez(path, depth=METRES, image=np.zeros((2, 3, 3))),
    "float.pfm": write_pfm,
    "16 bits.pgm": write_pgm,
    "z.exr": write_exr,
    "half with others.exr": lambda path: write_exr(path, kind=np.float16, others=("R", "G", "B")),
    "one channel.exr": lambda path: write_exr(path, "distance"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_as_metres(name):
    FORMATS[name](Path(name))
    depth = read_depth(Path(name))
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, METRES, rtol=1e-3 if "half" in name or "16.npy" in name else 1e-6)


def test_a_scale_is_how_many_stored_units_make_a_metre():
    Image.fromarray(np.array([[256, 5120]], np.uint16)).save("kitti.png")
    np.save("centimetres.npy", np.array([[150.0]], np.float32))
    assert read_depth(Path("kitti.png"), 256).tolist() == [[1, 20]]
    assert read_depth(Path("centimetres.npy"), 100).tolist() == [[1.5]]


def test_what_is_no_reading_is_0():
    np.save("floats.npy", np.array([[0, np.nan, np.inf, -np.inf, -1, 65535]], np.float64))
    Image.fromarray(np.array([[0, 65535, 65534]], np.uint16)).save("whole.png")
    assert read_depth(Path("floats.npy")).tolist() == [[0, 0, 0, 0, 0, 65535]]
    np.testing.assert_allclose(read_depth(Path("whole.png")), [[0, 0, 65.534]], rtol=1e-6)


def test_an_array_can_be_named():
    np.savez("two.npz", left=METRES, right=2 * METRES)
    np.testing.assert_array_equal(read_depth(Path("two.npz"), key="right"), 2 * METRES)
    with pytest.raises(DataError, match=r"two\.npz has 2 arrays, left, right: .* data\.depth_key"):
        read_depth(Path("two.npz"))
    with pytest.raises(DataError, match="no 'rigth' among its arrays; did you mean 'right'"):
        read_depth(Path("two.npz"), key="rigth")


def write_pages(path):
    Image.fromarray(METRES).save(path, save_all=True, append_images=[Image.fromarray(METRES)])


def write_double(path):
    fields = [(256, 1), (257, 1), (258, 64), (259, 1), (262, 1), (273, 110), (277, 1), (279, 8), (339, 3)]  # 1x1
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + b"\0\0\0\0" + struct.pack("<d", 2.5))


BAD = {
    "8 bits.png": (lambda path: Image.fromarray((METRES * 6).astype(np.uint8)).save(path), r"8 bits .* 256 steps"),
    "palette.png": (lambda path: Image.new("P", (3, 2)).save(path), "256 steps .* 16-bit PNG in millimetres"),
    "grey.jpg": (lambda path: Image.new("L", (3, 2)).save(path), "256 steps"),
    "bytes.npy": (lambda path: np.save(path, METRES.astype(np.uint8)), "256 steps"),
    "colour.png": (lambda path: Image.new("RGB", (3, 2)).save(path), r"colour image \(RGB\)"),
    "alpha.tif": (lambda path: Image.new("RGBA", (3, 2)).save(path), r"colour image \(RGBA\)"),
    "colour.exr": (lambda path: write_exr(path, "R", others=("G", "B")), "colour image"),
    "three.npy": (lambda path: np.save(path, np.zeros((2, 3, 3))), r"is \(2, 3, 3\), no map"),
    "text.npy": (lambda path: np.save(path, np.array([["a"]])), "holds <U1, no numbers"),
    "objects.npy": (lambda path: np.save(path, np.array([[{}]], object), allow_pickle=True), "damaged, or no array"),
    "pages.tif": (write_pages, "holds 2 pictures"),
    "double.tif": (lambda path: write_double(path), "TIFF of a kind that is not read, such as .* save it as 32-bit"),
    "no.tif": (lambda path: path.write_bytes(b"no picture"), "is no image that Pillow can read"),
    "cut.png": (lambda path: path.write_bytes(png_bytes()[:900]), "damaged"),
    "cut.npy": (lambda path: path.write_bytes(npy_bytes()[:-4]), "damaged"),
    "cut.npz": (lambda path: path.write_bytes(b"PK\x03\x04 no zip"), "damaged"),
    "cut.exr": (lambda path: path.write_bytes(struct.pack("<I", 20000630) + b"short"), "damaged, or no EXR"),
    "empty.png": (lambda path: path.write_bytes(b""), "empty"),
    **{f"missing{suffix}": (lambda path: None, "does not exist") for suffix in (".png", ".npy", ".exr")},
}


def png_bytes():
    Image.fromarray(np.random.default_rng(0).integers(0, 60000, (40, 40)).astype(np.uint16)).save("whole.png")
    return Path("whole.png").read_bytes()


def npy_bytes():
    np.save("whole.npy", METRES)
    return Path("whole.npy").read_bytes()


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_depth_is_refused_by_name(name):
    write, message = BAD[name]
    if name.endswith(".exr"):
        pytest.importorskip("OpenEXR")
    write(Path(name))
    with pytest.raises(DataError, match=message) as caught:
        read_depth(Path(name))
    assert name in str(caught.value)


def test_exr_without_its_reader_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    Path("a.exr").write_bytes(b"")
    with pytest.raises(DataError, match=r'a\.exr .* pip install "vision-plugin-framework\[exr\]"'):
        read_depth(Path("a.exr"))


# Splits.


def files(*depths, depth_range=(0.1, 10.0), scale=None, images=None, **options):
    """Depth files of arrays, whole numbers as PNG and floats as npy, with grey images of their size."""
    pairs = []
    for index, depth in enumerate(depths):
        image, path = Path(f"{index}.bmp"), Path(f"{index}d.{'png' if depth.dtype == np.uint16 else 'npy'}")
        (images or {}).get(index, Image.new("L", depth.shape[::-1])).save(image)
        np.save(path, depth) if path.suffix == ".npy" else Image.fromarray(depth).save(path)
        pairs.append(DepthPair(image, path, str(index)))
    return DepthFiles(pairs, 1, scale, depth_range, **options)


def verdict(samples, split="train"):
    """The warnings, or the error, of the data check."""
    try:
        return check_splits({split: samples}, "")
    except DataError as error:
        return str(error)


def test_samples_have_metres_within_the_range_and_the_camera():
    matrix = np.array([[50.0, 0, 1.5], [0, 50, 1], [0, 0, 1]])
    samples = files(MILLIMETRES, depth_range=(1.0, 3.0))
    samples.pairs[0] = samples.pairs[0]._replace(intrinsics=matrix)
    sample = samples.read(0)
    assert sample["depth"].tolist() == [[0, 1, 2.25], [3, 0, 0]]  # both ends count
    assert sample["original_size"] == (2, 3)
    np.testing.assert_array_equal(sample["intrinsics"], matrix)
    np.testing.assert_allclose(samples.depth(0), METRES, rtol=1e-6)  # as stored
    assert samples.sources(0) == ["0.bmp", "0d.png"]


def test_depth_of_another_size_is_refused_and_one_that_is_turned_is_explained():
    images = {0: Image.new("L", (3, 4)), 1: Image.new("L", (2, 3))}
    message = verdict(files(MILLIMETRES, MILLIMETRES, images=images))
    assert "0d.png is 3x2 but its image 0.bmp is 3x4: make them the same size" in message
    assert "1d.png is 3x2 but its image 1.bmp is 2x3 (turned by 90°: does the image carry an EXIF rotation?)" in message
    assert message.startswith("2 bad samples")


def test_negative_depth_is_refused_unless_one_value_stands_for_no_reading():
    behind = verdict(files(np.array([[-1.5, -2.0, 3.0]])))
    assert "0d.npy: 2 pixels are negative, from -2 to -1.5" in behind
    assert verdict(files(np.array([[-1.0, -1.0, 3.0]]))) == [
        "train: -1, the only negative value in 1 depth files, is taken for no reading"
    ]


def test_frames_without_a_reading_are_refused_in_training_and_named_elsewhere():
    blank, good = np.zeros((2, 3), np.uint16), MILLIMETRES
    message = verdict(files(good, blank, good, blank))
    assert "2 depth files (1d.png, 3d.png) hold no reading" in message
    [warning] = verdict(files(good, blank), "val")
    assert "1d.png holds no reading (0, NaN or infinite throughout): remove it and the image" in warning


@pytest.mark.parametrize(
    ("stored", "scale", "words"),
    [
        (np.array([[2134, 2134, 9000]], np.uint16), 1.0, "millimetres: data.depth_scale: 1000 (now 1)"),
        (np.array([[2134.0, 2134.0, 9000.0]]), None, "millimetres: data.depth_scale: 1000 (now 1)"),
        (np.array([[2.134, 2.134, 9.0]]), 1000.0, "metres: data.depth_scale: 1 (now 1000)"),
        (np.array([[2e6, 2e6, 9e6]]), None, "micrometres: data.depth_scale: 1000000 (now 1)"),
        (np.array([[5e8]]), None, "data.depth_scale is how many stored units make a metre (now 1)"),
    ],
)
def test_a_wrong_unit_is_noticed_with_the_likely_scale(stored, scale, words):
    [warning] = verdict(files(stored, scale=scale, depth_range=(1e-5, 1e10)))
    assert warning.startswith("train: half of the readings are ")
    assert warning.endswith(words)
    message = verdict(files(stored, scale=scale, depth_range=(0.1, 0.2)))  # of which nothing can be learned
    assert "no reading at all is within data.depth_range [0.1, 0.2] m" in message
    assert words in message


def test_a_median_that_is_credible_says_nothing_of_the_unit():
    for median in (0.011, 0.5, 990.0):
        assert verdict(files(np.array([[median]]), depth_range=(0.001, 1000.0))) == []


def test_many_readings_out_of_range_are_said_with_their_share():
    far = np.array([[1.0, 20.0, 30.0, 0.0]])
    [warning] = verdict(files(far))
    assert "67% of the readings are outside of data.depth_range [0.1, 10] m" in warning
    assert "the median is 20" in warning
    warnings = verdict(files(far, np.full((2, 2), 50.0)))
    assert any("1d.npy holds no reading within data.depth_range" in each for each in warnings)


def test_percentiles_over_many_maps_are_those_of_all_readings():
    rng = np.random.default_rng(0)
    maps = [rng.lognormal(1, 0.8, (40, 50)).astype(np.float32) * (rng.random((40, 50)) > 0.3) for _ in range(3)]
    spread = DepthSpread((1.0, 5.0))
    for each in maps:
        spread.add(each)
    known = np.concatenate([each[each > 0] for each in maps])
    assert (spread.pixels, spread.readings) == (6000, len(known))
    assert spread.inside == ((known >= 1) & (known <= 5)).sum()
    for share in (0.01, 0.5, 0.99):
        assert spread.quantile(share) == pytest.approx(np.quantile(known, share), rel=0.01)
    assert np.isnan(DepthSpread((1.0, 5.0)).quantile(0.5))
