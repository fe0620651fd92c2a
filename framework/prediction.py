"""Writing predictions beside a run, as soon as they are there: pictures, or rows of a table."""

import csv
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

Record = Sequence[tuple[str, Any]]  # (column, value); a list, because a class may be named as another column is


class PredictionWriter(BasePredictionWriter):
    """Writes what `predict_step` returns.

    A task says what that is: `prediction_images`, the pictures of one image, or `prediction_record`, its row of
    `predictions.csv`.
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
        records = []
        for row, one in enumerate(prediction):
            if batch["is_pad"][row]:
                continue
            for name, picture in task.prediction_images(batch, one, row).items():
                picture.save(self.folder / name)
            record = task.prediction_record(batch, one, row)
            records += [record] if record else []
        append_records(self.folder / f"predictions.{trainer.global_rank}.csv", records)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the tables of all processes."""
        trainer.strategy.barrier()
        parts = [self.folder / f"predictions.{rank}.csv" for rank in range(trainer.world_size)]
        if trainer.is_global_zero:
            join_tables([part for part in parts if part.exists()], self.folder / "predictions.csv")


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
