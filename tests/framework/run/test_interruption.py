"""Runs that are told to stop: wherever a signal comes, nothing is lost, and the next start ends with the same bits."""

import multiprocessing
import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest
import torch

from framework.cli.main import main
from framework.data.loader import KeyedBatches, KeyedLoader, KeyedSamples, heed_parent_alone
from framework.run.interruption import SIGNALS, Interrupted, Interruption, requeue, requeue_if_meant
from tests.folders import write_mask_folder

EXPERIMENT = """
model:
  class_path: Segmentation
  init_args:
    backbone: {class_path: tests.tiny.Tiny, init_args: {width: 4}}
    head: LinearHead
    optimizer: {class_path: AdamW, init_args: {lr: 0.01}}
data:
  class_path: MaskFolder
  init_args: {root: set, crop_size: 16, batch_size: 2, num_workers: 0}
trainer:
  max_epochs: 3
  accelerator: cpu
  enable_progress_bar: false
  callbacks+:
    - {class_path: EMA, init_args: {decay: 0.9}}
"""
SLURM = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1", "SLURM_JOB_NAME": "train"}
SLURM |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "77"}


@pytest.fixture
def fit(tmp_path):
    """Start the run `name`, to which signals are sent at a moment; checks the exit code and gives the signals back."""
    write_mask_folder(tmp_path / "set", counts=(8, 6, 3), size=(20, 24))
    Path("x.yaml").write_text(EXPERIMENT)
    before = [signal.getsignal(signum) for signum in SIGNALS]

    def call(name, moment=None, step=0, names=("SIGTERM",), code=0, options=()):
        given = ["fit", "--config", "x.yaml", "--trust", "tests", "--run.id", name, *options]
        if moment is not None:
            given += ["--trainer.callbacks+=tests.signals.SignalAt", f"--trainer.callbacks.moment={moment}"]
            given += [f"--trainer.callbacks.step={step}", f"--trainer.callbacks.names=[{','.join(names)}]"]
        assert main(given) == code
        assert [signal.getsignal(signum) for signum in SIGNALS] == before
        return Path("runs/x", name)

    return call


