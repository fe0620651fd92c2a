"""The W&B logger: what lands on disk, and that no trouble with W&B reaches training."""

import os
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from unittest.mock import Mock

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch.utils.data import DataLoader

from framework.errors import ConfigError, UserError
from framework.run.checkpoint_file import CheckpointFile
from framework.run.checkpoints import Checkpoints
from framework.run.interruption import Interruption
from framework.tracking.wandb import WandB
from tests.reference.offline_run import read_offline_run

KEY = "0123456789" * 4
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _nobody_logged_in(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)
    yield
    close()


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, _):
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(logger, folder):
    trainer = pl.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=1,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Line(), DataLoader(torch.ones(3, 2), batch_size=1))
    return trainer.global_step


def bound(folder, **arguments):
    logger = WandB(**arguments)
    logger.bind(folder, "run-id", "run name")
    return logger


def complaints(recorded):
    return [str(warning.message) for warning in recorded if "W&B could not" in str(warning.message)]


def close():
    wandb.finish()
    wandb.teardown()  # only then is the file sure to be complete


def read(folder):
    close()
    return read_offline_run(folder)


SCRIPT = """
import sys
from pathlib import Path
from framework.tracking.wandb import WandB
assert "wandb" not in sys.modules, "wandb is imported although no logger was made"
import numpy as np
from tests.framework.test_wandb import bound, fit

logger = bound(Path(sys.argv[1]), project="p")
assert fit(logger, sys.argv[1]) == 3
logger.log_config({"model": {"head": {"class_path": "UNet"}, "rates": [0.1, None]}, "seed": 7})
logger.log_pictures("val/pictures", [np.full((4, 6, 3), 200, np.uint8)], step=2)
"""


def test_a_whole_run_offline_with_nobody_logged_in_and_stdin_closed(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("W&B")]
    assert line.startswith("W&B: offline (no API key found")
    folder = Path(line.split("wandb sync ")[1])
    run = read_offline_run(folder)
    assert (run.id, run.name, run.project, run.exit_code) == ("run-id", "run name", "p", 0)
    assert run.config["model"] == {"head": {"class_path": "UNet"}, "rates": [0.1, None]}
    assert run.config["seed"] == 7
    losses = run.column("train/loss")
    assert len(losses) == 3
    assert losses[0] > losses[2]
    assert run.column("trainer/global_step") == [0, 1, 2, 2]
    (picture,) = folder.rglob("*.png")
    assert np.array_equal(np.asarray(Image.open(picture)), np.full((4, 6, 3), 200, np.uint8))


def test_a_service_started_in_another_folder_writes_to_this_one(tmp_path, monkeypatch):
    wandb.setup().ensure_service()  # as a run, or a look at the settings, before this one does
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    bound(Path("run"), mode="offline").log_metrics({"a": 1.0}, 0)
    assert read(tmp_path / "here/run").column("a") == [1]


def test_an_unreachable_server_costs_seconds_and_ends_offline(tmp_path, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed_port = server.getsockname()[1]
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port}")
    start = time.monotonic()
    logger = bound(tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    assert time.monotonic() - start < 6
    assert f"offline (127.0.0.1:{closed_port} does not answer)" in capsys.readouterr().out
    assert read(tmp_path).column("a") == [1]


def test_a_name_server_that_never_answers_costs_two_seconds(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: time.sleep(30))
    start = time.monotonic()
    bound(tmp_path).log_metrics({"a": 1.0}, 0)
    assert time.monotonic() - start < 6
    assert "does not answer" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["environment", "netrc", "NETRC", "netrc of the former cloud", "settings file"])
