"""Files of the layout of Meta's published heads, and what comes out of them through head, output and resize."""

import pytest
import torch

from framework.backbone import Features, Level
from framework.errors import ConfigError, WeightsError
from framework.heads.dense import LinearHead, resize
from framework.heads.depth import LinearDepth
from framework.heads.depth_output import Bins, LinearRegression
from framework.heads.dinov2_dpt import DINOv2DPT
from tests.reference import meta_heads as meta

VIT = (Level(16, 14),) * 4
NYU = (0.001, 10.0)


def features_of(height, width, batch=2):
    g = torch.Generator().manual_seed(1)
    maps = [3 * torch.randn(batch, 16, height, width, generator=g) for _ in VIT]
    return Features(maps, [3 * torch.randn(batch, 5, 16, generator=g) for _ in VIT])


def decode(head, output, features, size):
    """Do what the task does in evaluation."""
    with torch.no_grad():
        return resize(output(head.eval().coarse(features, size), NYU).clamp(*NYU), size)


@pytest.mark.parametrize(("layers", "grid"), [(1, (5, 7)), (4, (4, 3))])
def test_linear_segmentation_heads_give_metas_logits(tmp_path, layers, grid):
    state = meta.draw_linear_segmentation(16 * layers, 150)
    head = LinearHead(VIT, 5, 150, layers=layers, weights=meta.save(state, tmp_path / "ade20k.pth")).eval()
    features, size = features_of(*grid), (14 * grid[0], 14 * grid[1])
    wanted = meta.linear_segmentation(state, features.maps[-layers:], size)
    torch.testing.assert_close(head(features, size), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("layers", "grid"), [(1, (5, 7)), (4, (4, 3))])
def test_linear_depth_heads_give_metas_metres(tmp_path, layers, grid):
    state = meta.draw_linear_depth(32 * layers)
    head = LinearDepth(VIT, 5, 256, layers=layers, weights=meta.save(state, tmp_path / "nyu.pth"))
    features, size = features_of(*grid), (14 * grid[0], 14 * grid[1])
    tokens = [x[:, 0] for x in features.prefix[-layers:]]
    wanted = meta.linear_depth(state, features.maps[-layers:], tokens, size, *NYU)
    assert wanted.std() > 0.01
    torch.testing.assert_close(decode(head, Bins(), features, size), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [(5, 7), (4, 3), (1, 2)])  # odd: skips are a row too small
def test_dpt_heads_give_metas_metres(tmp_path, grid):
    state, features, size = meta.draw_dpt_depth(16, 12), features_of(*grid), (14 * grid[0], 14 * grid[1])
    tokens = [x[:, 0] for x in features.prefix]
    state["conv_depth.head.4.bias"] += 5  # so that the ReLU hides none, then half
    state["conv_depth.head.4.bias"] -= meta.dpt_depth(state, features.maps, tokens, size, *NYU).median()
    head = DINOv2DPT(VIT, 5, 1, channels=12, weights=meta.save(state, tmp_path / "nyu_dpt.pth"))
    wanted = meta.dpt_depth(state, features.maps, tokens, size, *NYU)
    assert wanted.std() > 0.01
    assert 0.1 < (wanted > NYU[0] + 1e-6).float().mean() < 1  # both sides of the ReLU
    torch.testing.assert_close(decode(head, LinearRegression("relu"), features, size), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "outputs"), [(LinearHead, 21), (LinearDepth, 256), (DINOv2DPT, 1)], ids=["seg", "linear", "dpt"]
)
def test_heads_load_what_they_saved(tmp_path, build, outputs):
    first = build(VIT, 5, outputs)
    torch.save(first.state_dict(), tmp_path / "own.pth")
    second = build(VIT, 5, outputs, weights=tmp_path / "own.pth").state_dict()
    assert all(torch.equal(x, second[name]) for name, x in first.state_dict().items())


SEGMENTATION, LINEAR, DPT = (
    lambda: meta.draw_linear_segmentation(64, 150),
    lambda: meta.draw_linear_depth(128),
    lambda: meta.draw_dpt_depth(16, 256),
)


@pytest.mark.parametrize(
    ("draw", "build", "words"),
    [
        (SEGMENTATION, lambda path: LinearDepth(VIT, 5, 256, weights=path), ["for segmentation", "head to LinearHead"]),
        (LINEAR, lambda path: DINOv2DPT(VIT, 5, 1, weights=path), ["depth by a linear head", "head to LinearDepth"]),
        (DPT, lambda path: LinearDepth(VIT, 5, 256, weights=path), ["depth by a DPT head", "head to DINOv2DPT"]),
        (
            LINEAR,
            lambda path: LinearDepth(VIT, 5, 256, weights=path),
            ["128 channels", "this head has 32", "head.layers"],
        ),
        (
            LINEAR,
            lambda path: LinearDepth(VIT, 5, 1, layers=4, weights=path),
            ["256 values", "this head has 1:", "Bins"],
        ),
        (
            SEGMENTATION,
            lambda path: LinearHead(VIT, 5, 2, layers=1, weights=path),
            ["64 channels", "head.layers", "150 classes", "ADE20K has 150"],
        ),
        (
            DPT,
            lambda path: DINOv2DPT((Level(24, 14),) * 4, 1, 2, weights=path),
            ["16 channels read", "this head has 24", "variant", "1 values", "LinearRegression"],
        ),
        (DPT, lambda path: DINOv2DPT(VIT, 5, 1, channels=8, weights=path), ["256 channels of fusion", "head.channels"]),
        (
            lambda: {**LINEAR(), "extra.weight": torch.ones(1)},
            lambda path: LinearDepth(VIT, 5, 256, layers=4, weights=path),
            ["nothing was loaded", "extra.weight"],
        ),
    ],
)
def test_files_that_do_not_fit_say_what_to_set(tmp_path, draw, build, words):
    path = meta.save(draw(), tmp_path / "head.pth")
    with pytest.raises(WeightsError) as caught:
        build(path)
    for word in ("head.pth", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("levels", "prefix_tokens", "words"),
    [
        (VIT[:3], 1, "gives 3 of stride 14, 14, 14 with 1 prefix tokens"),
        (VIT, 0, "with 0 prefix tokens"),
        (tuple(Level(16, stride) for stride in (4, 8, 16, 32)), 0, "stride 4, 8, 16, 32"),
    ],
)
def test_metas_dpt_is_for_plain_vits_and_names_the_head_for_others(levels, prefix_tokens, words):
    with pytest.raises(ConfigError, match=f"(?s){words}.*the head DPT takes any backbone"):
        DINOv2DPT(levels, prefix_tokens, 1)
