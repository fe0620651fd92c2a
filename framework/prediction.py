"""Writing predictions beside a run, as soon as they are there: pictures, or rows of a table."""

import csv
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from framework.tracking.drawing import overlay, palette, to_rgb

Record = Sequence[tuple[str, Any]]  # (column, value); a list, because a class may be named as another column is


class PredictionWriter(BasePredictionWriter):
    """Writes what `predict_step` returns.

    A task takes part by having `prediction_images(batch, prediction, row)`, the pictures of one image by file name, or
    `prediction_record(batch, prediction, row)`, its row of `predictions.csv`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__("batch")
        self.folder = folder

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one batch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        task: Any = pl_module
        rows = [(row, one) for row, one in enumerate(prediction) if not batch["is_pad"][row]]
        if hasattr(task, "prediction_record"):
            records = [task.prediction_record(batch, one, row) for row, one in rows]
            append_records(self.folder / f"predictions.{trainer.global_rank}.csv", records)
            return
        for row, one in rows:
            for name, picture in mask_images(batch, one, row, task.num_classes).items():
                picture.save(self.folder / name)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the tables of all processes."""
        trainer.strategy.barrier()
        parts = [self.folder / f"predictions.{rank}.csv" for rank in range(trainer.world_size)]
        if trainer.is_global_zero:
            join_tables([part for part in parts if part.exists()], self.folder / "predictions.csv")


def mask_images(batch: Any, classes: Any, row: int, num_classes: int) -> dict[str, Image.Image]:
    """Return `NAME.png`, an index mask with a palette, and `NAME.overlay.jpg`, the mask over its image."""
    name, (height, width) = batch["id"][row], batch["size"][row]
    mask, colours = classes.cpu().numpy().astype(np.uint8), palette(num_classes)
    picture = Image.fromarray(mask, mode="P")
    picture.putpalette(colours.tobytes())
    image = Image.fromarray(to_rgb(batch["image"][row, :, :height, :width].cpu()))
    image = image.resize((mask.shape[1], mask.shape[0]), Image.Resampling.BILINEAR)
    over = Image.fromarray(overlay(np.asarray(image), mask, colours))
    return {f"{name}.png": picture, f"{name}.overlay.jpg": over}


def append_records(path: Path, records: Sequence[Record]) -> None:
    """Add rows to a CSV file, which begins with the names of the columns."""
    if not records:
        return
    begun = path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if not begun:
            writer.writerow([name for name, _ in records[0]])
        writer.writerows([value for _, value in record] for record in records)


def join_tables(parts: Sequence[Path], path: Path) -> None:
    """Join the tables of all processes, which took turns at the images, in the order of the images; parts go away."""
    if not parts:
        return
    with ExitStack() as stack:
        tables = [csv.reader(stack.enter_context(part.open(newline="", encoding="utf-8"))) for part in parts]
        writer = csv.writer(stack.enter_context(path.open("w", newline="", encoding="utf-8")))
        header, *_ = [next(table) for table in tables]
        writer.writerow(header)
        for turn in zip_longest(*tables):
            writer.writerows(record for record in turn if record is not None)
    for part in parts:
        part.unlink()
