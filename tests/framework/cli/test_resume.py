"""A run that died goes on by the same command, and ends with the bits of one that did not."""

import csv
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from framework.cli.main import main
from framework.cli.resume import choose_start, settle
from framework.data.loader import KeyedSamples
from framework.errors import ConfigError
from framework.run.checkpoint_file import CheckpointFile
from framework.run.folder import RunFolder
from framework.run.lock import lock_folder, release_locks
from framework.run.naming import launcher_id, start_id
from tests.folders import write_image_folder, write_mask_folder
from tests.stop import Crash

COMMON = """
trainer:
  max_epochs: 3
  accelerator: cpu
  callbacks+:
    - {class_path: EMA, init_args: {decay: 0.9}}
    - {class_path: tests.stop.Crash}
run: {checkpoint_steps: 1}
"""
SEGMENTATION = f"""
model:
  class_path: Segmentation
  init_args:
    backbone: {{class_path: tests.tiny.Tiny}}
    head: LinearHead
    optimizer: {{class_path: AdamW, init_args: {{lr: 0.01}}}}
data:
  class_path: MaskFolder
  init_args: {{root: set, crop_size: 32, batch_size: 2, num_workers: 0}}
{COMMON}"""
CLASSIFICATION = f"""
model:
  class_path: Classification
  init_args:
    backbone: {{class_path: tests.tiny.Tiny}}
    head: {{class_path: LinearClassifier, init_args: {{dropout: 0.2}}}}
    optimizer: {{class_path: AdamW, init_args: {{lr: 0.01}}}}
data:
  class_path: ImageFolder
  init_args:
    root: set
    image_size: 32
    batch_size: 4
    num_workers: 0
    progressive:
      class_path: Progressive
      init_args: {{image_size: [16, 24, 32], mixup: [0.1, 0.2, 0.4], dropout: [0.0, 0.1, 0.2], batch_size: [4, 6, 4]}}
{COMMON}"""


@pytest.fixture
def fit():
    """Run an experiment to its end, or until it crashes; return its folder."""

    def call(identity, *options, crash=None, code=0):
        Crash.at = crash
        arguments = ["--config", "x.yaml", "--trust", "tests", "--run.id", identity, *options]
        assert main(["fit", *arguments]) == (1 if crash else code)
        return Path("runs/x", identity)

    yield call
    Crash.at = None


@pytest.fixture
def segmentation():
    """Write the segmentation experiment and its data."""
    write_mask_folder(Path("set"))
    Path("x.yaml").write_text(SEGMENTATION)


@pytest.fixture
def four_batches():
    """Write the segmentation experiment, with four batches an epoch."""
    write_mask_folder(Path("set"), counts=(8, 2, 2))
    Path("x.yaml").write_text(SEGMENTATION)


@pytest.fixture
def classification():
    """Write the classification experiment and its data."""
    write_image_folder(Path("set"))
    Path("x.yaml").write_text(CLASSIFICATION)


def load(path):
    """Read a checkpoint."""
    return torch.load(path, weights_only=True)


