"""The Inception v3 plugin, against torchvision's network."""

from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import Inception_V3_Weights, inception_v3

from framework.cost import flop_count, parameter_count
from plugins.inception import InceptionV3


@pytest.fixture(scope="module")
def whole() -> Any:
    torch.manual_seed(0)
    return inception_v3(init_weights=False).eval()


@pytest.fixture(scope="module")
def file(whole: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "inception_v3.pth"
    torch.save(whole.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def loaded(file: Path) -> InceptionV3:
    return InceptionV3(weights=file).eval()


@pytest.mark.parametrize("size", [(96, 64), (75, 99), (299, 299)])
def test_maps_are_whole_fractions_of_any_image(size: tuple[int, int]):
    with torch.device("meta"):
        maps = InceptionV3().eval()(torch.empty(1, 3, *size)).maps
    assert [tuple(x.shape[1:]) for x in maps] == [
        (channels, ceil(size[0] / stride), ceil(size[1] / stride))
        for channels, stride in ((64, 2), (192, 4), (288, 8), (768, 16), (2048, 32))
    ]


def test_away_from_the_edges_values_are_torchvisions(whole: Any, loaded: InceptionV3):
    """Torchvision's crops come to the same cells if the image has an edge of 29 pixels: 2 cells of stride 8."""
    images = torch.randn(1, 3, 256, 256)
    seen: list[Tensor] = []
    taps = [whole.Conv2d_2b_3x3, whole.Conv2d_4a_3x3, whole.Mixed_5d]
    hooks = [tap.register_forward_hook(lambda _, __, out: seen.append(out.clone())) for tap in taps]
    with torch.no_grad():
        whole._forward(torch.nn.functional.pad(images, (29,) * 4))
        maps = loaded.extract(images).maps
    for hook in hooks:
        hook.remove()
    for got, want, shift, edge in zip(maps, seen, (13, 5, 2), (8, 8, 12), strict=False):
        inner = slice(edge, got.shape[-1] - edge)
        outer = slice(edge + shift, got.shape[-1] - edge + shift)
        torch.testing.assert_close(got[..., inner, inner], want[..., outer, outer], rtol=1e-4, atol=1e-5)


def test_published_network_has_torchvisions_size_and_cost():
    with torch.device("meta"):
        net = InceptionV3.published()
        cost = flop_count(net, torch.empty(1, 3, 299, 299)) / 2e9
    meta = Inception_V3_Weights.IMAGENET1K_V1.meta
    assert parameter_count(net) == meta["num_params"] == 27_161_264
    assert round(cost, 3) == meta["_ops"]


class TestWeights:
    def test_of_the_whole_model_load_into_the_trunk(self, whole: Any, loaded: InceptionV3):
        state = loaded.net.state_dict()
        assert {key.split(".")[0] for key in whole.state_dict().keys() - state.keys()} == {"AuxLogits", "fc"}
        assert all(torch.equal(value, whole.state_dict()[key]) for key, value in state.items())

    def test_for_grey_images_give_the_same_as_for_grey_in_three_channels(self, file: Path, loaded: InceptionV3):
        images = torch.rand(1, 1, 80, 80)
        with torch.no_grad():
            got = InceptionV3(file, in_channels=1).eval().extract(images).maps[1]
            want = loaded.extract(images.expand(-1, 3, -1, -1)).maps[1]
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_stages_are_the_five_levels():
    with torch.device("meta"):
        backbone = InceptionV3()
    flat = [id(parameter) for stage in backbone.stages() for parameter in stage]
    assert flat == [id(parameter) for parameter in backbone.parameters()]  # registered in order of use
    assert [len(stage) for stage in backbone.stages()] == [9, 6, 63, 132, 72]
