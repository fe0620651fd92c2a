"""The schema of experiments says the same as the command line: what one refuses, the other refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from framework.cli.keys import TOP_KEYS
from framework.cli.layers import read_layer
from framework.cli.main import main
from tests.framework.cli.test_door import EXPERIMENT

EXPERIMENTS = sorted((Path(__file__).parents[3] / "experiments").glob("*.yaml"))
TIMM = "{class_path: Timm, init_args: {name: test_resnet}}"
MONITOR = "{class_path: EarlyStopping, init_args: {monitor: val/score, mode: max}}"


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    file = tmp_path_factory.mktemp("schema") / "schema.json"
    assert main(["schema", "--out", str(file)]) == 0
    assert file.stat().st_size < 1_500_000
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def fits(schema):
    """Tell whether an experiment file fits the schema."""
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    return lambda file: validator.is_valid(read_layer(Path(file)).values)


def write(old="", new=""):
    assert old in EXPERIMENT
    Path("x.yaml").write_text(EXPERIMENT.replace(old, new) if old else EXPERIMENT + new)
    return "x.yaml"


MISTAKES = {
    "a typo at the top": ("trainer:", "trainerr:"),
    "a typo in the trainer": ("max_epochs", "max_epoch"),
    "a typo in the run": ("", "run: {nmae: a}\n"),
    "a typo in the model": ("head:", "heads:"),
    "a typo in the backbone": ("name: test_resnet", "nam: test_resnet"),
    "a typo in the optimizer": ("lr: 0.01", "lrr: 0.01"),
    "a typo in the data": ("batch_size", "batchsize"),
    "a typo in a list": ("    head", "    loss: {class_path: WeightedSum, init_args: {losses: [Dyce]}}\n    head"),
    "a typo in a callback": ("", f"  callbacks: [{MONITOR.replace('monitor', 'monitr')}]\n"),
    "an unknown task": ("Segmentation", "Segmentatoin"),
    "an unknown backbone": ("Timm", "Tim"),
    "an unknown head": ("LinearHead", "LinerHead"),
    "a head of another task": ("LinearHead", "LinearClassifier"),
    "a callback that is a head": ("", "  callbacks: [UNet]\n"),
    "text for a number": ("max_epochs: 1", "max_epochs: many"),
    "text for a float": ("lr: 0.01", "lr: fast"),
    "a number for text": ("root: set", "root: 3"),
    "true for a number": ("max_epochs: 1", "max_epochs: true"),
    "a number for true": ("", "  detect_anomaly: 1\n"),
    "a tuple too long": ("crop_size: 32", "crop_size: [32, 32, 32]"),
    "a choice there is not": ("", "  precision: 7\n"),
    "nothing a batch": ("batch_size: 2", "batch_size: 0"),
    "more than always": ("crop_size: 32", "hflip: 1.5"),
    "no class of the model": ("  class_path: Segmentation\n", ""),
    "no model": (EXPERIMENT.partition("data:")[0], ""),
    "no data": (EXPERIMENT[EXPERIMENT.index("data:") : EXPERIMENT.index("trainer:")], ""),
    "no backbone": (f"    backbone: {TIMM}\n", ""),
    "no name of the backbone": (TIMM, "{class_path: Timm}"),
    "only the class of the backbone": (TIMM, "Timm"),
    "no root of the data": ("root: set, ", ""),
    "no monitor": ("", "  callbacks: [EarlyStopping]\n"),
    "arguments beside the class": (TIMM, "{class_path: Timm, name: test_resnet}"),
    "plus where there is no list": ("max_epochs: 1", "max_epochs+: 1"),
    "linked classes": ("    head", "    num_classes: 3\n    head"),
    "linked names": ("    head", "    class_names: [a, b]\n    head"),
    "linked ignore_index": ("    head", "    ignore_index: 7\n    head"),
    "linked channels": ("name: test_resnet", "name: test_resnet, in_channels: 1"),
    "linked channels by path": ("Timm, init_args: {", "plugins.timm.Timm, init_args: {in_channels: 1, "),
    "a linked seed": ("root: set", "root: set, seed: 1"),
}


@pytest.mark.parametrize("change", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_refused_by_the_schema_as_by_the_command_line(fits, capsys, change):
    assert not fits(write(*change))
    assert main(["config", "check", "x.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


RIGHT = {
    "as it stands": (),
    "a class by its path": ("Timm", "plugins.timm.Timm"),
    "a class by a shorter path": ("AdamW", "torch.optim.AdamW"),
    "a class without arguments": ("LinearHead", "{class_path: UNet}"),
    "arguments of the default class": ("{class_path: AdamW, init_args: {lr: 0.01}}", "{init_args: {lr: 0.01}}"),
    "a list": ("", f"  callbacks: [LearningRateMonitor, {MONITOR}]\n"),
    "one callback": ("", "  callbacks: LearningRateMonitor\n"),
    "added callbacks": ("", f"  callbacks+: [{MONITOR}]\n"),
    "one added callback": ("", f"  callbacks+: {MONITOR}\n"),
    "an added loss": ("head", "loss: {class_path: WeightedSum, init_args: {losses+: [Dice]}}\n    head"),
    "a logger": ("", "  logger: WandB\n"),
    "no logger": ("", "  logger: false\n"),
    "a strategy by its alias": ("", "  strategy: auto\n  precision: 32\n  profiler: simple\n"),
    "an enumeration": (
        "crop_size: 32",
        "train_transforms: [{class_path: Resize, init_args: {size: 32, interpolation: BICUBIC}}]",
    ),
    "a tuple": ("crop_size: 32", "crop_size: [32, 48]"),
    "an exponent": ("lr: 0.01", "lr: 1e-3"),
    "the top": ("", "seed_everything: 3\nrun: {name: a, root: b}\nckpt_path: null\nplugins: null\n"),
    "another data set": ("MaskFolder\n  init_args: {root: set", "SampleCells\n  init_args: {repeats: 2"),
}


@pytest.mark.parametrize("change", RIGHT.values(), ids=RIGHT)
def test_what_is_right_fits_the_schema_and_the_command_line(fits, capsys, change):
    assert fits(write(*change))
    assert main(["config", "check", "x.yaml"]) == 0
    assert capsys.readouterr().out == "x.yaml: in order\n"


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_shipped_experiment_fits_the_schema_that_it_names(fits, file):
    assert fits(file)
    assert main(["config", "check", str(file)]) == 0
    heading = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert "# yaml-language-server: $schema=../schema.json" in heading


def test_a_resolved_experiment_fits_the_schema(fits, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", write(), "--print_config"])
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert len(resolved["trainer"]) > 20
    Path("resolved.yaml").write_text(yaml.safe_dump(resolved))
    assert fits("resolved.yaml")


def test_the_schema_has_every_key_of_an_experiment(schema):
    assert set(schema["properties"]) - {"$schema"} == TOP_KEYS - {"verbose"}  # which `fit` refuses
    assert schema["required"] == ["model", "data"]


def test_the_schema_is_the_same_in_every_process(schema):
    program = "from framework.cli.main import main; main(['schema'])"
    environment = os.environ | {"PYTHONHASHSEED": "1"}  # another order of sets
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=environment)
    assert json.dumps(json.loads(done.stdout)) == json.dumps(schema)


def test_a_class_of_another_package_fits_by_its_path_alone(fits):
    assert fits(write(TIMM, "my_net.MyNet"))
    assert fits(write(TIMM, "{class_path: my_net.MyNet, init_args: {anything: 3}}"))
    assert not fits(write(TIMM, "MyNet"))
    assert not fits(write(TIMM, "{class_path: MyNet}"))
    assert not fits(write(TIMM, "{class_path: my_net.MyNet, init_args: {in_channels: 3}}"))


def test_arguments_have_their_docs_defaults_and_types(schema):
    timm = schema["$defs"]["Timm"]
    assert timm["description"] == "A timm model by name."
    arguments = schema["$defs"]["Timm.init_args"]
    assert arguments["required"] == ["name"]
    assert arguments["properties"]["drop_path"] == {
        "type": "number",
        "default": 0.0,
        "description": "Rate of stochastic depth in training, in [0, 1).",
    }
    assert "levels" not in schema["$defs"]["UNet.init_args"]["properties"]  # the task gives them


def test_a_local_plugin_is_in_the_schema_and_a_broken_one_is_left_out(tmp_path, capsys):
    source = (Path(__file__).parents[2] / "tiny.py").read_text().replace("class Tiny", "class Mini")
    source = source.replace("with batch norm.", "with batch norm.\n\n    Args:\n        width: How wide.\n    ")
    (tmp_path / "mini_net.py").write_text(source)
    (tmp_path / "broken_net.py").write_text(source.replace("class Mini", "1 / 0\n\n\nclass Broken"))
    assert main(["schema", "--plugins", "mini_net.py", "--plugins", "broken_net.py"]) == 0
    printed = capsys.readouterr()
    defined = json.loads(printed.out)["$defs"]
    assert defined["Mini.init_args"]["properties"] == {
        "width": {"type": "integer", "default": 8, "description": "How wide."}
    }
    assert {"$ref": "#/$defs/Mini"} in defined["any.Backbone"]["anyOf"]
    assert "Broken" not in defined
    (line,) = printed.err.splitlines()
    assert line.startswith("warning: left out: plugin Broken of broken_net.py is broken")


@pytest.mark.parametrize("command", ["schema", "config", "config check"])
def test_help_needs_no_torch(command):
    program = (
        "import sys, atexit; from framework.cli.main import main\n"
        "atexit.register(lambda: print('torch' in sys.modules))\n"
        f"main([*{command.split()}, '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: framework {command}")
    assert done.stdout.endswith("False\n")
