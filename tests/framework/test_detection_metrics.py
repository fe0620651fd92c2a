"""The evaluation of detections: against pycocotools, against loops by hand, and over several processes."""

import contextlib
import io
import logging

import numpy as np
import pytest
import torch
import torch.distributed
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from framework.errors import TrainingError
from framework.metrics.detection import DetectionMetrics
from framework.metrics.matching import Found, Truth, match

TABLE = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100"]
TABLE += ["ar_small", "ar_medium", "ar_large"]


def simulate(images, classes, seed, most=12, found=30):
    """Made-up images: objects, some ignored, areas that are not those of boxes, detections near them and elsewhere."""
    rng = np.random.default_rng(seed)
    out = []
    for index in range(images):
        count = 0 if index % 5 == 1 else int(rng.integers(1, most))
        true_boxes = some_boxes(count, rng)
        true_labels = rng.integers(0, max(1, classes - 1), count)  # the last class is never there
        near = np.repeat(true_boxes, 3, 0)
        near = near + rng.normal(0, 0.08, near.shape) * np.tile(near[:, 2:] - near[:, :2], 2)
        number = 0 if index % 7 == 3 else int(rng.integers(1, found))
        boxes = np.concatenate([near, some_boxes(number, rng)]) if number else np.empty((0, 4))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.5)
        labels = np.concatenate([np.repeat(true_labels, 3), rng.integers(0, classes, number)])[: len(boxes)]
        labels = np.where(rng.random(len(boxes)) < 0.2, rng.integers(0, classes, len(boxes)), labels)
        scores = np.round(rng.random(len(boxes)), 2)  # many are equal
        area = (true_boxes[:, 2:] - true_boxes[:, :2]).prod(1) * rng.uniform(0.5, 1, count)
        out.append(
            {
                "boxes": torch.from_numpy(boxes),
                "scores": torch.from_numpy(scores),
                "labels": torch.from_numpy(labels),
                "true_boxes": torch.from_numpy(true_boxes),
                "true_labels": torch.from_numpy(true_labels),
                "ignored": torch.from_numpy(rng.random(count) < 0.15),
                "area": torch.from_numpy(area),
            }
        )
    return out


def some_boxes(count, rng):
    side = 6 * 50 ** rng.random((count, 2))
    corner = rng.random((count, 2)) * 400
    return np.concatenate([corner, corner + side], 1)


def evaluated(images, classes, threshold=None, **options):
    metrics = DetectionMetrics([f"class {index}" for index in range(classes)], **options)
    for image in images:
        metrics.update(**image)
    return metrics, {name: float(value) for name, value in metrics.compute(threshold).items()}


def reference(images, classes):
    """What pycocotools makes of them."""

    def sides(boxes):
        return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).double().tolist()

    truth, found = [], []
    for index, image in enumerate(images):
        columns = (sides(image["true_boxes"]), image["true_labels"], image["ignored"], image["area"])
        for box, label, ignored, area in zip(*columns, strict=True):
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": index,
                    "category_id": int(label),
                    "bbox": box,
                    "iscrowd": int(ignored),
                    "area": float(area),
                }
            )
        for box, score, label in zip(sides(image["boxes"]), image["scores"], image["labels"], strict=True):
            found.append({"image_id": index, "category_id": int(label), "bbox": box, "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": index} for index in range(len(images))],
            "categories": [{"id": index} for index in range(classes)],
            "annotations": truth,
        }
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def counted(evaluator):
    """Score and whether it is right, of each detection that counts at 0.5; and the number of objects."""
    scores, right, objects = [], [], 0
    for image in evaluator.evalImgs:
        if image is not None and image["aRng"] == evaluator.params.areaRng[0]:
            counts = ~image["dtIgnore"][0].astype(bool)
            scores += list(np.array(image["dtScores"])[counts])
            right += list(image["dtMatches"][0][counts] > 0)
            objects += int((~np.array(image["gtIgnore"], bool)).sum())
    return np.array(scores), np.array(right), objects


