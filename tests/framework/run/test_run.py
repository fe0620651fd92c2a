"""The run folder's part in checkpoints."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import EarlyStopping

from framework.errors import ConfigError
from framework.run.folder import ID_VARIABLE, ConfigInCheckpoint, RunFolder


@pytest.mark.parametrize("command", ["create", "enter"])
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("runs/x/a/checkpoints", "run.id: runs/x/a/checkpoints is no folder: remove it"),
        ("runs/x/a", "run.id: runs/x/a is no folder: remove it"),
        ("runs/x", "run.root: runs/x is no folder, so runs/x/a cannot be made"),
    ],
)
def test_a_file_in_place_of_a_folder_is_named(tmp_path, monkeypatch, command, file, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ID_VARIABLE, "a")  # put back afterwards
    Path(file).parent.mkdir(parents=True)
    Path(file).touch()
    with pytest.raises(ConfigError, match=message):
        getattr(RunFolder("x", id="a"), command)("model: {}\n")


def test_the_patience_given_now_wins_over_that_of_the_checkpoint():
    before, now = (EarlyStopping("val/score", patience=patience) for patience in (1, 99))
    before.wait_count = 1
    checkpoint = {"callbacks": {before.state_key: before.state_dict()}}
    ConfigInCheckpoint({}).on_load_checkpoint(SimpleNamespace(callbacks=[now]), None, checkpoint)
    now.load_state_dict(checkpoint["callbacks"][now.state_key])
    assert (now.patience, now.wait_count) == (99, 1)
