"""Writing predictions beside a run: masks as palette PNGs, at each image's own size."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from framework.tracking.drawing import overlay, palette, to_rgb


class PredictionWriter(BasePredictionWriter):
    """Writes what `predict_step` returns, image by image, as soon as it is there.

    For each image `NAME.png`, an index mask with a palette, and `NAME.overlay.jpg`, the mask over the image.
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
        colours = palette(int(getattr(pl_module, "num_classes", 256)))
        for row, classes in enumerate(prediction):
            if batch["is_pad"][row]:
                continue
            mask = classes.cpu().numpy().astype(np.uint8)
            picture = Image.fromarray(mask, mode="P")
            picture.putpalette(colours.tobytes())
            picture.save(self.folder / f"{batch['id'][row]}.png")
            height, width = batch["size"][row]
            image = Image.fromarray(to_rgb(batch["image"][row, :, :height, :width].cpu()))
            image = image.resize((mask.shape[1], mask.shape[0]), Image.Resampling.BILINEAR)
            Image.fromarray(overlay(np.asarray(image), mask, colours)).save(
                self.folder / f"{batch['id'][row]}.overlay.jpg"
            )
