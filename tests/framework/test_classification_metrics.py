"""Metrics of classification against scikit-learn and torchmetrics, over batches of uneven size."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score, recall_score, top_k_accuracy_score
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from framework.metrics.classification import MultiLabelMetrics, SingleLabelMetrics


def counted(metrics, logits, label, loss):
    for part in range(0, len(logits), 70):
        rows = slice(part, part + 70)
        metrics.update(logits[rows], label[rows], loss[rows], torch.ones(len(loss[rows])))
    computed = metrics.compute()
    assert list(computed) == metrics.names()
    return {name: float(value) for name, value in computed.items()}


@pytest.mark.parametrize("classes", [3, 5, 7])
def test_single_label_metrics(classes):
    names = list("abcdefg"[:classes])
    logits = torch.randn(400, classes)
    label = torch.randint(0, classes - 1, (400,))  # the last class has no image, but is predicted
    found = counted(SingleLabelMetrics(names), logits, label, F.cross_entropy(logits, label, reduction="none"))
    target, predicted = label.numpy(), logits.argmax(1).numpy()
    assert found["accuracy"] == found["score"] == pytest.approx((target == predicted).mean())
    recalls = recall_score(target, predicted, average=None, labels=range(classes - 1))
    assert [found[f"accuracy/{name}"] for name in names[:-1]] == pytest.approx(list(recalls))
    assert np.isnan(found[f"accuracy/{names[-1]}"])
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert found["f1"] == pytest.approx(f1_score(target, predicted, average="macro"))
    assert found["loss"] == pytest.approx(float(F.cross_entropy(logits, label)), rel=1e-5)
    expected = multiclass_calibration_error(logits.softmax(1), label, classes, n_bins=15, norm="l1")
    assert found["calibration_error"] == pytest.approx(float(expected), abs=1e-6)
    assert ("top5" in found) == (classes > 5)
    if classes > 5:
        best = top_k_accuracy_score(target, logits.numpy(), k=5, labels=range(classes))
        assert found["top5"] == pytest.approx(best)


def test_multi_label_metrics():
    logits, label = torch.randn(300, 4), (torch.rand(300, 4) > 0.7).float()
    label[:, 3] = 0  # no image has it, but it is predicted
    loss = F.binary_cross_entropy_with_logits(logits, label, reduction="none").mean(1)
    found = counted(MultiLabelMetrics(list("abcd")), logits, label, loss)
    target, predicted = label.numpy(), (logits > 0).numpy()
    precisions = [average_precision_score(target[:, index], logits[:, index].numpy()) for index in range(3)]
    assert [found[f"ap/{name}"] for name in "abc"] == pytest.approx(precisions, rel=1e-5)
    assert np.isnan(found["ap/d"])
    assert found["map"] == found["score"] == pytest.approx(np.mean(precisions), rel=1e-5)
    assert found["f1"] == pytest.approx(f1_score(target, predicted, average="macro", zero_division=0))
    assert found["exact_match"] == pytest.approx((target == predicted).all(1).mean())
    assert found["loss"] == pytest.approx(float(loss.mean()), rel=1e-5)
    p = logits.sigmoid().numpy()
    sure, right = np.where(predicted, p, 1 - p).ravel(), (target == predicted).ravel()
    bins = np.minimum(np.ceil(sure * 15).astype(int) - 1, 14)
    gaps = [abs(sure[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins)]
    assert found["calibration_error"] == pytest.approx(sum(gaps), abs=1e-6)


def test_sureness_that_is_right_is_calibrated():
    p = torch.rand(20_000)
    right = (torch.rand(20_000) < p).long()
    metrics = SingleLabelMetrics(["a", "b"])
    metrics.update(torch.stack([torch.zeros_like(p), p.logit()], 1), right, torch.zeros(20_000), torch.ones(20_000))
    assert float(metrics.compute()["calibration_error"]) < 0.02
    assert float(binary_calibration_error(p, right)) < 0.02
    metrics.reset()
    metrics.update(torch.tensor([[0.0, 9.0]] * 10), torch.tensor([0] * 5 + [1] * 5), torch.zeros(10), torch.ones(10))
    assert float(metrics.compute()["calibration_error"]) == pytest.approx(0.5, abs=1e-3)


def test_nothing_is_kept_from_an_earlier_split():
    metrics = MultiLabelMetrics(["a", "b"])
    metrics.update(torch.randn(5, 2), torch.ones(5, 2), torch.rand(5), torch.ones(5))
    metrics.reset()
    metrics.update(torch.tensor([[5.0, -5.0]]), torch.tensor([[1.0, 0.0]]), torch.zeros(1), torch.ones(1))
    assert float(metrics.compute()["exact_match"]) == 1
    assert float(metrics.compute()["map"]) == 1


def test_logits_of_each_class_by_itself_have_probabilities_by_themselves():
    p = torch.rand(20_000)
    right = torch.rand(20_000) < p
    logits = torch.full((20_000, 10), -9.0)
    logits[:, 3] = p.clamp(0.001, 0.999).logit()
    label = torch.where(right, 3, 4)
    metrics = SingleLabelMetrics([str(index) for index in range(10)], independent=True)
    metrics.update(logits, label, torch.zeros(20_000), torch.ones(20_000))
    assert float(metrics.compute()["calibration_error"]) < 0.02
    torch.testing.assert_close(metrics.probabilities(logits), logits.sigmoid())


@pytest.mark.parametrize("kind", [SingleLabelMetrics, MultiLabelMetrics])
def test_a_batch_without_images_changes_nothing(kind):
    """As the process has it whose share of a small split is one that only evens out the others'."""
    metrics, label = kind(["a", "b"]), torch.tensor([0, 1, 1]) if kind is SingleLabelMetrics else torch.eye(3)[:, :2]
    logits = torch.randn(3, 2)
    for rows in (slice(0, 0), slice(0, 3), slice(0, 0)):
        metrics.update(logits[rows], label[rows], torch.ones(3)[rows], torch.ones(3)[rows])
    before = {name: float(value) for name, value in metrics.compute().items()}
    metrics.reset()
    metrics.update(logits, label, torch.ones(3), torch.ones(3))
    assert {name: float(value) for name, value in metrics.compute().items()} == pytest.approx(before, nan_ok=True)
    empty = kind(["a", "b"])
    empty.update(logits[:0], label[:0], torch.ones(0), torch.ones(0))
    if kind is MultiLabelMetrics:  # what such a process gathers with others must have as many dimensions as theirs
        assert empty.precision.preds[0].shape == (0, 2)
