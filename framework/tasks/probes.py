"""DINOv2's linear evaluation: a grid of linear classifiers on frozen features, trained in one pass."""

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.optim import Optimizer

from framework.backbone import Backbone
from framework.errors import ConfigError
from framework.heads.classification import Pool
from framework.heads.probes import Probe, Probes
from framework.length import RunLength
from framework.metrics.rivals import RivalAccuracy
from framework.schedules import Schedule, WarmupCosine
from framework.tasks.base import Batch, unpadded
from framework.tasks.frozen import FrozenClassification
from framework.transfer.groups import ParameterGroup, Rates, partition
from framework.transfer.plan import TrainingPlan

RATES = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1]
REFERENCE = 256  # images of a step that the rates are for: they grow with it


class LinearProbes(FrozenClassification):
    """A grid of linear classifiers, of which the best on the validation split is reported.

    The linear evaluation of DINOv2 (Oquab et al., arXiv 2304.07193, appendix B.3; github.com/facebookresearch/dinov2,
    `eval/linear.py`): every combination of `layers`, `pools` and `rates` is one classifier. All see the features of
    the same forward pass, and each gets the gradient of its own cross entropy alone, clipped by itself if at all; its
    rate is multiplied by the images of a step, over all processes, divided by 256.

    `val/accuracy/NAME` is the accuracy of the classifier NAME. `val/score` and `val/accuracy` are those of the best,
    which `val/best` names by its place in the list, from 0: it is chosen on the split that it is measured on, as
    published figures are, so that the score is a little too good. A checkpoint knows the best one: `test` and
    `predict` ask that one alone.

    Args:
        backbone: A backbone plugin.
        num_classes: Number of classes; linked from the data.
        rates: Learning rates for steps of 256 images. The optimizer's own holds for nothing here.
        layers: Of how many of the last levels the class token is read, concatenated.
        pools: What stands for an image: the class token, the mean of the last map, or both; null: without and with
            the mean where there is a class token, the mean alone where there is none.
        schedule: The learning rate as a function of the step; null: a cosine to 0 without a warmup.
        options: Of `FrozenClassification` and `Task`.

    Raises:
        ConfigError: Images have several classes, a list is empty or names something twice, or a classifier would read
            what the backbone does not return.
    """

    best: Tensor  # index of the classifier that was best on the validation split

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        rates: list[PositiveFloat] = RATES,
        layers: list[PositiveInt] = [1, 4],  # noqa: B006 - read only
        pools: list[Pool] | None = None,
        schedule: Schedule | None = None,
        **options: Any,
    ) -> None:
        super().__init__(backbone, num_classes, schedule=schedule or WarmupCosine(warmup=0.0), **options)
        pools = pools if pools is not None else ["cls", "cls+mean"] if backbone.prefix_tokens else ["mean"]
        for name, given in (("rates", rates), ("layers", layers), ("pools", pools)):
            if not given:
                raise ConfigError(f"model.{name}: at least one")
        probes = [Probe(*each) for each in product(layers, pools, rates)]
        self.head = Probes(backbone.levels, backbone.prefix_tokens, num_classes, probes)
        self.images: int | None = None  # of a step, once it is known
        self.register_buffer("best", torch.tensor(0))
        names = [probe.name for probe in probes]
        self.val_metrics, self.test_metrics = RivalAccuracy(names, num_classes), RivalAccuracy(names, num_classes)
        self.apply_freeze()

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (B, classifiers, classes) of images (B, C, H, W), uint8 or float in [0, 1], of any size."""
        logits: Tensor = self.head(self.backbone(self.prepared(images)))
        return logits

    # Training.

    def check_data(self, data: Any) -> None:
        """Refuse data that mixes images.

        Raises:
            ConfigError: It does.
        """
        super().check_data(data)
        if getattr(data, "mixes", False):
            raise ConfigError("data.mix: LinearProbes wants one class for every image: leave it out")

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Return the sum of the classifiers' losses on one batch; their mean is logged."""
        loss = self.compute_loss(self(batch["image"]), batch["label"])
        mean = loss.detach() / len(self.head.probes)
        self.log("train/loss", mean, prog_bar=True, batch_size=len(batch["image"]), sync_dist=True)
        return loss

    def compute_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum over classifiers of each one's mean cross entropy: logits (B, classifiers, classes)."""
        count = logits.shape[1]
        return count * F.cross_entropy(logits.flatten(0, 1), label.repeat_interleave(count))

    def plan_training(self, length: RunLength) -> TrainingPlan:
        """Return what is trained when, and learn how many images a step takes."""
        self.images = length.images
        return super().plan_training(length)

    def partition(self, plan: TrainingPlan | None = None) -> list[ParameterGroup]:
        """Split all parameters into groups, each classifier at its own rate."""
        factor = self.images / REFERENCE if self.images is not None else 1.0
        given = {f"head.classifiers.{probe.key}.*": probe.rate * factor for probe in self.head.probes}
        rates = Rates(self.rates.backbone, self.rates.layer_decay, {**given, **(self.rates.given or {})})
        return partition(self, self.parts, rates, plan or TrainingPlan((0,), (self.parts.all,)))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient of each classifier by itself: those of one must not depend on another's."""
        if not gradient_clip_val:
            return
        for part in (*self.head.classifiers.values(), self.backbone):
            if gradient_clip_algorithm == "value":
                nn.utils.clip_grad_value_(part.parameters(), gradient_clip_val)
            else:
                nn.utils.clip_grad_norm_(part.parameters(), gradient_clip_val)

    # Evaluation. Metrics are reset at the start: what inference mode has touched, training may not touch again.

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        """Start counting."""
        self.test_metrics.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Count one batch; returns the class probabilities of each image by the classifier that was best before."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Count one batch; returns the class probabilities of each image by the best classifier."""
        return self._evaluate(batch, self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the class probabilities (B, num_classes), float32, of each image by the best classifier."""
        return self._of_best(self.of_every_image(batch))

    def _of_best(self, logits: Tensor) -> Tensor:
        return logits.index_select(1, self.best[None])[:, 0].softmax(1)

    def _evaluate(self, batch: Batch, metrics: RivalAccuracy) -> STEP_OUTPUT:
        logits = self.of_every_image(batch)
        metrics.update(unpadded(batch, logits), unpadded(batch, batch["label"]))
        return {"probabilities": self._of_best(logits)}

    def on_validation_epoch_end(self) -> None:
        """Choose the best classifier, and log the metrics of the validation split."""
        shares = self.val_metrics.compute()
        if not self.trainer.sanity_checking:
            self.best.copy_(shares[0].argmax())
        self._log("val", self.val_metrics, shares)
        if self.trainer.state.fn == TrainerFn.VALIDATING and self.trainer.is_global_zero:
            best = self.head.probes[int(self.best)]
            print(f"best of {len(self.head.probes)} classifiers on the validation split: {best.name}")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test split, those of the classifier that was best on the validation split first."""
        self._log("test", self.test_metrics, self.test_metrics.compute())

    def _log(self, split: str, metrics: RivalAccuracy, shares: Tensor) -> None:
        chosen = shares.index_select(1, self.best[None])[:, 0]
        figures = {"score": chosen[0], "best": self.best.double(), **dict(zip(metrics.kinds, chosen, strict=False))}
        self.log_dict({f"{split}/{name}": value for name, value in {**figures, **metrics.named(shares)}.items()})

    def metric_names(self) -> list[str]:
        """Return every metric that validation will log."""
        return [f"val/{name}" for name in ("score", "best", *self.val_metrics.kinds, *self.val_metrics.names())]
