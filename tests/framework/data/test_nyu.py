import pickle
import sys

import numpy as np
import pytest
import torch

from framework.data.nyu import NYUv2
from framework.data.window import FixedCrop
from framework.errors import ConfigError, DataError
from tests.folders import depth_frame, write_nyu


@pytest.fixture
def cache(tmp_path_factory):
    return {"check_cache": str(tmp_path_factory.mktemp("cache")), "num_workers": 0, "batch_size": 2}


def ids(data):
    return {
        name: [samples.read(index)["id"] for index in range(len(samples))] for name, samples in data.splits().items()
    }


def test_bts_lists_are_read_as_written(tmp_path, cache):
    data = NYUv2(str(write_nyu(tmp_path)), **cache)
    assert data.depth_range == (0.001, 10.0)
    assert data.counts == {"train": 6, "val": 3}  # validation is the test split, which is then not there twice
    assert data.check_files() == []
    samples = data.splits()["train"]
    for number in range(6):
        sample = samples.read(number)
        want = np.round(1000 * depth_frame(number)[1]) / 1000
        want[:6, :8] = 0
        assert torch.allclose(sample["depth"], torch.from_numpy(want), atol=1e-6)
        assert sample["image"].shape == (3, 48, 64)
        assert abs(sample["image"].float().mean() - depth_frame(number)[0].mean()) < 3
        assert np.allclose(sample["intrinsics"].diagonal(), [518.8579, 519.4696, 1])
    assert samples.read(3)["id"] == "office_0001b_00003"
    assert data.splits()["val"].read(0)["id"] == "kitchen_0003a_00006"
    batch = next(iter(data.train_dataloader()))
    assert (batch["depth"].dtype, batch["depth"].shape) == (torch.float32, (2, 48, 64))


def test_val_fraction_holds_out_whole_places_of_the_training_images(tmp_path, cache):
    root = str(write_nyu(tmp_path))
    found = ids(NYUv2(root, val_fraction=0.3, **cache))
    places = {split: {name.split("_")[1][:4] for name in names} for split, names in found.items()}
    assert places["train"] | places["val"] == {"0000", "0001", "0002"}
    assert len(places["val"]) == 1
    assert not places["train"] & places["val"]
    assert len(found["test"]) == 3
    assert found == ids(NYUv2(root, val_fraction=0.3, seed=5, **cache))


def test_lists_of_ones_own_and_lines_without_depth(tmp_path, cache):
    root = write_nyu(tmp_path)
    lines = (root / "nyudepthv2_train_files_with_gt.txt").read_text().splitlines()
    (root / "few.txt").write_text("\n".join([lines[2], lines[0].split()[0] + " None 518.8579", lines[1]]))
    data = NYUv2(str(root), train_list="few.txt", **cache)
    assert ids(data)["train"] == ["office_0001a_00002", "office_0000b_00001"]
    assert any("1 of 3 images have no depth" in warning for warning in data.check_files())


def test_official_splits_need_no_lists(tmp_path, cache):
    root = write_nyu(tmp_path)
    (root / "sync").rename(root / "official_splits" / "train")
    for path in root.glob("*.txt"):
        path.unlink()
    found = ids(NYUv2(str(root), **cache))
    assert found["train"] == [f"office_000{n // 2}{'ab'[n % 2]}_0000{n}" for n in range(6)]
    assert len(found["val"]) == 3


def test_the_border_is_cut_off_before_anything_else_and_in_training_alone(tmp_path, cache):
    options = {**cache, "rotation": 2.5, "crop_size": (8, 8)}
    data = NYUv2(str(write_nyu(tmp_path)), border="cut", **options)
    kinds = [type(transform) for transform in data.default_transforms()]
    assert kinds[0] is FixedCrop
    assert kinds[1:] == [type(transform) for transform in NYUv2(str(data.root), **options).default_transforms()]
    samples = data.splits()["train"]
    image, depth = data.default_transforms()[0](samples.read(0)["image"], samples.read(0)["depth"])
    height, width = samples.read(0)["original_size"]
    rows = round(472 / 480 * height) - round(45 / 480 * height)
    columns = round(608 / 640 * width) - round(43 / 640 * width)
    assert image.shape[-2:] == depth.shape == (rows, columns)
    batch = next(iter(data.val_dataloader()))
    assert batch["size"][0] == batch["original_size"][0]


def test_what_is_missing_is_said_at_once(tmp_path, cache):
    with pytest.raises(ConfigError, match="does not exist"):
        NYUv2(str(tmp_path / "nowhere"), **cache)
    with pytest.raises(
        ConfigError, match=r"nyudepthv2_train_files_with_gt\.txt .*official_splits.*nyu_depth_v2_labeled"
    ):
        NYUv2(str(tmp_path), **cache)
    root = write_nyu(tmp_path / "nyu")
    with pytest.raises(ConfigError, match=f"did you mean {root}"):
        NYUv2(str(tmp_path), **cache)
    with pytest.raises(ConfigError, match=r"data\.train_list: .*mine\.txt"):
        NYUv2(str(root), train_list="mine.txt", **cache).splits()
    (root / "sync/office_0000a/rgb_00000.jpg").unlink()
    (root / "sync/office_0002b/sync_depth_00005.png").unlink()
    with pytest.raises(
        DataError, match=r"(?s)2 missing files.*gt\.txt:1: .*rgb_00000\.jpg.*gt\.txt:6: .*depth_00005\.png"
    ):
        NYUv2(str(root), **cache).splits()
    (root / "broken.txt").write_text("a.jpg\nb.jpg b.png 1\nc d e f\n")
    with pytest.raises(DataError, match=r"(?s)2 wrong lines.*broken\.txt:1: .*broken\.txt:3: "):
        NYUv2(str(root), train_list=str(root / "broken.txt"), **cache).splits()