@pytest.mark.parametrize(("images", "classes", "seed", "found"), [(40, 5, 0, 30), (25, 30, 1, 60), (6, 1, 2, 150)])
def test_the_table_is_that_of_pycocotools(images, classes, seed, found):
    split = simulate(images, classes, seed, found=found)
    assert found < 100 or max(len(image["boxes"]) for image in split) > 100
    _, figures = evaluated(split, classes)
    evaluator = reference(split, classes)
    expected = [value if value > -1 else np.nan for value in evaluator.stats]
    np.testing.assert_allclose([figures[name] for name in TABLE], expected, rtol=0, atol=1e-9)
    assert figures["score"] == figures["ap"] > 0.05
    for index in range(classes):
        values = evaluator.eval["precision"][:, :, index, 0, -1]
        mean = values[values > -1].mean() if (values > -1).any() else np.nan
        np.testing.assert_allclose(figures[f"ap/class {index}"], mean, rtol=0, atol=1e-9)
    if classes > 1:
        assert np.isnan(figures[f"ap/class {classes - 1}"])


def test_classes_may_be_evaluated_in_parts(monkeypatch):
    split = simulate(30, 9, 3)
    expected = evaluated(split, 14)[1]  # five classes have neither objects nor detections
    for pairs in (1, 90, 200):
        monkeypatch.setattr("framework.metrics.coco.PAIRS", pairs)
        np.testing.assert_equal(evaluated(split, 14)[1], expected)


def test_half_and_single_precision_are_taken_as_they_are():
    split = [
        {name: value.float() if value.is_floating_point() else value for name, value in image.items()}
        for image in simulate(12, 3, 4)
    ]
    for image in split:
        image["scores"] = image["scores"].bfloat16()
    _, figures = evaluated(split, 3)
    np.testing.assert_allclose([figures[name] for name in TABLE], reference(split, 3).stats, rtol=0, atol=1e-9)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.75, 0.99])
