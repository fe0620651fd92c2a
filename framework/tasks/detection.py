"""Object detection: boxes with classes and scores."""

from functools import partial
from math import lcm
from typing import Any, Self

import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from PIL import Image
from torch import Tensor

from framework.backbone import Backbone, Features
from framework.boxes import Detections, Frame, Objects, Size, scale_boxes
from framework.errors import ConfigError, TrainingError
from framework.heads.detection import DetectionHeadFactory
from framework.heads.fcos import FCOS
from framework.metrics.detection import DetectionMetrics
from framework.preprocessing import pad_with_colour, resize_image, to_unit
from framework.tasks.base import Batch, Task
from framework.tiling import DetectionInference
from framework.tracking.boxes import draw_boxes
from framework.tracking.curves import curve_chart
from framework.tracking.drawing import Picture, Row, confusion_chart, palette, to_rgb

THRESHOLD = "score_threshold"  # of a checkpoint
UNDECIDED = 0.5  # the threshold until a validation has chosen one


class Detection(Task):
    """Object detection with any backbone under any detection head.

    Images lie in the upper left corner of a canvas whose rest has the backbone's mean colour, which normalises to 0.
    Boxes come back in the pixels of the image as stored.

    Args:
        backbone: A backbone plugin.
        head: A detection head; it is built on the backbone's levels, and brings its losses with it.
        num_classes: Number of classes, without a background; linked from the data.
        class_names: Names of the classes; linked from the data.
        score_threshold: Score from which on a detection is shown, written and counted in precision and recall, in
            (0, 1); null: the one of the best F1 in validation. Average precision counts all of them whatever it is.
        inference: Tiles in validation, test and predict, for small objects in large images; null: whole images.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        head: DetectionHeadFactory = FCOS,
        class_names: list[str] | None = None,
        score_threshold: float | None = None,
        inference: DetectionInference | None = None,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        self.class_names = class_names or [str(index) for index in range(num_classes)]
        if len(self.class_names) != num_classes:
            raise ConfigError(f"model.class_names: {len(self.class_names)} names for {num_classes} classes")
        if score_threshold is not None and not 0 < score_threshold < 1:
            raise ConfigError(f"model.score_threshold must be in (0, 1), got {score_threshold}")
        self.num_classes, self.given_threshold = num_classes, score_threshold
        self.score_threshold = UNDECIDED if score_threshold is None else score_threshold
        self.head = head(backbone.levels, backbone.prefix_tokens, num_classes)
        self.multiple = lcm(backbone.multiple, self.head.multiple)
        self.inference = inference or DetectionInference()
        self.inference.suit(self.head.nms_iou)
        self.val_metrics, self.test_metrics = DetectionMetrics(self.class_names), DetectionMetrics(self.class_names)
        self.apply_freeze()

    @classmethod
    def example(cls, backbone: Backbone, head: Any = None) -> Self:
        """Build a task of three classes, with a small head."""
        head = head or FCOS
        return cls(backbone, num_classes=3, head=partial(head, **getattr(head, "trial", {})))

    def example_batch(self, count: int, height: int, width: int) -> Batch:
        """Make up random images with random objects; the last of several has none."""
        numbers = [2 + index for index in range(count - 1)] + [0 if count > 1 else 2]
        side = torch.tensor([width, height]).float()
        corners = [torch.rand(number, 2, 2).sort(1).values * side * 0.7 for number in numbers]
        labels = [torch.randint(0, self.num_classes, (number,)) for number in numbers]
        boxes = [torch.cat([pair[:, 0], pair[:, 1] + 0.25 * side], dim=1) for pair in corners]
        return {
            "image": torch.randint(0, 256, (count, self.backbone.in_channels, height, width), dtype=torch.uint8),
            "boxes": boxes,
            "labels": labels,
            "ignored": [torch.zeros(number, dtype=torch.bool) for number in numbers],
            "area": [(box[:, 2:] - box[:, :2]).prod(1) for box in boxes],
            "id": [str(index) for index in range(count)],
            "is_pad": torch.zeros(count, dtype=torch.bool),
            "size": [(height, width)] * count,
            "canvas": [(height, width)] * count,
            "original_size": [(height, width)] * count,
        }

    # From images to boxes.

    def show(self, images: Tensor, sizes: list[Size]) -> tuple[Features, Frame]:
        """Compute the features of images (B, C, H, W), uint8 or float in [0, 1], that fill `sizes` of it each."""
        canvas = pad_with_colour(to_unit(images), sizes, self.multiple, self.backbone.mean)
        return self.backbone(canvas), Frame((int(canvas.shape[-2]), int(canvas.shape[-1])), sizes)

    def forward(self, images: Tensor, sizes: list[Size] | None = None) -> list[Detections]:
        """Find the objects in images (B, C, H, W), uint8 or float in [0, 1], of any size; boxes in their pixels."""
        whole = (int(images.shape[-2]), int(images.shape[-1]))
        features, frame = self.show(images, sizes or [whole] * len(images))
        found: list[Detections] = self.head(features, frame)
        return found

    def find(self, batch: Batch) -> list[Detections]:
        """Find the objects of every image of a batch; boxes in the pixels of the image as stored.

        Images on canvases of one size go through together, so that no image's result depends on its batch mates.
        """
        out: list[Detections | None] = [None] * len(batch["size"])
        for canvas in dict.fromkeys(batch["canvas"]):
            rows = [row for row, other in enumerate(batch["canvas"]) if other == canvas]
            images = batch["image"][rows, :, : canvas[0], : canvas[1]]
            found = self.inference(self, images, [batch["size"][row] for row in rows])
            for row, one in zip(rows, found, strict=True):
                out[row] = one._replace(boxes=scale_boxes(one.boxes, batch["size"][row], batch["original_size"][row]))
        return [one for one in out if one is not None]

    def confident(self, found: Detections) -> Detections:
        """Return the detections whose score reaches the threshold."""
        kept = found.scores >= self.score_threshold
        return Detections(*(values[kept] for values in found))

    # Steps.

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Return the loss of one batch."""
        features, frame = self.show(batch["image"], batch["size"])
        objects = [Objects(*pair) for pair in zip(batch["boxes"], batch["labels"], strict=True)]
        terms: dict[str, Tensor] = self.head(features, frame, objects)
        loss = torch.stack(list(terms.values())).sum()
        count = len(batch["image"])
        self.log("train/loss", loss, prog_bar=True, batch_size=count, sync_dist=True)
        for name, value in terms.items():
            self.log(f"train/{name}", value.detach(), batch_size=count, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Count one batch; returns the detections of each image."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Count one batch; returns the detections of each image."""
        return self._evaluate(batch, self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Detections]:
        """Return each image's detections whose score reaches the threshold, in its original pixels."""
        return [self.confident(found) for found in self.find(batch)]

    def _evaluate(self, batch: Batch, metrics: DetectionMetrics) -> STEP_OUTPUT:
        everything = self.find(batch)
        for row, found in enumerate(everything):
            if not batch["is_pad"][row]:
                truth = (batch[name][row] for name in ("boxes", "labels", "ignored", "area"))
                metrics.update(*found, *truth)
        return {"detections": everything}

    # Metrics are reset at the start, not at the end: what inference mode has touched, training may not touch again.

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        """Start counting."""
        self.test_metrics.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation split, and take its best threshold unless one is given."""
        figures = self._figures(self.val_metrics, self.given_threshold, "limit_val_batches")
        trying = self._trainer is not None and self.trainer.sanity_checking
        if not trying and not figures["threshold"].isnan():
            self.score_threshold = float(figures["threshold"])
        self.log_dict({f"val/{name}": value for name, value in figures.items()})

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test split, precision and recall at the threshold of validation."""
        figures = self._figures(self.test_metrics, self.score_threshold, "limit_test_batches")
        self.log_dict({f"test/{name}": value for name, value in figures.items()})

    def _figures(self, metrics: DetectionMetrics, threshold: float | None, limit: str) -> dict[str, Tensor]:
        """Compute the metrics of a split; all NaN where only a part of it was looked at, and that has no object."""
        try:
            return metrics.compute(threshold)
        except TrainingError:
            trainer: Any = self._trainer
            share = getattr(trainer, limit, 1.0)  # or, as an integer, a number of batches
            part = isinstance(share, int) or share < 1
            if trainer is None or not (part or trainer.sanity_checking or trainer.fast_dev_run):
                raise
            return dict.fromkeys(metrics.names(), torch.tensor(torch.nan))

    def metric_names(self) -> list[str]:
        """Return every metric that validation will log."""
        return [f"val/{name}" for name in self.val_metrics.names()]

    def train_metric_names(self) -> list[str]:
        """Return every metric that training will log."""
        return [*super().train_metric_names(), *(f"train/{name}" for name in self.head.loss_names)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what the outputs mean, and from which score on they count."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[THRESHOLD] = self.score_threshold

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check what the outputs mean; take the threshold that validation chose, unless one is given."""
        super().on_load_checkpoint(checkpoint)
        if self.given_threshold is None:
            self.score_threshold = float(checkpoint.get(THRESHOLD, self.score_threshold))

    # What people are shown.

    def draw_row(self, batch: Batch, outputs: Any, row: int) -> Row:
        """Draw one evaluated image: what there is, and what was found above the threshold."""
        size, original = batch["size"][row], batch["original_size"][row]
        picture = to_rgb(batch["image"][row, :, : size[0], : size[1]])
        found = self.confident(outputs["detections"][row])
        counted = ~batch["ignored"][row]
        truth = scale_boxes(batch["boxes"][row][counted], original, size)
        target = self._draw(picture, Detections(truth, truth.new_ones(len(truth)), batch["labels"][row][counted]))
        prediction = self._draw(picture, found._replace(boxes=scale_boxes(found.boxes, original, size)), scored=True)
        text = f"{batch['id'][row]}: {len(truth)} objects, {len(found.boxes)} found"
        return Row(text, [("target", target), ("prediction", prediction)])

    def _draw(self, picture: Picture, found: Detections, scored: bool = False) -> Picture:
        scores = found.scores if scored else None
        return draw_boxes(picture, found.boxes, found.labels, self.class_names, self._colours(), scores)

    def _colours(self) -> Picture:
        return palette(1 + self.num_classes)[1:]  # the first is that of a background

    def legend(self) -> list[tuple[str, Any]]:
        """Return the class names with their colours."""
        return list(zip(self.class_names, self._colours(), strict=True))

    def charts(self, split: str) -> dict[str, Picture]:
        """Draw confusion and precision over recall of an evaluated split, `val` or `test`."""
        metrics = self.val_metrics if split == "val" else self.test_metrics
        if not metrics.is_evaluated:
            return {}
        return {
            "confusion": confusion_chart(metrics.confusion(), [*self.class_names, "nothing"]),
            "precision_recall": curve_chart(metrics.curves(), "recall", "precision"),
        }

    def prediction_images(self, batch: Batch, prediction: Detections, row: int) -> dict[str, Image.Image]:
        """Return `NAME.jpg`, the image with its detections drawn."""
        size, original = batch["size"][row], batch["original_size"][row]
        picture = to_rgb(resize_image(batch["image"][row, :, : size[0], : size[1]], original))
        return {f"{batch['id'][row]}.jpg": Image.fromarray(self._draw(picture, prediction, scored=True))}

    def prediction_records(self, batch: Batch, prediction: Detections, row: int) -> list[list[tuple[str, Any]]]:
        """Return what `predictions.csv` says of one image: a row for each detection, best first."""
        every = zip(prediction.boxes.tolist(), prediction.scores.tolist(), prediction.labels.tolist(), strict=True)
        return [
            [("id", batch["id"][row]), ("class", self.class_names[label]), ("score", f"{score:.6f}")]
            + [(side, f"{value:.2f}") for side, value in zip(("x1", "y1", "x2", "y2"), box, strict=True)]
            for box, score, label in every
        ]

    def prediction_columns(self) -> list[str]:
        """Return the columns of `predictions.csv`, which stand there though nothing be found."""
        return ["id", "class", "score", "x1", "y1", "x2", "y2"]
