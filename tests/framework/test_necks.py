from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

from framework.backbone import Level
from framework.necks import FeaturePyramid, Pyramid
from tests.reference.resampling import resize


def levels_of(strides):
    return tuple(Level(3 + i, stride) for i, stride in enumerate(strides))


def maps_of(levels, size, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, x.channels, -(-size[0] // x.stride), -(-size[1] // x.stride), generator=g) for x in levels]


def padded(size, pyramid):
    return tuple(-(-side // pyramid.multiple) * pyramid.multiple for side in size)


@pytest.mark.parametrize(
    ("have", "want", "sources", "multiple"),
    [
        ([4, 8, 16, 32], (4, 8, 16, 32), (0, 1, 2, 3), 32),
        ([2, 4, 8, 16, 32], (4, 8, 16, 32), (1, 2, 3, 4), 32),
        ([2, 4, 8, 16, 32], (2, 4, 8, 16, 32), (0, 1, 2, 3, 4), 32),
        ([4, 8, 16], (4, 8, 16, 32), (0, 1, 2, 2), 32),
        ([8, 16, 32], (4, 8, 16, 32), (0, 0, 1, 2), 32),
        ([4, 16, 32], (4, 8, 16, 32), (0, 0, 1, 2), 32),  # as near from both sides: the finer one
        ([4, 8, 16, 32, 64], (4, 8, 16, 32), (0, 1, 2, 4), 64),  # the deepest is read all the same
        ([4, 8, 16, 32], (4, 16), (0, 3), 32),
        ([4, 8, 16, 32], (8,), (3,), 32),
        ([2, 4], (2, 4, 8, 16, 32), (0, 1, 1, 1, 1), 32),
        ([4, 8, 16, 16], (4, 8, 16, 32), (0, 1, 2, 3), 32),  # dilated
        ([2, 4, 8, 16, 16], (4, 8, 16, 32), (1, 2, 3, 4), 32),
        ([4, 8, 8, 8], (4, 8, 16, 32), (0, 1, 2, 3), 32),
        ([4, 8, 16, 16], (4, 16), (0, 3), 16),
        ([14, 14, 14, 14], (4, 8, 16, 32), (0, 1, 2, 3), 14),  # a plain ViT
        ([16, 16, 16, 16], (4, 8, 16, 32), (0, 1, 2, 3), 32),
        ([14] * 12, (4, 8, 16, 32), (0, 4, 7, 11), 14),
        ([14, 14], (4, 8, 16, 32), (0, 0, 1, 1), 14),
        ([14], (4, 8, 16, 32), (0, 0, 0, 0), 14),
        ([14] * 4, (8,), (3,), 14),
        ([7, 14, 28], (4, 8, 16, 32), (0, 0, 1, 2), 28),
    ],
)
def test_which_level_each_stride_is_made_from(have, want, sources, multiple):
    pyramid = Pyramid(levels_of(have), want)
    assert pyramid.sources == sources
    assert pyramid.used == tuple(sorted(set(sources)))
    assert pyramid.multiple == multiple
    assert pyramid.levels == tuple(Level(3 + source, stride) for source, stride in zip(sources, want, strict=True))


@pytest.mark.parametrize("have", [[4, 8, 16, 32], [4, 8, 16], [16] * 4, [14] * 4, [7, 14, 28], [2, 4], [14]])
@pytest.mark.parametrize("size", [(64, 96), (70, 98), (448, 14), (1, 33)])
def test_each_map_is_exactly_twice_the_next(have, size):
    levels = levels_of(have)
    pyramid = Pyramid(levels)
    size = padded(size, pyramid)
    out = pyramid(maps_of(levels, size), size)
    base = [-(-side // 32) for side in size]
    for factor, x, level in zip((8, 4, 2, 1), out, pyramid.levels, strict=True):
        assert x.shape == (2, level.channels, base[0] * factor, base[1] * factor)


def test_a_level_of_an_asked_stride_passes_through_untouched():
    levels = levels_of([4, 8, 16])
    maps = maps_of(levels, (64, 96))
    out = Pyramid(levels)(maps, (64, 96))
    assert all(x is y for x, y in zip(out[:3], maps, strict=True))


@pytest.mark.parametrize("size", [(64, 96), (128, 32), (32, 160)])
@pytest.mark.parametrize("have", [[4, 8, 16], [14] * 4, [8, 16, 32], [2, 4], [4, 8, 8, 8]])
def test_a_new_pyramid_resamples_and_does_nothing_else(have, size):
    levels = levels_of(have)
    pyramid = Pyramid(levels)
    size = padded(size, pyramid)
    maps = maps_of(levels, size)
    for source, x in zip(pyramid.sources, pyramid(maps, size), strict=True):
        np.testing.assert_allclose(x.detach().numpy(), resize(maps[source].numpy(), x.shape[-2:]), atol=1e-5)


@pytest.mark.parametrize("have", [[4, 8, 16], [14] * 4])
def test_a_trained_projection_is_applied_to_what_was_resampled(have):
    levels = levels_of(have)
    pyramid = Pyramid(levels)
    size = padded((64, 96), pyramid)
    maps = maps_of(levels, size)
    for module in pyramid.resample.values():
        torch.nn.init.normal_(module.project.weight)
        torch.nn.init.normal_(module.project.bias)
    for source, level, x in zip(pyramid.sources, pyramid.levels, pyramid(maps, size), strict=True):
        wanted = resize(maps[source].numpy(), x.shape[-2:])
        if str(level.stride) in pyramid.resample:
            project = pyramid.resample[str(level.stride)].project
            weight, bias = project.weight.detach().numpy()[:, :, 0, 0], project.bias.detach().numpy()
            wanted = np.einsum("oc,bchw->bohw", weight, wanted) + bias[:, None, None]
        np.testing.assert_allclose(x.detach().numpy(), wanted, atol=1e-4)


def test_every_parameter_and_every_used_level_gets_a_gradient():
    for have in ([4, 8, 16], [2, 4, 8, 16, 32, 64], [14] * 4, [14] * 12, [16]):
        levels = levels_of(have)
        pyramid = Pyramid(levels)
        size = padded((128, 192), pyramid)
        maps = [x.requires_grad_() for x in maps_of(levels, size)]
        sum(x.square().mean() for x in pyramid(maps, size)).backward()
        assert all(p.grad is not None and p.grad.any() for p in pyramid.parameters())
        assert [i for i, x in enumerate(maps) if x.grad is not None] == list(pyramid.used)


def test_16_bit_maps_stay_16_bit():
    levels = levels_of([4, 8, 16])
    maps = [x.bfloat16() for x in maps_of(levels, (64, 96))]
    assert all(x.dtype == torch.bfloat16 for x in Pyramid(levels).bfloat16()(maps, (64, 96)))


def test_sizes_that_do_not_fit_are_refused():
    pyramid = Pyramid(levels_of([4, 8, 16, 32]))
    with pytest.raises(ValueError, match="divisible by 32, got 48x64"):
        pyramid(maps_of(levels_of([4, 8, 16, 32]), (48, 64)), (48, 64))


@pytest.mark.parametrize(
    ("have", "want"), [([8, 4], (4, 8)), ([], (4, 8)), ([4, 8], (8, 4)), ([4, 8], (4, 4)), ([4, 8], (4, 6))]
)
def test_levels_and_strides_out_of_order_are_refused(have, want):
    with pytest.raises(ValueError, match="fine to coarse"):
        Pyramid(levels_of(have), want)


# For detection: one depth, and strides that are exact.


@pytest.mark.parametrize(
    ("have", "asked", "extra", "strides", "multiple", "used"),
    [
        ([4, 8, 16, 32], (8, 16, 32), "convolutions", (8, 16, 32, 64, 128), 32, (1, 2, 3)),
        ([4, 8, 16, 32], (4, 8, 16, 32), "pool", (4, 8, 16, 32, 64), 32, (0, 1, 2, 3)),
        ([2, 4, 8, 16], (8, 16, 32), "none", (8, 16, 32), 32, (2, 3)),
        ([4, 8], (8, 16, 32), "none", (8, 16, 32), 32, (1,)),
        ([2, 8, 8, 8], (8, 16, 32), "none", (8, 16, 32), 32, (1, 2, 3)),  # dilated
        ([3, 6, 12], (8, 16, 32), "none", (8, 16, 32), 96, (1, 2)),
        ([14] * 4, (8, 16, 32), "convolutions", (7, 14, 28, 56, 112), 14, (3,)),  # plain ViTs
        ([14] * 4, (4, 8, 16, 32), "pool", (3.5, 7, 14, 28, 56), 14, (3,)),
        ([16] * 12, (8, 16, 32), "none", (8, 16, 32), 16, (11,)),
        ([8, 8], (8, 16, 32), "none", (8, 16, 32), 8, (1,)),
        ([32], (8, 16, 32), "none", (8, 16, 32), 32, (0,)),
        ([3], (8, 16, 32), "none", (6, 12, 24), 3, (0,)),
        ([1], (8, 16), "none", (8, 16), 1, (0,)),
    ],
)
def test_strides_of_a_feature_pyramid(have, asked, extra, strides, multiple, used):
    pyramid = FeaturePyramid(levels_of(have), asked, channels=4, extra=extra)
    assert pyramid.strides == strides
    assert pyramid.channels == 4
    assert pyramid.multiple == multiple
    assert pyramid.used == used


@pytest.mark.parametrize("extra", ["none", "pool", "convolutions"])
@pytest.mark.parametrize("have", [[4, 8, 16, 32], [4, 8], [3, 6, 12], [14] * 4, [16], [64], [3]])
@pytest.mark.parametrize("cells", [(1, 1), (3, 5), (4, 2)])
def test_every_map_covers_the_image_and_no_cell_lies_beside_it(have, extra, cells):
    levels = levels_of(have)
    pyramid = FeaturePyramid(levels, channels=4, extra=extra)
    size = (cells[0] * pyramid.multiple, cells[1] * pyramid.multiple)
    out = pyramid(maps_of(levels, size), size)
    assert len(out) == len(pyramid.strides)
    for x, stride in zip(out, pyramid.strides, strict=True):
        assert x.shape == (2, 4, *(-(-side // stride) for side in size))


@pytest.mark.parametrize(
    ("extra", "block"), [("none", None), ("pool", LastLevelMaxPool()), ("convolutions", LastLevelP6P7(6, 6))]
)
def test_levels_of_the_asked_strides_go_through_torchvisions_pyramid(extra, block):
    torch.manual_seed(0)
    levels = levels_of([4, 8, 16, 32])
    theirs = FeaturePyramidNetwork([4, 5, 6], 6, extra_blocks=block)
    ours = FeaturePyramid(levels, channels=6, extra=extra)
    ours.load_state_dict(
        {
            f"neck.fpn.{name}".replace("neck.fpn.extra_blocks", "extra"): value
            for name, value in theirs.state_dict().items()
        }
    )
    maps = maps_of(levels, (96, 160))
    wanted = theirs({str(index): x for index, x in enumerate(maps[1:])})
    out = ours(maps, (96, 160))
    assert len(out) == len(wanted)
    assert all(torch.equal(x, y) for x, y in zip(out, wanted.values(), strict=True))


def norm(x, weights):
    """Layer normalisation over channels."""
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    weight, bias = (next(weights)[:, None, None] for _ in range(2))
    return (x - mean) / (variance + 1e-6).sqrt() * weight + bias


def grow(x, weights):
    """Transposed convolution of kernel and stride 2: every cell becomes four."""
    weight, bias = next(weights), next(weights)
    out = x.new_empty(len(x), weight.shape[1], 2 * x.shape[2], 2 * x.shape[3])
    for row in range(2):
        for column in range(2):
            out[:, :, row::2, column::2] = torch.einsum("bihw,io->bohw", x, weight[:, :, row, column])
    return out + bias[:, None, None]


def test_levels_of_one_stride_become_vitdets_simple_pyramid():
    torch.manual_seed(0)
    pyramid = FeaturePyramid([Level(8, 16)] * 3, (4, 8, 16, 32), channels=6)
    for parameter in pyramid.parameters():
        torch.nn.init.normal_(parameter)
    maps = [torch.randn(2, 8, 3, 4) for _ in range(3)]
    weights, x = iter(pyramid.parameters()), maps[-1]
    with torch.no_grad():
        out = pyramid(maps, (48, 64))
        for index, y in enumerate(out):
            if index == 0:
                scaled = grow(F.gelu(norm(grow(x, weights), weights)), weights)
            elif index == 1:
                scaled = grow(x, weights)
            else:
                scaled = x if index == 2 else F.max_pool2d(F.pad(x, (0, 0, 0, 1), value=-torch.inf), 2)
            merged = norm(F.conv2d(scaled, next(weights)), weights)
            torch.testing.assert_close(y, norm(F.conv2d(merged, next(weights), padding=1), weights))
    assert next(weights, None) is None


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("cell", [(0, 0), (2, 4), (4, 6), (4, 0)])
def test_a_simple_pyramid_shows_a_patch_where_it_lies(patch, cell):
    pyramid = FeaturePyramid([Level(8, patch)], (4, 8, 16, 32, 64), channels=8)
    for module in pyramid.modules():
        if isinstance(module, torch.nn.ConvTranspose2d):
            torch.nn.init.zeros_(module.bias)
            torch.nn.init.zeros_(module.weight)
            module.weight.data[0, 0] = 1
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.dirac_(module.weight)
    grid = torch.zeros(1, 8, 5, 7)
    grid[0, 0, cell[0], cell[1]] = 1
    for x, stride in zip(pyramid([grid], (5 * patch, 7 * patch)), pyramid.strides, strict=True):
        bright = {(int(row), int(column)) for row, column in (x[0] != 0).any(0).nonzero()}
        touched = [
            [i for i in range(length) if i * stride < (first + 1) * patch and (i + 1) * stride > first * patch]
            for length, first in zip(x.shape[-2:], cell, strict=True)
        ]
        assert bright == {(row, column) for row in touched[0] for column in touched[1]}


@pytest.mark.parametrize("extra", ["none", "pool", "convolutions"])
@pytest.mark.parametrize("have", [[4, 8, 16, 32], [4, 8], [14] * 4, [16], [64]])
def test_every_parameter_of_a_feature_pyramid_gets_a_gradient(have, extra):
    levels = levels_of(have)
    pyramid = FeaturePyramid(levels, channels=4, extra=extra)
    size = (3 * pyramid.multiple, 2 * pyramid.multiple)
    maps = [x.requires_grad_() for x in maps_of(levels, size)]
    sum((x * torch.randn_like(x)).mean() for x in pyramid(maps, size)).backward()
    assert all(p.grad is not None and p.grad.any() for p in pyramid.parameters())
    assert [i for i, x in enumerate(maps) if x.grad is not None] == list(pyramid.used)


@pytest.mark.parametrize("have", [[4, 8, 16, 32], [14] * 4])
def test_a_copy_of_a_feature_pyramid_is_its_own(have):
    levels = levels_of(have)
    pyramid = FeaturePyramid(levels, channels=4, extra="convolutions")
    size = (2 * pyramid.multiple,) * 2
    before = pyramid(maps_of(levels, size), size)
    copy = deepcopy(pyramid)
    for parameter in copy.parameters():
        torch.nn.init.zeros_(parameter)
    assert all(torch.equal(x, y) for x, y in zip(before, pyramid(maps_of(levels, size), size), strict=True))
    assert not any(x.any() for x in copy(maps_of(levels, size), size))


def test_sizes_that_do_not_fit_a_feature_pyramid_are_refused():
    with pytest.raises(ValueError, match="divisible by 14, got 28x30"):
        FeaturePyramid(levels_of([14]))([torch.zeros(1, 3, 2, 2)], (28, 30))


@pytest.mark.parametrize(
    ("have", "asked"), [([], (8, 16)), ([8, 4], (8, 16)), ([4, 8], (16, 8)), ([8], (8, 8)), ([8], (8, 12)), ([8], ())]
)
def test_a_feature_pyramid_out_of_order_is_refused(have, asked):
    with pytest.raises(ValueError, match="fine to coarse"):
        FeaturePyramid(levels_of(have), asked)
