import numpy as np
import pytest
from PIL import Image

from framework.data.seven_scenes import SevenScenes
from framework.errors import ConfigError, DataError


def write_scene(root, name, train=(1, 3), test=(2,), frames=2):
    """Sequences of frames whose depth in millimetres tells sequence and frame, 65535 in the first row."""
    for part, numbers in (("Train", train), ("Test", test)):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / f"{part}Split.txt").write_text("".join(f"sequence{number}\n" for number in numbers))
        for number in numbers:
            folder = root / name / f"seq-{number:02d}"
            folder.mkdir()
            for frame in range(frames):
                stored = np.full((12, 16), 1000 * number + frame, np.uint16)
                stored[0] = 65535
                Image.fromarray(np.full((12, 16, 3), 20 * number, np.uint8)).save(
                    folder / f"frame-{frame:06d}.color.png"
                )
                Image.fromarray(stored).save(folder / f"frame-{frame:06d}.depth.png")
                (folder / f"frame-{frame:06d}.pose.txt").write_text("1 0 0 0\n")
    return root


def options(**more):
    return {"num_workers": 0, "batch_size": 1, "check": False, **more}


def test_frames_of_all_scenes_are_read_as_written(tmp_path):
    write_scene(write_scene(tmp_path, "chess"), "fire", train=(4,), test=(1,), frames=3)
    data = SevenScenes(str(tmp_path), depth_range=(0.001, 100.0), **options())
    assert data.counts == {"train": 7, "val": 5}
    found = {}
    for samples in data.splits().values():
        for index in range(len(samples)):
            sample = samples.read(index)
            found[sample["id"]] = sample["image"].unique().item(), sample["depth"][1:].unique().item()
            assert sample["depth"][0].max() == 0  # 65535 is no reading, however far the range goes
            assert sample["intrinsics"].tolist() == [[585, 0, 320], [0, 585, 240], [0, 0, 1]]
    want = {f"chess/seq-{n:02d}/frame-{f:06d}": (20 * n, n + f / 1000) for n in (1, 2, 3) for f in range(2)}
    want |= {f"fire/seq-{n:02d}/frame-{f:06d}": (20 * n, n + f / 1000) for n in (1, 4) for f in range(3)}
    assert set(found) == set(want)
    for name, values in want.items():
        assert found[name] == pytest.approx(values)


def test_scenes_strides_and_held_out_sequences(tmp_path):
    write_scene(write_scene(tmp_path, "chess"), "fire")
    assert SevenScenes(str(tmp_path), scenes=["fire"], stride=2, **options()).counts == {"train": 2, "val": 1}
    assert SevenScenes(str(tmp_path / "chess"), **options()).counts == {"train": 4, "val": 2}  # a scene's own folder
    data = SevenScenes(str(tmp_path), val_fraction=0.5, **options())
    groups = {name: set(samples.groups) for name, samples in data.splits().items()}
    assert groups["train"] | groups["val"] == {"chess/seq-01", "chess/seq-03", "fire/seq-01", "fire/seq-03"}
    assert (len(groups["val"]), groups["train"] & groups["val"]) == (2, set())
    assert groups["test"] == {"chess/seq-02", "fire/seq-02"}


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"has no TrainSplit\.txt"):
        SevenScenes(str(tmp_path), **options())
    write_scene(tmp_path, "chess")
    with pytest.raises(ConfigError, match=r"data\.scenes: .*no scene ches; did you mean 'chess'"):
        SevenScenes(str(tmp_path), scenes=["ches"], **options())
    (tmp_path / "chess/seq-03/frame-000001.depth.png").unlink()
    with pytest.raises(DataError, match=r"there is no .*seq-03/frame-000001\.depth\.png"):
        SevenScenes(str(tmp_path), **options()).splits()
    (tmp_path / "chess/TestSplit.txt").write_text("sequence7\n")
    (tmp_path / "chess/TrainSplit.txt").write_text("sequence1\n")
    with pytest.raises(DataError, match=r"seq-07 is missing"):
        SevenScenes(str(tmp_path), **options()).splits()
    (tmp_path / "chess/TestSplit.txt").write_text("the second\n")
    with pytest.raises(DataError, match=r"TestSplit\.txt has a line 'the'"):
        SevenScenes(str(tmp_path), **options()).splits()
