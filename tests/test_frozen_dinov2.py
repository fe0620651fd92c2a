"""A frozen DINOv2 under every task, from Meta's file to figures, on data that is embedded."""

import json
from pathlib import Path

import pytest
import torch

from framework.cli.main import main
from plugins.dinov2 import DINOv2

FROZEN = """
model:
  class_path: {task}
  init_args:
    backbone: {{class_path: DINOv2, init_args: {{variant: vits14, weights: vits14.pth}}}}
    freeze: all
    frozen_dtype: float32
    head: {head}
data: {{class_path: {data}}}
trainer: {{max_epochs: 1, limit_train_batches: 1, limit_val_batches: 1, limit_test_batches: 1}}
"""
CELLS = "SampleCells, init_args: {batch_size: 2, crop_size: 56, resize: 84, num_workers: 0}"
NUCLEI = "SampleCellsDetection, init_args: {batch_size: 2, crop_size: 56, resize: 84, num_workers: 0}"
COUNTS = "train: 4, val: 2, test: 2"
SCENES = f"SyntheticScenes, init_args: {{{COUNTS}, size: [56, 70], crop_size: 56, batch_size: 2, num_workers: 0}}"
STEREO = "SampleStereo, init_args: {batch_size: 2, crop_size: 56, num_workers: 0}"
CASES = [  # task, head, data, a figure
    ("Classification", "{class_path: LinearClassifier, init_args: {pool: cls+mean, layers: 4}}", SCENES, "accuracy"),
    ("Segmentation", "{class_path: LinearHead, init_args: {layers: 4}}", CELLS, "miou"),
    ("Segmentation", "{class_path: UNet, init_args: {channels: [32, 32, 16, 16, 8]}}", SCENES, "miou"),
    ("Depth", "{class_path: LinearDepth, init_args: {layers: 4}}", STEREO, "image/abs_rel"),
    ("Depth", "{class_path: DPT, init_args: {channels: 32}}", STEREO, "pixel/rmse"),
    ("Detection", "{class_path: FCOS, init_args: {channels: 64, convolutions: 1}}", NUCLEI, "ap"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vits14.pth"
    torch.save(DINOv2("vits14", layers=1).state_dict(), path)
    return path


@pytest.mark.parametrize(("task", "head", "data", "figure"), CASES, ids=lambda value: str(value).partition(",")[0])
def test_every_task_trains_its_head_alone(tmp_path, weights, task, head, data, figure):
    Path("vits14.pth").symlink_to(weights)
    Path("x.yaml").write_text(FROZEN.format(task=task, head=head, data=data))
    assert main(["fit", "--config", "x.yaml"]) == 0
    (path,) = Path("runs").glob("x/*/metrics.json")
    assert {f"val/{figure}", f"test/{figure}"} <= set(json.loads(path.read_text()))
    trained = torch.load(next(path.parent.glob("checkpoints/last.ckpt")), weights_only=True)
    state, file = trained["state_dict"], torch.load(weights, weights_only=True)
    kept = [torch.equal(state[f"backbone.{name}"], file[name]) for name in file if f"backbone.{name}" in state]
    assert len(kept) > 100
    assert sum(kept) >= len(kept) - (
        state["backbone.patch_embed.proj.weight"].shape[1] != 3
    )  # filters for two channels
    assert trained["optimizer_states"][0]["state"]