def last(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


def assert_same(first, second):
    """Compare everything that a run learned and recorded."""
    one, two = last(first), last(second)
    for part in ("state_dict", "ema"):
        assert all(torch.equal(value, two[part][name]) for name, value in one[part].items())
    states = [part["optimizer_states"][0]["state"] for part in (one, two)]
    for name, values in states[0].items():
        assert all(torch.equal(torch.as_tensor(value), states[1][name][key]) for key, value in values.items())
    assert (first / "metrics.csv").read_text() == (second / "metrics.csv").read_text()
    assert (first / "metrics.json").read_text() == (second / "metrics.json").read_text()


def scontrol(folder, monkeypatch, code=0):
    """Put a `scontrol` on the path that notes how it was called."""
    program = folder / "bin/scontrol"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/requeued\necho no such job >&2\nexit {code}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return folder / "requeued"


def test_a_run_stopped_everywhere_ends_as_one_that_never_was(fit, tmp_path, monkeypatch, capfd):
    whole = fit("whole")
    assert fit("broken", "step", 1, code=143) == Path("runs/x/broken")
    said = capfd.readouterr().err
    assert "SIGTERM: the run saves a checkpoint after this step and stops\n" in said
    assert "stopped at epoch 1, step 2; the same command with --run.id broken goes on" in said
    assert last(Path("runs/x/broken"))["global_step"] == 2

    requeued = scontrol(tmp_path, monkeypatch)
    with monkeypatch.context() as slurm:
        for name, value in SLURM.items():
            slurm.setenv(name, value)
        fit("broken", "val", 4, names=["SIGUSR1"], code=143)
    assert requeued.read_text() == "requeue 77\n"
    stopped = last(Path("runs/x/broken"))
    assert stopped["global_step"] == 4
    assert any(not torch.equal(value, stopped["state_dict"][name]) for name, value in stopped["ema"].items())
    assert not list(Path("runs").rglob("hpc_ckpt*"))  # Lightning's own

    fit("broken", "step", 7, names=["SIGINT"], code=130)  # the last step of an epoch: its validation comes first
    assert "stopped at epoch 2, step 8; " in capfd.readouterr().err
    with monkeypatch.context() as slurm:
        for name, value in SLURM.items():
            slurm.setenv(name, value)
        fit("broken", "test", names=["SIGUSR1"] * 2, code=143)
    assert requeued.read_text() == "requeue 77\n" * 2  # in the test, too, the time is up
    fit("broken", "test", names=["SIGHUP"], code=143)
    assert "requeue" not in capfd.readouterr().err.rpartition("requeued SLURM job 77\n")[2]
    assert_same(whole, fit("broken"))


def test_a_validation_within_an_epoch_is_run_again_but_not_within_an_accumulation_window(fit, capfd):
    options = ["--trainer.val_check_interval=1", "--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=2"]
    whole = fit("whole", options=options)
    fit("broken", "val", 0, code=143, options=options)
    said = capfd.readouterr().err
    assert "this validation is finished first: the run could not go on from inside it" in said
    assert "stopped at epoch 1, step 1;" in said
    fit("broken", "val", 1, code=143, options=options)
    assert "stopped at epoch 1, step 1;" in capfd.readouterr().err
    assert_same(whole, fit("broken", options=options))


def test_outside_training_a_signal_stops_at_once(fit, capfd):
    folder = fit(
        "early", "sanity", 0, ["SIGTERM"] * 2, 143, ["--trainer.num_sanity_val_steps=2"]
    )  # schedulers repeat it
    assert not list((folder / "checkpoints").iterdir())
    assert capfd.readouterr().err.endswith("stopped\n")


def test_a_second_ctrl_c_stops_at_once(fit, capfd):
    folder = fit("twice", "step", 1, names=["SIGINT", "SIGINT"], code=130)
    assert not list((folder / "checkpoints").iterdir())
    assert "Ctrl-C again stops at once" in capfd.readouterr().err


def test_what_a_process_was_started_to_ignore_stays_ignored():
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    ignored = (signal.SIGHUP, signal.SIGINT)  # nohup; a background job of a script
    try:
        for signum in ignored:
            signal.signal(signum, signal.SIG_IGN)
        with Interruption() as interruption:
            interruption.watch()
            for signum in ignored:
                os.kill(os.getpid(), signum)
            interruption.rest()
            assert interruption.received is None
            with pytest.raises(Interrupted):
                os.kill(os.getpid(), signal.SIGTERM)
        assert all(signal.getsignal(signum) == signal.SIG_IGN for signum in ignored)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@pytest.mark.parametrize(
    ("code", "found", "expected"),
    [(0, True, "requeued SLURM job 5_3"), (1, True, "(no such job): submit"), (0, False, "submit the job again")],
)
def test_a_task_of_a_job_array_is_requeued_or_it_is_said_why_not(code, found, expected, tmp_path, monkeypatch, capsys):
    for name, value in (("SLURM_JOB_ID", "8"), ("SLURM_ARRAY_JOB_ID", "5"), ("SLURM_ARRAY_TASK_ID", "3")):
        monkeypatch.setenv(name, value)
    requeued = scontrol(tmp_path, monkeypatch, code)
    if not found:
        monkeypatch.setenv("PATH", "/nowhere")
    requeue()
    assert expected in capsys.readouterr().err
    assert not found or requeued.read_text() == "requeue 5_3\n"


@pytest.mark.parametrize(("signum", "rank", "meant"), [("SIGUSR1", 0, 1), ("SIGUSR1", 1, 0), ("SIGTERM", 0, 0)])
def test_the_first_process_requeues_for_sigusr1_alone(signum, rank, meant, monkeypatch):
    asked = []
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setattr("framework.run.interruption.rank_zero_only.rank", rank)
    monkeypatch.setattr("framework.run.interruption.requeue", lambda: asked.append(1))
    requeue_if_meant(getattr(signal, signum))
    assert len(asked) == meant


class Numbers:
    """Sixteen samples."""

    def __len__(self):
        return 16

    def read(self, index):
        """Return one."""
        return {"index": torch.tensor(index)}


def test_loader_workers_go_on_when_a_scheduler_signals_every_process():
    loader = KeyedLoader(
        KeyedSamples(Numbers(), lambda sample: sample, 0),
        KeyedBatches(16, 2, seed=0, shuffle=False),
        num_workers=1,
        persistent_workers=True,
        worker_init_fn=heed_parent_alone,
    )
    others = set(multiprocessing.active_children())
    seen = []
    for batch in loader:
        seen += batch["index"].tolist()
        (worker,) = set(multiprocessing.active_children()) - others
        names = " ".join(str(int(signum)) for signum in SIGNALS)
        subprocess.run(["/bin/sh", "-c", f"for s in {names}; do kill -$s {worker.pid}; done"], check=True)
    assert seen == list(range(16))
    for _ in range(20):  # one that is still pending swallows the next of its kind
        worker.terminate()
        worker.join(0.5)
        if worker.exitcode is not None:
            break
    assert worker.exitcode == 0
