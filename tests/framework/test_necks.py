import numpy as np
import pytest
import torch

from framework.backbone import Level
from framework.necks import Pyramid
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
