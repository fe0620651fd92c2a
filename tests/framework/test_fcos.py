from copy import deepcopy

import pytest
import torch
from torchvision.models.detection import FCOS as Theirs

from framework.backbone import Features, Level
from framework.boxes import Frame, Objects
from framework.errors import ConfigError
from framework.heads.fcos import FCOS
from tests.reference.detectors import detector, features_of, scene, sharpen, targets_of
from tests.tiny import Tiny

THEIR_NAMES = {"classification": "classification", "box": "bbox_regression", "centerness": "bbox_ctrness"}
EMPTY = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))


def build(num_classes=5, **options):
    torch.manual_seed(0)
    backbone = Tiny().eval()
    head = FCOS(backbone.levels, 0, num_classes, channels=64, **options)
    sharpen(head)
    torch.nn.init.constant_(head.branches.regression_head.bbox_reg.bias, 2.0)
    return backbone, head


def pictures(count, size, seed=1):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def frame_of(images, sizes=None):
    canvas = tuple(images.shape[-2:])
    return Frame(canvas, sizes or [canvas] * len(images))


def losses(head, backbone, images, objects):
    return head(features_of(backbone, images), frame_of(images), objects)


def gradients(module, terms):
    module.zero_grad()
    sum(terms.values()).backward()
    return [parameter.grad.clone() for parameter in module.parameters()]


