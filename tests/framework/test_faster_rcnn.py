from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import MultiScaleRoIAlign

from framework.backbone import Features, Level
from framework.boxes import Frame, Objects
from framework.errors import ConfigError
from framework.heads.faster_rcnn import FasterRCNN, RegionPooling
from framework.losses.detection import fast_rcnn_losses

LEVELS = (Level(8, 4), Level(12, 8), Level(16, 16), Level(20, 32))
FRAME = Frame((128, 192), [(128, 192), (101, 90)])  # 64 divides it: elsewhere torchvision guesses its last stride
OBJECTS = [
    Objects(torch.tensor([[10.0, 20, 50, 90], [60, 5, 150, 120]]), torch.tensor([0, 2])),
    Objects(torch.tensor([[5.0, 30, 80, 95]]), torch.tensor([1])),
]


class Given(nn.Module):
    out_channels = 32


def features(levels=LEVELS, canvas=FRAME.canvas, batch=2):
    generator = torch.Generator().manual_seed(1)
    shapes = [(batch, x.channels, canvas[0] // x.stride, canvas[1] // x.stride) for x in levels]
    return Features([torch.randn(shape, generator=generator) for shape in shapes], [])


def make(levels=LEVELS, num_classes=3, seed=0, **options):
    """A head whose outputs are far from each other."""
    torch.manual_seed(seed)
    head = FasterRCNN(levels, 0, num_classes, **{"channels": 32, "representation_size": 64, **options})
    with torch.no_grad():
        for layer in (head.roi_heads.box_predictor.cls_score, head.rpn.head.cls_logits):
            layer.weight.normal_(std=0.3)
        for layer in (head.roi_heads.box_predictor.bbox_pred, head.rpn.head.bbox_pred):
            layer.weight.normal_(std=0.05)
    return head


def torchvisions(head, **options):
    """torchvision's detector with the weights of our head, and what it takes: images, maps, targets."""
    detector = TorchvisionFasterRCNN(Given(), num_classes=None, box_predictor=head.roi_heads.box_predictor, **options)
    detector.roi_heads.box_head = head.roi_heads.box_head
    detector.rpn.load_state_dict(head.rpn.state_dict())
    maps = head.pyramid(features().maps, FRAME.canvas)
    names = ("0", "1", "2", "3", "pool")
    images = ImageList(torch.zeros(2, 3, *FRAME.canvas), FRAME.sizes)
    return detector, images, dict(zip(names, maps, strict=True))


def test_losses_are_torchvisions():
    head = make()
    detector, images, maps = torchvisions(head.train())
    targets = [{"boxes": one.boxes, "labels": one.labels + 1} for one in OBJECTS]
    torch.manual_seed(5)
    proposals, first = detector.train().rpn(images, maps, targets)
    _, second = detector.roi_heads(maps, proposals, images.image_sizes, targets)
    torch.manual_seed(5)
    ours = head(features(), FRAME, OBJECTS)
    assert tuple(ours) == FasterRCNN.loss_names
    theirs = {**first, **second}
    for name, other in zip(
        ours, ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"), strict=True
    ):
        assert theirs[other] > 0
        torch.testing.assert_close(ours[name], theirs[other])


@pytest.mark.parametrize("options", [{}, {"score_threshold": 0.3, "nms_iou": 0.3, "max_detections": 9}])
def test_detections_are_torchvisions(options):
    head = make(**options).eval()
    other = dict(zip(("box_score_thresh", "box_nms_thresh", "box_detections_per_img"), options.values(), strict=False))
    detector, images, maps = torchvisions(head, **other)
    detector.eval()
    with torch.no_grad():
        proposals, _ = detector.rpn(images, maps)
        theirs, _ = detector.roi_heads(maps, proposals, images.image_sizes)
        ours = head(features(), FRAME)
    for found, expected in zip(ours, theirs, strict=True):
        assert len(found.boxes) >= 5
        torch.testing.assert_close(found.boxes, expected["boxes"])
        torch.testing.assert_close(found.scores, expected["scores"])
        assert torch.equal(found.labels, expected["labels"] - 1)
        assert found.labels.unique().numel() > 1


def test_what_is_asked_for_counts_and_not_the_mode():
    head = make(train_proposals=(50, 20), proposals=(30, 10))
    results = {}
    for training in (True, False):
        head.train(training)
        torch.manual_seed(3)
        results[training] = head(features(), FRAME, OBJECTS), head(features(), FRAME)
        assert all(module.training == training for module in head.modules())
    (trained, found), (evaluated, looked) = results[True], results[False]
    assert list(trained.values()) == list(evaluated.values())
    for one, other in zip(found, looked, strict=True):
        assert torch.equal(one.boxes, other.boxes)


def test_pooling_is_torchvisions_where_strides_are_powers_of_two():
    torch.manual_seed(0)
    maps = {str(index): torch.randn(2, 5, 128 // stride, 160 // stride) for index, stride in enumerate((4, 8, 16, 32))}
    corners = torch.rand(2, 40, 2) * 60
    regions = [
        torch.cat([low, low + 2 + side * torch.rand(40, 2)], dim=1)
        for low, side in zip(corners, (30, 400), strict=True)
    ]
    theirs = MultiScaleRoIAlign(list(maps), 7, 2)(maps, regions, [FRAME.canvas] * 2)
    torch.testing.assert_close(RegionPooling((4, 8, 16, 32))(list(maps.values()), regions), theirs)


def test_pooling_knows_strides_that_are_no_whole_numbers():
    strides = (3.5, 7.0, 14.0, 28.0)
    maps = [torch.arange(280 / stride).expand(1, 1, int(280 / stride), -1) for stride in strides]  # the column's number
    regions = [torch.tensor([[21.0, 7, 35, 21], [14.0, 14, 126, 126], [28.0, 0, 252, 252]])]
    pooled = RegionPooling(strides)(maps, regions)[:, 0]
    for region, stride, found in zip(regions[0].tolist(), (3.5, 7.0, 14.0), pooled, strict=True):
        step = (region[2] - region[0]) / 7
        columns = [(region[0] + (index + 0.5) * step) / stride for index in range(7)]
        torch.testing.assert_close(found, torch.tensor(columns).expand(7, 7))


def test_a_batch_without_any_object_trains_every_parameter():
    head = make().train()
    nothing = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    terms = head(features(), FRAME, [nothing, nothing])
    sum(terms.values()).backward()
    assert terms["box"] == terms["proposal_box"] == 0
    assert terms["classification"] > 0
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in head.parameters())


def test_one_class_is_enough():
    head = make(num_classes=1)
    objects = [Objects(one.boxes, torch.zeros_like(one.labels)) for one in OBJECTS]
    assert all(value.isfinite() for value in head(features(), FRAME, objects).values())
    assert {label for found in head(features(), FRAME) for label in found.labels.tolist()} == {0}


def test_boxes_are_exact_under_autocast():
    canvas = (256, 1024)
    head = make(score_threshold=0.0).eval()
    for layer in (head.roi_heads.box_predictor.bbox_pred, head.rpn.head.bbox_pred):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)  # what is found are anchors, whose corners are whole numbers
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = head(features(canvas=canvas, batch=1), Frame(canvas, [(255, 1023)]))
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    torch.testing.assert_close(found.boxes, found.boxes.round(), atol=1e-3, rtol=0)
    assert (found.boxes.round() % 4 != 0).logical_and(found.boxes > 512).any()  # bfloat16 knows every fourth only


def test_the_loss_is_torchvisions_and_weighs_classes():
    torch.manual_seed(0)
    logits, offsets, targets = torch.randn(20, 4), torch.randn(20, 16), torch.randn(20, 4)
    labels = torch.randint(0, 4, (20,))
    for ours, theirs in zip(
        fast_rcnn_losses(logits, offsets, labels, targets),
        fastrcnn_loss(logits, offsets, [labels], [targets]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    weights = torch.tensor([1.0, 2, 3, 4])
    weighed, _ = fast_rcnn_losses(logits, offsets, labels, targets, weights)
    torch.testing.assert_close(weighed, F.cross_entropy(logits, labels, weights))
    nowhere = fast_rcnn_losses(logits[:0], offsets[:0], labels[:0], targets[:0], weights)
    assert [float(value) for value in nowhere] == [0, 0]


def test_background_counts_one_beside_class_weights():
    plain, weighed = make().train(), make(class_weights=[2.0, 2.0, 2.0]).train()
    terms = []
    for head in (plain, weighed):
        torch.manual_seed(3)
        terms.append(head(features(), FRAME, OBJECTS))
    assert weighed.class_weights.tolist() == [1, 2, 2, 2]
    assert terms[0]["classification"].item() != pytest.approx(terms[1]["classification"].item(), rel=1e-3)
    assert terms[0]["box"] == terms[1]["box"]


def test_anchors_grow_with_the_strides_and_can_be_set():
    vit = FasterRCNN((Level(24, 14),), 0, 3, channels=32)
    sizes = [float((cell[:, 2] - cell[:, 0])[1]) for cell in vit.rpn.anchor_generator.cell_anchors]
    assert sizes == [28, 56, 112, 224, 448]
    assert all(coarse == 2 * fine for fine, coarse in pairwise(vit.pyramid.strides))
    given = FasterRCNN(LEVELS, 0, 3, channels=32, anchor_sizes=[10, 20, 30, 40, 50], aspect_ratios=(1.0,))
    assert given.rpn.anchor_generator.cell_anchors[0].tolist() == [[-5, -5, 5, 5]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchor_sizes": [8, 16]}, "2 sizes for 5 maps"),
        ({"aspect_ratios": (0.0,)}, "aspect_ratios above 0"),
        ({"nms_iou": 0.0}, "nms_iou"),
        ({"score_threshold": 1.0}, "score_threshold"),
        ({"proposals": (10, 0)}, "proposals must be at least 1"),
        ({"class_weights": [1.0, 2.0]}, "2 weights for 3 classes"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        FasterRCNN(LEVELS, 0, 3, channels=32, **options)
