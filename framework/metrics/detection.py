"""What a split of images with objects is counted with: COCO's table, and precision and recall at one score."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from framework.errors import TrainingError
from framework.metrics.coco import Evaluation, evaluate
from framework.metrics.gathering import gather_rows, is_first, share_first
from framework.metrics.matching import Found, Indices, Numbers, Truth, match

OVERLAP = 0.5  # least intersection over union of a right detection, at the threshold
UNDECIDED = 0.5  # the threshold where no detection is right
MOST_CURVES = 6  # classes with a curve of their own
SIZES = ("small", "medium", "large")


class Point(NamedTuple):
    """Precision and recall of the detections from one score on, all classes together; NaN without detections."""

    threshold: float
    f1: float
    precision: float
    recall: float


class DetectionMetrics(nn.Module):
    """COCO's table of a split, and how good the detections are from one score on.

    `ap`, the `score`, is the mean over classes and over intersections over union of 0.5, 0.55, ... 0.95 of the
    average precision; `ap50` and `ap75` that at 0.5 and 0.75 alone; `ap_small`, `ap_medium` and `ap_large` that of
    objects up to 32 x 32 pixels, up to 96 x 96, and above; `ap/NAME` that of one class. `ar1`, `ar10` and `ar100` are
    the mean recall with the best 1, 10 and 100 detections of each class in an image. NaN: there is no such object.

    `f1`, `precision` and `recall` are those of the detections whose score reaches `threshold`, all classes together,
    at an intersection over union of 0.5. Detections in ignored regions count nowhere. All are in [0, 1].

    Args:
        class_names: Names of the classes.
        max_detections: How many detections of one class count in an image.
    """

    def __init__(self, class_names: Sequence[str], max_detections: int = 100) -> None:
        super().__init__()
        self.class_names, self.max_detections = list(class_names), max_detections
        self._found: list[Numbers] = []  # of each image (N, 6): box, score, label
        self._truth: list[Numbers] = []  # of each image (M, 7): box, label, whether it is ignored, area
        self._split: _Split | None = None  # that of all processes, in the first one
        self._computed: Tensor | None = None
        self._threshold: float | None = None  # that was asked

    def reset(self) -> None:
        """Forget what was counted."""
        self._found, self._truth = [], []
        self._forget()

    def update(
        self,
        boxes: Tensor,
        scores: Tensor,
        labels: Tensor,
        true_boxes: Tensor,
        true_labels: Tensor,
        ignored: Tensor,
        area: Tensor,
    ) -> None:
        """Count one image.

        Args:
            boxes: Of what was found: float (N, 4), x1, y1, x2, y2 in pixels of the image as stored.
            scores: Float (N,), in [0, 1].
            labels: Long (N,), class indices.
            true_boxes: Of the objects: float (M, 4), likewise.
            true_labels: Long (M,).
            ignored: Bool (M,), regions in which detections do not count.
            area: Float (M,), of the objects, in square pixels.
        """
        self._forget()
        found, truth = _columns(boxes, scores, labels), _columns(true_boxes, true_labels, ignored, area)
        flat = torch.cat([found.flatten(), truth.flatten()]).detach().cpu().double().numpy()  # one copy from the device
        self._found.append(flat[: found.numel()].reshape(-1, 6))
        self._truth.append(flat[found.numel() :].reshape(-1, 7))

    def compute(self, threshold: float | None = None) -> dict[str, Tensor]:
        """Return all metrics, over all processes: float64, on the CPU.

        They are computed by the first process, and remembered until something else is counted.

        Args:
            threshold: Score from which on a detection counts in `f1`, `precision` and `recall`; None: the one of the
                best F1.

        Raises:
            TrainingError: There was no object.
        """
        if self._computed is None:
            found, truth = self._gather()
            if is_first():
                self._split = _Split(found, truth, len(self.class_names), self.max_detections)
        if self._computed is None or threshold != self._threshold:
            values = torch.full((len(self.names()),), torch.nan, dtype=torch.float64)
            if self._split is not None:
                values = torch.tensor(self._split.figures(threshold), dtype=torch.float64)
            self._computed, self._threshold = share_first(values), threshold
        return dict(zip(self.names(), self._computed.unbind(), strict=True))

    def names(self) -> list[str]:
        """Return the names of what `compute` returns."""
        table = ["score", "ap", "ap50", "ap75", *(f"ap_{size}" for size in SIZES)]
        table += ["ar1", "ar10", f"ar{self.max_detections}", *(f"ar_{size}" for size in SIZES)]
        return [*table, *Point._fields, *(f"ap/{name}" for name in self.class_names)]

    @property
    def is_evaluated(self) -> bool:
        """Whether there is a result to draw: in the first process alone, and not where no object was counted."""
        return self._split is not None

    def confusion(self) -> NDArray[np.int64]:
        """Return what objects were taken for (C + 1, C + 1) at the threshold of the last `compute`; first process only.

        Rows are true classes, columns predicted ones; the last of each is nothing. An object is taken by the best
        detection, of whatever class, that overlaps it by 0.5.
        """
        return self._evaluated().confusion()

    def curves(self) -> dict[str, Numbers]:
        """Return recall and precision (101, 2) of all classes together and of the first few; first process only.

        At an intersection over union of 0.5, precision is the greatest that is reached at that recall or a higher one,
        as COCO has it; that of all classes is their mean.
        """
        return self._evaluated().curves(self.class_names)

    def _forget(self) -> None:
        self._split = self._computed = None

    def _evaluated(self) -> "_Split":
        if self._split is None:
            raise RuntimeError("call `compute` before, and this in the first process alone")
        return self._split

    def _gather(self) -> tuple[Found, Truth]:
        """Return the images of all processes, in the order in which they were dealt.

        Raises:
            TrainingError: There was no object.
        """
        counts = gather_rows(np.array([len(each) for each in self._found], np.float64)[:, None])
        images = [np.arange(len(each)) * len(counts) + rank for rank, each in enumerate(counts)]
        found, found_image = _in_order(self._found, 6, images)
        truth, image = _in_order(self._truth, 7, images)
        if not (truth[:, 5] == 0).any():
            raise TrainingError(
                "not one object was counted: no image that was looked at has one that is not to be ignored"
            )
        return (
            Found(found_image, _sides(found), found[:, 4], found[:, 5].astype(np.int64)),
            Truth(image, _sides(truth), truth[:, 4].astype(np.int64), truth[:, 5] != 0, truth[:, 6]),
        )


class _Split:
    """The images of a split, evaluated once for whatever threshold is asked.

    Args:
        found: The detections.
        truth: The objects.
        classes: Number of classes.
        most: How many detections of one class count in an image.
    """

    def __init__(self, found: Found, truth: Truth, classes: int, most: int) -> None:
        self.found, self.truth, self.classes = found.best(most), truth, classes
        self.table: Evaluation = evaluate(self.found, truth, classes)
        object_of = match(self.found, truth, OVERLAP)
        counting = (object_of < 0) | ~truth.ignored[object_of]
        scores = self.found.scores[counting]
        order = np.argsort(-scores, kind="stable")
        self.scores = scores[order]
        self.right = (object_of >= 0)[counting][order].cumsum()
        self.point = Point(UNDECIDED, 0.0, 0.0, 0.0)

    def figures(self, threshold: float | None) -> list[float]:
        """Return what `DetectionMetrics.names` names."""
        table = self.table
        self.point = self._at(self._best_threshold() if threshold is None else threshold)
        average = table.average_precision()
        precisions = [average, average, table.average_precision(overlap=0), table.average_precision(overlap=5)]
        precisions += [table.average_precision(size) for size in SIZES]
        recalls = [table.average_recall(most=index) for index in (0, 1, -1)]
        recalls += [table.average_recall(size) for size in SIZES]
        return [*precisions, *recalls, *self.point, *table.class_precision()]

    def _best_threshold(self) -> float:
        """Return the threshold of the best F1: half way from the last score that counts to the next one below."""
        if not self.right.max(initial=0):
            return UNDECIDED
        ends = np.append(np.diff(self.scores) != 0, True)  # detections of one score count together
        count = 1 + np.arange(len(self.scores))
        f1 = np.where(ends, 2 * self.right / (count + self._objects()), -1)
        last = int(f1.argmax())  # the first of equal ones: the highest score
        return float(self.scores[last : last + 2].mean())

    def _at(self, threshold: float) -> Point:
        count = int((self.scores >= threshold).sum())
        right = int(self.right[count - 1]) if count else 0
        precision = right / count if count else float("nan")
        return Point(threshold, 2 * right / (count + self._objects()), precision, right / self._objects())

    def _objects(self) -> int:
        return int((~self.truth.ignored).sum())

    def confusion(self) -> Indices:
        """Return the confusion matrix (C + 1, C + 1) at the last threshold."""
        found, nothing = self.found.subset(self.found.scores >= self.point.threshold), self.classes
        object_of = match(found, self.truth, OVERLAP, across_classes=True)
        counting = (object_of < 0) | ~self.truth.ignored[object_of]
        true = np.where(object_of < 0, nothing, self.truth.labels[object_of])[counting]
        missed = ~self.truth.ignored
        missed[object_of[object_of >= 0]] = False
        rows = np.concatenate([true, self.truth.labels[missed]])
        columns = np.concatenate([found.labels[counting], np.full(missed.sum(), nothing)])
        side = 1 + self.classes
        return np.bincount(rows * side + columns, minlength=side * side).reshape(side, side)

    def curves(self, names: Sequence[str]) -> dict[str, Numbers]:
        """Return recall and precision (101, 2) by name."""
        recall, precision = np.linspace(0, 1, 101), self.table.precision[0, :, :, 0, -1]
        there = np.flatnonzero(precision[0] > -1)
        every = {"all classes": precision[:, there].mean(1)} if len(names) > 1 else {}
        every |= {names[index]: precision[:, index] for index in there[:MOST_CURVES]}
        return {name: np.stack([recall, values], 1) for name, values in every.items()}


def _columns(*columns: Tensor) -> Tensor:
    """Set columns (N, K) and (N,) of any types side by side, as floats that hold them exactly."""
    wide = [column if column.ndim == 2 else column[:, None] for column in columns]
    return torch.cat([column.to(torch.promote_types(column.dtype, torch.float32)) for column in wide], dim=1)


def _in_order(tables: list[Numbers], width: int, images: list[Indices]) -> tuple[Numbers, Indices]:
    """Return the rows of all images of all processes in the order of the images, and the image of each.

    Args:
        tables: Of each image of this process (N, width).
        width: Number of columns.
        images: For each process, the places of its images among all.
    """
    rows = np.concatenate([np.empty((0, width)), *tables])
    counts = gather_rows(np.array([len(each) for each in tables], np.float64)[:, None])
    image = np.concatenate(
        [np.repeat(own, count[:, 0].astype(np.int64)) for own, count in zip(images, counts, strict=True)]
    )
    order = np.argsort(image, kind="stable")
    return np.concatenate(gather_rows(rows))[order], image[order]


def _sides(rows: Numbers) -> Numbers:
    """Return x, y, width, height of boxes x1, y1, x2, y2, the first columns of rows."""
    return np.concatenate([rows[:, :2], rows[:, 2:4] - rows[:, :2]], 1)
