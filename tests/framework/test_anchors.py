import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from framework.heads.anchors import GridAnchors

SIZES, RATIOS = ((10, 17), (32, 40), (63, 80)), (0.5, 1.0, 2.5)


def test_anchors_of_whole_strides_are_torchvisions():
    theirs, ours = AnchorGenerator(SIZES, (RATIOS,) * 3), GridAnchors((8.0, 16.0, 32.0), SIZES, RATIOS)
    maps = [torch.zeros(2, 1, 96 // stride, 160 // stride) for stride in (8, 16, 32)]
    images = ImageList(torch.zeros(2, 3, 96, 160), [(96, 160), (80, 100)])
    for one, other in zip(ours(images, maps), theirs(images, maps), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(torch.cat(ours.per_level(maps)), ours(images, maps)[0])
    assert ours.num_anchors_per_location() == theirs.num_anchors_per_location() == [6] * 3


def test_fractional_strides_and_odd_maps_do_not_drift():
    anchors = GridAnchors((3.5, 28.0), [(7.0,), (30.0,)], (0.25, 1.0), rounded=False)
    fine, coarse = anchors.per_level([torch.zeros(1, 1, 20, 12), torch.zeros(1, 1, 3, 2)])  # of 70x42 pixels
    half = [(7 / 0.5 / 2, 7 * 0.5 / 2), (3.5, 3.5)]  # width and height of a quarter's and of a square's half
    wanted = [
        (column * 3.5 - w, row * 3.5 - h, column * 3.5 + w, row * 3.5 + h)
        for row in range(20)
        for column in range(12)
        for w, h in half
    ]
    torch.testing.assert_close(fine, torch.tensor(wanted))
    torch.testing.assert_close(coarse[-1], torch.tensor([28.0 - 15, 56 - 15, 28 + 15, 56 + 15]))


def test_anchors_of_16_bit_maps_are_exact():
    anchors = GridAnchors((8.0,), [(9,)], (1.0,))
    (fine,) = anchors.per_level([torch.zeros(1, 1, 200, 200, dtype=torch.bfloat16)])
    assert fine.dtype == torch.float32
    assert torch.equal(fine[-1], torch.tensor([1588.0, 1588.0, 1596.0, 1596.0]))
