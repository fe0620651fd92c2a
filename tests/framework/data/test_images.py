import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from framework.data.datamodule import ImageFiles
from framework.data.images import (
    MaskTable,
    distinct_names,
    find_images,
    images_to_predict,
    list_images,
    read_image,
)
from framework.errors import DataError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def save(path, array=COLOUR, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("RGB", "x.png"),
        ("L", "x.png"),
        ("RGBA", "x.png"),
        ("LA", "x.png"),
        ("P", "x.png"),
        ("1", "x.png"),
        ("CMYK", "x.jpg"),
        ("RGB", "x.webp"),
        ("RGB", "x.tiff"),
        ("RGB", "x.bmp"),
    ],
)
def test_every_mode_becomes_the_asked_channels(tmp_path, mode, name):
    path = save(tmp_path / name, mode=mode)
    for channels in (1, 3, 4):
        values, size = read_image(path, channels)
        assert values.shape == (20, 30, channels)
        assert values.dtype == np.uint8
        assert size == (20, 30)


def test_a_lossless_colour_image_is_read_exactly(tmp_path):
    assert np.array_equal(read_image(save(tmp_path / "x.png")).values, COLOUR)


def test_sixteen_bits_are_refused_rather_than_clipped(tmp_path):
    path = save(tmp_path / "x.png", RNG.integers(0, 65535, (8, 8), dtype=np.uint16))
    with pytest.raises(DataError, match="8 bits"):
        read_image(path)


def test_exif_rotation_is_applied_and_counts_in_the_size(tmp_path):
    image = Image.fromarray(COLOUR)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.jpg", exif=exif, quality=95)
    values, size = read_image(tmp_path / "x.jpg")
    assert values.shape[:2] == size == (30, 20)


def test_a_large_jpeg_is_decoded_at_a_fraction_but_keeps_its_size(tmp_path):
    save(tmp_path / "x.jpg", np.zeros((800, 1200, 3), np.uint8))
    values, size = read_image(tmp_path / "x.jpg", at_least=100)
    assert size == (800, 1200)
    assert values.shape == (100, 150, 3)


