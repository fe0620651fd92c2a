"""What a split of classified images is counted with, over batches and processes: sums, but for average precision."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassConfusionMatrix, MultilabelAveragePrecision

TOP = 5
BINS = 15


class ClassificationMetrics(nn.Module, ABC):
    """What one split is counted with.

    Args:
        class_names: Names of the classes.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        self.class_names = list(class_names)
        self.loss, self.calibration = MeanMetric(), CalibrationError()

    @abstractmethod
    def update(self, logits: Tensor, label: Tensor, loss: Tensor, weight: Tensor) -> None:
        """Count images, or none: logits (B, C), their labels, the loss of each (B,), and what that counts (B,)."""

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """Return all metrics, over all processes; `score` is the headline, higher is better."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of what `compute` returns."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of every class (B, C)."""

    def reset(self) -> None:
        """Forget what was counted."""
        for metric in self.children():
            if isinstance(metric, Metric):
                metric.reset()

    def _named(self, name: str, values: Tensor) -> dict[str, Tensor]:
        """Name one value of each class."""
        return {f"{name}/{each}": value for each, value in zip(self.class_names, values.unbind(), strict=True)}


class SingleLabelMetrics(ClassificationMetrics):
    """Metrics of images with one class each.

    `accuracy` is the share of images that are right, the `score`; `top5` that of images whose class is among the best
    five, if there are more classes than that; `accuracy/NAME` that of the images of one class (its recall), NaN without
    images; `balanced_accuracy` the mean of those; `f1` the mean over classes that are there or predicted of
    2 TP / (2 TP + FP + FN); `calibration_error` see `CalibrationError`. All in [0, 1].

    Args:
        class_names: Names of the classes.
        independent: Whether the logits are those of each class by itself, as a binary loss trains them.
    """

    def __init__(self, class_names: Sequence[str], independent: bool = False) -> None:
        super().__init__(class_names)
        self.independent = independent
        self.confusion = MulticlassConfusionMatrix(len(class_names), validate_args=False)
        self.top = MeanMetric()

    def update(self, logits: Tensor, label: Tensor, loss: Tensor, weight: Tensor) -> None:
        """Count images: logits (B, C), their classes (B,), long, the loss of each (B,), and what that counts (B,)."""
        probability, predicted = self.probabilities(logits).max(1)
        self.confusion.update(predicted, label)
        self.loss.update(loss, weight)
        self.calibration.update(probability, predicted == label)
        best = logits.topk(min(TOP, logits.shape[1])).indices
        self.top.update((best == label[:, None]).any(1).float())

    def compute(self) -> dict[str, Tensor]:
        """Return all metrics, over all processes."""
        confusion = self.confusion.compute().double()  # rows are targets, columns predictions
        hits, targets, predicted = confusion.diag(), confusion.sum(1), confusion.sum(0)
        recall, accuracy = hits / targets, hits.sum() / targets.sum()
        top = {f"top{TOP}": self.top.compute()} if len(self.class_names) > TOP else {}
        return {
            "loss": self.loss.compute(),
            "score": accuracy,
            "accuracy": accuracy,
            **top,
            "balanced_accuracy": recall.nanmean(),
            "f1": (2 * hits / (targets + predicted)).nanmean(),
            "calibration_error": self.calibration.compute(),
            **self._named("accuracy", recall),
        }

    def names(self) -> list[str]:
        """Return the names of what `compute` returns."""
        top = [f"top{TOP}"] if len(self.class_names) > TOP else []
        single = ["loss", "score", "accuracy", *top, "balanced_accuracy", "f1", "calibration_error"]
        return [*single, *(f"accuracy/{name}" for name in self.class_names)]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of every class (B, C), of sum 1 unless each is by itself."""
        return logits.sigmoid() if self.independent else logits.softmax(1)


class MultiLabelMetrics(ClassificationMetrics):
    """Metrics of images with any number of classes each.

    A class is predicted where its probability is above one half. `map` is the mean over classes of the average
    precision, the `score`, and `ap/NAME` that of one class, NaN without images; `f1` the mean over classes that are
    there or predicted of 2 TP / (2 TP + FP + FN); `exact_match` the share of images whose classes are all right;
    `calibration_error` see `CalibrationError`, over every class of every image. All in [0, 1].
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__(class_names)
        self.precision = MultilabelAveragePrecision(len(class_names), average="none", validate_args=False)
        self.counts, self.exact = ClassCounts(len(class_names)), MeanMetric()

    def update(self, logits: Tensor, label: Tensor, loss: Tensor, weight: Tensor) -> None:
        """Count images: logits (B, C), their classes (B, C), 0 or 1, the loss of each (B,), what that counts (B,)."""
        probability, there = logits.sigmoid(), label > 0.5
        predicted = probability > 0.5
        self.precision.update(probability, there.long())
        self.counts.update(predicted, there)
        self.exact.update((predicted == there).all(1).float())
        self.loss.update(loss, weight)
        sure = torch.where(predicted, probability, 1 - probability)
        self.calibration.update(sure.flatten(), (predicted == there).flatten())

    def compute(self) -> dict[str, Tensor]:
        """Return all metrics, over all processes."""
        hits, predicted, there = self.counts.compute().double().unbind()
        precision = self.precision.compute().masked_fill(there == 0, torch.nan)
        average = precision.nanmean()
        return {
            "loss": self.loss.compute(),
            "score": average,
            "map": average,
            "f1": (2 * hits / (predicted + there)).nanmean(),
            "exact_match": self.exact.compute(),
            "calibration_error": self.calibration.compute(),
            **self._named("ap", precision),
        }

    def names(self) -> list[str]:
        """Return the names of what `compute` returns."""
        single = ["loss", "score", "map", "f1", "exact_match", "calibration_error"]
        return [*single, *(f"ap/{name}" for name in self.class_names)]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of every class (B, C), each by itself."""
        return logits.sigmoid()


class CalibrationError(Metric):
    """Expected calibration error: how far sureness is from being right, in [0, 1].

    Predictions are sorted into 15 bins of equal width by their probability; the result is the mean over predictions of
    the gap between a bin's mean probability and its share of right ones (Guo et al., arXiv 1706.04599, equation 3).
    """

    full_state_update = False

    bins: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("bins", torch.zeros(3, BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probability: Tensor, right: Tensor) -> None:
        """Count predictions: the probability of each (N,), in [0, 1], and whether it is right (N,), bool."""
        place = (probability * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
        values = torch.stack([torch.ones_like(probability), probability, right.to(probability)]).to(self.bins)
        self.bins.index_add_(1, place, values)

    def compute(self) -> Tensor:
        """Return the error."""
        count, probability, right = self.bins.unbind()
        return (probability - right).abs().sum() / count.sum()


class ClassCounts(Metric):
    """For every class, how many images are rightly predicted to have it, are predicted to, and do.

    Args:
        classes: Number of classes.
    """

    full_state_update = False

    counts: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(3, classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, there: Tensor) -> None:
        """Count images: which classes (B, C), bool, are predicted, and which are there."""
        self.counts += torch.stack([(predicted & there).sum(0), predicted.sum(0), there.sum(0)])

    def compute(self) -> Tensor:
        """Return the counts (3, C), long."""
        return self.counts