# The labelled .mat file: HDF5 as MATLAB writes it, with all axes the other way round.


def write_mat(path, count=6, size=(24, 32), raw=True):
    h5py = pytest.importorskip("h5py")
    images, depths = zip(*(depth_frame(number, size) for number in range(count)), strict=True)
    with h5py.File(path / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = np.stack(images).transpose(0, 3, 2, 1)
        file["depths"] = np.stack(depths).transpose(0, 2, 1)
        if raw:
            holes = np.stack(depths)
            holes[:, :4] = 0
            file["rawDepths"] = holes.transpose(0, 2, 1)
        names = file.create_dataset("scenes", (1, count), dtype=h5py.ref_dtype)
        for number in range(count):
            name = np.frombuffer(f"den_000{number // 2}{'ab'[number % 2]}".encode(), np.uint8)
            file[f"#refs#/{number}"] = name.astype(np.uint16)[:, None]
            names[0, number] = file[f"#refs#/{number}"].ref
    from scipy.io import savemat

    train, test = np.array([[1], [2], [4], [5]]), np.array([[3], [6]])
    savemat(path / "splits.mat", {"trainNdxs": train.astype(np.uint16), "testNdxs": test.astype(np.uint16)})
    return path, images, depths


def test_the_labelled_file_is_read_as_matlab_means_it(tmp_path, cache):
    root, images, depths = write_mat(tmp_path)
    data = NYUv2(str(root), **cache)
    assert ids(data) == {"train": ["0001", "0002", "0004", "0005"], "val": ["0003", "0006"]}
    assert data.check_files() == []
    for samples in (data.splits()["train"], pickle.loads(pickle.dumps(data.splits()["train"]))):  # as a worker has it
        sample = samples.read(2)
        assert np.array_equal(sample["image"].permute(1, 2, 0), images[3])
        assert np.array_equal(sample["depth"][4:], depths[3][4:])
        assert sample["depth"][:4].max() == 0
        assert sample["original_size"] == (24, 32)
    filled = NYUv2(str(root / "nyu_depth_v2_labeled.mat"), mat_depth="filled", **cache)
    assert np.array_equal(filled.splits()["val"].read(1)["depth"], depths[5])
    held_out = ids(NYUv2(str(root), val_fraction=0.4, **cache))
    assert held_out["test"] == ["0003", "0006"]
    place = {"0001": 0, "0002": 0, "0004": 1, "0005": 2}
    assert not {place[name] for name in held_out["train"]} & {place[name] for name in held_out["val"]}


def test_workers_open_the_labelled_file_for_themselves(tmp_path, cache):
    root, images, _ = write_mat(tmp_path)
    data = NYUv2(str(root), **cache | {"num_workers": 2, "batch_size": 1})
    data.splits()["val"].read(0)  # opened here, before the workers are started
    found = [batch["image"][0].permute(1, 2, 0).numpy() for batch in data.val_dataloader()]
    assert all(np.array_equal(image, images[number]) for image, number in zip(found, (2, 5), strict=True))


def test_numbers_a_line_and_a_file_without_raw_depth(tmp_path, cache):
    root, _, depths = write_mat(tmp_path, raw=False)
    (root / "splits.mat").unlink()
    with pytest.raises(ConfigError, match=r"splits\.mat is missing"):
        NYUv2(str(root), **cache).splits()
    (root / "a.txt").write_text("2\n6\n")
    (root / "b.txt").write_text("7\n")
    numbers = {"train_list": str(root / "a.txt"), "test_list": str(root / "b.txt")}
    with pytest.raises(DataError, match="names image 7, of 6"):
        NYUv2(str(root), **numbers, **cache).splits()
    (root / "b.txt").write_text("1\n")
    data = NYUv2(str(root), **numbers, **cache)
    assert np.array_equal(data.splits()["train"].read(1)["depth"], depths[5])
    assert any("has no rawDepths" in warning for warning in data.check_files())


def test_a_changed_labelled_file_is_checked_anew(tmp_path, cache):
    root, _, _ = write_mat(tmp_path)
    before = NYUv2(str(root), **cache).rules()
    assert NYUv2(str(root), **cache).rules() == before
    write_mat(tmp_path, count=7)
    assert NYUv2(str(root), **cache).rules() != before


def test_without_h5py_the_extra_is_named(tmp_path, cache, monkeypatch):
    root, _, _ = write_mat(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r'pip install "vision-plugin-framework\[nyu\]"'):
        NYUv2(str(root), **cache).splits()


def test_a_file_that_is_no_hdf5_is_named(tmp_path, cache):
    pytest.importorskip("h5py")
    (tmp_path / "nyu_depth_v2_labeled.mat").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"nyu_depth_v2_labeled\.mat is no MATLAB v7\.3 file"):
        NYUv2(str(tmp_path), **cache).splits()
