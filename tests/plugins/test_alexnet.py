"""The AlexNet plugin, against torchvision's network and the formula of the 2012 paper."""

from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models import alexnet

from framework.cost import flop_count, parameter_count
from framework.errors import WeightsError
from plugins.alexnet import AlexNet


@pytest.fixture(scope="module")
def trunk() -> Any:
    """Torchvision's convolutions; its classifier has nineteen twentieths of the parameters."""
    torch.manual_seed(0)
    with torch.device("meta"):
        whole = alexnet()
    return whole.features.to_empty(device="cpu").apply(reset).eval()


def reset(module: Any) -> None:
    if isinstance(module, torch.nn.Conv2d):
        module.reset_parameters()


@pytest.fixture
def file(trunk: Any, tmp_path: Path) -> Path:
    state = {f"features.{key}": value for key, value in trunk.state_dict().items()}
    torch.save({**state, **{f"classifier.{i}.bias": torch.zeros(4) for i in (1, 4, 6)}}, tmp_path / "alexnet.pth")
    return tmp_path / "alexnet.pth"


def normalise(x: np.ndarray) -> np.ndarray:
    """Section 3.3 of the 2012 paper on (B, C, H, W): k = 2, n = 5, alpha = 1e-4, beta = 0.75."""
    out = np.empty_like(x)
    for i in range(x.shape[1]):
        around = x[:, max(0, i - 2) : min(x.shape[1], i + 3)]
        out[:, i] = x[:, i] / (2 + 1e-4 * (around**2).sum(1)) ** 0.75
    return out


@pytest.mark.parametrize("size", [(224, 224), (64, 97), (67, 66), (33, 40)])
def test_maps_are_whole_fractions_of_any_image(size: tuple[int, int]):
    backbone = AlexNet()
    maps = backbone(torch.rand(1, 3, *size)).maps
    assert [tuple(x.shape[1:]) for x in maps] == [
        (channels, ceil(size[0] / stride), ceil(size[1] / stride))
        for channels, stride in ((64, 4), (192, 8), (256, 16), (256, 32))
    ]


def test_away_from_the_right_and_lower_edge_values_are_torchvisions(trunk: Any, file: Path):
    backbone = AlexNet(weights=file).eval()
    images = torch.randn(1, 3, 224, 224)
    seen: list[Tensor] = []
    with torch.no_grad():
        x = images
        for index, layer in enumerate(trunk):
            x = layer(x)
            if index in (1, 4, 11, 12):
                seen.append(x.clone())
        maps = backbone.extract(images).maps
    assert [x.shape[-1] for x in seen] == [55, 27, 13, 6]
    assert [x.shape[-1] for x in maps] == [56, 28, 14, 7]
    for got, want, cells in zip(maps, seen, (55, 25, 8, 3), strict=True):
        torch.testing.assert_close(got[..., :cells, :cells], want[..., :cells, :cells])


class TestPublished:
    @pytest.mark.parametrize("lrn", [False, True])
    def test_size_and_cost_are_torchvisions(self, lrn: bool):
        with torch.device("meta"):
            net = AlexNet.published(lrn=lrn)
            images = torch.empty(1, 3, 224, 224)
        assert parameter_count(net) == 61_100_840
        assert round(flop_count(net, images) / 2e9, 2) == 0.71

    def test_layers_are_torchvisions(self):
        """Same parameters in the same order; the strides and paddings are those that the maps above need."""
        with torch.device("meta"):
            net, whole = AlexNet.published(), alexnet()
            shapes = [tuple(x.shape) for x in net.state_dict().values()]
            assert shapes == [tuple(x.shape) for x in whole.state_dict().values()]
            convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
            theirs = [m for m in whole.modules() if isinstance(m, torch.nn.Conv2d)]
            assert [(m.stride, m.padding) for m in convolutions] == [(m.stride, m.padding) for m in theirs]
            assert net(torch.empty(2, 3, 224, 224)).shape == (2, 1000)


class TestLocalResponseNormalisation:
    def test_is_the_papers_formula(self):
        values = np.random.default_rng(0).normal(size=(2, 64, 3, 4)) * 100  # so large that the sum of squares counts
        with torch.no_grad():
            got = AlexNet(lrn=True).norm(torch.from_numpy(values))
        np.testing.assert_allclose(got.numpy(), normalise(values), rtol=1e-9)

    def test_follows_the_first_two_convolutions(self, file: Path):
        images = 50 * torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            plain, normed = (AlexNet(lrn, file).eval().extract(images).maps for lrn in (False, True))
        np.testing.assert_allclose(normed[0].numpy(), normalise(plain[0].numpy()), rtol=1e-5)
        assert normed[1].max() < plain[1].max() / 3  # twice normalised


class TestWeights:
    def test_of_the_whole_model_load_into_the_trunk(self, trunk: Any, file: Path):
        state = AlexNet(weights=file).state_dict()
        assert state.keys() == {f"features.{key}" for key in trunk.state_dict()}
        for key, value in trunk.state_dict().items():
            assert torch.equal(state[f"features.{key}"], value), key

    @pytest.mark.parametrize("channels", [1, 4])
    def test_for_other_channels_give_the_same_on_equal_channels(self, file: Path, channels: int):
        grey = torch.rand(1, 1, 40, 40)
        with torch.no_grad():
            got, want = (
                AlexNet(weights=file, in_channels=count).eval().extract(grey.expand(-1, count, -1, -1)).maps[-1]
                for count in (channels, 3)
            )
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)

    def test_that_do_not_fit_are_refused(self, tmp_path: Path):
        torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11), "stem": torch.zeros(1)}, tmp_path / "x.pth")
        with pytest.raises(WeightsError, match=r"x\.pth does not fit AlexNet(.|\n)*9 of 10 keys missing"):
            AlexNet(weights=tmp_path / "x.pth")


def test_stages_are_the_five_convolutions():
    assert [len(stage) for stage in AlexNet().stages()] == [2] * 5