def test_precision_and_recall_are_those_of_cocos_matches_from_the_threshold_on(threshold):
    split = [*simulate(30, 4, 5), *simulate(3, 1, 2, found=400)]  # some have more detections than count
    scores, right, objects = counted(reference(split, 4))
    _, figures = evaluated(split, 4, threshold)
    kept = scores >= threshold
    assert figures["threshold"] == threshold
    assert figures["precision"] == pytest.approx(right[kept].sum() / kept.sum(), abs=1e-12)
    assert figures["recall"] == pytest.approx(right[kept].sum() / objects, abs=1e-12)
    assert figures["f1"] == pytest.approx(2 * right[kept].sum() / (kept.sum() + objects), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_is_that_of_the_best_f1(seed):
    split = simulate(30, 4, seed)
    scores, right, objects = counted(reference(split, 4))
    f1 = {score: 2 * right[scores >= score].sum() / ((scores >= score).sum() + objects) for score in scores}
    best = max(score for score in f1 if f1[score] > max(f1.values()) - 1e-12)
    below = max(score for score in f1 if score < best)
    _, figures = evaluated(split, 4)
    assert figures["f1"] == pytest.approx(max(f1.values()), abs=1e-12)
    assert figures["threshold"] == pytest.approx((best + below) / 2, abs=1e-12)


def one(boxes=(), scores=(), labels=(), true_boxes=(), true_labels=(), ignored=None):
    true_boxes = torch.tensor(true_boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "labels": torch.tensor(labels, dtype=torch.long),
        "true_boxes": true_boxes,
        "true_labels": torch.tensor(true_labels, dtype=torch.long),
        "ignored": torch.tensor(ignored or [False] * len(true_boxes), dtype=torch.bool),
        "area": (true_boxes[:, 2:] - true_boxes[:, :2]).prod(1),
    }


LEFT, MIDDLE, RIGHT = [0, 0, 40, 40], [100, 0, 140, 40], [200, 0, 240, 40]


def test_nothing_found_and_nothing_right():
    _, figures = evaluated([one(true_boxes=[LEFT], true_labels=[0])], 2)
    assert (figures["ap"], figures["recall"], figures["f1"], figures["threshold"]) == (0, 0, 0, 0.5)
    assert np.isnan(figures["precision"])
    assert np.isnan(figures["ap_small"])  # 40 x 40 is of medium size
    assert figures["ap_medium"] == 0
    _, figures = evaluated([one([RIGHT], [0.9], [0], [LEFT], [0])], 2)
    assert (figures["ap"], figures["precision"], figures["threshold"]) == (0, 0, 0.5)


def test_one_detection_that_is_right():
    _, figures = evaluated([one([LEFT], [0.25], [0], [LEFT], [0])], 2)
    assert figures["ap"] == figures["f1"] == figures["precision"] == figures["recall"] == 1
    assert figures["threshold"] == 0.25


def test_a_split_without_objects_is_an_error():
    for image in (one(), one([LEFT], [0.9], [0]), one([LEFT], [0.9], [0], [LEFT], [0], [True])):
        with pytest.raises(TrainingError, match="not one object"):
            evaluated([image], 2)
    with pytest.raises(TrainingError, match="not one object"):
        evaluated([], 2)


def test_the_confusion_says_what_was_taken_for_what():
    split = [
        one([LEFT, LEFT, RIGHT], [0.9, 0.8, 0.3], [1, 0, 0], [LEFT, MIDDLE], [0, 1]),
        one([RIGHT, RIGHT, MIDDLE], [0.9, 0.8, 0.7], [0, 0, 1], [RIGHT, MIDDLE], [0, 0], [True, False]),
    ]
    metrics, _ = evaluated(split, 2, 0.5)
    # The 0 on the left is taken for a 1, and its second detection finds nothing; the 1 in the middle is missed. In the
    # second image two detections lie in what is ignored, and a 0 is taken for a 1.
    assert metrics.confusion().tolist() == [[0, 2, 0], [0, 0, 1], [1, 0, 0]]
    for threshold, nothing in ((0.2, 2), (0.5, 1), (0.5, 1), (0.2, 2)):
        assert float(metrics.compute(threshold)["threshold"]) == threshold
        assert metrics.confusion().tolist() == [[0, 2, 0], [0, 0, 1], [nothing, 0, 0]]


def overlap(one, other, ignored):
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    return common / (one[2] * one[3] + (0 if ignored else other[2] * other[3] - common))


@pytest.mark.parametrize("across_classes", [False, True])
def test_matches_are_those_of_a_loop(across_classes):
    rng = np.random.default_rng(3)
    image, true_image = np.sort(rng.integers(0, 20, 300)), np.sort(rng.integers(0, 20, 120))
    boxes, true_boxes = (
        np.concatenate([rng.integers(0, 30, (n, 2)), rng.integers(8, 40, (n, 2))], 1) for n in (300, 120)
    )
    found = Found(image, boxes.astype(float), np.round(rng.random(300), 1), rng.integers(0, 3, 300))
    ignored = rng.random(120) < 0.2
    truth = Truth(true_image, true_boxes.astype(float), rng.integers(0, 3, 120), ignored, np.ones(120))
    expected, taken = np.full(300, -1), set()
    for detection in np.argsort(-found.scores, kind="stable"):
        for regions in (False, True):
            best = 0.5
            for candidate in np.flatnonzero((true_image == image[detection]) & (ignored == regions)):
                same = truth.labels[candidate] == found.labels[detection]
                value = overlap(boxes[detection], true_boxes[candidate], regions)
                if (same or (across_classes and not regions)) and candidate not in taken and value >= best:
                    best, expected[detection] = value, candidate
            if expected[detection] >= 0:
                taken |= set() if regions else {expected[detection]}
                break
    assert ignored[expected[expected >= 0]].any()
    assert np.array_equal(match(found, truth, 0.5, across_classes), expected)


def test_the_confusion_adds_up():
    split = simulate(30, 4, 6)
    metrics, figures = evaluated(split, 4)
    confusion = metrics.confusion()
    objects = np.bincount(torch.cat([image["true_labels"][~image["ignored"]] for image in split]), minlength=4)
    assert np.array_equal(confusion[:4].sum(1), objects)
    assert confusion[4, 4] == 0
    kept = sum(int((image["scores"] >= figures["threshold"]).sum()) for image in split)
    assert 0.7 * kept < confusion[:, :4].sum() <= kept  # all but those in ignored regions
    assert confusion[:4, :4].trace() > 0.5 * confusion[:4, :4].sum()


def test_the_curves_are_cocos_at_an_overlap_of_one_half():
    split = simulate(30, 9, 7)
    metrics, figures = evaluated(split, 9)
    curves, precision = metrics.curves(), reference(split, 9).eval["precision"][0, :, :, 0, -1]
    assert list(curves) == ["all classes", *(f"class {index}" for index in range(6))]
    for index in range(6):
        np.testing.assert_allclose(curves[f"class {index}"][:, 1], precision[:, index], atol=1e-9)
    assert curves["all classes"][:, 1].mean() == pytest.approx(figures["ap50"], abs=1e-9)
    assert np.array_equal(curves["all classes"][:, 0], np.linspace(0, 1, 101))


def test_the_names_are_known_before_anything_is_counted():
    metrics = DetectionMetrics(["a", "b"])
    names = metrics.names()
    metrics.update(**one([LEFT], [0.25], [0], [LEFT], [0]))
    assert names == list(metrics.compute())
    assert {"score", *TABLE, "threshold", "f1", "precision", "recall", "ap/a", "ap/b"} == set(names)


def test_what_was_computed_is_forgotten_when_something_is_counted():
    metrics, figures = evaluated([one([LEFT], [0.25], [0], [LEFT], [0])], 1)
    metrics.update(**one(true_boxes=[LEFT], true_labels=[0]))
    assert float(metrics.compute()["recall"]) == 0.5 < figures["recall"]
    metrics.reset()
    with pytest.raises(TrainingError):
        metrics.compute()


def test_more_detections_than_count_are_left_out():
    boxes = [[50 * index, 0, 50 * index + 40, 40] for index in range(5)]
    _, figures = evaluated([one(boxes, [0.9, 0.8, 0.7, 0.6, 0.5], [0] * 5, boxes, [0] * 5)], 1, max_detections=3)
    assert figures["ar3"] == pytest.approx(0.6)
    assert figures["recall"] == pytest.approx(0.6)


def test_nothing_is_printed_or_logged(capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        evaluated(simulate(5, 3, 8), 3)
    assert not any(capfd.readouterr())
    assert not caplog.records


# Several processes.

RANKS = 3
SPLITS = {"many": simulate(20, 4, 9), "one": simulate(1, 4, 10), "nothing to find": [one(), one([LEFT], [0.5], [0])]}


def count_a_share(rank, folder):
    """What one of several processes does: it counts its share, dealt as the loader deals it."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    results = {}
    for name, split in SPLITS.items():
        try:
            results[name] = evaluated(split[rank::RANKS], 4)[1]
            results[f"{name} at 0.3"] = evaluated(split[rank::RANKS], 4, 0.3)[1]
        except TrainingError as error:
            results[name] = str(error)
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_several_processes_find_what_one_finds(tmp_path):
    torch.multiprocessing.spawn(count_a_share, (tmp_path,), RANKS)
    alone = {}
    for name in ("many", "one"):
        alone[name] = evaluated(SPLITS[name], 4)[1]
        alone[f"{name} at 0.3"] = evaluated(SPLITS[name], 4, 0.3)[1]
    for rank in range(RANKS):
        results = torch.load(tmp_path / f"{rank}.pt")
        assert "not one object" in results.pop("nothing to find")
        assert results.keys() == alone.keys()
        for name, figures in results.items():
            np.testing.assert_equal(figures, alone[name])
