"""Monocular depth: metres for every pixel."""

from math import isfinite, lcm
from typing import Any, Literal, Self

import numpy as np
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from PIL import Image
from torch import Tensor

from framework.backbone import Backbone
from framework.errors import ConfigError
from framework.heads.dense import DenseHeadFactory
from framework.heads.depth import LinearDepth
from framework.heads.depth_output import Bins, DepthOutput
from framework.inference import DepthInference
from framework.losses.depth import DepthLoss, SILog
from framework.metrics.depth import Alignment, Crop, DepthMetrics
from framework.preprocessing import crop_back, pad_around, pad_to_multiple, resize_image, resize_logits, to_unit
from framework.tasks.base import Batch, Task
from framework.tracking.depth import colour_depth, depth_error_map, depth_legend
from framework.tracking.drawing import Picture, Row, to_rgb
from framework.tracking.point_cloud import point_cloud

Padding = Literal["corner", "around"]


class Depth(Task):
    """Monocular depth with any backbone under any dense head.

    The head's raw values become metres by `output`, at the head's own resolution; depth is then resized bilinearly, to
    the image in training, to the size as stored in evaluation. Depths outside `depth_range` count neither in the loss
    nor in any metric, and are not predicted. `val/score` is the share of pixels whose depth is less than 1.25 times
    too large or too small (delta1), averaged over images, as predicted; under a loss that leaves scale free it is that
    of the first `alignment`.

    Args:
        backbone: A backbone plugin.
        depth_range: Nearest and farthest depth, in metres; linked from the data.
        head: A dense head; it is built on the backbone's levels.
        output: What the head's values mean; null: 256 bins, as DINOv2 has them.
        loss: The training loss; null: SILog.
        crop: The part of an image in which metrics count: `nyu_eigen`, `kitti_eigen` or `garg`; null: all of it.
        alignment: Metrics are also given after each image's prediction was aligned to its target, under names that end
            in the alignment: `median` (scale), `least_squares` (scale and shift), `least_squares_disparity`.
        inference: Sliding windows and a mirrored view in validation, test and predict.
        padding: How images come to a size that backbone and head can take: `corner` repeats the edge at the bottom and
            right, and cuts it off the result; `around` adds the mean colour on all sides, and stretches the result
            over the image, as DINOv2's published heads were trained and evaluated.
        intrinsics: fx, fy, cx, cy of the camera, in pixels of the images as stored: with them, `predict` writes a
            point cloud of every image.
    """

    def __init__(
        self,
        backbone: Backbone,
        depth_range: tuple[float, float],
        head: DenseHeadFactory = LinearDepth,
        output: DepthOutput | None = None,
        loss: DepthLoss | None = None,
        crop: Crop | None = None,
        alignment: list[Alignment] | None = None,
        inference: DepthInference | None = None,
        padding: Padding = "corner",
        intrinsics: tuple[float, float, float, float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        self.class_names = []
        self.depth_range = (float(depth_range[0]), float(depth_range[1]))
        self.output, self.loss = output or Bins(), loss or SILog()
        self.alignments = tuple(alignment or ())
        self._check_options(intrinsics)
        self.head = head(backbone.levels, backbone.prefix_tokens, self.output.channels)
        self.multiple = lcm(backbone.multiple, self.head.multiple)
        self.inference, self.padding, self.intrinsics = inference or DepthInference(), padding, intrinsics
        self.val_metrics = DepthMetrics(self.depth_range, crop, self.alignments, self.loss.relative)
        self.test_metrics = DepthMetrics(self.depth_range, crop, self.alignments, self.loss.relative)
        self.apply_freeze()

    def _check_options(self, intrinsics: tuple[float, float, float, float] | None) -> None:
        """Refuse options that contradict each other.

        Raises:
            ConfigError: They do.
        """
        nearest, farthest = self.depth_range
        if not (isfinite(farthest) and 0 < nearest < farthest):
            raise ConfigError(
                f"data.depth_range: the nearest depth must be above 0 and below the farthest, got {nearest} and "
                f"{farthest} m"
            )
        if self.loss.relative and not self.alignments:
            raise ConfigError(
                f"model.loss: {type(self.loss).__name__} leaves scale and shift free, so that metres as predicted mean "
                "nothing: set model.alignment, such as [least_squares_disparity], or add a loss that knows metres"
            )
        if intrinsics is not None and not (min(intrinsics[:2]) > 0 and all(map(isfinite, intrinsics))):
            raise ConfigError(f"model.intrinsics: fx and fy must be above 0, got {list(intrinsics)}")

    @classmethod
    def example(cls, backbone: Backbone, head: Any = None) -> Self:
        """Build a task for depths of an indoor scene."""
        return cls(backbone, depth_range=(0.1, 10.0), head=head or LinearDepth, output=Bins(8))

    def example_batch(self, count: int, height: int, width: int) -> Batch:
        """Make up random images and depths; one corner of every depth map has no reading."""
        depth = torch.empty(count, height, width).uniform_(*self.depth_range)
        depth[:, :2, :2] = 0
        return {
            "image": torch.randint(0, 256, (count, self.backbone.in_channels, height, width), dtype=torch.uint8),
            "depth": depth,
            "id": [str(index) for index in range(count)],
            "is_pad": torch.zeros(count, dtype=torch.bool),
            "size": [(height, width)] * count,
            "original_size": [(height, width)] * count,
        }

    def setup(self, stage: str) -> None:
        """Refuse a precision in which depths as measured would be rounded, then lay out memory.

        Raises:
            ConfigError: It is one.
        """
        if self.trainer.precision in ("bf16-true", "16-true"):  # Lightning casts the whole batch, targets too
            raise ConfigError(
                f"trainer.precision: {self.trainer.precision} rounds the depths that were measured, to 1 in 256 or "
                "1 in 2048: set bf16-mixed or 16-mixed, or model.frozen_dtype for the backbone alone"
            )
        super().setup(stage)

    def forward(self, images: Tensor) -> Tensor:
        """Compute depth (B, H, W), float, in metres, of images (B, C, H, W), uint8 or float in [0, 1], of any size.

        In eval mode it is within `depth_range`.
        """
        size = (int(images.shape[-2]), int(images.shape[-1]))
        if self.padding == "around":
            padded = pad_around(to_unit(images), self.multiple, self.backbone.mean)
        else:
            padded = pad_to_multiple(to_unit(images), self.multiple)
        whole = (int(padded.shape[-2]), int(padded.shape[-1]))
        depth: Tensor = self.output(self.head.coarse(self.backbone(padded), whole), self.depth_range)
        if not self.training:
            depth = depth.clamp(*self.depth_range)
        if self.padding == "around":
            return resize_logits(depth, size)[:, 0]
        return crop_back(resize_logits(depth, whole), size)[:, 0]

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Return the loss of one batch."""
        step = self.global_step if self._trainer is not None else None
        loss: Tensor = self.loss(self(batch["image"]), self.readings(batch["depth"]), step)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]), sync_dist=True)
        return loss

    def readings(self, depth: Tensor) -> Tensor:
        """Return depth with 0 where it is outside `depth_range`: there is no reading."""
        nearest, farthest = self.depth_range
        return torch.where((depth >= nearest) & (depth <= farthest), depth, 0)  # NaN times 0 is NaN

    def predict_depth(self, batch: Batch) -> list[Tensor]:
        """Compute the depth (H, W), float32, in metres, of every image, at its own original size.

        Images of one size go through together; padding inside the batch is cut away first, so that no image's
        prediction depends on its batch mates.
        """
        out: list[Tensor | None] = [None] * len(batch["size"])
        for size in dict.fromkeys(batch["size"]):
            rows = [i for i, other in enumerate(batch["size"]) if other == size]
            depth = self.inference(self, batch["image"][rows, :, : size[0], : size[1]]).float()
            for i, row in enumerate(rows):
                out[row] = resize_logits(depth[i, None, None], batch["original_size"][row])[0, 0]
        return [depth for depth in out if depth is not None]

    def validation_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Count one batch; returns the predicted depth of each image."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Count one batch; returns the predicted depth of each image."""
        return self._evaluate(batch, self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Tensor]:
        """Return each image's depth (H, W), float32, in metres, at its original size."""
        return self.predict_depth(batch)

    def _evaluate(self, batch: Batch, metrics: DepthMetrics) -> STEP_OUTPUT:
        predictions = self.predict_depth(batch)
        for row, depth in enumerate(predictions):
            if not batch["is_pad"][row]:
                target = self.readings(batch["depth"][row, : depth.shape[-2], : depth.shape[-1]])
                metrics.update(depth, target, self.loss(depth[None], target[None]))
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

    def metric_names(self) -> list[str]:
        """Return every metric that validation will log."""
        return [f"val/{name}" for name in self.val_metrics.names()]

    # What the outputs mean.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what the outputs mean."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["depth_range"] = list(self.depth_range)
        checkpoint["depth_output"] = self.output.meaning()

    def check_outputs(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose outputs mean something else.

        Raises:
            ConfigError: It was trained for other depths, or under another output.
        """
        super().check_outputs(checkpoint)
        trained = tuple(checkpoint.get("depth_range", self.depth_range))
        if trained != self.depth_range:
            raise ConfigError(
                f"--ckpt_path: the checkpoint was trained for depths of {trained[0]:g} to {trained[1]:g} m, and "
                f"data.depth_range is {self.depth_range[0]:g} to {self.depth_range[1]:g}: set data.depth_range to "
                f"[{trained[0]:g}, {trained[1]:g}]"
            )
        given = self.output.meaning()
        if checkpoint.get("depth_output", given) != given:
            raise ConfigError(
                f"--ckpt_path: the checkpoint was trained with the output {checkpoint['depth_output']}, and "
                f"model.output is {given}, by which its values are other metres: set model.output to what it was"
            )

    # What the pictures show.

    def draw_row(self, batch: Batch, outputs: Any, row: int) -> Row:
        """Draw one evaluated image: input, target, prediction and relative errors, depth on one scale for all."""
        size, shape = batch["size"][row], batch["original_size"][row]
        picture = to_rgb(resize_image(batch["image"][row, :, : size[0], : size[1]], shape))
        target, prediction = self.readings(batch["depth"][row, : shape[0], : shape[1]]), outputs["predictions"][row]
        valid = target > 0
        error = ((prediction - target).abs() / target.where(valid, 1) * valid).sum() / valid.sum().clamp(min=1)
        return Row(
            f"{batch['id'][row]}: off by {100 * float(error):.1f} % on average",
            [
                ("input", picture),
                ("target", colour_depth(target, self.depth_range)),
                ("prediction", colour_depth(prediction, self.depth_range)),
                ("relative error", depth_error_map(prediction, target)),
            ],
        )

    def legend(self) -> list[tuple[str, Any]]:
        """Return the scales of depth and of errors."""
        return depth_legend(self.depth_range)

    def charts(self, split: str) -> dict[str, Picture]:
        """Return no charts."""
        return {}

    def prediction_images(self, batch: Batch, prediction: Tensor, row: int) -> dict[str, Image.Image]:
        """Return `NAME.png`, depth in steps that `predictions.csv` states, 16 bits, and `NAME.depth.jpg`, coloured."""
        name, depth = batch["id"][row], prediction.float().cpu()
        stored = (depth * self.steps_per_metre).round().clamp(0, 65535).numpy().astype(np.uint16)
        coloured = Image.fromarray(colour_depth(depth, self.depth_range))
        return {f"{name}.png": Image.fromarray(stored), f"{name}.depth.jpg": coloured}

    def prediction_files(self, batch: Batch, prediction: Tensor, row: int) -> dict[str, bytes]:
        """Return `NAME.ply`, the point cloud of one predicted image, if the camera is known."""
        if self.intrinsics is None:
            return {}
        (height, width), depth = batch["size"][row], prediction.float().cpu()
        image = to_rgb(resize_image(batch["image"][row, :, :height, :width], (depth.shape[0], depth.shape[1])))
        fx, fy, cx, cy = self.intrinsics
        camera = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        return {f"{batch['id'][row]}.ply": point_cloud(depth, image, camera)}

    def prediction_record(self, batch: Batch, prediction: Tensor, row: int) -> list[tuple[str, Any]]:
        """Return what `predictions.csv` says of one image: its depths, and what a metre is in its 16-bit picture."""
        depth = prediction.float()
        values = {"nearest": depth.min(), "median": depth.median(), "farthest": depth.max()}
        return [
            ("id", batch["id"][row]),
            *((name, f"{float(value):.4f}") for name, value in values.items()),
            ("depth_scale", self.steps_per_metre),
        ]

    @property
    def steps_per_metre(self) -> int:
        """How many steps of a 16-bit picture are a metre: millimetres, or KITTI's 256, where those would not do."""
        return next((steps for steps in (1000, 256) if steps * self.depth_range[1] <= 65535), 16)
