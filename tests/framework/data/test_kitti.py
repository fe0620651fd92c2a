import numpy as np
import pytest
from PIL import Image

from framework.data.kitti import KITTIEigen
from framework.errors import ConfigError, DataError

CALIBRATION = """calib_time: 09-Jan-2012 13:57:47
S_rect_02: {width} {height}
P_rect_02: 7.2e+02 0.0e+00 6.1e+02 4.4e+01 0.0e+00 7.1e+02 1.7e+02 2.1e-01 0.0e+00 0.0e+00 1.0e+00 2.7e-03
"""


def write_kitti(root, size=(40, 120), drives=(1, 1, 5, 9), test=(2, 2), raw="raw", merged=False):
    """Frames of raw recordings, sparse depth of 256 steps a metre, and BTS's lists, whose last test line has none."""
    rng = np.random.default_rng(0)
    written = {}
    for part, numbers in (("train", drives), ("test", test)):
        lines = []
        for frame, drive in enumerate(numbers):
            name = f"2011_09_26_drive_{drive:04d}_sync"
            image = root / raw / f"2011_09_26/{name}/image_02/data/{frame:010d}.png"
            inside = f"{name}/proj_depth/groundtruth/image_02/{frame:010d}.png"
            depth = root / "data_depth_annotated" / ("" if merged else "train" if part == "train" else "val") / inside
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            stored = np.where(rng.random(size) < 0.2, rng.integers(512, 20000, size), 0).astype(np.uint16)
            stored[-1, 0] = 84 * 256  # farther than counts
            for path, values in ((image, pixels), (depth, stored)):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path)
            lines.append(f"{image.relative_to(root / raw).as_posix()} {inside} 721.5377\n")
            written[f"{name}/{frame:010d}"] = pixels, stored
        (root / f"eigen_{part}_files_with_gt.txt").write_text("".join(lines))
    day = root / raw / "2011_09_26"
    (day / "calib_cam_to_cam.txt").write_text(CALIBRATION.format(height=size[0], width=size[1]))
    with (root / "eigen_test_files_with_gt.txt").open("a") as file:
        file.write("2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000077.png None 721.5377\n")
    return written


@pytest.fixture
def options(tmp_path_factory):
    return {"check_cache": str(tmp_path_factory.mktemp("cache")), "num_workers": 0, "batch_size": 2}


@pytest.mark.parametrize(("raw", "merged"), [("raw", False), (".", True)])
def test_images_and_sparse_depth_are_those_written(tmp_path, options, raw, merged):
    written = write_kitti(tmp_path, raw=raw, merged=merged)
    data = KITTIEigen(str(tmp_path), **options)
    assert (data.counts, data.depth_range) == ({"train": 4, "val": 2}, (0.001, 80.0))
    for samples in data.splits().values():
        for index in range(len(samples)):
            sample = samples.read(index)
            pixels, stored = written[sample["id"]]
            assert np.array_equal(sample["image"].permute(1, 2, 0), pixels)
            assert np.array_equal(sample["depth"], np.where(stored > 80 * 256, 0, stored / 256).astype(np.float32))
    assert np.allclose(sample["intrinsics"], [[720, 0, 610], [0, 710, 170], [0, 0, 1]])
    assert any("1 of 3 images have no depth" in warning for warning in data.check_files())


def test_kb_crop_keeps_the_middle_of_the_bottom(tmp_path, options):
    written = write_kitti(tmp_path, size=(360, 1225), drives=(1,), test=(2,))
    data = KITTIEigen(str(tmp_path), kb_crop=True, **options | {"batch_size": 1})
    sample = data.splits()["train"].read(0)
    pixels, stored = written[sample["id"]]
    assert np.array_equal(sample["image"].permute(1, 2, 0), pixels[8:, 4:1220])
    assert np.array_equal(sample["depth"] > 0, (stored > 0)[8:, 4:1220])
    assert np.allclose(sample["intrinsics"], [[720, 0, 606], [0, 710, 162], [0, 0, 1]])
    batch = next(iter(KITTIEigen(str(tmp_path), kb_crop=True, resize=88, **options).val_dataloader()))
    assert (batch["image"].shape[2:], batch["depth"].shape[1:]) == ((88, 304), (352, 1216))
    write_kitti(tmp_path / "small")
    with pytest.raises(DataError, match=r"(?s)120x40, too small for data\.kb_crop"):
        KITTIEigen(str(tmp_path / "small"), kb_crop=True, **options).check_files()


def test_val_fraction_holds_out_whole_drives(tmp_path, options):
    write_kitti(tmp_path)
    data = KITTIEigen(str(tmp_path), val_fraction=0.34, **options)
    drives = {name: set(samples.groups) for name, samples in data.splits().items()}
    assert len(drives["val"]) == 1
    assert not drives["train"] & drives["val"]
    assert sum(data.counts[name] for name in ("train", "val")) == 4
    assert data.counts["test"] == 2
    (tmp_path / "eigen_train_files_with_gt.txt").write_text(
        "".join((tmp_path / "eigen_train_files_with_gt.txt").read_text().splitlines(keepends=True)[:2])
    )
    with pytest.raises(DataError, match=r"a whole drive.*only 2011_09_26_drive_0001_sync"):
        KITTIEigen(str(tmp_path), val_fraction=0.34, **options).splits()


def test_what_is_missing_is_named(tmp_path, options):
    with pytest.raises(ConfigError, match="is no folder"):
        KITTIEigen(str(tmp_path / "kitti"), **options)
    with pytest.raises(ConfigError, match=r"data\.train_list: .*train_test_inputs/eigen_train_files_with_gt\.txt"):
        KITTIEigen(str(tmp_path), **options)
    write_kitti(tmp_path)
    lost = tmp_path / "data_depth_annotated/train/2011_09_26_drive_0005_sync"
    lost.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"eigen_train_files_with_gt\.txt:3: there is no .*drive_0005_sync/proj_depth"):
        KITTIEigen(str(tmp_path), **options).splits()
    (tmp_path / "raw").rename(tmp_path / "recordings")
    with pytest.raises(DataError, match=r"none of the images listed.*looked for .*raw_data"):
        KITTIEigen(str(tmp_path), **options).splits()
