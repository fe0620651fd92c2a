"""When checkpoints are written, that at any instant a whole one is there, and what a full disk does."""

import errno
import os
import resource
import zipfile

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch.utils.data import DataLoader

from framework.errors import UserError
from framework.run import checkpoint_file, checkpoints
from framework.run.checkpoint_file import CheckpointFile, broken_record
from framework.run.checkpoints import Checkpoints
from framework.run.interruption import Interrupted, Interruption
from framework.run.unfinished_epoch import UnfinishedEpoch

SCORES = [0.3, 0.5, float("nan"), 0.4, 0.6]  # of the epochs


class Line(LightningModule):
    """A line that is said to be as good as `SCORES`."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, index):
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch))
        self.log("train/most", loss, on_step=False, on_epoch=True, reduce_fx="max", batch_size=1)
        return loss

    def validation_step(self, batch, index):
        self.log("val/score", torch.tensor(SCORES[self.current_epoch]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Events(Callback):
    """Notes what is on disk after each batch, validation and epoch."""

    def __init__(self, folder):
        self.folder, self.seen = folder, []

    def note(self, trainer):
        found = {p.stem: load(p)["global_step"] for p in sorted(self.folder.glob("*.ckpt"))}
        if not trainer.sanity_checking:
            self.seen.append(found)

    def on_train_batch_start(self, trainer, *_):
        self.note(trainer)

    def on_train_end(self, trainer, _):
        self.note(trainer)


def load(path):
    """Read a checkpoint."""
    return torch.load(path, weights_only=True)


@pytest.fixture
def fit(tmp_path):
    """Train; return the trainer, with what was on disk before each batch and at the end as `seen`."""

    def run(callbacks=(), checkpoint=None, io=None, interruption=None, **options):
        arguments = {name: options.pop(name) for name in ("minutes", "steps") if name in options}
        folder = tmp_path / "checkpoints"
        own = Checkpoints(folder, interruption or Interruption(), **arguments)
        events = Events(folder)
        trainer = Trainer(
            accelerator="cpu",
            logger=options.pop("logger", False),
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[events, UnfinishedEpoch(), *callbacks, own],
            plugins=[io or CheckpointFile()],
            **{"max_epochs": 2, "num_sanity_val_steps": 1, **options},
        )
        trainer.seen, trainer.own = events.seen, own
        torch.manual_seed(0)
        loaders = [DataLoader(torch.ones(6, 4), batch_size=2) for _ in range(2)]
        try:
            trainer.fit(Line(), *loaders, ckpt_path=checkpoint)
        except Interrupted as stop:
            trainer.stopped = stop
        return trainer

    return run


def test_the_last_two_epochs_and_the_best_are_kept(fit, tmp_path):
    trainer = fit(max_epochs=5)
    assert trainer.seen[3] == {"best": 3, "last": 3}
    assert trainer.seen[9] == {"best": 6, "last": 9, "previous": 6}  # NaN is no score
    assert trainer.seen[-1] == {"best": 15, "last": 15, "previous": 12}
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.suffix != ".ckpt"]
    assert trainer.own.best_model_path.endswith("best.ckpt")
    assert float(trainer.own.best_model_score) == pytest.approx(0.6)


def test_one_is_due_by_steps_but_never_within_a_window_of_accumulation(fit):
    trainer = fit(steps=1, accumulate_grad_batches=2, max_epochs=1)
    assert trainer.seen == [{}, {}, {"last": 1}, {"best": 2, "last": 2, "previous": 2}]


def test_one_is_due_by_the_clock(fit, monkeypatch):
    now = iter(range(0, 10_000, 25))
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: next(now))  # 25 seconds pass between two looks
    trainer = fit(minutes=1.0, max_epochs=1, limit_train_batches=6)
    assert [seen.get("last") for seen in trainer.seen] == [None, None, None, 3]
    trainer = fit(minutes=0.4, max_epochs=1)
    assert [seen.get("last") for seen in trainer.seen[1:3]] == [1, 2]


def test_nothing_is_written_by_a_trial_run(fit, tmp_path):
    fit(fast_dev_run=True)
    assert not (tmp_path / "checkpoints").exists()


def test_a_run_that_is_told_to_stop_saves_first(fit, tmp_path):
    interruption = Interruption()

    class Tell(Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 1:
                interruption.received = 15

    trainer = fit([Tell()], interruption=interruption)
    assert (trainer.stopped.code, trainer.stopped.saved) == (143, True)
    assert load(tmp_path / "checkpoints/last.ckpt")["global_step"] == 2


@pytest.mark.parametrize("stop", [("last.ckpt", 1), ("last.ckpt", 3), ("best.ckpt", 3)])
def test_the_figures_of_an_epoch_that_was_broken_off_are_those_of_a_whole_one(fit, tmp_path, stop):
    name, step = stop

    class Keep(Callback):
        def on_train_batch_start(self, trainer, *_):
            self.keep(trainer)

        def on_validation_start(self, trainer, _):
            self.keep(trainer)

        def on_train_epoch_end(self, trainer, _):
            self.keep(trainer)
            figures.append({k: float(v) for k, v in trainer.callback_metrics.items()})

        def keep(self, trainer):
            source = tmp_path / "checkpoints" / name
            if source.exists() and load(source)["global_step"] == step and not (tmp_path / "kept.ckpt").exists():
                (tmp_path / "kept.ckpt").write_bytes(source.read_bytes())

    figures = []
    fit([Keep()], steps=1, max_epochs=1)
    fit([Keep()], checkpoint=tmp_path / "kept.ckpt", max_epochs=1)
    assert len(figures) == 2
    assert figures[0] == figures[1]
    assert {"train/loss", "train/most", "val/score"} <= figures[0].keys()


def test_callbacks_and_plugins_of_the_user_keep_working(fit, tmp_path):
    theirs = ModelCheckpoint(tmp_path / "theirs", filename="{step}", every_n_train_steps=2, save_top_k=-1)
    fit([theirs])
    assert {path.name for path in (tmp_path / "theirs").iterdir()} == {"step=2.ckpt", "step=4.ckpt", "step=6.ckpt"}
    trainer = fit(io=AsyncCheckpointIO())
    trainer.strategy.checkpoint_io.teardown()
    assert [load(tmp_path / f"checkpoints/{name}.ckpt")["global_step"] for name in ("previous", "last")] == [3, 6]


# Files.


@pytest.fixture
def folder(tmp_path):
    """A folder with three checkpoints."""
    for name in ("best", "last", "previous"):
        CheckpointFile().save_checkpoint({"weights": torch.ones(1000), "name": name}, tmp_path / f"{name}.ckpt")
    return tmp_path


LARGE = {"weights": torch.rand(300_000), "empty": torch.zeros(0), "step": 3}


@pytest.fixture(params=["a full disk", "a limit of the system"])
def full(request, monkeypatch):
    """Let no file grow beyond half a megabyte."""
    if request.param == "a full disk":
        write = os.write

        def fail(descriptor, data):
            if os.fstat(descriptor).st_size + len(data) > 500_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(descriptor, data)

        monkeypatch.setattr("framework.run.checkpoint_file.os.write", fail)
        yield "No space left on device"
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
        yield "File too large"
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_and_the_best_as_they_were(folder, full):
    before = {name: (folder / name).read_bytes() for name in ("best.ckpt", "last.ckpt")}
    with pytest.raises(UserError, match=rf"last.ckpt cannot be written: {full}: it takes 120\d{{4}} bytes and \d+ are"):
        CheckpointFile().save_checkpoint(LARGE, folder / "last.ckpt")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("place", ["os.write", "_Stream.write"])  # within it, and before its first line
@pytest.mark.parametrize("moment", [1, 3])
def test_ctrl_c_while_a_checkpoint_is_written_is_ctrl_c(folder, monkeypatch, place, moment):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write, calls = os.write if place == "os.write" else checkpoint_file._Stream.write, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == moment:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(f"framework.run.checkpoint_file.{place}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        CheckpointFile().save_checkpoint(LARGE, folder / "last.ckpt")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_previous_one_makes_room(folder, monkeypatch):
    write = os.write

    def fail(descriptor, data):
        if (folder / "previous.ckpt").exists():
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return write(descriptor, data)

    monkeypatch.setattr("framework.run.checkpoint_file.os.write", fail)
    CheckpointFile().save_checkpoint(LARGE, folder / "last.ckpt")
    assert torch.equal(CheckpointFile().load_checkpoint(folder / "last.ckpt")["weights"], LARGE["weights"])
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt"}


def test_what_the_disk_garbles_is_noticed(folder, monkeypatch):
    write = os.write

    def garble(descriptor, data):
        data = bytes(data)
        return write(descriptor, data[:-1] + bytes([data[-1] ^ 1]) if len(data) > 100_000 else data)

    before = (folder / "last.ckpt").read_bytes()
    monkeypatch.setattr("framework.run.checkpoint_file.os.write", garble)
    with pytest.raises(UserError, match=r"last.ckpt: what was written does not read back"):
        CheckpointFile().save_checkpoint(LARGE, folder / "last.ckpt")
    assert (folder / "last.ckpt").read_bytes() == before
    assert len(list(folder.iterdir())) == 3


def test_what_would_not_load_again_takes_no_ones_place(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    state = {"state_dict": {"w": torch.ones(1)}, "callbacks": {"Mine": {"seen": [1, np.float64(3)]}}}
    with pytest.raises(UserError, match=r"callbacks\.Mine\.seen holds a numpy\.float64: a state may hold tensors"):
        CheckpointFile().save_checkpoint(state, folder / "last.ckpt")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_file_is_whole_or_said_not_to_be(folder):
    path = folder / "last.ckpt"
    data = path.read_bytes()
    assert broken_record(path) is None
    with zipfile.ZipFile(path) as records:
        offset = next(info.header_offset for info in records.infolist() if info.filename.endswith("data/0"))
    for content, reason in ((data[:-1], "not a zip"), (b"", "not a zip"), (data[: len(data) // 2], "not a zip")):
        path.write_bytes(content)
        assert reason in broken_record(path)
    damaged = bytearray(data)
    damaged[offset + 1000] ^= 1
    path.write_bytes(damaged)
    assert "data/0 is damaged" in broken_record(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"callback": print}, tmp_path / "x.ckpt")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        CheckpointFile().load_checkpoint(tmp_path / "x.ckpt")
