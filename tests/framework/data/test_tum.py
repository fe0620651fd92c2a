import numpy as np
import pytest
from PIL import Image

from framework.data.tum import TUM, associate
from framework.errors import ConfigError, DataError


def write_sequence(root, name, times=(0.0, 0.033, 0.066), shifts=(0.004, -0.003, 0.005)):
    """Images and depth of 5000 steps a metre, named by their times, as the Kinect's two clocks give them."""
    folder = root / name
    for kind in ("rgb", "depth"):
        (folder / kind).mkdir(parents=True)
    lists = {"rgb": "# color images\n# timestamp filename\n", "depth": "# depth maps\n"}
    for number, (time, shift) in enumerate(zip(times, shifts, strict=True)):
        pixels = np.full((12, 16, 3), 10 * number, np.uint8)
        stored = np.full((12, 16), 5000 * (number + 1), np.uint16)
        stored[0] = 0
        for kind, values, at in (("rgb", pixels, time), ("depth", stored, time + shift)):
            file = f"{kind}/{1305031100 + at:.6f}.png"
            Image.fromarray(values).save(folder / file)
            lists[kind] += f"{1305031100 + at:.6f} {file}\n"
    for kind, text in lists.items():
        (folder / f"{kind}.txt").write_text(text)
    return folder


@pytest.fixture
def sequences(tmp_path):
    for name in ("freiburg1_desk", "freiburg2_xyz", "freiburg3_office"):
        write_sequence(tmp_path, f"rgbd_dataset_{name}")
    return tmp_path


def options(**more):
    return {"num_workers": 0, "batch_size": 1, "check": False, **more}


def test_images_get_the_depth_of_their_time(sequences):
    data = TUM(str(sequences), ["freiburg1_desk"], ["rgbd_dataset_freiburg2_xyz"], ["freiburg3_office"], **options())
    assert data.counts == {"train": 3, "val": 3, "test": 3}
    for samples, focal in zip(data.splits().values(), (517.3, 520.9, 535.4), strict=True):
        for number in range(3):
            sample = samples.read(number)
            assert sample["image"].unique().tolist() == [10 * number]
            assert sample["depth"][1:].unique().tolist() == [number + 1]
            assert sample["depth"][0].max() == 0
            assert sample["intrinsics"][0, 0] == np.float32(focal)
    assert data.splits()["val"].read(0)["id"] == "freiburg2_xyz/1305031100.000000"
    assert TUM(str(sequences), ["freiburg1_desk"], ["freiburg2_xyz"], stride=2, **options()).counts == {
        "train": 2,
        "val": 2,
    }


def greedy(first, second, limit):
    """The reference: all pairs near enough, nearest first, each time used once."""
    near = sorted((abs(a - b), i, j) for i, a in enumerate(first) for j, b in enumerate(second) if abs(a - b) < limit)
    pairs, left, right = [], set(), set()
    for _, i, j in near:
        if i not in left and j not in right:
            pairs.append((i, j))
            left.add(i)
            right.add(j)
    return sorted(pairs)


def test_association_is_the_nearest_first_and_uses_no_depth_twice():
    assert associate(np.array([0.0, 0.01]), np.array([0.009]), 0.02) == [(1, 0)]
    assert associate(np.array([1.0]), np.array([1.5]), 0.02) == []
    rng = np.random.default_rng(0)
    for limit in (0.005, 0.02, 0.2):
        first, second = np.sort(rng.random(60)), np.sort(rng.random(50))
        pairs = associate(first, second, limit)
        assert pairs == greedy(first.tolist(), second.tolist(), limit)
        assert 10 < len(pairs) <= 50


def test_wrong_sequences_are_refused_at_the_door(sequences):
    with pytest.raises(ConfigError, match=r"data\.val: .*freiburg2_xzy.*did you mean 'freiburg2_xyz'"):
        TUM(str(sequences), ["freiburg1_desk"], ["freiburg2_xzy"], **options())
    with pytest.raises(ConfigError, match="rgbd_dataset_freiburg1_desk is named twice"):
        TUM(str(sequences), ["freiburg1_desk"], ["rgbd_dataset_freiburg1_desk"], **options())
    with pytest.raises(ConfigError, match="is no folder"):
        TUM(str(sequences / "no"), ["freiburg1_desk"], ["freiburg2_xyz"], **options())


def test_wrong_lists_and_missing_files_are_named(sequences):
    folder = sequences / "rgbd_dataset_freiburg1_desk"
    data = TUM(str(sequences), ["freiburg1_desk"], ["freiburg2_xyz"], **options())
    with pytest.raises(DataError, match=r"within 1e-05 s of a depth map.*data\.max_difference"):
        TUM(str(sequences), ["freiburg1_desk"], ["freiburg2_xyz"], max_difference=1e-5, **options()).splits()
    next((folder / "depth").iterdir()).unlink()
    with pytest.raises(
        DataError, match=r"freiburg1_desk/rgb\.txt and depth\.txt: there is no .*depth/1305031100\.\d+\.png"
    ):
        data.splits()
    (folder / "rgb.txt").write_text("# t f\n1.0 a.png\nlater b.png\n2.0\n")
    with pytest.raises(DataError, match=r"(?s)2 wrong lines.*rgb\.txt:3: 'later b\.png'.*rgb\.txt:4: "):
        data.splits()
