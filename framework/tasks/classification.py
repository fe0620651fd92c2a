"""Classification: one class for every image."""

from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from framework.backbone import Backbone
from framework.errors import ConfigError
from framework.heads.classification import ClassificationHeadFactory, LinearClassifier
from framework.losses.segmentation import CrossEntropy, SegmentationLoss
from framework.preprocessing import pad_to_multiple, to_unit
from framework.tasks.base import Batch, Task, unpadded
from framework.tracking.drawing import RIGHT, WRONG, Row, to_rgb

TOP = 5
NONE_IGNORED = -1  # every image has a class


class Classification(Task):
    """Classification with any backbone under any classification head.

    An image's class is a mask of one pixel, so the losses of segmentation serve: `CrossEntropy`, `Focal` and others.

    Args:
        backbone: A backbone plugin.
        head: A classification head; it is built on the backbone's levels.
        loss: The training loss; null: cross entropy.
        num_classes: Number of classes; linked from the data.
        class_names: Names of the classes; linked from the data.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        head: ClassificationHeadFactory = LinearClassifier,
        loss: SegmentationLoss | None = None,
        class_names: list[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        self.class_names = class_names or [str(index) for index in range(num_classes)]
        if len(self.class_names) != num_classes:
            raise ConfigError(f"model.class_names: {len(self.class_names)} names for {num_classes} classes")
        self.num_classes = num_classes
        self.head = head(backbone.levels, backbone.prefix_tokens, num_classes)
        self.loss = loss or CrossEntropy()
        self.loss.check(num_classes)
        self.val_metrics = ClassificationMetrics(self.class_names)
        self.test_metrics = ClassificationMetrics(self.class_names)

    @classmethod
    def example(cls, backbone: Backbone, head: Any = None) -> Self:
        """Build a task of three classes."""
        return cls(backbone, num_classes=3, head=head or LinearClassifier)

    def example_batch(self, count: int, height: int, width: int) -> Batch:
        """Make up random images and classes."""
        return {
            "image": torch.randint(0, 256, (count, self.backbone.in_channels, height, width), dtype=torch.uint8),
            "label": torch.randint(0, self.num_classes, (count,)),
            "id": [str(index) for index in range(count)],
            "is_pad": torch.zeros(count, dtype=torch.bool),
            "size": [(height, width)] * count,
            "original_size": [(height, width)] * count,
        }

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (B, num_classes) of images (B, C, H, W), uint8 or float in [0, 1], of any size."""
        logits: Tensor = self.head(self.backbone(pad_to_multiple(to_unit(images), self.backbone.multiple)))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Return the loss of one batch."""
        loss = self.compute_loss(self(batch["image"]), batch["label"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def compute_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Compute the loss of logits (B, num_classes) for classes (B,), long."""
        loss: Tensor = self.loss(logits[:, :, None, None], label[:, None, None], NONE_IGNORED)
        return loss

    def predict_logits(self, batch: Batch) -> Tensor:
        """Compute logits (B, num_classes), float32, of every image.

        Images of one size go through together; padding inside the batch is cut away first, so that no image's
        prediction depends on its batch mates.
        """
        out = torch.empty(len(batch["size"]), self.num_classes, device=self.device)
        for size in dict.fromkeys(batch["size"]):
            rows = [i for i, other in enumerate(batch["size"]) if other == size]
            out[rows] = self(batch["image"][rows, :, : size[0], : size[1]]).float()
        return out

    def validation_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Count one batch; returns the class probabilities of each image."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Count one batch; returns the class probabilities of each image."""
        return self._evaluate(batch, self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the class probabilities (B, num_classes), float32, of each image."""
        return self.predict_logits(batch).softmax(1)

    def _evaluate(self, batch: Batch, metrics: "ClassificationMetrics") -> STEP_OUTPUT:
        everything = self.predict_logits(batch)
        logits, label = unpadded(batch, everything), unpadded(batch, batch["label"])
        if len(label):
            each = [self.compute_loss(logits[i : i + 1], label[i : i + 1]) for i in range(len(label))]
            metrics.update(logits, label, torch.stack(each))
        return {"probabilities": everything.softmax(1)}

    # Metrics are reset at the start, not at the end: what inference mode has touched, training may not touch again.

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        """Start counting."""
        self.test_metrics.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation split."""
        self.log_dict({f"val/{name}": value for name, value in self.val_metrics.compute().items()})

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test split."""
        self.log_dict({f"test/{name}": value for name, value in self.test_metrics.compute().items()})

    def metric_names(self) -> list[str]:
        """Return every metric that validation will log."""
        metrics = classification_metrics(torch.eye(self.num_classes), self.class_names)
        top = [f"top{TOP}"] if self.num_classes > TOP else []
        return [f"val/{name}" for name in ("loss", "score", *top, *metrics)]

    # What people are shown.

    def draw_row(self, batch: Batch, outputs: Any, row: int) -> Row:
        """Draw one evaluated image as the network saw it, in a red frame if its class was not recognised."""
        height, width = batch["size"][row]
        picture = to_rgb(batch["image"][row, :, :height, :width])
        probability, predicted = outputs["probabilities"][row].max(0)
        label = int(batch["label"][row])
        border = max(1, min(height, width) // 32)
        frame = np.empty((height + 2 * border, width + 2 * border, 3), np.uint8)
        frame[:] = RIGHT if int(predicted) == label else WRONG
        frame[border:-border, border:-border] = picture
        said = f"{self.class_names[int(predicted)]} {100 * float(probability):.0f} %"
        return Row(f"{self.class_names[label]}, predicted {said} · {batch['id'][row]}", [("input", frame)])

    def legend(self) -> list[tuple[str, Any]]:
        """Return no colours: the classes are written out."""
        return []

    def prediction_record(self, batch: Batch, prediction: Tensor, row: int) -> list[tuple[str, Any]]:
        """Return what `predictions.csv` says of one image: its class, and the probability of every class."""
        probabilities = prediction.tolist()
        best = max(range(self.num_classes), key=probabilities.__getitem__)
        every = [(name, f"{value:.6f}") for name, value in zip(self.class_names, probabilities, strict=True)]
        return [("id", batch["id"][row]), ("class", self.class_names[best]), ("probability", every[best][1]), *every]


class ClassificationMetrics(nn.Module):
    """One confusion matrix, the mean loss and the share of the best five; the rest is computed at the epoch's end.

    Args:
        class_names: Names of the classes.
    """

    def __init__(self, class_names: list[str]) -> None:
        super().__init__()
        self.class_names = class_names
        self.confusion = MulticlassConfusionMatrix(len(class_names), validate_args=False)
        self.loss, self.top = MeanMetric(), MeanMetric()

    def update(self, logits: Tensor, label: Tensor, loss: Tensor) -> None:
        """Count images: logits (B, C), their classes (B,), long, and the loss of each (B,)."""
        self.confusion.update(logits.argmax(1), label)
        self.loss.update(loss)
        best = logits.topk(min(TOP, logits.shape[1])).indices
        self.top.update((best == label[:, None]).any(1).float())

    def reset(self) -> None:
        """Forget what was counted."""
        for metric in (self.confusion, self.loss, self.top):
            metric.reset()

    def compute(self) -> dict[str, Tensor]:
        """Return all metrics, over all processes; `score` is the headline, accuracy."""
        metrics = classification_metrics(self.confusion.compute().double(), self.class_names)
        top = {f"top{TOP}": self.top.compute()} if len(self.class_names) > TOP else {}
        return {"loss": self.loss.compute(), **top, **metrics, "score": metrics["accuracy"]}


def classification_metrics(confusion: Tensor, class_names: list[str]) -> dict[str, Tensor]:
    """Compute metrics from the confusion matrix of all images of a split.

    Args:
        confusion: (C, C), rows are targets, columns predictions.
        class_names: C names.

    Returns:
        `accuracy`, the share of images that are right; `accuracy/NAME`, that share of the images of one class (its
        recall), NaN for a class without images; `balanced_accuracy`, the mean of those over the classes that have
        images. All in [0, 1].
    """
    hits, targets = confusion.diag(), confusion.sum(1)
    recall = hits / targets
    metrics = {"accuracy": hits.sum() / targets.sum(), "balanced_accuracy": recall.nanmean()}
    return metrics | {f"accuracy/{name}": value for name, value in zip(class_names, recall.unbind(), strict=True)}
