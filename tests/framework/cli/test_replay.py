"""`framework replay`: what it takes and refuses; tests/framework/run/test_finite_loss.py replays steps of runs."""

from pathlib import Path

import pytest
import torch
import yaml

from framework.cli.main import main
from framework.run.bad_step import KEYS, plain, read_step, write_step
from tests.folders import write_mask_folder
from tests.tiny import Tiny

CONFIG = """
model:
  class_path: framework.tasks.segmentation.Segmentation
  init_args: {backbone: {class_path: tests.tiny.Tiny, init_args: {width: 4}}, head: LinearHead}
data: {class_path: MaskFolder, init_args: {root: set, crop_size: 16}}
run: {name: x}
"""


@pytest.fixture
def step(tmp_path):
    """Write a recorded step with some entries changed; returns the file."""
    write_mask_folder(tmp_path / "set", counts=(2, 1, 0), size=(20, 24))

    def write(**changes):
        record = dict.fromkeys(KEYS) | {"config": yaml.safe_load(CONFIG), "step": 7, "rank": 0}
        record |= {"class_names": ["class 0", "class 1", "class 2"], "state_dict": {}, "device": "cpu"}
        return write_step(record | changes, Path("nonfinite"), processes=1)

    return write


def refused(*arguments):
    return main(["replay", *map(str, arguments)]) == 2


def test_what_is_no_recorded_step_is_refused(tmp_path, capsys):
    assert refused("nothing.pt")
    assert "nothing.pt does not exist" in capsys.readouterr().err
    Path("torn.pt").write_bytes(b"PK\x03\x04 and no more")
    assert refused("torn.pt")
    assert "torn.pt is no whole file (16 bytes)" in capsys.readouterr().err
    torch.save({"state_dict": {}}, "last.ckpt")
    assert refused("last.ckpt")
    assert "last.ckpt is no recorded step (it lacks batch, " in capsys.readouterr().err


def test_a_step_runs_no_code_that_the_user_does_not_trust(step, capsys):
    assert refused(step())
    assert "add --trust tests if you trust it" in capsys.readouterr().err
    assert refused(step(config=yaml.safe_load(CONFIG) | {"plugins": ["mine.py"]}), "--trust", "tests")
    assert "add --plugins FILE" in capsys.readouterr().err


def test_a_step_of_another_data_set_or_network_is_refused(step, capsys):
    assert refused(step(class_names=["a", "b"]), "--trust", "tests")
    assert "recorded with the classes a, b, but the data has class 0, class 1, class 2" in capsys.readouterr().err
    assert refused(step(state_dict=Tiny().state_dict()), "--trust", "tests")
    assert "recorded with another network: Missing key(s)" in capsys.readouterr().err


def test_a_batch_is_written_as_plain_types(tmp_path):
    image = torch.ones(2, 3, requires_grad=True)
    batch = {"image": image, "size": [(2, 3)], "id": ["a"], "where": Path("b")}
    file = write_step(dict.fromkeys(KEYS) | {"batch": plain(batch), "step": 3, "rank": 1}, tmp_path, 2)
    assert file.name == "step_000003_rank1.pt"
    read = read_step(file)["batch"]
    assert torch.equal(read.pop("image"), image)
    assert read == {"size": [(2, 3)], "id": ["a"], "where": repr(Path("b"))}
