"""Every command, experiment and program in README.md and docs/ is run as written, with fewer steps."""

import multiprocessing
import os
import re
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from benchmarks.resume import ended, fork
from framework.cli.main import COMMANDS, main
from framework.conformance import backbones
from framework.conformance.training import heads_by_task
from tests.folders import write_depth_folder, write_image_folder, write_mask_folder, write_voc

REPOSITORY = Path(__file__).parents[1]
GUIDE = REPOSITORY / "docs/write_a_backbone.md"
PAGES = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])
SHORT = ["--trainer.max_epochs=1", "--data.repeats=2", "--data.batch_size=2"]
SHORT += [f"--trainer.limit_{split}_batches=1" for split in ("train", "val", "test")]
SMALL = {  # images of an experiment whose own are larger
    "unet_seg": ["--data.resize=64", "--data.crop_size=64"],
    "progressive_unfreezing": ["--data.resize=64", "--data.crop_size=64"],
    "lite0_imagefolder": ["--data.image_size=64"],
    "fcos_cells": ["--data.resize=128", "--data.crop_size=64"],
    "faster_rcnn_voc": ["--data.resize=64"],
    "lite0_depth": ["--data.resize=64", "--data.crop_size=64"],
    "depth_sample": ["--data.crop_size=64"],
    "synthetic_classification": ["--data.train=32", "--data.val=8", "--data.test=8"],
}
BASE = """
model: {class_path: Segmentation, init_args: {backbone: {class_path: Timm, init_args: {name: test_resnet}}}}
data: {class_path: MaskFolder, init_args: {root: my_masks, batch_size: 2, num_workers: 0, crop_size: 64}}
"""


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def programs(page):
    """Return the Python programs of a page by file name."""
    found = {}
    for program in blocks(page, "python"):
        name = re.match(r"# (\w+\.py)\n", program)
        assert name is not None, f"{page.name}: the first line of a program names its file"
        found[name[1]] = program
    return found


def commands(page):
    lines = [line[2:] for block in blocks(page, "console") for line in block.splitlines() if line.startswith("$ ")]
    return [part.strip() for line in lines for part in line.partition("#")[0].split("&&")]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A folder with what the pages take for granted; of heads, checks try the linear ones, which saves minutes."""
    few = [pair for pair in heads_by_task() if pair[1].name in ("LinearHead", "LinearClassifier")]
    monkeypatch.setattr(backbones, "heads_by_task", lambda: iter(few))
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    write_mask_folder(tmp_path / "my_masks", counts=(8, 2, 2))
    write_image_folder(tmp_path / "my_photos", counts=(16, 2, 2))
    write_voc(tmp_path / "my_boxes")
    write_depth_folder(tmp_path / "my_depth", counts=(4, 2, 2))
    (tmp_path / "new_images").mkdir()
    Image.fromarray(np.zeros((60, 70, 3), np.uint8)).save(tmp_path / "new_images/a.png")
    for page in PAGES:
        for name, program in programs(page).items() if page != GUIDE else ():
            (tmp_path / name).write_text(program)


def run(command):
    words = shlex.split(command)
    if "ID" in command:
        newest = max(Path("runs/unet_seg").iterdir(), key=lambda path: path.stat().st_mtime).name
        words = [word.replace("/ID/", f"/{newest}/") for word in words]
    short = SHORT if words[0] == "fit" else []
    if short:
        named = re.search(r"(\w+)\.yaml", command)
        short = [*short, *(SMALL.get(named[1], []) if named else [])]
    if short and "unfreezing" in command:  # which takes more than one step
        short = [*short, "--trainer.limit_train_batches=4"]
    words = words[1:] if words[0] == "framework" else words
    assert main([*words, *short]) == 0, command


@pytest.mark.parametrize("page", [page for page in PAGES if page != GUIDE], ids=lambda page: page.name)
def test_commands_run(page, capsys):
    known = [command for command in commands(page) if command.split()[0] in {*COMMANDS, "framework"}]
    others = {command.split()[0] for command in commands(page)} - {*COMMANDS, "framework"}
    assert others <= {"pip", "pytest"}, "a command that no test runs"
    said_before = commands(PAGES[0]) if page != PAGES[0] else []  # and run, as the first page's: the folders are alike
    for command in known:
        if command in said_before and "--run.id" not in command:
            continue
        if command.startswith(("test", "predict")) and not Path("runs/unet_seg").exists():
            run("fit --config experiments/unet_seg.yaml")
        run(command)


def run_alone(command):
    """Run a command in a process of its own, as a user does: the guide changes a file that it has run before."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(command,))
    process.start()
    process.join()
    assert process.exitcode == 0, command


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_guide_works_from_its_first_line_to_its_last():
    text = GUIDE.read_text()
    parts = re.findall(r"^```(console|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for language, block in parts:
        if language == "python":
            Path(re.match(r"# (\w+\.py)\n", block)[1]).write_text(block)
        else:
            for line in block.splitlines():
                run_alone(line.removeprefix("$ "))
    assert Path("schema.json").read_text().count("ShuffleNet")
    assert 'ShuffleNet = "shuffle_net.backbone:ShuffleNet"' in Path("shuffle_net/pyproject.toml").read_text()
    assert 'ShuffleNet = "shuffle_net.backbone:ShuffleNet"' in text
    Path("shuffle_net").rename("package")
    checks = ["-q", "-p", "no:cacheprovider", "-k", "shapes", "test_shuffle_net.py"]
    process, pipe = fork(Path(), lambda pipe: pytest.main(checks))  # a new process would import for ten seconds
    while (code := ended(process)) is None:
        time.sleep(0.05)
    os.close(pipe)
    said = Path("log.txt").read_text()
    assert code == 0, said
    assert "2 passed" in said


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_experiments_are_valid(page, capsys):
    Path("base.yaml").write_text(BASE)
    for name, program in programs(page).items():
        Path(name).write_text(program)
    for number, block in enumerate(blocks(page, "yaml")):
        values = yaml.safe_load(block)
        if "backbone" in values:
            values = {"model": {"init_args": values}}
        Path(f"block{number}.yaml").write_text(yaml.safe_dump(values))
        with pytest.raises(SystemExit) as stop:
            main(["fit", "--config", "base.yaml", "--config", f"block{number}.yaml", "--print_config"])
        assert stop.value.code == 0, capsys.readouterr().err


def test_the_file_map_is_complete():
    listed = set(re.findall(r"^\| `([\w./]+)` \|", (REPOSITORY / "docs/index.md").read_text(), re.MULTILINE))
    files = {
        str(path.relative_to(REPOSITORY))
        for folder in ("framework", "plugins", "benchmarks")
        for path in (REPOSITORY / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert files - listed == set()
    assert {name for name in listed if name.endswith(".py")} - files == set()
