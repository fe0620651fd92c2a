"""The LeNet-5 plugin: maps of any image, and the published network's size."""

from math import ceil
from typing import Any

import numpy as np
import pytest
import torch

from framework.cost import parameter_count
from framework.errors import ConfigError
from plugins.lenet import LeNet


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (33, 47), (5, 3), (1, 1)])
def test_maps_are_whole_fractions_of_any_image(size: tuple[int, int]):
    backbone = LeNet()
    maps = backbone(torch.rand(2, 1, *size)).maps
    wanted = [
        (2, level.channels, ceil(size[0] / level.stride), ceil(size[1] / level.stride)) for level in backbone.levels
    ]
    assert [tuple(x.shape) for x in maps] == wanted
    assert [(level.channels, level.stride) for level in backbone.levels] == [(6, 2), (120, 4)]


def test_published_network_has_the_size_of_common_implementations():
    net = LeNet.published()
    assert parameter_count(net) == 61_706
    # C1 156 + C3 2,416 + C5 48,120 + F6 10,164 + output 850
    assert [sum(p.numel() for p in part.parameters()) for part in net if list(part.parameters())] == [
        *(156, 2_416, 48_120, 10_164, 850)
    ]
    assert net(torch.rand(3, 1, 32, 32)).shape == (3, 10)


def test_s2_is_that_of_the_published_network_away_from_the_edge():
    torch.manual_seed(0)
    net: Any = LeNet.published()
    backbone = LeNet()
    backbone.s2.load_state_dict(net[0].state_dict())
    images = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        want = net[0](images)
        got = backbone.extract(images).maps[0]
    assert want.shape[-1] == 14
    torch.testing.assert_close(got[..., 1:15, 1:15], want)  # a padding of 2 pixels is one cell


def test_pooling_averages_what_is_left_at_an_odd_edge():
    backbone = LeNet(activation="relu").eval()
    convolution: Any = backbone.s2[0]
    torch.nn.init.zeros_(convolution.weight)
    torch.nn.init.ones_(convolution.bias)
    with torch.no_grad():
        (fine, _) = backbone(torch.rand(1, 1, 7, 9)).maps
    assert np.array_equal(fine.numpy(), np.ones((1, 6, 4, 5), np.float32))


def test_stages_are_the_three_convolutions():
    assert [[tuple(p.shape) for p in stage] for stage in LeNet().stages()] == [
        [(6, 1, 5, 5), (6,)],
        [(16, 6, 5, 5), (16,)],
        [(120, 16, 5, 5), (120,)],
    ]


def test_activation_can_be_chosen():
    torch.manual_seed(0)
    images = 10 * torch.randn(1, 1, 16, 16)
    assert LeNet().extract(images).maps[-1].min() < 0
    assert LeNet(activation="relu").extract(images).maps[-1].min() == 0
    with pytest.raises(ConfigError, match="no activation tanhh, did you mean 'tanh'"):
        LeNet(activation="tanhh")  # type: ignore[arg-type]