def assert_equal(expected, found, place=""):
    """Compare nested tensors and plain values exactly."""
    if isinstance(expected, Tensor):
        assert torch.equal(expected, found), place
    elif isinstance(expected, dict):
        assert expected.keys() == found.keys(), place
        for key in expected:
            assert_equal(expected[key], found[key], f"{place}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(expected) == len(found), place
        for index, pair in enumerate(zip(expected, found, strict=True)):
            assert_equal(*pair, f"{place}.{index}")
    else:
        assert expected == found, place


def assert_same_run(expected, found):
    """Compare all that two runs leave behind."""
    for name in ("last.ckpt", "best.ckpt"):
        wanted, got = (load(folder / "checkpoints" / name) for folder in (expected, found))
        for key in ("state_dict", "ema", "optimizer_states", "lr_schedulers", "callbacks", "global_step", "epoch"):
            assert_equal(wanted[key], got[key], f"{name}.{key}")
    for name in ("metrics.csv", "metrics.json"):
        assert (expected / name).read_text() == (found / name).read_text()
    assert [p.name for p in sorted((expected / "pictures").iterdir())] == [
        p.name for p in sorted((found / "pictures").iterdir())
    ]


def test_a_run_that_crashed_again_and_again_ends_as_one_that_did_not(segmentation, fit, capsys):
    whole = fit("whole")
    for moment in (("validation", 2), ("epoch end", 2), ("step", 4)):
        folder = fit("broken", crash=moment)
    printed = capsys.readouterr().out
    assert "resume   runs/x/broken/checkpoints/last.ckpt: epoch 1, step 2" in printed
    assert "resume   runs/x/broken/checkpoints/best.ckpt: epoch 1, step 2" in printed
    last = folder / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    fit("broken", crash=("test", 6))
    printed = capsys.readouterr().out
    assert f"resume   {last} (5000 bytes) is broken, and now called last.ckpt.broken: File is not a zip file" in printed
    fit("broken")
    assert "already complete at epoch 3; raise trainer.max_epochs to go on" in capsys.readouterr().out
    assert_same_run(whole, folder)
    assert {path.name for path in folder.glob("config*")} == {"config.yaml"}
    left = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert left == ["best.ckpt", "last.ckpt", "last.ckpt.broken", "previous.ckpt"]


def test_stages_mixup_and_workers_go_on_exactly_and_nothing_is_read_twice(classification, fit, monkeypatch):
    alone = ["--data.num_workers", "0", "--trainer.num_sanity_val_steps", "0"]
    whole = fit("whole", *alone)
    read, get = Counter(), KeyedSamples.__getitem__
    monkeypatch.setattr(KeyedSamples, "__getitem__", lambda self, key: (read.update([key]), get(self, key))[1])
    fit("broken", *alone, crash=("step", 2))
    fit("broken", *alone, crash=("step", 5))
    folder = fit("broken", *alone)
    assert_same_run(whole, folder)
    trained = Counter({(key.index, key.epoch): count for key, count in read.items() if key.stage is not None})
    assert len(trained) == 4 * 4 + 3 * 6 + 4 * 4
    assert trained.total() - len(trained) == 4 + 6  # the batches that were in flight
    fit("several", "--data.num_workers", "2", crash=("step", 3))
    assert_same_run(whole, fit("several", "--data.num_workers", "2"))


def test_a_run_that_stopped_early_is_complete(segmentation, fit, capsys):
    options = ["--trainer.callbacks+=tests.stop.StopAfter", "--trainer.callbacks.epochs=1"]
    folder = fit("early", *options)
    weights = load(folder / "checkpoints/last.ckpt")
    fit("early", *options)
    assert "already complete at epoch 1: early stopping ended it; change its settings" in capsys.readouterr().out
    assert_equal(weights, load(folder / "checkpoints/last.ckpt"))


def epochs_of(folder):
    """Read the epochs and steps of a run's rows, and the steps of each epoch from its last checkpoint."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [(int(row["epoch"]), int(row["step"])) for row in csv.DictReader(file)]
    return rows, load(folder / "checkpoints/last.ckpt")["epoch_steps"]


def test_max_steps_counts_every_epoch_once(four_batches, fit):
    """A run that died at the end of an epoch, and one that its limit cut within one."""
    options = ["--trainer.max_epochs", "2", "--trainer.max_steps"]
    whole = fit("whole", *options, "8")
    fit("broken", *options, "8", crash=("step", 4))
    assert_same_run(whole, fit("broken", *options, "8"))
    assert epochs_of(fit("cut", *options, "3")) == ([(0, 3)], [3])
    assert epochs_of(fit("cut", *options, "8")) == ([(0, 3), (1, 7)], [3, 4])


def test_early_stopping_within_an_epoch_ends_it(four_batches, fit, capsys):
    stopping = (
        "{class_path: EarlyStopping, init_args: {monitor: val/score, mode: max, min_delta: 9, patience: %d, "
        "check_on_train_epoch_end: false}}"
    )
    options = ["--trainer.val_check_interval", "1", "--trainer.max_epochs", "2"]
    assert epochs_of(fit("early", *options, f"--trainer.callbacks+={stopping % 1}")) == ([(0, 2)], [2])
    capsys.readouterr()
    silent = ["--data.num_workers", "1", "--run.checkpoint_minutes", "5"]
    assert epochs_of(fit("early", *options, *silent, f"--trainer.callbacks+={stopping % 1}")) == ([(0, 2)], [2])
    assert "already complete at epoch 1" in capsys.readouterr().out
    assert epochs_of(fit("early", *options, f"--trainer.callbacks+={stopping % 99}")) == ([(0, 2), (1, 6)], [2, 4])


def test_the_best_within_an_accumulation_window_is_not_gone_on_from(four_batches, fit, capsys):
    options = ["--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "1"]
    options += ["--trainer.max_epochs", "1", "--run.checkpoint_steps", "null"]
    whole = fit("whole", *options)
    best = fit("broken", *options, crash=("validation", 1)) / "checkpoints/best.ckpt"
    assert load(best)["gradients_gathered"]
    capsys.readouterr()
    fit("other", *options, "--ckpt_path", str(best), code=2)
    assert "written between two optimizer steps" in capsys.readouterr().err
    assert_same_run(whole, fit("broken", *options))
    assert f"{best}, all there is, was written between two optimizer steps" in capsys.readouterr().out


def test_a_trial_leaves_the_folder_of_a_real_run_alone(four_batches, fit):
    folder = fit("real", "--trainer.max_epochs", "1")
    (folder / "config.yaml").write_text("a: [")  # somebody's slip
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    fit("real", "--trainer.fast_dev_run", "true", "--trainer.max_epochs", "2")
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed == {"config.yaml"}  # which could not be read
    assert not list(folder.glob("config.resume*"))


# Which one it is.


def write_checkpoint(run, name, step, processed=0, ready=1, age=0.0, **more):
    """Write a checkpoint that holds nothing but its place in the run."""
    epochs = {"current": {"processed": processed, "ready": ready}}
    content = {"state_dict": {}, "optimizer_states": [], "global_step": step, **more}
    path = run.checkpoints / name
    CheckpointFile().save_checkpoint({**content, "loops": {"fit_loop": {"epoch_progress": epochs}}}, path)
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture
def choose():
    """Choose where a run begins."""
    trainer = Trainer(accelerator="cpu", logger=False)

    def call(resume="auto", given=None, config=None, **where):
        run = RunFolder("x", **where)
        try:
            resume, given = settle(run, resume, given)
            return choose_start(run, trainer, resume, given, config)
        finally:
            release_locks()

    return call


def test_the_most_advanced_whole_checkpoint_is_taken(choose):
    run = RunFolder("x", id="a")
    assert choose(id="a").checkpoint is None
    previous = write_checkpoint(run, "previous.ckpt", 10)
    last = write_checkpoint(run, "last.ckpt", 12, processed=1)
    best = write_checkpoint(run, "best.ckpt", 12)
    assert choose(id="a").checkpoint == last
    write_checkpoint(run, "best.ckpt", 13)
    assert choose(id="a").checkpoint == best
    damaged = bytearray(best.read_bytes())
    damaged[damaged.index(b"global_step")] ^= 1
    best.write_bytes(damaged)
    last.write_bytes(b"")
    assert choose(id="a").checkpoint == previous
    assert {path.name for path in run.checkpoints.iterdir()} == {
        "previous.ckpt",
        "best.ckpt.broken",
        "last.ckpt.broken",
    }


def test_broken_checkpoints_alone_are_refused(choose):
    run = RunFolder("x", id="a")
    for name in ("last.ckpt", "best.ckpt"):
        whole = write_checkpoint(run, name, 3).read_bytes()
        (run.checkpoints / name).write_bytes(whole[:200])
    for resume in ("auto", "must"):
        with pytest.raises(
            ConfigError, match=r"best.ckpt \(200 bytes\): .*last.ckpt \(200 bytes\): .*delete them"
        ) as refused:
            choose(resume, id="a")
    assert len(str(refused.value)) < 600


def test_what_a_killed_process_left_behind_is_removed_once_nobody_works_there(choose):
    run = RunFolder("x", id="a")
    whole = write_checkpoint(run, "last.ckpt", 3)
    for left in (run.checkpoints / ".last.ckpt.1234.tmp", run.path / ".metrics.1234.tmp"):
        left.write_text("half of")
    note = {"host": "far", "pid": 12, "start": "2026-11-25T10:00:00"}
    with (run.path / ".lock").open("w") as lock:  # another process would have it
        lock.write(json.dumps(note))
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="runs/x/a is in use by process 12 on far since 2026-11-25T10:00:00"):
            choose(id="a")
    assert len(list(run.path.rglob(".*.tmp"))) == 2
    assert choose(id="a").checkpoint == whole
    assert not list(run.path.rglob(".*.tmp"))


def test_the_lock_is_free_once_its_process_is_gone(choose):
    run = RunFolder("x", id="a")
    write_checkpoint(run, "last.ckpt", 3)
    processes = multiprocessing.get_context("fork")
    here, there = processes.Pipe()

    def train():
        lock_folder(run.path)
        worker = processes.Process(target=time.sleep, args=(60,))  # as a loader's, which may outlive it
        worker.start()
        there.send(worker.pid)
        time.sleep(60)

    process = processes.Process(target=train)
    process.start()
    worker = here.recv()
    try:
        with pytest.raises(ConfigError, match=f"in use by process {process.pid} on {socket.gethostname()}"):
            choose(id="a")
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert choose(id="a").checkpoint is not None
    finally:
        os.kill(worker, signal.SIGKILL)


def test_another_config_is_kept_beside_the_first():
    run = RunFolder("x", id="a")
    for epochs in (1, 1, 2, 2, 1, 3):
        run.enter(f"epochs: {epochs}\n")
    release_locks()
    found = {path.name: path.read_text() for path in run.path.glob("*.yaml")}
    assert found == {
        "config.yaml": "epochs: 1\n",
        "config.resume-1.yaml": "epochs: 2\n",
        "config.resume-2.yaml": "epochs: 3\n",
    }


def test_its_own_checkpoints_win_over_one_that_is_given(choose):
    run, given = RunFolder("x", id="a"), "runs/x/old/checkpoints/last.ckpt"
    assert choose(given=given, id="a").checkpoint == Path(given)
    own = write_checkpoint(run, "last.ckpt", 3)
    start = choose(given=given, id="a")
    assert (start.checkpoint, start.is_own) == (own, True)
    assert start.lines == [f"resume   not from {given}: this run has got further than its start"]
    assert choose(given=str(own), id="a").lines == []


def test_never_must_and_last(choose):
    run = RunFolder("x", id="a")
    with pytest.raises(ConfigError, match="runs/x: no run there has a checkpoint"):
        choose("must")
    with pytest.raises(ConfigError, match="runs/x/a does not exist"):
        choose("must", id="a")
    run.checkpoints.mkdir(parents=True)
    assert choose(id="a").lines == ["resume   runs/x/a has no checkpoint: from the start"]
    with pytest.raises(ConfigError, match="runs/x/a has no checkpoint"):
        choose("must", id="a")
    old = write_checkpoint(run, "last.ckpt", 30, age=100)
    new = write_checkpoint(RunFolder("x", id="b"), "last.ckpt", 3)
    assert choose("must").checkpoint == choose(given="last").checkpoint == new
    assert choose("must", id="a").checkpoint == choose(id="a").checkpoint == old
    assert choose().checkpoint is None
    with pytest.raises(ConfigError, match="runs/x/a exists already: give another"):
        choose("never", id="a")
    with pytest.raises(ConfigError, match="leave one out"):
        choose("never", "last")
    with pytest.raises(ConfigError, match="not from `best`"):
        choose(given="best")
    assert choose("never", given="f.ckpt", id="c").checkpoint == Path("f.ckpt")


def test_what_lacks_gradients_is_left_out(choose):
    run = RunFolder("x", id="a")
    best = write_checkpoint(run, "best.ckpt", 3, gradients_gathered=True)
    assert choose(id="a").lines == [
        f"resume   {best}, all there is, was written between two optimizer steps, without the gradients: from the start"
    ]
    with pytest.raises(ConfigError, match=r"nothing to go on from: .*best.ckpt, all there is"):
        choose("must", id="a")
    last = write_checkpoint(run, "last.ckpt", 2, gradients_gathered=False)
    assert choose(id="a").checkpoint == last


def test_another_of_its_own_checkpoints_is_refused(choose):
    run = RunFolder("x", id="a")
    last, best = write_checkpoint(run, "last.ckpt", 3), write_checkpoint(run, "best.ckpt", 2)
    with pytest.raises(ConfigError, match=r"best.ckpt is of this very run, which goes on from .*last.ckpt: .* --run"):
        choose(given=str(best.absolute()), id="a")
    assert choose(given=str(last.absolute()), id="a").checkpoint == last
    assert choose(given=str(best), id="b").checkpoint == best


def test_a_whole_file_that_does_not_load_is_never_called_broken(choose):
    run = RunFolder("x", id="a")
    write_checkpoint(run, "last.ckpt", 3)
    foreign = run.checkpoints / "mine.ckpt"
    torch.save({"state_dict": {}, "loops": {}, "callbacks": {"Mine": Path("x")}}, foreign)
    (line,) = choose(id="a").lines
    assert f"{foreign} is left out: " in line
    (run.checkpoints / "last.ckpt").unlink()
    with pytest.raises(ConfigError, match=r"can be loaded: .*mine.ckpt.*; give another --run.id") as refused:
        choose(id="a")
    assert "delete" not in str(refused.value)
    assert foreign.exists()


def test_two_experiments_of_one_job_are_told_apart(choose, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    config = {"model": {"freeze": 0}, "data": {"num_workers": 0}, "run": {"id": None}}
    RunFolder("x").enter(json.dumps(config))
    monkeypatch.delenv("FRAMEWORK_RUN_ID")
    release_locks()
    write_checkpoint(RunFolder("x"), "last.ckpt", 3)
    other = {**config, "model": {"freeze": 1}}
    assert choose(config={**config, "data": {"num_workers": 4}}).run_id == "slurm-7"
    with pytest.raises(ConfigError, match=r"runs/x/slurm-7 is of another experiment, .* --run.id, such as slurm-7-2"):
        choose(config=other)
    assert choose(config=other, id="slurm-7").run_id == "slurm-7"


# What it is called.


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_JOB_ID": "12"}, "slurm-12"),
        ({"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "bash"}, None),
        ({"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3"}, "slurm-9_3"),
        ({"TORCHELASTIC_RUN_ID": "my/run", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, "my-run"),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, None),
        ({"TORCHELASTIC_RUN_ID": "9f1c2b9e-5d7a-4d0e-8b1f-3f1d2c4b5a69"}, None),  # --standalone makes it up
    ],
)
def test_a_run_is_called_what_its_launcher_calls_the_job(environment, expected):
    assert launcher_id(environment) == expected


def test_several_nodes_must_be_told_which_run_it_is(monkeypatch):
    with pytest.raises(ConfigError, match="several nodes must agree on it: give the same"):
        launcher_id({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"})
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    evaluated = RunFolder("x")
    evaluated.serve("test")
    assert (RunFolder("x").id, evaluated.id, RunFolder("x", id="a").id) == ("slurm-12", "slurm-12-test", "a")


def test_processes_of_one_torchrun_agree_on_its_start():
    first = start_id({"TORCHELASTIC_RUN_ID": "none"})
    time.sleep(0.01)
    assert start_id({"TORCHELASTIC_RUN_ID": "none"}) == first
    assert start_id({}) > first
