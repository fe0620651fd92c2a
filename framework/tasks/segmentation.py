"""Semantic segmentation: a class for every pixel."""

from math import lcm
from typing import Any, Literal, Self

import numpy as np
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from PIL import Image
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from framework.backbone import Backbone
from framework.errors import ConfigError, TrainingError
from framework.heads.decoders import UNet
from framework.heads.dense import DenseHeadFactory
from framework.inference import DenseInference
from framework.losses.segmentation import CrossEntropy, SegmentationLoss
from framework.preprocessing import crop_back, pad_around, pad_to_multiple, resize_image, resize_logits, to_unit
from framework.tasks.base import Batch, Task
from framework.tracking.drawing import Picture, Row, confusion_chart, error_map, overlay, palette, to_rgb


class Segmentation(Task):
    """Semantic segmentation with any backbone under any dense head.

    Args:
        backbone: A backbone plugin.
        head: A dense head; it is built on the backbone's levels.
        loss: The training loss.
        num_classes: Number of classes; linked from the data.
        class_names: Names of the classes; linked from the data.
        ignore_index: Class index of pixels that do not count; linked from the data.
        inference: Sliding windows and test-time augmentation in validation, test and predict.
        padding: How images come to a size that backbone and head can take: `corner` repeats the edge at the bottom and
            right, and cuts it off the result; `around` adds the mean colour on all sides, and stretches the result
            over the image, as DINOv2's published heads were trained and evaluated.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        head: DenseHeadFactory = UNet,
        loss: SegmentationLoss | None = None,
        class_names: list[str] | None = None,
        ignore_index: int = 255,
        inference: DenseInference | None = None,
        padding: Literal["corner", "around"] = "corner",
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        if 0 <= ignore_index < num_classes:
            raise ConfigError(f"model.ignore_index: {ignore_index} is also a class: there are {num_classes}")
        self.class_names = class_names or [str(index) for index in range(num_classes)]
        if len(self.class_names) != num_classes:
            raise ConfigError(f"model.class_names: {len(self.class_names)} names for {num_classes} classes")
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.head = head(backbone.levels, backbone.prefix_tokens, num_classes)
        self.multiple = lcm(backbone.multiple, self.head.multiple)
        self.loss = loss or CrossEntropy()
        self.loss.check(num_classes)
        self.inference, self.padding = inference or DenseInference(), padding
        self.val_metrics = SegmentationMetrics(self.class_names, ignore_index)
        self.test_metrics = SegmentationMetrics(self.class_names, ignore_index)
        self.apply_freeze()

    @classmethod
    def example(cls, backbone: Backbone, head: Any = None) -> Self:
        """Build a task of three classes."""
        return cls(backbone, num_classes=3, head=head or UNet)

    def example_batch(self, count: int, height: int, width: int) -> Batch:
        """Make up random images and masks; one corner of every mask is ignored."""
        mask = torch.randint(0, self.num_classes, (count, height, width))
        mask[:, :2, :2] = self.ignore_index
        return {
            "image": torch.randint(0, 256, (count, self.backbone.in_channels, height, width), dtype=torch.uint8),
            "mask": mask,
            "id": [str(index) for index in range(count)],
            "is_pad": torch.zeros(count, dtype=torch.bool),
            "size": [(height, width)] * count,
            "original_size": [(height, width)] * count,
        }

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (B, num_classes, H, W) of images (B, C, H, W), uint8 or float in [0, 1], of any size."""
        size = (int(images.shape[-2]), int(images.shape[-1]))
        if self.padding == "around":
            padded = pad_around(to_unit(images), self.multiple, self.backbone.mean)
            whole = (int(padded.shape[-2]), int(padded.shape[-1]))
            return resize_logits(self.head.coarse(self.backbone(padded), whole), size)
        padded = pad_to_multiple(to_unit(images), self.multiple)
        logits = self.head(self.backbone(padded), (int(padded.shape[-2]), int(padded.shape[-1])))
        return crop_back(logits, size)

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Return the loss of one batch."""
        loss: Tensor = self.loss(self(batch["image"]), batch["mask"].long(), self.ignore_index)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]), sync_dist=True)
        return loss

    def predict_logits(self, batch: Batch) -> list[Tensor]:
        """Compute log-probabilities (num_classes, H, W) of every image, at its own original size.

        Images of one size go through together; padding inside the batch is cut away first, so that no image's
        prediction depends on its batch mates.
        """
        out: list[Tensor | None] = [None] * len(batch["size"])
        for size in dict.fromkeys(batch["size"]):
            rows = [i for i, other in enumerate(batch["size"]) if other == size]
            logits = self.inference(self, batch["image"][rows, :, : size[0], : size[1]])
            for i, row in enumerate(rows):
                out[row] = resize_logits(logits[i : i + 1], batch["original_size"][row])[0]
        return [logits for logits in out if logits is not None]

    def validation_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Count one batch; returns the predicted classes of each image."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Count one batch; returns the predicted classes of each image."""
        return self._evaluate(batch, self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Tensor]:
        """Return each image's classes (H, W), uint8, at its original size."""
        return [logits.argmax(0).to(torch.uint8) for logits in self.predict_logits(batch)]

    def _evaluate(self, batch: Batch, metrics: "SegmentationMetrics") -> STEP_OUTPUT:
        predictions = []
        for row, logits in enumerate(self.predict_logits(batch)):
            mask = batch["mask"][row, : logits.shape[-2], : logits.shape[-1]].long()
            predictions.append(logits.argmax(0))
            if not batch["is_pad"][row]:
                metrics.update(predictions[-1], mask, self.loss(logits[None], mask[None], self.ignore_index))
        return {"predictions": predictions}

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

    # What the pictures show.

    def draw_row(self, batch: Batch, outputs: Any, row: int) -> Row:
        """Draw one evaluated image: input, target, prediction and errors."""
        (height, width), size = batch["original_size"][row], batch["size"][row]
        image = resize_image(batch["image"][row, :, : size[0], : size[1]], (height, width))
        target, prediction = batch["mask"][row, :height, :width], outputs["predictions"][row]
        colours, picture = palette(self.num_classes), to_rgb(image)
        counted = (target != self.ignore_index).sum().clamp(min=1)
        right = (prediction == target).sum() / counted
        return Row(
            f"{batch['id'][row]}: {100 * float(right):.1f} % of pixels right",
            [
                ("input", picture),
                ("target", overlay(picture, target, colours, ignore_index=self.ignore_index)),
                ("prediction", overlay(picture, prediction, colours)),
                ("errors", error_map(target, prediction, self.ignore_index)),
            ],
        )

    def legend(self) -> list[tuple[str, Any]]:
        """Return the class names with their colours."""
        return list(zip(self.class_names, palette(self.num_classes), strict=True))

    def charts(self, split: str) -> dict[str, Picture]:
        """Draw the confusion matrix of the pixels of an evaluated split, `val` or `test`."""
        metrics = self.val_metrics if split == "val" else self.test_metrics
        return {"confusion": confusion_chart(metrics.confusion.compute(), self.class_names)}

    def prediction_images(self, batch: Batch, prediction: Tensor, row: int) -> dict[str, Image.Image]:
        """Return `NAME.png`, an index mask with a palette, and `NAME.overlay.jpg`, the mask over its image."""
        name, (height, width) = batch["id"][row], batch["size"][row]
        mask, colours = prediction.cpu().numpy().astype(np.uint8), palette(self.num_classes)
        picture = Image.fromarray(mask, mode="P")
        picture.putpalette(colours.tobytes())
        image = Image.fromarray(to_rgb(batch["image"][row, :, :height, :width]))
        image = image.resize((mask.shape[1], mask.shape[0]), Image.Resampling.BILINEAR)
        over = Image.fromarray(overlay(np.asarray(image), mask, colours))
        return {f"{name}.png": picture, f"{name}.overlay.jpg": over}

    def metric_names(self) -> list[str]:
        """Return every metric that validation will log."""
        metrics = segmentation_metrics(torch.eye(self.num_classes), self.class_names)
        return [f"val/{name}" for name in ("loss", "score", *metrics)]


