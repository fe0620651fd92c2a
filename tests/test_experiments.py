"""Every experiment that is shipped runs, with its real network, on data of the kind it names."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from framework.cli.main import main
from plugins.dinov2 import DINOv2
from plugins.timm import Timm
from tests.folders import (
    write_cifar10,
    write_coco,
    write_depth_folder,
    write_image_folder,
    write_mask_folder,
    write_voc,
)

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def write_pets(root):
    """Oxford-IIIT Pet's layout with a few small photographs."""
    rng = np.random.default_rng(0)
    folder = root / "oxford-iiit-pet"
    for name in ("images", "annotations/trimaps"):
        (folder / name).mkdir(parents=True)
    for split, count in (("trainval", 40), ("test", 2)):
        names = [f"{split}_{i}" for i in range(count)]
        (folder / f"annotations/{split}.txt").write_text("".join(f"{name} 1 1 1\n" for name in names))
        for name in names:
            Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"images/{name}.jpg")
            trimap = Image.fromarray(rng.integers(1, 4, (40, 50), dtype=np.uint8))
            trimap.save(folder / f"annotations/trimaps/{name}.png")


def short(experiment, *options):
    steps = [f"--trainer.limit_{split}_batches=1" for split in ("train", "val", "test")]
    return main(["fit", "--config", str(EXPERIMENTS / experiment), "--trainer.max_epochs=1", *steps, *options])


def test_every_experiment_says_in_its_first_line_what_data_it_needs():
    for path in EXPERIMENTS.glob("**/*.yaml"):
        assert path.read_text().startswith("# Needs "), path.name
        assert len(path.read_text().splitlines()) < 40, path.name


def figures():
    (path,) = Path("runs").glob("[!.]*/*/metrics.json")
    return json.loads(path.read_text())


@pytest.mark.slow
def test_unet_seg_learns_on_the_embedded_frames():
    short_run = ["--trainer.max_epochs", "1", "--data.repeats", "24", "--data.crop_size", "96"]
    assert main(["fit", "--config", str(EXPERIMENTS / "unet_seg.yaml"), *short_run]) == 0
    assert figures()["test/miou"] > 0.5  # background everywhere scores 0.16


def test_pets_unet_seg(tmp_path):
    write_pets(tmp_path / "data")
    assert short("pets_unet_seg.yaml", "--data.batch_size", "4", "--data.resize", "64", "--data.crop_size", "64") == 0
    assert set(figures()) >= {"val/iou/pet", "test/iou/background"}


def test_dinov2_linear_seg(tmp_path):
    write_mask_folder(tmp_path / "my_masks", counts=(2, 1, 1))
    weights = timm.create_model("vit_small_patch14_dinov2", num_classes=0).state_dict()
    (tmp_path / "weights").mkdir()
    torch.save(weights, tmp_path / "weights/dinov2_vits14_pretrain.pth")
    options = ["--data.root", "my_masks", "--data.batch_size", "2", "--data.crop_size", "56", "--data.num_workers", "0"]
    assert short("dinov2_linear_seg.yaml", *options) == 0
    (checkpoint,) = Path("runs").glob("*/*/checkpoints/last.ckpt")
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, value in weights.items():
        if f"backbone.net.{name}" in trained:
            assert torch.equal(trained[f"backbone.net.{name}"], value), name


def test_synthetic_classification():
    options = ["--data.train", "32", "--data.val", "8", "--data.test", "8", "--data.num_workers", "0"]
    assert short("synthetic_classification.yaml", *options) == 0
    assert {"val/accuracy", "test/balanced_accuracy", "test/accuracy/sphere"} <= set(figures())


def test_convnext_finetune(tmp_path):
    write_image_folder(tmp_path / "photos", counts=(2, 1, 1))
    network = ["--model.backbone.name", "test_convnext", "--model.backbone.pretrained", "false"]
    data = ["--data.root", "photos", "--data.image_size", "32", "--data.batch_size", "4", "--data.num_workers", "0"]
    assert short("convnext_finetune.yaml", *network, *data) == 0
    assert {"val/accuracy", "test/accuracy/green"} <= set(figures())
    (checkpoint,) = Path("runs").glob("*/*/checkpoints/last.ckpt")
    groups = torch.load(checkpoint, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert {group["name"].partition("/")[0]: group["initial_lr"] for group in groups} == {
        "backbone": 1e-4,
        "head": 1e-3,
    }


def test_shiftvit_cifar10(tmp_path):
    write_cifar10(tmp_path / "data")
    options = ["--data.val_count", "4", "--data.batch_size", "4", "--data.num_workers", "0"]
    assert short("shiftvit_cifar10.yaml", *options) == 0
    assert {"val/accuracy", "val/top5", "test/accuracy", "test/top5", "test/accuracy/ship"} <= set(figures())


def test_efficientnetv2_progressive(tmp_path):
    write_image_folder(tmp_path / "photos", counts=(16, 2, 2))
    small = ["--model.backbone.name", "test_efficientnet", "--data.progressive.image_size", "[32,40,48,64]"]
    small += ["--data.root", "photos", "--data.image_size", "64", "--data.batch_size", "2", "--data.num_workers", "0"]
    assert short("efficientnetv2_progressive.yaml", *small, "--trainer.max_epochs=4") == 0
    assert {"val/accuracy", "test/accuracy/red"} <= set(figures())
    (config,) = Path("runs").glob("*/*/config.yaml")
    plan = yaml.safe_load(config.read_text())["data"]["init_args"]["progressive"]["init_args"]
    assert (plan["magnitude"][-1], plan["batch_size"]) == (15, "by_area")


def test_lenet_digits():
    assert main(["fit", "--config", str(EXPERIMENTS / "lenet_digits.yaml"), "--trainer.max_epochs", "5"]) == 0
    assert figures()["test/accuracy"] >= 0.8  # .97 and more after all of its epochs
    assert "test/accuracy/7" in figures()


def test_lite0_imagefolder(tmp_path):
    write_image_folder(tmp_path / "photos", counts=(8,), classes=("blue", "red"))
    options = ["--data.root", "photos", "--data.num_workers", "0", "--data.batch_size", "4", "--data.image_size", "64"]
    assert short("lite0_imagefolder.yaml", *options) == 0
    (checkpoint,) = Path("runs").glob("*/*/checkpoints/last.ckpt")
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    weights = Timm("tf_efficientnet_lite0", pretrained="packaged").state_dict()
    assert all(torch.equal(trained[f"backbone.{name}"], value) for name, value in weights.items())
    assert "val/accuracy/red" in figures()


def test_progressive_unfreezing(capsys):
    small = ["--data.batch_size", "2", "--data.crop_size", "64", "--trainer.limit_train_batches", "10"]
    assert short("progressive_unfreezing.yaml", *small) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines() if line.startswith("from step")] == [
        "1",
        "3",
    ]
    assert figures()["test/miou"] > 0
    (checkpoint,) = Path("runs").glob("*/*/checkpoints/last.ckpt")
    rates = {
        g["name"]: g["initial_lr"]
        for g in torch.load(checkpoint, weights_only=True)["optimizer_states"][0]["param_groups"]
    }
    assert rates["stage7/decay"] == pytest.approx(0.9 * rates["head/decay"])
    assert rates["stage6/no_decay"] == pytest.approx(0.81 * rates["head/decay"])


