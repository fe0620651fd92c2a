"""The ShiftViT plugin, its shift against NumPy, its sizes against those of its repository."""

from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import StochasticDepth

from framework.cost import flop_count, parameter_count
from framework.errors import ConfigError, WeightsError
from plugins.shiftvit import ShiftViT, Variant, shift

TINY: dict[str, Any] = {"embed_dim": 24, "depths": [1, 2, 1, 1]}


def moved(x: np.ndarray, group: int) -> np.ndarray:
    """Cell by cell: where each channel's value comes from, or zero from outside."""
    out = np.zeros_like(x)
    _, channels, height, width = x.shape
    steps = [(0, 1), (0, -1), (1, 0), (-1, 0)]  # a shift to the left brings the cell at the right
    for c in range(channels):
        down, right = steps[c // group] if c < 4 * group else (0, 0)
        for i in range(height):
            for j in range(width):
                if 0 <= i + down < height and 0 <= j + right < width:
                    out[:, c, i, j] = x[:, c, i + down, j + right]
    return out


@pytest.mark.parametrize("shape", [(2, 12, 4, 5), (1, 30, 3, 3), (1, 12, 1, 1), (1, 13, 1, 4)])
@pytest.mark.parametrize("group", [1, 2, 3])
def test_shift_moves_four_groups_of_channels_by_one_cell(shape: tuple[int, ...], group: int):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    before = torch.from_numpy(x.copy())
    np.testing.assert_array_equal(shift(before, group).numpy(), moved(x, group))
    np.testing.assert_array_equal(before.numpy(), x)


@pytest.mark.parametrize("n_div", [4, 12, 24])
def test_blocks_shift_the_share_of_channels_that_n_div_says(n_div: int):
    backbone: Any = ShiftViT(**TINY, n_div=n_div).eval()
    block = backbone.layers[0].blocks[0]
    torch.nn.init.zeros_(block.mlp.fc2.weight)  # the MLP adds nothing then
    x = torch.rand(1, 24, 6, 6)
    with torch.no_grad():
        changed = (block(x) != x).flatten(2).any(2).sum()
    assert changed == 4 * (24 // n_div)


class TestPublished:
    # README of github.com/microsoft/SPACH: millions of parameters, billions of multiply-adds where the count agrees.
    # Its 4.5 and 8.8 for the full tiny and small networks are no count of ours: 4.58 and 8.74.
    @pytest.mark.parametrize(
        ("variant", "parameters", "cost"),
        [
            ("tiny", 29, None),
            ("small", 50, None),
            ("light_tiny", 20, 3.0),
            ("light_small", 34, 5.7),
        ],
    )
    def test_size_and_cost_are_the_repositorys(self, variant: Variant, parameters: int, cost: float | None):
        with torch.device("meta"):
            net = ShiftViT.published(variant=variant)
            assert round(parameter_count(net) / 1e6) == parameters
            if cost:
                assert round(flop_count(net, torch.empty(1, 3, 224, 224)) / 2e9, 1) == cost

    def test_what_exceeds_the_papers_count_is_what_halves_the_maps(self):
        """The paper gives 4.4 for tiny, which is the MLPs of its 38 blocks alone."""
        with torch.device("meta"):
            whole = flop_count(ShiftViT.published(), torch.empty(1, 3, 224, 224)) / 2e9
        mlps = 38 * 2 * 2 * (96 * 56) ** 2 / 1e9  # the same on every level: half the side, twice the width
        patches = 4 * 4 * 3 * 96 * 56**2 / 1e9
        merges = 3 * 4 * 96 * 192 * 28**2 / 1e9
        assert round(mlps, 1) == 4.4
        assert whole == pytest.approx(mlps + patches + merges + 768 * 1000 / 1e9)

    def test_output_is_the_classifier_of_the_mean_of_the_normalised_last_level(self):
        net: Any = ShiftViT.published(**TINY).eval()
        images = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            last = net.trunk(images).maps[-1]
            torch.testing.assert_close(net(images), net.head(last.flatten(2).mean(2)))
        assert abs(float(last.flatten(1).mean())) < 1e-5
        assert float(last.flatten(1).var(1, correction=0).mean()) == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize("size", [(48, 48), (36, 44), (64, 32), (4, 4)])
def test_maps_are_whole_fractions_of_any_multiple_of_4(size: tuple[int, int]):
    backbone = ShiftViT(**TINY)
    assert backbone.multiple == 4
    assert [tuple(x.shape[1:]) for x in backbone(torch.rand(1, 3, *size)).maps] == [
        (24 * 2**i, ceil(size[0] / (4 * 2**i)), ceil(size[1] / (4 * 2**i))) for i in range(4)
    ]


def test_stages_are_patches_and_levels():
    backbone = ShiftViT(**TINY)
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    stages = [[names[id(parameter)] for parameter in stage] for stage in backbone.stages()]
    assert len(stages) == 5
    assert {name.split(".")[0] for name in stages[0]} == {"patch_embed"}
    assert stages[1][0] == "layers.0.blocks.0.norm2.weight"
    assert stages[2][:3] == [f"layers.0.downsample.{leaf}" for leaf in ("norm.weight", "norm.bias", "reduction.weight")]
    assert stages[-1][-1] == "norm.bias"


class TestTraining:
    def test_stochastic_depth_rises_from_zero_to_the_rate(self):
        backbone = ShiftViT(**TINY, drop_path=0.2)
        rates = [module.p for module in backbone.modules() if isinstance(module, StochasticDepth)]
        assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])

    def test_dropout_and_stochastic_depth_rest_in_evaluation(self):
        backbone = ShiftViT(**TINY, dropout=0.5, drop_path=0.5)
        images = torch.rand(1, 3, 32, 32)

        def twice() -> tuple[Tensor, Tensor]:
            return backbone(images).maps[-1], backbone(images).maps[-1]

        assert not torch.equal(*twice())
        backbone.eval()
        assert torch.equal(*twice())