def test_a_key_is_found_wherever_wandb_login_may_have_left_it(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(socket, "create_connection", Mock(side_effect=ConnectionRefusedError))
    home = tmp_path / "home"
    (home / ".config/wandb").mkdir(parents=True)
    host = "api.wandb.ai" if place == "netrc of the former cloud" else "wandb.example.org"
    if place != "netrc of the former cloud":
        monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    if place == "environment":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    elif place == "settings file":
        (home / ".config/wandb/settings").write_text(f"[default]\napi_key = {KEY}\n")
    elif place == "NETRC":
        monkeypatch.setenv("NETRC", str(tmp_path / "logins"))
        (tmp_path / "logins").write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    else:
        (home / ".netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    bound(tmp_path).log_metrics({"a": 1.0}, 0)
    assert "does not answer" in capsys.readouterr().out


def test_a_damaged_netrc_is_no_key(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NETRC", str(tmp_path / "logins"))
    (tmp_path / "logins").write_text("machine\n")
    bound(tmp_path).log_metrics({"a": 1.0}, 0)
    assert "no API key found" in capsys.readouterr().out


class Refusal(BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_error(401)

    def log_message(self, *_):
        pass


def test_a_refused_key_ends_offline_with_one_warning(tmp_path, monkeypatch, capsys, recwarn):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusal)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    assert fit(bound(tmp_path), tmp_path) == 3
    (complaint,) = complaints(recwarn)
    assert "could not start, training goes on" in complaint
    assert "401" in complaint
    folder = capsys.readouterr().out.split("wandb sync ")[1].splitlines()[0]
    assert len(read(Path(folder)).column("train/loss")) == 3
    server.shutdown()


def test_when_wandb_cannot_start_at_all_training_goes_on_with_one_warning(tmp_path, monkeypatch, recwarn):
    monkeypatch.setenv("WANDB_BASE_URL", "not an address")
    logger = bound(tmp_path)
    assert fit(logger, tmp_path) == 3
    logger.log_config({"a": 1})
    logger.log_pictures("pictures", [np.zeros((4, 4, 3), np.uint8)])
    assert len(complaints(recwarn)) == 1
    assert logger.version == "run-id"


def test_trouble_while_logging_is_warned_about_once(tmp_path, monkeypatch, recwarn):
    logger = bound(tmp_path)
    monkeypatch.setattr(logger.experiment, "log", Mock(side_effect=ConnectionResetError("the service died")))
    assert fit(logger, tmp_path) == 3
    logger.log_pictures("pictures", ["no picture"])
    logger.log_hyperparams({"a": 1})
    assert complaints(recwarn) == [
        "W&B could not log metrics, training goes on: ConnectionResetError: the service died"
    ]
    assert read(tmp_path).config["a"] == 1  # what still works goes on


@pytest.mark.parametrize("name", ["", "wandb"])
def test_a_folder_that_cannot_be_written_is_an_error_at_the_door(name, tmp_path):
    blocked = tmp_path / "run"
    (blocked / name).parent.mkdir(exist_ok=True)
    (blocked / name).write_text("a file where the folder should be")
    with pytest.raises(UserError, match=f"cannot write to {blocked}/wandb.*save_dir"):
        bound(blocked)
    with pytest.raises(UserError, match="cannot write"):
        fit(WandB(save_dir=blocked), tmp_path)


def test_the_environment_decides_the_mode(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert fit(bound(tmp_path, mode="online"), tmp_path) == 3
    assert not list(tmp_path.rglob("*wandb*"))
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ConfigError, match="WANDB_MODE is 'ofline': did you mean 'offline'"):
        bound(tmp_path)


@pytest.mark.parametrize("argument", [{"project": "a/b"}, {"id": "a:b"}, {"tags": [""]}, {"tags": ["x" * 65]}])
def test_names_that_wandb_refuses_are_an_error_at_once(argument):
    with pytest.raises(ConfigError, match="W&B"):
        WandB(**argument)


def test_the_step_never_runs_back(tmp_path):
    logger = bound(tmp_path)
    for step in (5, 3, 7, None):
        logger.log_metrics({"a": 1.0}, step)
    assert read(tmp_path).column("trainer/global_step") == [5, 5, 7, 7]


def test_a_continued_run_goes_on_from_its_last_step(tmp_path, monkeypatch):
    init = wandb.init

    def resume(**arguments):
        run = init(**arguments)
        run.summary["trainer/global_step"] = 40  # as the server reports it
        return run

    monkeypatch.setattr(wandb, "init", resume)
    logger = bound(tmp_path)
    for step in (30, 41):
        logger.log_metrics({"a": 1.0}, step)
    assert read(tmp_path).column("trainer/global_step") == [40, 41]


def test_what_a_killed_run_had_logged_is_not_logged_again(tmp_path):
    for goes_on, steps in ((False, (10, 20, 30)), (True, (20, 30, 40))):
        logger = bound(tmp_path)
        if goes_on:
            logger.go_on()
            time.sleep(1)  # W&B names folders by the second
        for step in steps:
            logger.log_metrics({"a": float(step)}, step)
        close()
    first, second = (read_offline_run(file).column("a") for file in sorted(tmp_path.rglob("*.wandb")))
    assert (first, second) == ([10, 20, 30], [30, 40])


def test_the_last_and_the_best_checkpoint_of_a_run_become_artifacts(tmp_path, monkeypatch):
    logger, logged = bound(tmp_path, log_model=True), []
    monkeypatch.setattr(
        type(logger.experiment), "log_artifact", lambda _, artifact, aliases: logged.append((artifact, aliases))
    )
    own = Checkpoints(tmp_path / "checkpoints", Interruption())
    CheckpointFile().save_checkpoint({"step": 1}, own.folder / "best.ckpt")
    CheckpointFile().save_checkpoint({"step": 2}, own.folder / "last.ckpt")
    own.best_model_score = own.current_score = torch.tensor(0.5)
    logger.after_save_checkpoint(own)
    logger.finalize("success")
    found = [(artifact.metadata["original_filename"], artifact.metadata["score"], names) for artifact, names in logged]
    assert found == [("best.ckpt", 0.5, ["latest", "best"]), ("last.ckpt", 0.5, ["latest"])]


def test_the_same_id_continues_the_same_run(tmp_path, monkeypatch):
    calls, init = [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **arguments: calls.append(arguments) or init(**arguments))
    for _ in range(2):
        bound(tmp_path).log_metrics({"a": 1.0}, 0)
        close()
    assert [(call["id"], call["resume"]) for call in calls] == [("run-id", "allow")] * 2
    assert {read_offline_run(file).id for file in tmp_path.rglob("*.wandb")} == {"run-id"}


def test_what_the_user_gave_wins_over_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_NAME", "mine")
    bound(tmp_path / "a", id="my-id", save_dir=tmp_path / "b").log_metrics({"a": 1.0}, 0)
    run = read(tmp_path / "b")
    assert (run.id, run.name) == ("my-id", "mine")
    assert not (tmp_path / "a").exists()


def test_two_trainings_in_one_process_do_not_mix(tmp_path):
    for name in ("first", "second"):
        logger = WandB()
        logger.bind(tmp_path / name, name, name)
        logger.log_metrics({name: 1.0}, 0)
    close()
    for name in ("first", "second"):
        run = read_offline_run(tmp_path / name)
        assert run.id == name
        assert [key for row in run.history for key in row if key in ("first", "second")] == [name]


def test_only_rank_zero_records(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = bound(tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    logger.log_config({"a": 1})
    logger.log_pictures("pictures", [np.zeros((4, 4, 3), np.uint8)])
    assert not list(tmp_path.rglob("*.wandb"))
    assert logger.version == "run-id"


@pytest.mark.parametrize("code", [0, 1])
def test_closing_ends_the_run_with_its_exit_code(code, tmp_path):
    logger = bound(tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    logger.close(code)
    assert wandb.run is None
    assert read(tmp_path).exit_code == code


def test_a_service_that_hangs_at_the_end_costs_no_more_than_the_timeout(tmp_path, monkeypatch, recwarn):
    logger = bound(tmp_path, finish_timeout=0.1)
    run, ended, start = logger.experiment, Event(), time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", lambda *_: ended.wait())
        logger.close()
        ended.set()
    assert time.monotonic() - start < 10
    (complaint,) = complaints(recwarn)
    assert f"does not answer; upload later with: wandb sync {tmp_path}/wandb/offline-run" in complaint
