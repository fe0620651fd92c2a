from math import atan, exp, floor, log, pi

import numpy as np
import pytest
import torch
from torchvision.ops import box_convert, box_iou, complete_box_iou_loss

from framework.backbone import Features, Level
from framework.boxes import Frame, Objects
from framework.errors import ConfigError
from framework.heads.yolo import YOLO, fit_anchors
from framework.losses.detection import complete_iou
from tests.tiny import Tiny

LEVELS = (Level(8, 8), Level(12, 16), Level(16, 32))
FRAME = Frame((64, 96), [(64, 96), (50, 70)])
OBJECTS = [
    Objects(torch.tensor([[9.0, 10, 25, 30], [40, 2, 95, 61], [10, 12, 24, 31]]), torch.tensor([0, 2, 1])),
    Objects(torch.tensor([[5.0, 30, 36, 49], [0, 0, 2, 50]]), torch.tensor([1, 1])),  # the last one fits no anchor
]


def features(levels=LEVELS, canvas=FRAME.canvas, batch=2):
    generator = torch.Generator().manual_seed(1)
    shapes = [(batch, x.channels, canvas[0] // x.stride, canvas[1] // x.stride) for x in levels]
    return Features([torch.randn(shape, generator=generator) for shape in shapes], [])


def make(levels=LEVELS, num_classes=3, **options):
    """A head whose outputs are far from each other and from 0."""
    torch.manual_seed(0)
    head = YOLO(levels, 0, num_classes, **{"channels": 16, "depth": 1, **options})
    with torch.no_grad():
        for branch in head.branches:
            branch[-1].weight.normal_(std=0.2)
            branch[-1].bias.normal_(std=0.5)
    return head.eval()


def raw_outputs(head):
    """What the last convolutions give, as (B, A, h, w, 5 + C) for each stride: by hooks, in numpy."""
    found = []
    hooks = [branch.register_forward_hook(lambda _, __, out: found.append(out.detach())) for branch in head.branches]
    with torch.no_grad():
        head(features(), FRAME)
    for hook in hooks:
        hook.remove()
    outputs = [x.view(len(x), 3, -1, *x.shape[-2:]).permute(0, 1, 3, 4, 2).double().numpy() for x in found]
    return dict(zip((8, 16, 32), outputs, strict=True))


ANCHORS = {  # YOLOv3's, in pixels
    8: ((10, 13), (16, 30), (33, 23)),
    16: ((30, 61), (62, 45), (59, 119)),
    32: ((116, 90), (156, 198), (373, 326)),
}


def sigmoid(x):
    return 1 / (1 + exp(-x))


def decoded(values, stride, anchor, row, column):
    """A box, x1, y1, x2, y2 in pixels, from raw values: YOLOv5's formulas."""
    x, y = (2 * sigmoid(values[0]) - 0.5 + column) * stride, (2 * sigmoid(values[1]) - 0.5 + row) * stride
    w, h = ((2 * sigmoid(values[2 + side])) ** 2 * ANCHORS[stride][anchor][side] for side in (0, 1))
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def overlaps(a, b):
    """IoU and complete IoU of two boxes."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inside = max(wide, 0) * max(high, 0)
    (wa, ha), (wb, hb) = (a[2] - a[0], a[3] - a[1]), (b[2] - b[0], b[3] - b[1])
    iou = inside / (wa * ha + wb * hb - inside)
    diagonal = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    apart = ((a[0] + a[2] - b[0] - b[2]) ** 2 + (a[1] + a[3] - b[1] - b[3]) ** 2) / 4
    v = 4 / pi**2 * (atan(wb / hb) - atan(wa / ha)) ** 2
    return iou, iou - apart / diagonal - v * v / (1 - iou + v)


def cross_entropy(logit, target):
    return -target * log(sigmoid(logit)) - (1 - target) * log(1 - sigmoid(logit))


def misfit(box, stride, anchor):
    sides = [(box[2 + side] - box[side]) / ANCHORS[stride][anchor][side] for side in (0, 1)]
    return max(max(side, 1 / side) for side in sides)


def places(box, stride, height, width):
    """The anchors and cells that learn a box: anchor, row, column."""
    best = min((misfit(box, s, a), s, a) for s in ANCHORS for a in range(3))
    x, y = (box[0] + box[2]) / 2 / stride, (box[1] + box[3]) / 2 / stride
    cells = [(floor(y), floor(x))]
    cells += [(floor(y), floor(x) - 1)] if x % 1 < 0.5 else [(floor(y), floor(x) + 1)] if x % 1 > 0.5 else []
    cells += [(floor(y) - 1, floor(x))] if y % 1 < 0.5 else [(floor(y) + 1, floor(x))] if y % 1 > 0.5 else []
    for anchor in range(3):
        if misfit(box, stride, anchor) < 4 or best[1:] == (stride, anchor):
            yield from ((anchor, row, column) for row, column in cells if 0 <= row < height and 0 <= column < width)


def losses_by_hand(outputs, weights):
    """YOLOv5's loss, place by place."""
    terms = {"box": 0.0, "objectness": 0.0, "classification": 0.0}
    for (stride, values), balance in zip(outputs.items(), (4.0, 1.0, 0.4), strict=True):
        target = np.zeros(values.shape[:4])
        boxes, classes, counts = [], [], []
        for image, objects in enumerate(OBJECTS):
            for box, label in zip(objects.boxes.tolist(), objects.labels.tolist(), strict=True):
                for place in places(box, stride, *values.shape[2:4]):
                    raw = values[(image, *place)]
                    iou, complete = overlaps(decoded(raw, stride, *place), box)
                    target[(image, *place)] = max(target[(image, *place)], iou)
                    boxes.append(1 - complete)
                    classes.append(weights[label] * np.mean([cross_entropy(raw[5 + c], c == label) for c in range(3)]))
                    counts.append(weights[label])
        assert boxes, f"nothing to learn at stride {stride}"
        terms["box"] += sum(boxes) / len(boxes)
        terms["classification"] += 10 * 3 / 80 * sum(classes) / sum(counts)
        everywhere = [cross_entropy(values[index][4], target[index]) for index in np.ndindex(target.shape)]
        terms["objectness"] += 20 * 64 * 96 / 640**2 * balance * np.mean(everywhere)
    return terms


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0]])
def test_losses_are_those_computed_place_by_place(weights):
    head = make(class_weights=weights)
    ours = head(features(), FRAME, OBJECTS)
    expected = losses_by_hand(raw_outputs(head), weights or [1.0] * 3)
    assert tuple(ours) == YOLO.loss_names
    for name, value in expected.items():
        assert ours[name].item() == pytest.approx(value, rel=1e-4), name


