"""torchvision's detectors over the maps of our pyramid, and random scenes for them."""

from collections import OrderedDict

import torch
from torch import nn

from framework.backbone import Features
from framework.boxes import Objects


class Maps(nn.Module):
    """What torchvision's detectors take for a backbone: images to the maps of a pyramid."""

    def __init__(self, backbone, pyramid):
        super().__init__()
        self.backbone, self.pyramid, self.out_channels = backbone, pyramid, pyramid.channels

    def forward(self, images):
        maps = self.pyramid(self.backbone.extract(images).maps, tuple(images.shape[-2:]))
        return OrderedDict((str(index), x) for index, x in enumerate(maps))


def detector(kind, backbone, ours, num_classes, side, **options):
    """Build torchvision's detector with our head's pyramid and weights, for images of sides up to `side` pixels."""
    theirs = kind(
        Maps(backbone, ours.pyramid),
        num_classes,
        min_size=side,
        max_size=side,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        size_divisible=ours.multiple,
        detections_per_img=100,
        **options,
    )
    theirs.head.load_state_dict(ours.branches.state_dict())
    return theirs


def features_of(backbone, images):
    """Compute a backbone's features without normalising, as `detector` does."""
    return Features(backbone.extract(images).maps, [])


def sharpen(head):
    """Give a new head weights with which it finds something, and boxes of all sizes."""
    for parameter in head.branches.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
    nn.init.constant_(head.branches.classification_head.cls_logits.bias, -2.0)


def scene(counts, size, num_classes, seed=0):
    """Make up as many objects as asked for each image of height and width `size`, from 2 pixels to most of it."""
    g = torch.Generator().manual_seed(seed)
    side = torch.tensor([size[1], size[0]]).float()
    out = []
    for count in counts:
        extent = 2 + (side - 4) * torch.rand(count, 2, generator=g) ** 3
        corner = torch.rand(count, 2, generator=g) * (side - extent)
        labels = torch.randint(0, num_classes, (count,), generator=g)
        out.append(Objects(torch.cat([corner, corner + extent], dim=1), labels))
    return out


def targets_of(objects):
    """Return objects as torchvision's detectors take them."""
    return [{"boxes": one.boxes, "labels": one.labels} for one in objects]
