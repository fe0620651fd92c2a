"""What tasks share that judge frozen features by simple classifiers of images with one class each."""

from typing import Any, Self

import torch
from torch import Tensor

from framework.backbone import Backbone
from framework.errors import ConfigError
from framework.preprocessing import pad_to_multiple, to_unit
from framework.tasks.base import Batch, Task
from framework.tracking.classified import classified_record, classified_row
from framework.tracking.drawing import Row
from framework.transfer.selection import Selection


class FrozenClassification(Task):
    """Base of tasks that classify by features of a backbone which rests unless `freeze` says otherwise.

    Args:
        backbone: A backbone plugin.
        num_classes: Number of classes; linked from the data.
        class_names: Names of the classes; linked from the data.
        multi_label: Whether images have any number of classes; linked from the data, and refused.
        freeze: What is never trained; the whole backbone by default.
        options: Of `Task`.

    Raises:
        ConfigError: Images have several classes, or there are not as many names as classes.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        class_names: list[str] | None = None,
        multi_label: bool = False,
        freeze: Selection = "all",
        **options: Any,
    ) -> None:
        super().__init__(backbone, freeze=freeze, **options)
        if multi_label:
            raise ConfigError(
                f"model: {type(self).__name__} wants one class for every image, and the data's have several: take "
                "Classification"
            )
        self.class_names = class_names or [str(index) for index in range(num_classes)]
        if len(self.class_names) != num_classes:
            raise ConfigError(f"model.class_names: {len(self.class_names)} names for {num_classes} classes")
        self.num_classes = num_classes

    @classmethod
    def example(cls, backbone: Backbone, head: Any = None) -> Self:
        """Build a task of three classes; it has no head to choose."""
        return cls(backbone, num_classes=3)

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

    def prepared(self, images: Tensor) -> Tensor:
        """Bring images (B, C, H, W), uint8 or float in [0, 1], to what the backbone takes."""
        return pad_to_multiple(to_unit(images), self.backbone.multiple)

    def of_every_image(self, batch: Batch) -> Tensor:
        """Run every image through the network; returns what it gives for each, float32 (B, ...).

        Images of one size go through together; padding inside the batch is cut away first, so that no image's
        prediction depends on its batch mates.
        """
        sizes = list(dict.fromkeys(batch["size"]))
        rows = [[i for i, other in enumerate(batch["size"]) if other == size] for size in sizes]
        outputs: list[Tensor] = [
            self(batch["image"][own, :, : size[0], : size[1]]).float() for size, own in zip(sizes, rows, strict=True)
        ]
        if len(outputs) == 1:
            return outputs[0]
        order = torch.tensor([i for own in rows for i in own], device=outputs[0].device)
        return torch.cat(outputs)[order.argsort()]

    # What people are shown.

    def draw_row(self, batch: Batch, outputs: Any, row: int) -> Row:
        """Draw one evaluated image as the network saw it, in a red frame if its class was not recognised."""
        height, width = batch["size"][row]
        probabilities, image = outputs["probabilities"][row].cpu(), batch["image"][row, :, :height, :width]
        true, predicted = [int(batch["label"][row])], [int(probabilities.argmax())]
        return classified_row(image, batch["id"][row], probabilities, true, predicted, self.class_names)

    def legend(self) -> list[tuple[str, Any]]:
        """Return no colours: the classes are written out."""
        return []

    def prediction_record(self, batch: Batch, prediction: Tensor, row: int) -> list[tuple[str, Any]]:
        """Return what `predictions.csv` says of one image: its class, and the probability of every class."""
        return classified_record(batch["id"][row], prediction, [int(prediction.argmax())], self.class_names)
