"""The figures of a run on disk: `metrics.csv`, a row an epoch, and `metrics.json`, the final ones."""

import csv
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from framework.run.folder import write_atomically


class MetricsRecord(Callback):
    """`metrics.csv`, a row an epoch, and `metrics.json`, the final figures, flat, named `split/metric`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self.final: dict[str, float | None] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far, for a run that goes on."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the rows of an interrupted run."""
        self.rows = state_dict["rows"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the rows on disk that come after the checkpoint that the run goes on from: they come again."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # a trial, maybe in the folder of a real run
            return
        written = self.folder / "metrics.csv"
        if trainer.is_global_zero and self.rows:
            self._write_rows()
        elif trainer.is_global_zero:
            written.unlink(missing_ok=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch's row."""
        metrics = plain_metrics(trainer.callback_metrics)
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **metrics})
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._write_rows()

    def _write_rows(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with tempfile.NamedTemporaryFile(
            "w", dir=self.folder, prefix=".metrics.", suffix=".tmp", delete=False, newline=""
        ) as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        os.chmod(file.name, 0o644)
        os.replace(file.name, self.folder / "metrics.csv")

    @rank_zero_only
    def record_final(self, metrics: Mapping[str, Any]) -> None:
        """Add final figures to `metrics.json`."""
        self.final |= plain_metrics(metrics)
        write_atomically(self.folder / "metrics.json", json.dumps(self.final, indent=2) + "\n")


def plain_metrics(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Turn metrics into numbers, None where they are not finite; step values of what also has an epoch value go."""
    plain: dict[str, float | None] = {}
    for name, value in metrics.items():
        base, _, kind = name.rpartition("_")
        if kind in ("step", "epoch") and base in metrics:
            continue
        number = float(value)
        plain[name] = number if math.isfinite(number) else None
    return plain
