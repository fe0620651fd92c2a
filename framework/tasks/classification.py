"""Classification: one class for every image, or any number of them."""

from typing import Any, Self

import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from framework.backbone import Backbone
from framework.errors import ConfigError
from framework.heads.classification import ClassificationHeadFactory, LinearClassifier
from framework.losses.classification import BinaryCrossEntropy
from framework.losses.segmentation import CrossEntropy, SegmentationLoss
from framework.metrics.classification import ClassificationMetrics, MultiLabelMetrics, SingleLabelMetrics
from framework.preprocessing import pad_to_multiple, to_unit
from framework.tasks.base import Batch, Task, unpadded
from framework.tracking.classified import classified_record, classified_row
from framework.tracking.drawing import Picture, Row, confusion_chart

NONE_IGNORED = -1  # every image has a class


class Classification(Task):
    """Classification with any backbone under any classification head.

    An image's class is a mask of one pixel, so the losses of segmentation serve: `CrossEntropy`, `Focal` and others.
    What `BinaryCrossEntropy` and `BinaryFocal` ask of every class by itself, images with several classes need.

    Args:
        backbone: A backbone plugin.
        head: A classification head; it is built on the backbone's levels.
        loss: The training loss; null: cross entropy, binary where images have several classes.
        num_classes: Number of classes; linked from the data.
        class_names: Names of the classes; linked from the data.
        multi_label: Whether images have any number of classes; linked from the data.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        head: ClassificationHeadFactory = LinearClassifier,
        loss: SegmentationLoss | None = None,
        class_names: list[str] | None = None,
        multi_label: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        self.class_names = class_names or [str(index) for index in range(num_classes)]
        if len(self.class_names) != num_classes:
            raise ConfigError(f"model.class_names: {len(self.class_names)} names for {num_classes} classes")
        self.num_classes, self.multi_label = num_classes, multi_label
        self.head = head(backbone.levels, backbone.prefix_tokens, num_classes)
        self.loss = loss or (BinaryCrossEntropy() if multi_label else CrossEntropy())
        self.loss.check(num_classes)
        if multi_label and not self.loss.several_classes:
            raise ConfigError(
                f"model.loss: {type(self.loss).__name__} wants one class for every image, and the data's have several: "
                "take BinaryCrossEntropy or BinaryFocal"
            )
        self.val_metrics, self.test_metrics = self._metrics(), self._metrics()
        self.apply_freeze()

    def _metrics(self) -> ClassificationMetrics:
        if self.multi_label:
            return MultiLabelMetrics(self.class_names)
        return SingleLabelMetrics(self.class_names, independent=self.loss.several_classes)

    @classmethod
    def example(cls, backbone: Backbone, head: Any = None) -> Self:
        """Build a task of three classes."""
        return cls(backbone, num_classes=3, head=head or LinearClassifier)

    def example_batch(self, count: int, height: int, width: int) -> Batch:
        """Make up random images and classes."""
        label = torch.randint(0, self.num_classes, (count,))
        several = torch.randint(0, 2, (count, self.num_classes)).float()
        return {
            "image": torch.randint(0, 256, (count, self.backbone.in_channels, height, width), dtype=torch.uint8),
            "label": several if self.multi_label else label,
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
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]), sync_dist=True)
        return loss

    def compute_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Compute the loss of logits (B, num_classes) for classes (B,), long, or shares of them (B, C), float."""
        loss: Tensor = self.loss(logits[:, :, None, None], label[..., None, None], NONE_IGNORED)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what the outputs mean."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["multi_label"] = self.multi_label

    def check_outputs(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose outputs mean something else.

        Raises:
            ConfigError: It was trained for other classes, or for images with one class each where these have several.
        """
        super().check_outputs(checkpoint)
        if checkpoint.get("multi_label", self.multi_label) != self.multi_label:
            trained, given = ("several", "one") if checkpoint["multi_label"] else ("one", "several")
            raise ConfigError(
                f"--ckpt_path: the checkpoint was trained for {trained} of the classes in each image, and the data has "
                f"{given}"
            )

    def check_data(self, data: Any) -> None:
        """Refuse data that mixes images under a loss that knows whole classes only.

        Raises:
            ConfigError: It does.
        """
        super().check_data(data)
        if getattr(data, "mixes", False) and not self.loss.takes_shares:
            raise ConfigError(
                f"model.loss: {type(self.loss).__name__} wants one class for every image, and data.mix gives shares of "
                "two: take CrossEntropy, Focal, BinaryCrossEntropy or BinaryFocal, or leave data.mix out"
            )

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
        return self.val_metrics.probabilities(self.predict_logits(batch))

    def _evaluate(self, batch: Batch, metrics: ClassificationMetrics) -> STEP_OUTPUT:
        everything = self.predict_logits(batch)
        logits, label = unpadded(batch, everything), unpadded(batch, batch["label"])
        each = [self.compute_loss(logits[i : i + 1], label[i : i + 1]) for i in range(len(label))]
        weights = self.loss.image_weights(label[..., None, None], NONE_IGNORED)
        metrics.update(logits, label, torch.stack(each) if each else logits.new_zeros(0), weights)
        return {"probabilities": metrics.probabilities(everything)}

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
        return [f"val/{name}" for name in self.val_metrics.names()]

    # What people are shown.

    def draw_row(self, batch: Batch, outputs: Any, row: int) -> Row:
        """Draw one evaluated image as the network saw it, in a red frame if its classes were not recognised."""
        height, width = batch["size"][row]
        probabilities, label = outputs["probabilities"][row].cpu(), batch["label"][row].cpu()
        true = label.nonzero().flatten().tolist() if self.multi_label else [int(label)]
        image, predicted = batch["image"][row, :, :height, :width], self._predicted(probabilities)
        return classified_row(image, batch["id"][row], probabilities, true, predicted, self.class_names)

    def _predicted(self, probabilities: Tensor) -> list[int]:
        """Return the predicted classes of one image: the likeliest, or, of several, all above one half."""
        return (probabilities > 0.5).nonzero().flatten().tolist() if self.multi_label else [int(probabilities.argmax())]

    def legend(self) -> list[tuple[str, Any]]:
        """Return no colours: the classes are written out."""
        return []

    def charts(self, split: str) -> dict[str, Picture]:
        """Draw the confusion matrix of an evaluated split (`val` or `test`); images with several classes have none."""
        metrics = self.val_metrics if split == "val" else self.test_metrics
        if not isinstance(metrics, SingleLabelMetrics):
            return {}
        return {"confusion": confusion_chart(metrics.confusion.compute(), self.class_names)}

    def prediction_record(self, batch: Batch, prediction: Tensor, row: int) -> list[tuple[str, Any]]:
        """Return what `predictions.csv` says of one image: its class, and the probability of every class.

        Where images have several classes, `class` lists them with `|` between, and `probability` that of each.
        """
        return classified_record(batch["id"][row], prediction, self._predicted(prediction), self.class_names)
