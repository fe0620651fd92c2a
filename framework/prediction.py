"""Writing predictions beside a run, as soon as they are there: pictures, or rows of a table."""

import csv
from collections.abc import Sequence
from contextlib import ExitStack
from heapq import merge
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

Record = Sequence[tuple[str, Any]]  # (column, value); a list, because a class may be named as another column is


class PredictionWriter(BasePredictionWriter):
    """Writes what `predict_step` returns.

    A task says what that is: `prediction_images`, the pictures of one image, `prediction_files`, what else there is of
    it, and `prediction_records`, its rows of `predictions.csv`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__("batch")
        self.folder = folder
        self._images = 0  # of this process, so far

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a table of this process."""
        self._images = 0
        self._part(trainer.global_rank).unlink(missing_ok=True)

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
            for name, content in task.prediction_files(batch, one, row).items():
                (self.folder / name).write_bytes(content)
            records += [(self._images, record) for record in task.prediction_records(batch, one, row)]
            self._images += 1
        append_records(self._part(trainer.global_rank), records)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the tables of all processes."""
        trainer.strategy.barrier()
        parts = [self._part(rank) for rank in range(trainer.world_size)]
        if trainer.is_global_zero:
            task: Any = pl_module
            join_tables(
                [part for part in parts if part.exists()], self.folder / "predictions.csv", task.prediction_columns()
            )

    def _part(self, rank: int) -> Path:
        return self.folder / f"predictions.{rank}.csv"


def append_records(path: Path, records: Sequence[tuple[int, Record]]) -> None:
    """Add rows to the table of one process, which begins with the names of the columns.

    Args:
        path: The table, CSV.
        records: Rows, each with the number of its image among those of the process: the first column.
    """
    if not records:
        return
    begun = path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if not begun:
            writer.writerow(["image", *(name for name, _ in records[0][1])])
        writer.writerows([image, *(value for _, value in record)] for image, record in records)


def join_tables(parts: Sequence[Path], path: Path, columns: Sequence[str] = ()) -> None:
    """Join the tables of all processes, which took turns at the images, in the order of the images; parts go away.

    Args:
        parts: The tables, in the order of the processes; one that has no row may be left out.
        path: The table to write, without the numbers of the images.
        columns: What the table begins with, also where there is no row; none: the columns of the first part.
    """
    if not parts and not columns:
        return
    with ExitStack() as stack:
        tables = [csv.reader(stack.enter_context(part.open(newline="", encoding="utf-8"))) for part in parts]
        writer = csv.writer(stack.enter_context(path.open("w", newline="", encoding="utf-8")))
        headers = [next(table)[1:] for table in tables]
        writer.writerow(columns or headers[0])
        writer.writerows(record[1:] for record in merge(*tables, key=_image))  # of one image, in the order of the parts
    for part in parts:
        part.unlink()


def _image(record: list[str]) -> int:
    return int(record[0])
