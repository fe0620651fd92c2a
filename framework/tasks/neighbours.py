"""Classification by the nearest neighbours in the training split: nothing is trained."""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from framework.backbone import Backbone
from framework.errors import ConfigError
from framework.heads.classification import Pool, Pooling
from framework.metrics.rivals import RivalAccuracy
from framework.tasks.base import Batch, unpadded
from framework.tasks.frozen import FrozenClassification

CHUNK = 1 << 17  # training images that a batch is compared with at a time


class NearestNeighbours(FrozenClassification):
    """Weighted vote of the nearest training images, by the cosine of frozen features.

    The vote of Wu et al. (arXiv 1805.01978, section 3.4) as DINOv2 evaluates features by it (arXiv 2304.07193;
    github.com/facebookresearch/dinov2, `eval/knn.py`): the class token of the last level, normalised; each of
    the k nearest training images votes for its class with exp(cosine / temperature).

    `validate` and `test` need no checkpoint: they compute the features of the training split first, under the
    evaluation transform, each process its share, and gather them on every device: 1.3 million images of width 384 are
    2 GB in float32. `trainer.limit_train_batches`, so `fast_dev_run` too, holds for them. `fit` is refused.

    Metrics are `accuracy/kK` and `top5/kK` of every K in `neighbours`; `accuracy`, `top5` and `score` are those of the
    first K, which is fixed beforehand: that of the best K would be chosen on the images that it is measured with.

    Args:
        backbone: A backbone plugin.
        num_classes: Number of classes; linked from the data.
        neighbours: How many training images vote. The first makes the score: Meta calls 20 "usually the best", without
            saying which of 10, 20, 100 and 200 it published.
        temperature: Of the votes.
        pool: What stands for an image: the class token, the mean of the last map, both, or `auto`, the class token
            where there is one and else the mean.
        store: What the features of the training split are kept in; cosines are computed in float32 all the same.
        options: Of `FrozenClassification` and `Task`.

    Raises:
        ConfigError: Images have several classes, `neighbours` is empty or names a number twice, or the backbone has no
            class token to pool.
    """

    trains: ClassVar[bool] = False

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        neighbours: list[PositiveInt] = [20, 10, 100, 200],  # noqa: B006 - read only
        temperature: PositiveFloat = 0.07,
        pool: Pool = "auto",
        store: Literal["float32", "float16"] = "float32",
        **options: Any,
    ) -> None:
        super().__init__(backbone, num_classes, **options)
        if not neighbours or len(set(neighbours)) < len(neighbours):
            raise ConfigError(f"model.neighbours: numbers that differ, at least one, got {neighbours}")
        self.neighbours, self.temperature, self.store = list(neighbours), float(temperature), getattr(torch, store)
        self.pooling = Pooling(backbone.levels, backbone.prefix_tokens, pool, layers=1)
        names = [f"k{count}" for count in self.neighbours]
        self.val_metrics = RivalAccuracy(names, num_classes, votes=True)
        self.test_metrics = RivalAccuracy(names, num_classes, votes=True)
        self.known: Tensor | None = None  # features of the training split (N, D), normalised
        self.known_labels: Tensor | None = None  # their classes (N,), long
        self.apply_freeze()

    def check_command(self, command: str, data: Any) -> None:
        """Refuse to be trained, and more neighbours than there are training images.

        Raises:
            ConfigError: Either is asked for.
        """
        super().check_command(command, data)
        images, most = len(data.splits()["train"]), max(self.neighbours)
        if most > images:
            raise ConfigError(f"model.neighbours: {most} are to vote, and the train split has {images} images")

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (B, D), of length 1, of images (B, C, H, W), uint8 or float in [0, 1], of any size."""
        return F.normalize(self.pooling.pool(self.backbone(self.prepared(images))).float(), dim=1)

    # The training split.

    @torch.no_grad()
    def learn(self) -> None:
        """Compute the features of the training split, unless they are known; each process its share."""
        if self.known is not None:
            return
        features, labels, pads = [], [], []
        with self.trainer.precision_plugin.val_step_context():
            for batch in self._training_split():
                features.append(self.of_every_image(batch).to(self.store))
                labels.append(batch["label"])
                pads.append(batch["is_pad"])
        real = ~self._of_all(torch.cat(pads))
        self.known, self.known_labels = self._of_all(torch.cat(features))[real], self._of_all(torch.cat(labels))[real]

    def _training_split(self) -> Any:
        """Give this process's batches of the training split, on its device."""
        loader = self.trainer.datamodule.reference_dataloader()  # type: ignore[attr-defined]
        limit = self.trainer.limit_train_batches
        most = limit if isinstance(limit, int) else int(len(loader) * limit)
        for index, batch in enumerate(loader):
            if index >= most:
                return
            yield self.trainer.strategy.batch_to_device(batch)

    def _of_all(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, in the order of the images."""
        if self.trainer.world_size == 1:
            return rows
        gathered = self.all_gather(rows)
        assert isinstance(gathered, Tensor)
        return in_turns(gathered)

    # Votes.

    def votes(self, features: Tensor) -> Tensor:
        """Return the votes for each class (B, neighbours, classes), of sum 1, of features (B, D) of length 1."""
        with torch.autocast(features.device.type, enabled=False):
            cosines, labels = self.nearest(features.float())
            weights = ((cosines - cosines[:, :1]) / self.temperature).exp()
            votes = features.new_zeros(len(features), len(self.neighbours), self.num_classes, dtype=torch.float32)
            for place, count in enumerate(self.neighbours):
                votes[:, place].scatter_add_(1, labels[:, :count], weights[:, :count])
            return votes / votes.sum(2, keepdim=True)

    def nearest(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and classes (B, K) of the nearest training images, the nearest first."""
        assert self.known is not None
        assert self.known_labels is not None
        count = min(max(self.neighbours), len(self.known))
        best = features.new_empty(len(features), 0)
        labels = self.known_labels.new_empty(len(features), 0)
        for start in range(0, len(self.known), CHUNK):
            cosines = features @ self.known[start : start + CHUNK].float().T
            found = cosines.topk(min(count, cosines.shape[1]), dim=1)
            best = torch.cat([best, found.values], dim=1)
            labels = torch.cat([labels, self.known_labels[start : start + CHUNK][found.indices]], dim=1)
            best, order = best.topk(min(count, best.shape[1]), dim=1)
            labels = labels.gather(1, order)
        return best, labels

    # Evaluation.

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self.val_metrics.reset()
        self.learn()

    def on_test_epoch_start(self) -> None:
        """Start counting."""
        self.test_metrics.reset()
        self.learn()

    def on_predict_epoch_start(self) -> None:
        """Look at the training split."""
        self.learn()

    def validation_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Count one batch; returns the votes for each image's classes, those of the first number of neighbours."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Count one batch; returns the votes for each image's classes, those of the first number of neighbours."""
        return self._evaluate(batch, self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the votes for each image's classes (B, num_classes), those of the first number of neighbours."""
        return self.votes(self.of_every_image(batch))[:, 0]

    def _evaluate(self, batch: Batch, metrics: RivalAccuracy) -> STEP_OUTPUT:
        votes = self.votes(self.of_every_image(batch))
        metrics.update(unpadded(batch, votes), unpadded(batch, batch["label"]))
        return {"probabilities": votes[:, 0]}

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation split."""
        self._log("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test split."""
        self._log("test", self.test_metrics)

    def _log(self, split: str, metrics: RivalAccuracy) -> None:
        shares = metrics.compute()
        firsts = zip(metrics.kinds, shares[:, 0], strict=False)
        figures = {"score": shares[0, 0], **dict(firsts), **metrics.named(shares)}
        self.log_dict({f"{split}/{name}": value for name, value in figures.items()})

    def metric_names(self) -> list[str]:
        """Return every metric that validation will log."""
        return [f"val/{name}" for name in ("score", *self.val_metrics.kinds, *self.val_metrics.names())]


def in_turns(gathered: Tensor) -> Tensor:
    """Return the rows of processes (P, N, ...) in the order of the images, which they took turns at: (P * N, ...)."""
    return gathered.transpose(0, 1).flatten(0, 1)