@pytest.mark.parametrize("counts", [(3, 0, 7), (0, 0), (1,), (150, 40)])
def test_losses_and_gradients_are_torchvisions(counts):
    backbone, head = build()
    theirs = detector(Theirs, backbone, head, 5, 128)
    images, objects = pictures(len(counts), (128, 128)), scene(counts, (128, 128), 5)
    ours, wanted = losses(head, backbone, images, objects), theirs(list(images), targets_of(objects))
    assert tuple(ours) == head.loss_names
    for name, value in ours.items():
        torch.testing.assert_close(value, wanted[THEIR_NAMES[name]], rtol=1e-5, atol=1e-6)
    for one, other in zip(gradients(head.branches, ours), gradients(theirs.head, wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("radius", [0.5, 3.0])
def test_the_radius_is_torchvisions(radius):
    backbone, head = build(center_sampling_radius=radius)
    theirs = detector(Theirs, backbone, head, 5, 128, center_sampling_radius=radius)
    images, objects = pictures(2, (128, 128)), scene((9, 4), (128, 128), 5)
    ours, wanted = losses(head, backbone, images, objects), theirs(list(images), targets_of(objects))
    for name, value in ours.items():
        torch.testing.assert_close(value, wanted[THEIR_NAMES[name]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(128, 256), (256, 128)])
def test_detections_are_torchvisions(size):
    options = {"score_threshold": 0.05, "nms_iou": 0.4, "topk_candidates": 60, "max_detections": 100}
    backbone, head = build(**options)
    theirs = detector(Theirs, backbone, head, 5, 256, score_thresh=0.05, nms_thresh=0.4, topk_candidates=60).eval()
    images = pictures(3, size)
    with torch.no_grad():
        ours, wanted = head(features_of(backbone, images), frame_of(images)), theirs(list(images))
    for found, other in zip(ours, wanted, strict=True):
        assert len(found.boxes) > 20
        torch.testing.assert_close(found.boxes, other["boxes"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found.scores, other["scores"], rtol=1e-5, atol=1e-6)
        assert torch.equal(found.labels, other["labels"])


def assigned_by_loops(points, boxes, radius):
    """For each (x, y, stride, low, high) the index of the box that it learns, -1 for none, as the paper tells."""
    out = []
    for x, y, stride, low, high in points:
        best, best_area = -1, float("inf")
        for index, (x1, y1, x2, y2) in enumerate(boxes):
            edges = (x - x1, y - y1, x2 - x, y2 - y)
            near = abs(x - (x1 + x2) / 2) < radius * stride and abs(y - (y1 + y2) / 2) < radius * stride
            area = (x2 - x1) * (y2 - y1)
            if min(edges) > 0 and near and low < max(edges) < high and area < best_area:
                best, best_area = index, area
        out.append(best)
    return out


@pytest.mark.parametrize("patch", [14, 16])
def test_cells_of_a_plain_vit_learn_what_the_paper_says(patch):
    head = FCOS((Level(8, patch),), 0, 3, channels=64, convolutions=1)
    size = (9 * patch, 11 * patch)
    objects = scene((60,), size, 3)[0]
    maps = head.pyramid([torch.randn(1, 8, 9, 11)], size)
    anchors = head.anchors.per_level(maps)
    positive, labels, boxes = head._assign(anchors, objects)
    strides = [patch * factor for factor in (0.5, 1, 2, 4, 8)]
    points = [
        (column * stride, row * stride, stride, 0 if i == 0 else 4 * stride, 8 * stride if i < 4 else float("inf"))
        for i, stride in enumerate(strides)
        for row in range(-(-size[0] // int(stride)))
        for column in range(-(-size[1] // int(stride)))
    ]
    wanted = torch.tensor(assigned_by_loops(points, objects.boxes.tolist(), 1.5))
    assert torch.equal(positive, wanted >= 0)
    assert positive.sum() > 30
    assert torch.equal(boxes[positive], objects.boxes[wanted[positive]])
    assert torch.equal(labels[positive], objects.labels[wanted[positive]])


def test_the_largest_objects_are_learned_by_the_coarsest_map():
    head = FCOS((Level(8, 16),), 0, 3, channels=64, convolutions=1)
    anchors = head.anchors.per_level(
        [torch.zeros(1, 1, 2048 // stride, 2048 // stride) for stride in (8, 16, 32, 64, 128)]
    )
    positive, _, _ = head._assign(anchors, Objects(torch.tensor([[8.0, 8.0, 2040.0, 2040.0]]), torch.tensor([1])))
    by_map = [int(part.sum()) for part in positive.split([len(part) for part in anchors])]
    assert by_map == [0, 0, 0, 0, 9]


def test_class_weights_count_the_focal_loss_of_each_class():
    backbone, head = build(num_classes=3)
    images, objects = pictures(2, (64, 64)), scene((5, 2), (64, 64), 3)
    weights = [0.5, 1.0, 4.0]
    parts = []
    for index in range(3):
        single = [1e-9] * 3
        single[index] = 1.0
        head.class_weights = torch.tensor(single)
        parts.append(losses(head, backbone, images, objects)["classification"])
    head.class_weights = None
    plain = losses(head, backbone, images, objects)
    torch.testing.assert_close(sum(parts), plain["classification"])
    weighted = losses(build(num_classes=3, class_weights=weights)[1], backbone, images, objects)
    torch.testing.assert_close(
        weighted["classification"], sum(w * p for w, p in zip(weights, parts, strict=True)), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(weighted["box"], plain["box"])


@pytest.mark.parametrize("num_classes", [1, 4])
@pytest.mark.parametrize(
    "objects",
    [
        [EMPTY, EMPTY],
        [Objects(torch.tensor([[30.0, 30.0, 30.5, 30.5]]), torch.tensor([0])), EMPTY],
        scene((400, 300), (64, 96), 1),
    ],
    ids=["none", "tiny", "hundreds"],
)
@pytest.mark.parametrize("levels", [[4, 8, 16, 32], [14] * 4, [16], [3]])
def test_every_parameter_gets_a_finite_gradient(levels, objects, num_classes):
    torch.manual_seed(0)
    levels = tuple(Level(8, stride) for stride in levels)
    head = FCOS(levels, 0, num_classes, channels=64, convolutions=1)
    size = tuple(-(-side // head.multiple) * head.multiple for side in (64, 96))
    maps = [torch.randn(2, 8, size[0] // level.stride, size[1] // level.stride) for level in levels]
    terms = head(Features(maps, []), Frame(size, [(64, 96)] * 2), objects)
    assert all(value.isfinite() and value.dim() == 0 for value in terms.values())
    assert all(grad.isfinite().all() for grad in gradients(head, terms))


def test_16_bit_features_give_32_bit_boxes_near_those_of_32_bits():
    backbone, head = build()
    images, objects = pictures(2, (128, 128)), scene((5, 2), (128, 128), 5)
    plain = losses(head, backbone, images, objects)
    with torch.autocast("cpu", torch.bfloat16):
        terms = losses(head, backbone, images, objects)
        found = head(features_of(backbone, images), frame_of(images))
    assert all(grad.isfinite().all() for grad in gradients(head, terms))
    for name, value in terms.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, plain[name], rtol=0.05, atol=0.01)
    assert all(one.boxes.dtype == one.scores.dtype == torch.float32 for one in found)


def test_nothing_is_found_in_the_padding():
    backbone, head = build(score_threshold=0.0, max_detections=100000)
    images, sizes = pictures(2, (128, 128)), [(40, 50), (128, 64)]
    with torch.no_grad():
        found = head(features_of(backbone, images), frame_of(images, sizes))
    for one, (height, width) in zip(found, sizes, strict=True):
        assert len(one.boxes) > 100
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
        assert (one.boxes >= 0).all()
        assert (one.boxes[:, 2] <= width).all()
        assert (one.boxes[:, 3] <= height).all()


def test_no_image_changes_what_is_found_in_another():
    backbone, head = build()
    images = pictures(3, (64, 128))
    with torch.no_grad():
        together = head(features_of(backbone, images), frame_of(images))
        alone = [head(features_of(backbone, image[None]), frame_of(image[None]))[0] for image in images]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-3)
        assert torch.equal(one.labels, other.labels)


def test_options_bound_what_is_found():
    backbone, head = build()
    images = pictures(1, (128, 128))
    with torch.no_grad():
        (everything,) = head(features_of(backbone, images), frame_of(images))
        (few,) = build(max_detections=7)[1](features_of(backbone, images), frame_of(images))
        middle = float(everything.scores[50])
        (sure,) = build(score_threshold=middle)[1](features_of(backbone, images), frame_of(images))
    assert torch.equal(few.boxes, everything.boxes[:7])
    assert (everything.scores.diff() <= 0).all()
    assert torch.equal(sure.boxes, everything.boxes[:50])


def test_a_square_is_learned_and_found():
    torch.manual_seed(0)
    backbone = Tiny()
    head = FCOS(backbone.levels, 0, 2, channels=64, convolutions=1)
    images, boxes = torch.zeros(2, 3, 64, 64), [[8.0, 16.0, 40.0, 48.0], [24.0, 4.0, 52.0, 36.0]]
    for image, (x1, y1, x2, y2), channel in zip(images, boxes, (0, 2), strict=True):
        image[channel, int(y1) : int(y2), int(x1) : int(x2)] = 1
    objects = [Objects(torch.tensor([box]), torch.tensor([label])) for label, box in enumerate(boxes)]
    optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()], lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        sum(losses(head, backbone, images, objects).values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = head(features_of(backbone, images), frame_of(images))
    for label, (one, box) in enumerate(zip(found, boxes, strict=True)):
        assert int(one.labels[0]) == label
        torch.testing.assert_close(one.boxes[0], torch.tensor(box), rtol=0, atol=4.0)


def test_a_copy_detects_the_same():
    backbone, head = build(class_weights=[1.0, 2.0, 3.0, 4.0, 5.0])
    images = pictures(1, (64, 64))
    with torch.no_grad():
        one, other = (h(features_of(backbone, images), frame_of(images))[0] for h in (head, deepcopy(head)))
    assert torch.equal(one.boxes, other.boxes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 80}, "channels must be divisible by 32 and at least 64, got 80"),
        ({"channels": 32}, "at least 64, got 32"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"convolutions": 0}, "convolutions must be at least 1"),
        ({"center_sampling_radius": 0.0}, "center_sampling_radius must be above 0"),
        ({"score_threshold": 1.0}, "score_threshold must be at least 0 and less than 1"),
        ({"nms_iou": 0.0}, "nms_iou must be above 0"),
        ({"topk_candidates": 0}, "topk_candidates must be at least 1"),
        ({"max_detections": 0}, "max_detections must be at least 1"),
        ({"class_weights": [1.0]}, "1 weights for 3 classes"),
        ({"class_weights": [1.0, 0.0, 1.0]}, "^model.head.class_weights must be above 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        FCOS((Level(8, 8), Level(8, 16)), 0, 3, **{"channels": 64, **options})
