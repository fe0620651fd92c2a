"""How fast a detector trains: `fit` with `experiments/faster_rcnn_voc.yaml` against torchvision's own, in turns.

    python benchmarks/detection_rate.py [--root FOLDER_IN_VOC_LAYOUT]

Both have the same backbone (EfficientNet-Lite0, packaged weights), the same pyramid and head, the same frozen parts,
batch size, image sizes, optimizer and number of loader processes. torchvision's is trained as its reference script
does: a hand-written loop, images decoded by Pillow and flipped in the loader, resized and normalised inside the model.
Without `--root`, scenes are rendered and written as JPEGs first.
"""

import argparse
import importlib
import os
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.transforms.v2 import functional as tv

sys.path.insert(0, str(Path(__file__).parents[1]))

from framework.cli.main import main as framework
from framework.data.scenes import SCENE_CLASSES, render_scene
from framework.data.voc_detection import VOCDetection
from plugins.timm import Timm

EXPERIMENT = Path(__file__).parents[1] / "experiments/faster_rcnn_voc.yaml"
STEPS, WARMUP, BATCH, CHANNELS, REPRESENTATION = 14, 3, 4, 128, 512
SHORTER, LONGER = 320, 533
PROPOSALS, REGIONS = (1000, 500), 128
SIZES, RATIOS = ((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5

OBJECT = "<object><name>{}</name><bndbox><xmin>{:.0f}</xmin><ymin>{:.0f}</ymin><xmax>{:.0f}</xmax><ymax>{:.0f}</ymax>"


def write_scenes(root: Path, count: int = 24, size: tuple[int, int] = (375, 500), validation: int = 4) -> None:
    """Write rendered scenes in Pascal VOC's layout, the first few of them for validation."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        scene = render_scene(0, number, size)
        Image.fromarray(scene.image).save(root / f"JPEGImages/{number:03d}.jpg", quality=90)
        objects = [
            OBJECT.format(SCENE_CLASSES[label], x1 + 1, y1 + 1, x2, y2) + "</bndbox></object>"
            for (x1, y1, x2, y2), label in zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True)
        ]
        sides = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{number:03d}.jpg</filename>{sides}{''.join(objects)}</annotation>"
        (root / f"Annotations/{number:03d}.xml").write_text(text)
    names = [f"{number:03d}\n" for number in range(count)]
    (root / "ImageSets/Main/train.txt").write_text("".join(names[validation:]))
    (root / "ImageSets/Main/val.txt").write_text("".join(names[:validation]))


# Ours.


class StepTimer(Callback):
    """Notes when each training batch starts."""

    starts: ClassVar[list[float]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the time."""
        self.starts.append(time.perf_counter())


def time_fit(root: Path, workers: int) -> list[float]:
    """Return the seconds of each step of `fit`, data, callbacks and logging included."""
    starts = importlib.import_module("benchmarks.detection_rate").StepTimer.starts  # this file is __main__ as well
    starts.clear()
    options = {
        "--data.root": root,
        "--data.repeats": BATCH * STEPS,
        "--data.num_workers": workers,
        "--data.scale": "[1.0, 1.0]",
        "--data.photometric": "null",
        "--trainer.max_epochs": 1,
        "--trainer.limit_train_batches": STEPS + 1,
        "--trainer.limit_val_batches": 0,
        "--trainer.limit_test_batches": 0,
        "--trainer.callbacks+": "benchmarks.detection_rate.StepTimer",
        "--trust": "benchmarks",
    }
    arguments = [f"{name}={value}" for name, value in options.items()]
    assert framework(["fit", "--config", str(EXPERIMENT), *arguments]) == 0
    return [after - before for before, after in pairwise(starts)]


# Theirs.


class Pyramid(nn.Module):
    """What torchvision's detectors call a backbone: ours, frozen as in the experiment, and a pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Timm("tf_efficientnet_lite0", pretrained="packaged")
        levels = self.body.levels[-4:]
        self.fpn = FeaturePyramidNetwork([level.channels for level in levels], CHANNELS, LastLevelMaxPool())
        self.out_channels = CHANNELS
        for module in self.body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)
        for parameter in self.body.stages()[0]:
            parameter.requires_grad_(False)
        self.body.settle()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute five maps of images (B, 3, H, W), float in [0, 1]."""
        maps = self.body(images).maps[-4:]
        pyramid: dict[str, Tensor] = self.fpn(OrderedDict((str(index), x) for index, x in enumerate(maps)))
        return pyramid


class Photographs(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """The same images and boxes, read as torchvision's reference does."""

    def __init__(self, root: Path, repeats: int) -> None:
        annotations = VOCDetection(str(root)).split("train").annotations
        self.images = [(annotations.paths[i], annotations.of_image(i)) for i in range(len(annotations))] * repeats
        self.boxes, self.labels = annotations.boxes, annotations.labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        path, objects = self.images[index]
        image = tv.pil_to_tensor(Image.open(path).convert("RGB"))
        boxes = torch.from_numpy(self.boxes[objects]).float()
        if torch.rand(()) < 0.5:
            image = image.flip(-1)
            boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
        labels = torch.from_numpy(self.labels[objects]) + 1
        return tv.to_dtype(image, torch.float32, scale=True), {"boxes": boxes, "labels": labels}


def in_lists(samples: list[Any]) -> tuple[Any, ...]:
    """Put samples together as torchvision's detectors want them."""
    return tuple(zip(*samples, strict=True))


def time_loop(root: Path, workers: int) -> list[float]:
    """Return the seconds of each step of a loop around torchvision's own detector."""
    torch.manual_seed(0)
    data = Photographs(root, BATCH * STEPS)
    classes = 1 + len(VOCDetection(str(root)).classes)
    network = FasterRCNN(
        Pyramid(),
        min_size=SHORTER,
        max_size=LONGER,
        image_mean=(0.0, 0.0, 0.0),
        image_std=(1.0, 1.0, 1.0),
        rpn_anchor_generator=AnchorGenerator(SIZES, RATIOS),
        rpn_pre_nms_top_n_train=PROPOSALS[0],
        rpn_post_nms_top_n_train=PROPOSALS[1],
        box_batch_size_per_image=REGIONS,
        box_head=TwoMLPHead(CHANNELS * 7 * 7, REPRESENTATION),
        box_predictor=FastRCNNPredictor(REPRESENTATION, classes),
    ).to(memory_format=torch.channels_last)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0005, weight_decay=0.01, fused=True)
    network.train()
    starts = []
    for step, (images, targets) in enumerate(DataLoader(data, BATCH, True, num_workers=workers, collate_fn=in_lists)):
        starts.append(time.perf_counter())
        if step == STEPS:
            break
        loss = sum(network(list(images), list(targets)).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    return [after - before for before, after in pairwise(starts)]


def in_turns(rounds: int, *timings: Callable[[], list[float]]) -> Iterator[list[float]]:
    """Give the steady steps of each timing, all rounds together."""
    seconds: list[list[float]] = [[] for _ in timings]
    for _ in range(rounds):
        for own, timing in zip(seconds, timings, strict=True):
            own += timing()[WARMUP:]
    yield from seconds


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="a folder in Pascal VOC's layout; none: rendered scenes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.root.absolute() if options.root else Path(folder) / "scenes"
        if options.root is None:
            write_scenes(root)
        os.chdir(folder)
        fit, loop = in_turns(
            options.rounds, lambda: time_fit(root, options.workers), lambda: time_loop(root, options.workers)
        )
    ours, theirs = statistics.median(fit), statistics.median(loop)
    print(f"fit          {BATCH / ours:8.2f} images a second (median of {len(fit)} steps)")
    print(f"torchvision  {BATCH / theirs:8.2f} images a second (median of {len(loop)} steps)")
    print(f"ratio of the times of a step {ours / theirs:8.3f}")


if __name__ == "__main__":
    main()