@pytest.mark.parametrize(
    ("size", "decoded"),
    [((1201, 1601), (1201, 1601)), ((1202, 1604), (601, 802)), ((1204, 1604), (301, 401)), ((1208, 1600), (151, 200))],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_an_edge_lies_where_it_was_in_a_jpeg_decoded_at_a_fraction(tmp_path, size, decoded, orientation):
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[:, : size[1] - 80] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.jpg", quality=97, subsampling=0, exif=exif)
    values, full = read_image(tmp_path / "x.jpg", at_least=120)
    turned = orientation == 6
    assert full == (size[::-1] if turned else size)
    assert values.shape[:2] == (decoded[::-1] if turned else decoded)
    profile = values[:, 50, 0] if turned else values[50, :, 0]
    assert profile.sum() / 255 * size[1] / len(profile) == pytest.approx(size[1] - 80, abs=0.5)


def damage(path, kind):
    data = bytearray(path.read_bytes())
    if kind == "empty":
        data = b""
    elif kind == "truncated":
        data = data[: len(data) // 2]
    elif kind == "html":
        data = b"<html>not found</html>"
    else:
        data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["empty", "truncated", "html", "flipped"])
def test_damaged_files_are_named(tmp_path, kind):
    path = save(tmp_path / "bad.png")
    damage(path, kind)
    with pytest.raises(DataError, match=r"bad\.png"):
        read_image(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nope\.png does not exist"):
        read_image(tmp_path / "nope.png")


def test_an_animation_is_refused(tmp_path):
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="animated"):
        read_image(tmp_path / "x.gif")


def test_two_images_of_one_name_are_refused(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="share a name"):
        find_images(tmp_path)


def test_images_without_masks_may_share_a_stem_and_are_called_by_their_whole_names(tmp_path):
    for name in ("a.png", "a.jpg", "b.png", ".hidden.png"):
        save(tmp_path / name)
    files = ImageFiles(list_images(tmp_path), 3, None)
    assert [files.read(index)["id"] for index in range(len(files))] == ["a.jpg", "a.png", "b"]
    save(tmp_path / "a.png.jpg")
    assert distinct_names(list_images(tmp_path)) == ["a.jpg", "a.png", "a.png.jpg", "b.png"]


CLASSES = RNG.integers(0, 3, (20, 30), dtype=np.uint8)


def palette_mask(path):
    image = Image.fromarray(CLASSES)
    image.putpalette(bytes(range(0, 256 * 3 % 256)) + bytes(768)[: 768 - (256 * 3 % 256)])
    image.save(path)
    return path


def test_index_and_palette_masks_hold_the_class(tmp_path):
    for path in (
        save(tmp_path / "l.png", CLASSES),
        palette_mask(tmp_path / "p.png"),
        save(tmp_path / "i.png", CLASSES.astype(np.uint16)),
    ):
        assert np.array_equal(MaskTable(3, 255).read(path), CLASSES)


def test_colour_and_grey_value_masks_go_through_the_table(tmp_path):
    colours = [(0, 0, 0), (128, 64, 128), (255, 255, 255)]
    path = save(tmp_path / "c.png", np.array(colours, np.uint8)[CLASSES])
    assert np.array_equal(MaskTable(3, 255, colours).read(path), CLASSES)
    ignoring = MaskTable(2, 255, colours[:2], ignore=[(255, 255, 255)]).read(path)
    assert np.array_equal(ignoring, np.where(CLASSES == 2, 255, CLASSES))
    binary = save(tmp_path / "b.png", np.where(CLASSES == 1, 255, 0).astype(np.uint8))
    assert np.array_equal(MaskTable(2, 254, [0, 255]).read(binary), CLASSES == 1)
    bits = save(tmp_path / "bits.png", np.where(CLASSES == 1, 255, 0).astype(np.uint8), mode="1")
    assert np.array_equal(MaskTable(2, 255).read(bits), CLASSES == 1)


def test_a_value_that_is_no_class_is_named_with_its_pixels(tmp_path):
    mask = CLASSES.copy()
    mask[0, :4] = 7
    with pytest.raises(DataError, match=r"bad\.png: 4 pixels have values that are no class: 7; values must be 0 to 2"):
        MaskTable(3, 255).read(save(tmp_path / "bad.png", mask))
    with pytest.raises(DataError, match="#804080"):
        MaskTable(2, 255, [(0, 0, 0), (1, 1, 1)]).read(
            save(tmp_path / "c.png", np.full((4, 4, 3), (128, 64, 128), np.uint8))
        )


def test_a_colour_mask_without_colours_says_what_to_write(tmp_path):
    with pytest.raises(DataError, match=r"name = R G B"):
        MaskTable(3, 255).read(save(tmp_path / "c.png"))


def sixteen_bit_rgb_png():
    """A 1x1 PNG of 16 bits a channel, chunk by chunk: Pillow writes none."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\x00" + struct.pack(">HHH", 4000, 300, 65535))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_sixteen_bit_colour_is_refused_too(tmp_path):
    (tmp_path / "x.png").write_bytes(sixteen_bit_rgb_png())
    with pytest.raises(DataError, match="8 bits"):
        read_image(tmp_path / "x.png")


def test_a_jpeg_is_no_mask(tmp_path):
    save(tmp_path / "x.jpg", CLASSES)
    with pytest.raises(DataError, match="JPEG"):
        MaskTable(3, 255).read(tmp_path / "x.jpg")


def test_a_folder_to_predict_without_images_is_named(tmp_path):
    (tmp_path / "inside").mkdir()
    path = save(tmp_path / "inside/a.png")
    with pytest.raises(DataError, match=rf"data.predict_dir: {tmp_path} has no image .* inside it are not searched"):
        images_to_predict(tmp_path)
    assert images_to_predict(tmp_path / "inside") == [path]
