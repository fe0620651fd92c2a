"""The doctor says what fit would use, finds what would stop it, and asks nobody on the network without need."""

import json
import socket
from pathlib import Path

import pytest
import torch

from framework import registry
from framework.cli import diagnosis
from framework.cli.main import main
from framework.registry import Advert
from tests.folders import write_mask_folder
from tests.framework.cli.test_door import EXPERIMENT


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    """No launcher, no login and no network."""
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "WANDB_MODE", "WANDB_API_KEY", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "no.netrc")
    asked = []
    monkeypatch.setattr(socket, "create_connection", lambda place, *_, **__: asked.append(place))
    return asked


@pytest.fixture
def doctor(capsys):
    """Run it as JSON; return the facts, and the problems by their texts."""

    def run(*arguments, code=0):
        before = {*Path().rglob("*")}
        assert main(["doctor", "--json", *arguments]) == code
        assert {*Path().rglob("*")} == before, "nothing is written"
        facts = json.loads(capsys.readouterr().out)
        return facts, {problem["problem"]: problem["stops"] for problem in facts.pop("problems")}

    return run


def only(problems):
    """Return the one problem that would stop a run."""
    (text,) = [text for text, stops in problems.items() if stops]
    return text


def test_it_says_what_fit_would_use(doctor, outside):
    facts, problems = doctor()
    assert not any(problems.values())
    assert facts["versions"]["torch"].startswith(f"{torch.__version__.partition('+')[0]}")
    assert "wanted: >=2.6" in facts["versions"]["torch"]
    assert "pytest" not in facts["versions"]
    assert facts["run"]["precision"] == ("bf16-mixed" if torch.cuda.is_available() else "32-true")
    assert facts["run"]["launcher"].startswith("none")
    assert facts["run"]["processes"] == "1"
    assert int(facts["plugins"]["backbones"]) >= 9
    assert facts["logger"]["W&B"].startswith("offline (no API key found")
    assert not outside


def test_it_answers_for_an_experiment(doctor, outside, monkeypatch, tmp_path, capsys):
    write_mask_folder(tmp_path / "set")
    Path("x.yaml").write_text(
        EXPERIMENT
        + "  devices: 2\n  precision: bf16-true\n  logger: {class_path: WandB}\nrun: {root: elsewhere/runs}\n"
    )
    facts, problems = doctor("--config", "x.yaml")
    assert not any(problems.values())
    assert (facts["run"]["processes"], facts["run"]["precision"]) == ("2", "bf16-true")
    assert facts["run"]["loader workers"] == "0 (data.num_workers)"
    assert facts["run"]["folder"].startswith("elsewhere/runs, ")
    assert facts["logger"]["configured"] == "WandB"
    assert not outside, "without a key there is nothing to ask for"
    assert main(["doctor", "--config", "x.yaml"]) == 0
    assert "  processes       2\n" in capsys.readouterr().out
    monkeypatch.setenv("WANDB_MODE", "of")
    assert "WANDB_MODE is 'of'" in only(doctor("--config", "x.yaml", code=2)[1])


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("  accelerator: gpu\n", "the trainer that is asked for cannot be had here"),
        ("  sync_batchnorm: true\n", "SyncBatchNorm runs on GPUs only"),
        ("  max_epoch: 1\n", "x.yaml:14: unknown key trainer.max_epoch; did you mean 'max_epochs'?"),
        ("run: {root: taken/runs}\n", "taken cannot be written to"),
    ],
)
def test_what_would_stop_an_experiment_is_found(doctor, added, message):
    if "gpu" in added and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    Path("taken").write_text("")
    text = EXPERIMENT.replace("  accelerator: cpu\n", "") if "accelerator" in added else EXPERIMENT
    Path("x.yaml").write_text(text + added)
    assert message in only(doctor("--config", "x.yaml", code=2)[1])


def test_packages_are_compared_with_what_is_asked_for(doctor, monkeypatch, capsys):
    asked = ["numpy>=99", "no-such-package>=1", "pillow>=1", 'peft>=99; extra == "lora"', 'pytest>=99; extra == "test"']
    monkeypatch.setattr(diagnosis, "requires", lambda name: asked)
    problems = doctor(code=2)[1]
    assert {text.split()[0]: stops for text, stops in problems.items()} == {
        "numpy": True,
        "no-such-package": True,
        "peft": False,
    }
    main(["doctor"])
    assert 'is not installed\n  pip install "no-such-package>=1"' in capsys.readouterr().out


def test_packages_that_only_some_plugins_need_are_named_with_their_extra(doctor, monkeypatch):
    real = diagnosis.version

    def version(name):
        if name == "peft":
            raise diagnosis.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(diagnosis, "version", version)
    facts, problems = doctor()
    assert facts["versions"]["peft"] == 'not installed: pip install "vision-plugin-framework[lora]" (optional)'
    assert not any("peft" in text for text in problems)


def test_launchers_threads_and_shared_memory(doctor, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "999")
    monkeypatch.setattr(diagnosis, "LEAST_SHARED", 2**60)
    monkeypatch.setattr(diagnosis, "LEAST_DISK", 2**60)
    notes = doctor()[1]
    assert [text.split()[0] for text in notes] == ["OMP_NUM_THREADS", "/dev/shm,", "run.root:"]
    for name in ("GROUP_RANK", "RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    facts, problems = doctor(code=2)
    assert facts["run"]["launcher"] == "torchrun, 4 processes"
    assert only(problems) == "4 processes are started, and the experiment is for 1: they would wait for ever"


def test_broken_plugins_are_named_and_stop_nobody_else(doctor, monkeypatch):
    real = registry.advertised
    broken = Advert("Torn", "backbones", "no_such_module:Torn", "theirs 1.0")
    monkeypatch.setattr(diagnosis, "advertised", lambda local=(): {**real(local), "Torn": broken})
    (text,) = doctor()[1]
    assert text == "the plugin Torn of theirs 1.0 is broken: there is no module no_such_module"