class TestWeights:
    def test_in_the_repositorys_layout(self, tmp_path: Path):
        """Names as in its models/shiftvit.py."""
        backbone = ShiftViT(**TINY)
        state = {key: torch.randn_like(value) for key, value in backbone.state_dict().items()}
        assert {"patch_embed.proj.weight", "patch_embed.norm.bias", "layers.1.blocks.1.norm2.weight"} <= state.keys()
        assert {"layers.0.blocks.0.mlp.fc1.bias", "layers.2.downsample.reduction.weight", "norm.weight"} <= state.keys()
        head = {"head.weight": torch.zeros(1000, 192), "head.bias": torch.zeros(1000)}
        torch.save({"model": {**state, **head}}, tmp_path / "x.pth")
        loaded = ShiftViT(**TINY, weights=tmp_path / "x.pth").state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())

    def test_of_another_variant_are_refused(self, tmp_path: Path):
        torch.save(ShiftViT(**TINY).state_dict(), tmp_path / "x.pth")
        with pytest.raises(WeightsError, match="does not fit ShiftViT"):
            ShiftViT(**{**TINY, "embed_dim": 48}, weights=tmp_path / "x.pth")

    def test_for_other_channels_give_the_same_on_equal_channels(self, tmp_path: Path):
        torch.save(ShiftViT(**TINY).state_dict(), tmp_path / "x.pth")
        grey = torch.rand(1, 1, 32, 32)
        with torch.no_grad():
            one, three = (
                ShiftViT(**TINY, weights=tmp_path / "x.pth", in_channels=count)
                .eval()
                .extract(grey.expand(-1, count, -1, -1))
                .maps[0]
                for count in (1, 3)
            )
        torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "tinny"}, "no variant tinny, did you mean 'tiny'"),
        ({"n_div": 3}, "n_div is at least 4 and at most embed_dim"),
        ({"embed_dim": 8, "n_div": 12}, r"at most embed_dim \(8\), not 12"),
        ({"depths": [2, 0, 1]}, r"at least 1 each, not \[2, 0, 1\]"),
        ({"depths": []}, "at least 1 each"),
        ({"mlp_ratio": 0.0}, "mlp_ratio is above 0"),
        ({"drop_path": 1.0}, r"drop_path is a rate in \[0, 1\), not 1.0"),
        ({"dropout": -0.1}, r"dropout is a rate in \[0, 1\)"),
    ],
)
def test_what_makes_no_network_is_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        ShiftViT(**settings)
