"""Options mean the same in any order, with dashes or underscores, and whether or not anybody reads what is printed."""

import os
import sys
from pathlib import Path

import pytest
import yaml

from framework.cli.layers import class_options_first, option_layer, with_underscores
from framework.cli.main import main
from tests.framework.cli.test_door import EXPERIMENT


def test_options_without_a_dot_may_have_dashes():
    given = ["--ckpt-path", "a-b.ckpt", "--on-nan=skip-it", "--trainer.my-key", "x-y", "--help-all", "-c", "a-b.yaml"]
    assert with_underscores(given) == ["--ckpt_path", "a-b.ckpt", "--on_nan=skip-it", *given[3:]]


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        ("--data.root r --data A", "--data A --data.root r"),
        ("--x 1 --data.a.b=2 --data=A --data.a C", "--x 1 --data=A --data.a C --data.a.b=2"),
        ("--t.c+=A --t.c.m 1 --t.c+=B --t.c.m 2", "--t.c+=A --t.c.m 1 --t.c+=B --t.c.m 2"),
        ("--keys a b --data.n -1 --data A --dat B", "--keys a b --data A --data.n -1 --dat B"),
    ],
)
def test_a_class_comes_before_its_arguments_and_nothing_else_moves(given, ordered):
    assert class_options_first(given.split()) == ordered.split()


def test_each_of_several_additions_keeps_its_own_arguments():
    given = ["--t.c+=A", "--t.c.m=1", "--t.c+={class_path: B, init_args: {n: 2}}", "--t.c.init_args.n=3"]
    layer = option_layer([*given, "--t.c+=[C, D]", "--t.d.x=4"])
    added = [{"class_path": "A", "m": 1}, {"class_path": "B", "init_args": {"n": 3}}, "C", "D"]
    assert layer.values == {"t": {"c+": added, "d": {"x": 4}}}
    assert layer.place(("t", "c+", "0", "m")) == "--t.c.m"
    assert layer.place(("t", "c+", "1", "class_path")) == "--t.c+"
    assert layer.place(("u",)) == ""


def test_of_two_callbacks_the_door_sees_both(capsys):
    Path("x.yaml").write_text(EXPERIMENT)
    first = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    callbacks = resolved(capsys, *first, "--trainer.callbacks+=LearningRateMonitor")["trainer"]["callbacks"]
    assert [c["class_path"].rpartition(".")[2] for c in callbacks] == ["EarlyStopping", "LearningRateMonitor"]
    assert callbacks[0]["init_args"]["monitor"] == "val/loss"
    wrong = "--trainer.callbacks+={class_path: EarlyStopping, init_args: {monitr: val/loss}}"
    assert main(["fit", "--config", "x.yaml", wrong, "--trainer.callbacks+={class_path: LearningRateMonitor}"]) == 2
    said = "error: --trainer.callbacks+: unknown key trainer.callbacks.0.monitr of EarlyStopping; did you mean"
    assert said in capsys.readouterr().err


def resolved(capsys, *options):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "x.yaml", *options, "--print_config"])
    printed = capsys.readouterr()
    assert stop.value.code == 0, printed.err
    return yaml.safe_load(printed.out)


def test_a_class_has_its_own_defaults_and_what_was_written_for_the_one_before_it(capsys):
    Path("x.yaml").write_text(EXPERIMENT)
    options = ["--model.head", "UNet", "--model.optimizer.lr", "0.5", "--model.optimizer.eps", "1e-6"]
    model = resolved(capsys, *options, "--model.head", "FPN", "--model.optimizer", "Adam")["model"]["init_args"]
    assert model["head"]["init_args"]["dropout"] == 0.2  # FPN's; U-Net's is 0
    adam = model["optimizer"]["init_args"]
    assert (adam["weight_decay"], adam["lr"], adam["eps"]) == (0, 0.5, 1e-6)  # AdamW's decay is 0.01


def test_order_and_dashes_make_no_difference_to_an_experiment(capsys):
    whole = "$schema: ../schema.json\n" + EXPERIMENT
    Path("x.yaml").write_text(whole.partition("data:")[0])
    options = ["--data.num_workers", "0", "--data.root", "set", "--data", "MaskFolder", "--seed-everything", "3"]
    config = resolved(capsys, "--model.optimizer.weight_decay", "0.1", "--model.optimizer", "SGD", *options)
    assert config["data"]["class_path"].endswith("MaskFolder")
    assert (config["data"]["init_args"]["root"], config["data"]["init_args"]["num_workers"]) == ("set", 0)
    assert config["model"]["init_args"]["optimizer"]["class_path"] == "torch.optim.SGD"
    assert config["model"]["init_args"]["optimizer"]["init_args"]["weight_decay"] == 0.1
    assert config["seed_everything"] == 3


@pytest.mark.parametrize(
    ("name", "path"),
    [("Muon", "plugins.optimizers.Muon"), ("Lion", "plugins.optimizers.Lion"), ("Adafactor", "torch.optim.Adafactor")],
)
def test_a_short_name_that_several_libraries_have_is_that_of_the_plugin_else_of_torch(capsys, name, path):
    import timm.optim  # noqa: F401  # which has all of them too

    Path("x.yaml").write_text(EXPERIMENT.replace("AdamW", name))
    assert resolved(capsys)["model"]["init_args"]["optimizer"]["class_path"] == path


def test_a_reader_that_has_gone_is_no_error(monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["plugins", "list"]) == 0
        assert main(["--help"]) == 0
    assert capsys.readouterr().err == ""