@pytest.mark.slow
def test_fcos_cells_learns_on_the_embedded_frames():
    short_run = ["--trainer.max_epochs", "1", "--data.repeats", "24", "--data.crop_size", "128"]
    assert main(["fit", "--config", str(EXPERIMENTS / "fcos_cells.yaml"), *short_run]) == 0
    assert figures()["test/ap50"] > 0.4  # untrained it scores 0; .8 after all of its epochs


@pytest.mark.parametrize("experiment", ["faster_rcnn_voc.yaml", "yolo_voc.yaml"])
def test_detectors_of_voc_folders(tmp_path, experiment):
    write_voc(tmp_path / "boxes")
    size = "--data.letterbox=64" if experiment.startswith("yolo") else "--data.resize=64"
    options = ["--data.root", "boxes", size, "--data.batch_size", "2", "--data.num_workers", "0"]
    assert short(experiment, *options) == 0
    assert {"val/ap", "val/ap50", "test/ap/red"} <= set(figures())


def test_retinanet_coco(tmp_path):
    write_coco(tmp_path / "coco")
    network = ["--model.backbone.name", "resnet18", "--model.backbone.pretrained", "false"]
    options = ["--data.resize", "64", "--data.batch_size", "2", "--data.num_workers", "0"]
    assert short("retinanet_coco.yaml", "--data.root", "coco", *network, *options) == 0
    assert {"val/ap", "val/ap/green"} <= set(figures())


def test_dinov2_fcos(tmp_path):
    write_coco(tmp_path / "coco")
    weights = timm.create_model("vit_small_patch14_dinov2", num_classes=0).state_dict()
    (tmp_path / "weights").mkdir()
    torch.save(weights, tmp_path / "weights/dinov2_vits14_pretrain.pth")
    options = ["--data.root", "coco", "--data.batch_size", "2", "--data.letterbox", "56", "--data.num_workers", "0"]
    assert short("dinov2_fcos.yaml", *options) == 0
    (checkpoint,) = Path("runs").glob("*/*/checkpoints/last.ckpt")
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    kept = [
        torch.equal(trained[f"backbone.net.{name}"], value)
        for name, value in weights.items()
        if f"backbone.net.{name}" in trained
    ]
    assert len(kept) > 100
    assert all(kept)


def test_lite0_depth(tmp_path):
    write_depth_folder(tmp_path / "rooms", counts=(8, 2, 2), size=(60, 80))
    options = ["--data.root", "rooms", "--data.resize", "60", "--data.crop_size", "[60,80]", "--data.num_workers", "0"]
    assert short("lite0_depth.yaml", *options) == 0
    (checkpoint,) = Path("runs").glob("*/*/checkpoints/last.ckpt")
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    weights = Timm("tf_efficientnet_lite0", pretrained="packaged").state_dict()
    assert all(torch.equal(trained[f"backbone.{name}"], value) for name, value in weights.items())
    assert {"val/image/abs_rel", "test/pixel/rmse"} <= set(figures())


def test_dinov2_depth(tmp_path):
    write_depth_folder(tmp_path / "rooms", counts=(2, 1, 1), size=(60, 80))
    (tmp_path / "weights").mkdir()
    torch.save(DINOv2("vits14").state_dict(), tmp_path / "weights/dinov2_vits14_pretrain.pth")
    small = ["--data.batch_size", "2", "--data.resize", "56", "--data.crop_size", "56", "--data.num_workers", "0"]
    assert short("dinov2_depth.yaml", "--data.root", "rooms", *small) == 0
    assert {"val/image/delta1", "test/image/silog"} <= set(figures())


def test_depth_sample_learns():
    short_run = ["--trainer.max_epochs", "3", "--data.repeats", "32", "--data.crop_size", "128"]
    assert main(["fit", "--config", str(EXPERIMENTS / "depth_sample.yaml"), *short_run]) == 0
    assert figures()["test/image/abs_rel"] < 0.35  # untrained it is 0.6, at the end of all epochs 0.17