class SegmentationMetrics(nn.Module):
    """One confusion matrix and the mean loss of a split; everything else is computed from them at the epoch's end.

    Args:
        class_names: Names of the classes.
        ignore_index: Class index in masks of pixels that do not count.
    """

    def __init__(self, class_names: list[str], ignore_index: int) -> None:
        super().__init__()
        self.class_names = class_names
        self.confusion = MulticlassConfusionMatrix(len(class_names), ignore_index=ignore_index, validate_args=False)
        self.loss = MeanMetric()

    def update(self, prediction: Tensor, mask: Tensor, loss: Tensor) -> None:
        """Count one image: classes (H, W), mask (H, W), both long, and its loss."""
        self.confusion.update(prediction, mask)
        self.loss.update(loss)

    def reset(self) -> None:
        """Forget what was counted."""
        self.confusion.reset()
        self.loss.reset()

    def compute(self) -> dict[str, Tensor]:
        """Return all metrics, over all processes; `score` is the headline, mIoU.

        Raises:
            TrainingError: No pixel was counted.
        """
        confusion = self.confusion.compute().double()
        if not confusion.any():
            raise TrainingError("not one pixel was counted: every pixel of every mask is ignored")
        metrics = segmentation_metrics(confusion, self.class_names)
        return {"loss": self.loss.compute(), **metrics, "score": metrics["miou"]}


def segmentation_metrics(confusion: Tensor, class_names: list[str]) -> dict[str, Tensor]:
    """Compute all metrics from one confusion matrix over all counted pixels of a split.

    Args:
        confusion: (C, C), rows are targets, columns predictions.
        class_names: C names.

    Returns:
        `miou` and `dice`, means over the classes that occur in targets or predictions; `pixel_accuracy`;
        `iou/NAME` and `dice/NAME`, NaN for a class that occurs in neither. All in [0, 1].
    """
    hits, targets, predictions = confusion.diag(), confusion.sum(1), confusion.sum(0)
    union = targets + predictions - hits
    iou, dice = hits / union, 2 * hits / (targets + predictions)
    metrics = {"miou": iou.nanmean(), "dice": dice.nanmean(), "pixel_accuracy": hits.sum() / confusion.sum()}
    metrics |= {f"iou/{name}": value for name, value in zip(class_names, iou.unbind(), strict=True)}
    return metrics | {f"dice/{name}": value for name, value in zip(class_names, dice.unbind(), strict=True)}
