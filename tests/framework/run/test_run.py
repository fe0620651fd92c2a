"""The run folder's part in checkpoints."""

from types import SimpleNamespace

from lightning.pytorch.callbacks import EarlyStopping

from framework.run.folder import ConfigInCheckpoint


def test_the_patience_given_now_wins_over_that_of_the_checkpoint():
    before, now = (EarlyStopping("val/score", patience=patience) for patience in (1, 99))
    before.wait_count = 1
    checkpoint = {"callbacks": {before.state_key: before.state_dict()}}
    ConfigInCheckpoint({}).on_load_checkpoint(SimpleNamespace(callbacks=[now]), None, checkpoint)
    now.load_state_dict(checkpoint["callbacks"][now.state_key])
    assert (now.patience, now.wait_count) == (99, 1)