def test_detections_are_those_decoded_place_by_place():
    head = make(score_threshold=0.0, nms_iou=1.0, topk_candidates=10**6, max_detections=10**6)
    found = head(features(), FRAME)
    outputs = raw_outputs(head)
    for image, (height, width) in enumerate(FRAME.sizes):
        expected = []
        for stride, values in outputs.items():
            for anchor, row, column in np.ndindex(values.shape[1:4]):
                raw = values[image, anchor, row, column]
                box = np.array(decoded(raw, stride, anchor, row, column)).clip(0, [width, height] * 2)
                if box[2] > box[0] and box[3] > box[1]:
                    expected += [(sigmoid(raw[4]) * sigmoid(raw[5 + c]), c, *box) for c in range(3)]
        expected.sort(key=lambda row: -row[0])
        ours = found[image]
        assert len(ours.scores) == len(expected) > 100
        np.testing.assert_allclose(ours.scores.detach(), [row[0] for row in expected], rtol=1e-4)
        rows, boxes = np.array([row[2:] for row in expected]), ours.boxes.detach().numpy()
        np.testing.assert_allclose(np.sort(boxes, axis=0), np.sort(rows, axis=0), atol=1e-3)  # whatever the order
        np.testing.assert_allclose(boxes[:20], rows[:20], atol=1e-3)


def average_precision(found, objects):
    """AP at IoU 0.5 of pycocotools, over classes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, results = COCO(), COCO()
    images = [{"id": index + 1, "height": 64, "width": 64} for index in range(len(objects))]
    categories = [{"id": label + 1} for label in range(3)]
    for coco, everything in ((truth, objects), (results, found)):
        entries = []
        for image, one in enumerate(everything):
            boxes = box_convert(one.boxes, "xyxy", "xywh").tolist()
            scores = one.scores.tolist() if coco is results else [1.0] * len(boxes)
            for box, label, score in zip(boxes, one.labels.tolist(), scores, strict=True):
                entry = {"image_id": image + 1, "category_id": label + 1, "bbox": box, "area": box[2] * box[3]}
                entries.append({**entry, "id": len(entries) + 1, "iscrowd": 0, "score": score})
        coco.dataset = {"images": images, "categories": categories, "annotations": entries}
        coco.createIndex()
    evaluation = COCOeval(truth, results, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[1]


def squares(count=4, side=64):
    """Images of coloured rectangles, three each, and where they are."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.tensor([[0.9, 0.2, 0.2], [0.2, 0.9, 0.2], [0.2, 0.2, 0.9]])
    images, objects = 0.1 * torch.rand(count, 3, side, side, generator=generator), []
    for row in range(count):
        boxes, labels = [], [(row + corner) % 3 for corner in range(3)]
        for corner, label in enumerate(labels):
            w, h, x, y = torch.randint(0, 11, (4,), generator=generator).tolist()
            x1, y1 = x + corner % 2 * 32, y + corner // 2 * 32
            boxes.append([x1, y1, x1 + 10 + w, y1 + 10 + h])
            images[row, :, y1 : y1 + 10 + h, x1 : x1 + 10 + w] = colours[label][:, None, None]
        objects.append(Objects(torch.tensor(boxes).float(), torch.tensor(labels)))
    return images, objects


