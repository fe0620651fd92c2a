"""Whether a detector scores the same through us and through torchvision: one network, two ways to evaluate it.

    python benchmarks/detection_ap.py [--root FOLDER_IN_VOC_LAYOUT]

A Faster R-CNN is trained by `fit`, which evaluates it on the validation split. Then torchvision's own `FasterRCNN`
takes its weights, does its own preprocessing, proposals and post-processing, and pycocotools evaluates what it finds.
Images are shown as stored. With `--resize` they are resized: torchvision does that without antialiasing, and the
difference tells what that does. Without `--root`, scenes are rendered first.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.detection_rate import EXPERIMENT, RATIOS, SIZES, write_scenes
from framework.cli.main import main as framework
from framework.data.loader import Samples
from framework.preprocessing import to_unit
from framework.tasks.detection import Detection

PROPOSALS = (500, 300)  # as in the experiment


class Maps(nn.Module):
    """What torchvision's detectors call a backbone: the backbone and pyramid of a task, for normalised images."""

    def __init__(self, task: Detection) -> None:
        super().__init__()
        self.backbone, self.pyramid = task.backbone, task.head.pyramid
        self.out_channels = self.pyramid.channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the maps of images (B, C, H, W), fine to coarse."""
        size = (int(images.shape[-2]), int(images.shape[-1]))
        return {str(index): x for index, x in enumerate(self.pyramid(self.backbone.extract(images).maps, size))}


def torchvision_twin(task: Detection, shorter: int, longer: int) -> FasterRCNN:
    """Build torchvision's detector with the weights of a Faster R-CNN of ours.

    Args:
        task: Ours.
        shorter: What torchvision makes the shorter side of images, in pixels.
        longer: What it lets the longer side be at most.
    """
    head: Any = task.head
    channels, width = head.pyramid.channels, head.roi_heads.box_predictor.cls_score.in_features
    twin = FasterRCNN(
        Maps(task),
        min_size=shorter,
        max_size=longer,
        image_mean=task.backbone.mean.flatten().tolist(),
        image_std=task.backbone.std.flatten().tolist(),
        size_divisible=task.multiple,
        rpn_anchor_generator=AnchorGenerator(SIZES, RATIOS),
        rpn_pre_nms_top_n_test=PROPOSALS[0],
        rpn_post_nms_top_n_test=PROPOSALS[1],
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        box_head=TwoMLPHead(channels * 7 * 7, width),
        box_predictor=FastRCNNPredictor(width, 1 + task.num_classes),
    )
    twin.rpn.load_state_dict(head.rpn.state_dict())
    twin.roi_heads.load_state_dict(head.roi_heads.state_dict())
    return twin.eval()


@torch.no_grad()
def evaluate(detector: FasterRCNN, samples: Samples) -> tuple[float, float]:
    """Evaluate a detector of torchvision's with pycocotools, image by image; returns AP and AP50."""
    images: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for index in range(len(samples)):
        sample = samples.read(index)
        images.append({"id": index})
        objects = zip(sample["boxes"].tolist(), sample["labels"], sample["area"], sample["ignored"], strict=True)
        for box, label, area, ignored in objects:
            one = {"image_id": index, "category_id": 1 + int(label), "bbox": _xywh(box), "area": float(area)}
            truth.append({**one, "id": 1 + len(truth), "iscrowd": int(ignored)})
        (prediction,) = detector([to_unit(sample["image"].as_subclass(Tensor))])
        for box, label, score in zip(*(prediction[key].tolist() for key in ("boxes", "labels", "scores")), strict=True):
            found.append({"image_id": index, "category_id": label, "bbox": _xywh(box), "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        categories = [{"id": one} for one in sorted({one["category_id"] for one in truth})]
        coco.dataset = {"info": {}, "images": images, "annotations": truth, "categories": categories}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def _xywh(box: list[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


class Capture(Callback):
    """Keeps the task that was validated last."""

    kept: ClassVar[list[Any]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep it."""
        if trainer.state.fn == "validate":
            self.kept[:] = [pl_module, trainer.datamodule]  # type: ignore[attr-defined]


def main() -> None:
    """Print both figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="a folder in Pascal VOC's layout; none: rendered scenes")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--size", type=int, nargs=2, default=(180, 240), help="height and width of the scenes")
    parser.add_argument("--resize", type=int, help="shorter side of what the network sees; none: as stored")
    options = parser.parse_args()
    from benchmarks.detection_ap import Capture  # this file is __main__ as well

    with tempfile.TemporaryDirectory() as folder:
        root = options.root.absolute() if options.root else Path(folder) / "scenes"
        if options.root is None:
            write_scenes(root, 60, tuple(options.size), validation=20)
        os.chdir(folder)
        given = {
            "--data.root": root,
            "--data.resize": options.resize or "null",
            "--data.longest": "null",
            "--trainer.max_epochs": options.epochs,
            "--trainer.callbacks+": "benchmarks.detection_ap.Capture",
            "--trust": "benchmarks",
            "--run.id": "one",
        }
        assert framework(["fit", "--config", str(EXPERIMENT), *(f"{key}={value}" for key, value in given.items())]) == 0
        figures = json.loads(Path(f"runs/{EXPERIMENT.stem}/one/metrics.json").read_text())
        task, data = Capture.kept
        shorter = options.resize or min(data.splits()["val"].read(0)["original_size"])
        theirs = evaluate(torchvision_twin(task.eval(), shorter, 10**6), data.splits()["val"])
    for name, ours, other in zip(("AP", "AP50"), (figures["val/ap"], figures["val/ap50"]), theirs, strict=True):
        print(f"{name:5} ours {ours:.6f}  torchvision and pycocotools {other:.6f}  difference {abs(ours - other):.6f}")


if __name__ == "__main__":
    main()
