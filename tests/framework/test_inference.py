from itertools import pairwise

import pytest
import torch
from torch import nn

from framework.errors import ConfigError
from framework.inference import DenseInference, window_starts


def pointwise(images):
    """A network whose logits at a pixel depend on that pixel alone: windows must not show."""
    return torch.stack([images[:, 0], images[:, 1] * 2, images[:, 2] - 0.5], 1)


@pytest.mark.parametrize("size", [(31, 47), (64, 64), (17, 90)])
@pytest.mark.parametrize("window", [16, (20, 33), 200])
def test_windows_of_a_pointwise_network_leave_no_seam(size, window):
    images = torch.rand(2, 3, *size)
    whole = DenseInference()(pointwise, images)
    parts = DenseInference(window=window, overlap=0.4, batch_size=3)(pointwise, images)
    assert parts.shape == (2, 3, *size)
    torch.testing.assert_close(parts, whole)


def test_windows_overlap_by_at_least_what_was_asked():
    offsets = window_starts(93, 20, 0.5)
    assert offsets[0] == 0
    assert offsets[-1] == 93 - 20
    assert max(b - a for a, b in pairwise(offsets)) <= 10


def test_a_window_sees_only_itself():
    seen = []

    def network(images):
        seen.append(tuple(images.shape))
        return pointwise(images)

    DenseInference(window=(10, 12), overlap=0.0, batch_size=4)(network, torch.rand(1, 3, 20, 24))
    assert seen == [(4, 3, 10, 12)]


def test_flips_make_a_one_sided_network_symmetric():
    weight = torch.randn(3, 3, 3, 3)

    def network(images):
        return nn.functional.conv2d(images, weight, padding=1)

    images = torch.rand(1, 3, 12, 14)
    inference = DenseInference(flip=True)
    mirrored = inference(network, images.flip(-1)).flip(-1)
    torch.testing.assert_close(inference(network, images), mirrored)
    by_hand = (network(images).softmax(1) + network(images.flip(-1)).flip(-1).softmax(1)) / 2
    torch.testing.assert_close(inference(network, images).exp(), by_hand)


def test_scales_show_the_network_other_sizes_and_come_back():
    seen = []

    def network(images):
        seen.append(tuple(images.shape[-2:]))
        return pointwise(images)

    out = DenseInference(scales=(0.5, 1.0, 1.5))(network, torch.full((1, 3, 21, 30), 0.3))
    assert seen == [(10, 15), (21, 30), (32, 45)]
    torch.testing.assert_close(out, pointwise(torch.full((1, 3, 21, 30), 0.3)).log_softmax(1))


def test_probabilities_add_up_to_one():
    out = DenseInference(window=8, flip=True, scales=(0.75, 1.0))(pointwise, torch.rand(1, 3, 20, 20))
    torch.testing.assert_close(out.exp().sum(1), torch.ones(1, 20, 20))


@pytest.mark.parametrize("options", [{"overlap": 1.0}, {"scales": ()}, {"scales": (0.0,)}, {"window": 0}])
def test_nonsense_is_refused(options):
    with pytest.raises(ConfigError):
        DenseInference(**options)