def test_it_learns_four_images():
    torch.manual_seed(0)
    backbone = Tiny()
    head = YOLO(backbone.levels, 0, 3, channels=32, depth=1)
    images, objects = squares()
    frame = Frame((64, 64), [(64, 64)] * 4)
    assert [len(found.boxes) for found in head(backbone(images), frame)] == [0] * 4  # objectness starts small
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=2e-3)
    for _ in range(150):
        loss = sum(head(backbone(images), frame, objects).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    backbone.eval()
    with torch.no_grad():
        found = head(backbone(images), frame)
    assert average_precision(found, objects) > 0.9


def test_anchors_grow_with_the_strides():
    vit = YOLO((Level(24, 14),), 0, 3, channels=16)
    assert vit.strides == (7, 14, 28)
    torch.testing.assert_close(vit.anchors * 8 / 7, make().anchors)


def test_given_anchors_are_in_pixels():
    given = [[(5.0, 6.0)], [(20.0, 10.0)], [(50.0, 60.0)]]
    head = YOLO(LEVELS, 0, 3, channels=16, anchors=given)
    with torch.no_grad():
        for branch in head.branches:
            branch[-1].weight.zero_()
            branch[-1].bias.zero_()
    found = head(features(), FRAME)[0]
    sizes = {
        (round(x2 - x1), round(y2 - y1)) for x1, y1, x2, y2 in found.boxes.tolist() if x1 > 0 and y1 > 0 and x2 < 96
    }
    assert (5, 6) in sizes  # 2 sigmoid(0) is 1


def test_the_gradient_is_finite_however_small_the_predicted_box():
    for size in (0.0, 1e-30, 1e-8, 1e8):
        boxes = torch.tensor([[0.5, 0.5, size, size]], requires_grad=True)
        _, complete = complete_iou(boxes, torch.tensor([[0.7, 0.4, 2.0, 1.0]]))
        (gradient,) = torch.autograd.grad(complete.sum(), boxes)
        assert gradient.isfinite().all()


def test_complete_iou_is_torchvisions():
    generator = torch.Generator().manual_seed(0)
    boxes, targets = (torch.rand(50, 4, generator=generator) * 3 + 0.1 for _ in range(2))
    corners = [box_convert(x, "cxcywh", "xyxy") for x in (boxes, targets)]
    iou, complete = complete_iou(boxes, targets)
    torch.testing.assert_close(1 - complete, complete_box_iou_loss(*corners), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(iou, box_iou(*corners).diagonal(), atol=1e-5, rtol=1e-4)


def test_a_place_with_two_objects_learns_the_better_overlap_whatever_their_order():
    head = make()
    turned = [Objects(one.boxes.flip(0), one.labels.flip(0)) for one in OBJECTS]
    one, other = (head(features(), FRAME, objects)["objectness"] for objects in (OBJECTS, turned))
    torch.testing.assert_close(one, other)


def test_one_class_is_enough():
    head = make(num_classes=1)
    objects = [Objects(one.boxes, torch.zeros_like(one.labels)) for one in OBJECTS]
    assert all(value.isfinite() for value in head(features(), FRAME, objects).values())
    assert {label for found in head(features(), FRAME) for label in found.labels.tolist()} == {0}


def test_fitted_anchors_are_the_sizes_that_there_are():
    generator = torch.Generator().manual_seed(0)
    kinds = torch.tensor([[10.0, 20.0], [40.0, 30.0], [100.0, 120.0]])
    sizes = kinds.repeat(50, 1) * (1 + 0.1 * torch.randn(150, 2, generator=generator))
    torch.testing.assert_close(fit_anchors(sizes, 3), kinds, rtol=0.05, atol=0)
    assert torch.equal(fit_anchors(sizes, 3), fit_anchors(sizes.flip(0), 3))


def test_more_anchors_fit_better():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.rand(300, 2, generator=generator) * 200 + 5

    def fit(count):
        anchors = fit_anchors(sizes, count)
        assert anchors.shape == (count, 2)
        assert (anchors.prod(1).diff() >= 0).all()
        zeros = torch.zeros_like
        overlap = box_iou(torch.cat([zeros(sizes), sizes], 1), torch.cat([zeros(anchors), anchors], 1))
        return float(overlap.max(1).values.mean())

    fits = [fit(count) for count in (1, 3, 9)]
    assert fits == sorted(fits)
    assert fits[-1] > 0.65


def test_fewer_boxes_than_anchors_are_enough_but_none_is_not():
    assert fit_anchors(torch.tensor([[3.0, 4.0]]), 3).tolist() == [[3, 4]] * 3
    with pytest.raises(ValueError, match="there are none"):
        fit_anchors(torch.zeros(0, 2), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchors": [[(1.0, 2.0)]]}, "each of 3 maps"),
        ({"anchors": [[(1.0, 2.0)], [(1.0, 2.0)], []]}, "each of 3 maps"),
        ({"anchors": [[(1.0, 2.0)], [(1.0, 2.0)], [(0.0, 2.0)]]}, "above 0, in pixels"),
        ({"box_weight": 0.0}, "weights of the losses"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"nms_iou": 0.0}, "nms_iou"),
        ({"class_weights": [1.0]}, "1 weights for 3 classes"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        YOLO(LEVELS, 0, 3, channels=16, **options)
