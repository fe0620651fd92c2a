"""Every protocol is a whole experiment, and runs from end to end on tiny data of the layout that it names."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from framework.cli.main import main
from framework.schedules import Polynomial
from plugins.dinov2 import DINOv2
from tests.folders import write_image_folder

PROTOCOLS = Path(__file__).parents[1] / "experiments/protocols"
NAMES = sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))
SMALL = ["--data.num_workers=0", "--data.batch_size=2", "--trainer.accelerator=cpu"]
OPTIONS = {
    "imagenet_knn": ["--data.image_size=28", "--model.neighbours=[2,1]"],
    "imagenet_linear": ["--data.image_size=28", "--trainer.accumulate_grad_batches=1"],
    "ade20k_linear": ["--data.resize=56", "--data.crop_size=28", "--model.inference.window=28"],
    "ade20k_multiscale": ["--data.resize=56", "--data.crop_size=28", "--model.inference.scales=[1.0,1.32]"],
    "nyud_linear1": ["--data.resize=60", "--data.crop_size=[28,42]"],
    "nyud_linear4": ["--data.resize=60", "--data.crop_size=[28,42]"],
    "nyud_dpt": ["--data.resize=60", "--data.crop_size=[28,42]"],
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of a ViT-S/14 in Meta's layout."""
    torch.manual_seed(0)
    state = {**DINOv2("vits14", layers=1).state_dict(), "mask_token": torch.zeros(1, 384)}
    path = tmp_path_factory.mktemp("weights") / "dinov2_vits14_pretrain.pth"
    torch.save(state, path)
    return path


def write_ade20k(root, counts=(2, 1)):
    rng = np.random.default_rng(0)
    for split, count in zip(("training", "validation"), counts, strict=True):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            name = f"ADE_{split[:-3]}_{index:08d}"
            picture = Image.fromarray(rng.integers(0, 255, (60, 70, 3), dtype=np.uint8))
            picture.save(root / f"images/{split}/{name}.jpg")
            mask = Image.fromarray(rng.integers(0, 151, (60, 70), dtype=np.uint8))
            mask.save(root / f"annotations/{split}/{name}.png")


def write_nyu(root):
    rng = np.random.default_rng(0)
    for part, folder, count in (("train", "sync", 2), ("test", "official_splits/test", 1)):
        lines = []
        for index in range(count):
            image, depth = (f"kitchen_0001/{stem}_{index:05d}" for stem in ("rgb", "sync_depth"))
            (root / folder / "kitchen_0001").mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(rng.integers(0, 255, (96, 128, 3), dtype=np.uint8))
            picture.save(root / folder / f"{image}.jpg")
            metres = Image.fromarray(rng.integers(700, 9000, (96, 128)).astype(np.uint16))
            metres.save(root / folder / f"{depth}.png")
            lines.append(f"{image}.jpg {depth}.png 518.8579\n")
        (root / f"nyudepthv2_{part}_files_with_gt.txt").write_text("".join(lines))


WRITERS = {
    "imagenet": lambda root: write_image_folder(
        root, counts=(2, 1, 0), classes=("n01440764", "n01443537", "n01484850")
    ),
    "ade20k": write_ade20k,
    "nyud": write_nyu,
}


def run(name, weights, command, *options):
    """Run a protocol with few and small images."""
    WRITERS[name.partition("_")[0]](Path("data_set"))
    own = [f"--model.backbone.weights={weights}", "--data.root=data_set", *SMALL, *OPTIONS[name], *options]
    assert main([command, "--config", str(PROTOCOLS / f"{name}.yaml"), *own]) == 0


def figures():
    (path,) = Path("runs").glob("[!.]*/*/metrics.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "imagenet_knn"])
def test_a_protocol_trains_and_validates(name, weights, capsys):
    run(name, weights, "fit", "--trainer.fast_dev_run=1")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert all(np.isfinite(float(value)) for value in re.findall(r"(?:train/loss|val/score) +(\S+)", line)), line
    assert "train/loss" in line
    assert "val/score" in line


def test_the_neighbours_of_imagenet_are_asked_without_training(weights):
    run("imagenet_knn", weights, "validate")
    assert set(figures()) == {"val/score", "val/accuracy", "val/accuracy/k2", "val/accuracy/k1"}


def test_a_published_head_is_evaluated_without_training(weights):
    state = {f"decode_head.bn.{name}": torch.ones(384) for name in ("weight", "running_var")}
    state |= {f"decode_head.bn.{name}": torch.zeros(384) for name in ("bias", "running_mean")}
    state["decode_head.bn.num_batches_tracked"] = torch.tensor(7)
    state["decode_head.conv_seg.weight"] = torch.zeros(150, 384, 1, 1)
    state["decode_head.conv_seg.bias"] = torch.eye(150)[4]  # trees everywhere
    torch.save({"state_dict": state}, "head.pth")
    run("ade20k_linear", weights, "validate", "--model.head.weights=head.pth")
    mask = np.asarray(Image.open("data_set/annotations/validation/ADE_validat_00000000.png"))
    assert figures()["val/pixel_accuracy"] == pytest.approx((mask == 5).sum() / (mask > 0).sum())


def test_a_protocol_says_what_it_needs_what_is_published_and_where():
    for name in NAMES:
        text = (PROTOCOLS / f"{name}.yaml").read_text()
        assert text.startswith("# Needs "), name
        assert len(text.splitlines()) < 40, name
        assert max(map(len, text.splitlines())) <= 120, name
        assert "# Published, " in text, name
        assert "arXiv" in text, name
        assert f" --config experiments/protocols/{name}.yaml " in text, name


def test_steps_and_rates_are_the_published_ones():
    configs = {name: yaml.safe_load((PROTOCOLS / f"{name}.yaml").read_text()) for name in NAMES}
    steps = {name: config["trainer"].get("max_steps") for name, config in configs.items()}
    published = {"imagenet_knn": None, "imagenet_linear": 12_500, "ade20k_linear": 40_000, "ade20k_multiscale": 40_000}
    assert steps == {**published, **dict.fromkeys(("nyud_linear1", "nyud_linear4", "nyud_dpt"), 38_400)}
    trainer, data = configs["imagenet_linear"]["trainer"], configs["imagenet_linear"]["data"]["init_args"]
    assert trainer["accumulate_grad_batches"] * data["batch_size"] == 1024
    assert len(configs["imagenet_linear"]["model"]["init_args"]["rates"]) == 13
    # Rates that a log of this schedule shows (Denoising-ViT, issue 11), at the 1,400th and 1,550th of 40,000 steps
    schedule = Polynomial(**configs["ade20k_linear"]["model"]["init_args"]["schedule"]["init_args"])
    assert [schedule.factor(step, 40_000) for step in (1399, 1549)] == pytest.approx([0.9000, 0.9613], abs=5e-5)
