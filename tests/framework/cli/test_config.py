"""Experiments are checked as `fit` would begin them, each on its own, and nothing is left behind."""

from pathlib import Path

import pytest

from framework.cli.main import main
from tests.folders import write_mask_folder
from tests.framework.cli.test_door import EXPERIMENT

TINY = (Path(__file__).parents[2] / "tiny.py").read_text()
TIMM = "{class_path: Timm, init_args: {name: test_resnet}}"


@pytest.fixture
def check(capsys):
    """Check experiments; return what is printed, and the errors."""

    def run(*arguments, code=0):
        assert main(["config", "check", *arguments]) == code
        assert not Path("runs").exists()
        return capsys.readouterr()

    return run


def write(name, old="", new=""):
    assert old in EXPERIMENT
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(EXPERIMENT.replace(old, new) if old else EXPERIMENT + new)
    return name


def test_every_file_is_checked_and_the_errors_are_those_of_fit(check, capsys):
    files = [write("a.yaml", "LinearHead", "LinerHead"), write("b.yaml"), write("c.yaml", "root: set, ", ""), "d.yaml"]
    printed = check(*files, code=2)
    assert printed.out == "b.yaml: in order\n"
    said = []
    for file in ("a.yaml", "c.yaml", "d.yaml"):
        assert main(["fit", "--config", file]) == 2
        said.append(capsys.readouterr().err)
    assert printed.err == "".join(said)
    assert "a.yaml:6: model.head: there is no class LinerHead" in printed.err


def test_an_error_without_a_line_names_the_file(check):
    write("a.yaml", EXPERIMENT.partition("data:")[0], "")
    assert check("a.yaml", code=2).err == "error: a.yaml: missing: model (required, and no file or option gives it)\n"


def test_data_is_only_needed_for_building(check, tmp_path):
    write("a.yaml")
    assert check("a.yaml").out == "a.yaml: in order\n"
    assert "data.root: set is no folder" in check("a.yaml", "--build", code=2).err
    write_mask_folder(tmp_path / "set")
    assert check("a.yaml", "--build").out == "a.yaml: in order, built\n"


def test_building_finds_what_only_the_classes_know(check, tmp_path):
    write_mask_folder(tmp_path / "set")
    write("a.yaml", "test_resnet", "test_resnt")
    check("a.yaml")
    assert "did you mean 'test_resnet" in check("a.yaml", "--build", code=2).err


def test_building_finds_monitors_that_are_never_logged(check, tmp_path):
    write_mask_folder(tmp_path / "set")
    callback = "  callbacks: {class_path: EarlyStopping, init_args: {monitor: val/NAME, mode: max}}\n"
    write("a.yaml", "", callback.replace("NAME", "mIoU"))
    message = "a.yaml:14: EarlyStopping monitors 'val/mIoU', which is never logged; did you mean 'val/miou'?"
    assert message in check("a.yaml", "--build", code=2).err
    write("a.yaml", "", callback.replace("NAME", "miou"))
    assert check("a.yaml", "--build").out == "a.yaml: in order, built\n"
    write("a.yaml", "", "  enable_checkpointing: false\n")
    assert "a.yaml:14: trainer.enable_checkpointing: a run needs" in check("a.yaml", "--build", code=2).err


def test_building_needs_no_device_of_the_trainer(check, tmp_path):
    write_mask_folder(tmp_path / "set")
    write("a.yaml", "accelerator: cpu", "accelerator: tpu")
    assert check("a.yaml", "--build").out == "a.yaml: in order, built\n"


def test_files_do_not_see_the_plugins_of_each_other(check):
    for folder, word in (("a", "width"), ("b", "breadth")):
        write(f"{folder}/x.yaml", TIMM, f"{{class_path: Petite, init_args: {{{word}: 4}}}}")
        Path(folder, "petite_net.py").write_text(TINY.replace("class Tiny", "class Petite").replace("width", word))
        with Path(folder, "x.yaml").open("a") as file:
            file.write("plugins: petite_net.py\n")
    write("c.yaml", TIMM, "Petite")
    printed = check("a/x.yaml", "b/x.yaml", "c.yaml", code=2)
    assert printed.out == "a/x.yaml: in order\nb/x.yaml: in order\n"
    assert printed.err.startswith("error: c.yaml:5: model.backbone: there is no class Petite")


def test_plugins_and_trust_are_given_as_to_fit(check):
    Path("small_net.py").write_text(TINY.replace("class Tiny", "class Small"))
    Path("other_net.py").write_text(TINY.replace("class Tiny", "class Other"))
    write("a.yaml", TIMM, "{class_path: Small, init_args: {width: 4}}")
    write("b.yaml", TIMM, "other_net.Other")
    assert "there is no class Small" in check("a.yaml", code=2).err
    assert check("a.yaml", "--plugins", "small_net.py").out == "a.yaml: in order\n"
    assert "--trust other_net" in check("b.yaml", code=2).err
    assert check("b.yaml", "--trust", "other_net").out == "b.yaml: in order\n"


def test_unknown_actions_and_options_name_the_nearest(capsys):
    assert main(["config", "chek", "a.yaml"]) == 2
    assert "framework config has no chek; did you mean 'check'?" in capsys.readouterr().err
    assert main(["config", "check", "a.yaml", "--biuld"]) == 2
    assert "did you mean '--build'?" in capsys.readouterr().err
