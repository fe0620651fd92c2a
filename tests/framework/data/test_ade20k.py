import numpy as np
import pytest
import torch
from PIL import Image

from framework.data.ade20k import ADE20K
from framework.errors import ConfigError, DataError

HEADER = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"


def write(root, names=("a", "b"), values=(0, 1, 150)):
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (40, 30)).save(root / f"images/{split}/{name}.jpg")
            mask = np.resize(np.array(values, np.uint8), (30, 40))
            Image.fromarray(mask).save(root / f"annotations/{split}/{name}.png")
    return root


def data(root, **options):
    return ADE20K(str(root), **{"batch_size": 2, "num_workers": 0, "crop_size": 32, **options})


def test_0_does_not_count_and_1_is_the_first_class(tmp_path):
    module = data(write(tmp_path / "ade"))
    assert module.counts == {"train": 2, "val": 2}
    assert (module.num_classes, module.classes[0], module.classes[149]) == (150, "wall", "flag")
    assert (module.classes[53], module.classes[130]) == ("stairs", "screen")  # numbers 54 and 131 of the published list
    mask = module.splits()["val"].read(0)["mask"]
    assert mask.flatten()[:3].tolist() == [255, 0, 149]
    batch = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert batch["mask"].shape == (2, 32, 32)
    assert set(batch["mask"].unique().tolist()) == {255, 0, 149}
    assert batch["mask"].dtype == torch.long


def test_names_come_from_the_file_that_lies_beside(tmp_path):
    root = write(tmp_path / "ade")
    lines = [f"{number}\t0.1\t9\t1\t0\tname {number}, another one\n" for number in range(1, 151)]
    (root / "objectInfo150.txt").write_text(HEADER + "".join(lines))
    assert data(root).classes[149] == "name 150"
    (root / "objectInfo150.txt").write_text(HEADER + "".join(lines[1:]))
    with pytest.raises(DataError, match=r"line 2: .*would be number 1"):
        data(root)


def test_what_is_wrong_is_said_before_training(tmp_path):
    root = write(tmp_path / "set/ADEChallengeData2016", values=(0, 151))
    with pytest.raises(ConfigError, match=r"did you mean .*ADEChallengeData2016"):
        data(tmp_path / "set")
    with pytest.raises(ConfigError, match="unpack"):
        data(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no class: 151"):
        data(root, check_cache=str(tmp_path / "cache")).check_files()
    (root / "annotations/validation/b.png").unlink()
    with pytest.raises(DataError, match=r"no mask of the same name.*b\.jpg"):
        data(root).splits()
