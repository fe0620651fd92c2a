from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.backbone import Features, Level
from framework.errors import ConfigError
from framework.heads.dense import ConvHead, DenseHead
from framework.heads.depth import LinearDepth

VIT = tuple(Level(5 + i, 14) for i in range(4))
CNN = tuple(Level(4 + i, stride) for i, stride in enumerate((4, 8, 16)))


def features_of(levels, prefix_tokens, size):
    g = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, x.channels, size[0] // x.stride, size[1] // x.stride, generator=g) for x in levels]
    return Features(maps, [torch.randn(2, prefix_tokens, x.channels, generator=g) for x in levels if prefix_tokens])


class TestLinearDepth:
    """The convolution comes before the enlarging and the class token by itself: the plain way gives the same."""

    @pytest.mark.parametrize("layers", [1, 3, 9])
    def test_joins_class_tokens_enlarges_then_convolves(self, layers):
        head, features = LinearDepth(VIT, 5, 7, layers=layers), features_of(VIT, 5, (42, 70))
        pairs = list(zip(features.maps, features.prefix, strict=True))[-layers:]
        joined = [torch.cat([x, tokens[:, 0, :, None, None].expand_as(x)], 1) for x, tokens in pairs]
        enlarged = F.interpolate(torch.cat(joined, 1), scale_factor=4, mode="bilinear")
        wanted = torch.einsum("oc,bchw->bohw", head.project.weight[:, :, 0, 0], enlarged)
        wanted = wanted + head.project.bias[:, None, None]
        torch.testing.assert_close(head.coarse(features, (42, 70)), wanted, rtol=1e-5, atol=1e-5)
        assert wanted.shape == (2, 7, 12, 20)

    def test_of_a_cnn_has_no_token_and_meets_at_the_finest_level_used(self):
        head, features = LinearDepth(CNN, 0, 3, layers=2, upsample=2), features_of(CNN, 0, (32, 64))
        maps = [features.maps[1], F.interpolate(features.maps[2], (4, 8), mode="bilinear")]
        wanted = head.project(F.interpolate(torch.cat(maps, 1), scale_factor=2, mode="bilinear"))
        torch.testing.assert_close(head.coarse(features, (32, 64)), wanted, rtol=1e-5, atol=1e-5)
        assert (head.used, head.multiple) == ((1, 2), 16)

    def test_gives_every_class_token_and_weight_a_gradient(self):
        head, features = LinearDepth(VIT, 5, 3, layers=4), features_of(VIT, 5, (28, 42))
        for x in (*features.maps, *features.prefix):
            x.requires_grad_()
        head.coarse(features, (28, 42)).square().sum().backward()
        assert all(x.grad.any() for x in (*features.maps, *head.parameters()))
        assert all(x.grad[:, 0].any() and not x.grad[:, 1:].any() for x in features.prefix)

    def test_trains_in_16_bits(self):
        head, features = LinearDepth(VIT, 5, 3, layers=4), features_of(VIT, 5, (28, 42))
        wanted = head.coarse(features, (28, 42))
        with torch.autocast("cpu", torch.bfloat16):
            got = head.coarse(features, (28, 42))
        assert (got.float() - wanted).norm() < 0.02 * wanted.norm()


def test_conv_head_is_a_3x3_convolution_relu_and_a_1x1_convolution():
    torch.manual_seed(0)
    head, features = ConvHead(CNN, 0, 3, channels=6, layers=2), features_of(CNN, 0, (32, 64))
    coarser = F.interpolate(features.maps[2], (4, 8), mode="bilinear")
    padded = np.pad(torch.cat([features.maps[1], coarser], 1).numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    p = {name: x.detach().numpy() for name, x in head.named_parameters()}
    hidden = np.zeros((2, 6, 4, 8)) + p["mix.bias"][:, None, None]
    for i in range(3):
        for j in range(3):
            shifted = padded[:, :, i : i + 4, j : j + 8]
            hidden += np.einsum("oc,bchw->bohw", p["mix.weight"][:, :, i, j], shifted)
    wanted = np.einsum("oc,bchw->bohw", p["classify.weight"][:, :, 0, 0], np.maximum(hidden, 0))
    wanted += p["classify.bias"][:, None, None]
    np.testing.assert_allclose(head.coarse(features, (32, 64)).detach().numpy(), wanted, atol=1e-5)
    assert head(features, (32, 64)).shape == (2, 3, 32, 64)


class ForwardAlone(DenseHead):
    def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, outputs: int):
        super().__init__()
        self.used, self.multiple = (0,), 1
        self.classify = nn.Conv2d(levels[0].channels, outputs, 1)

    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        return F.interpolate(self.classify(features.maps[0]), size)


def test_a_head_that_writes_forward_alone_gives_it_as_coarse_values():
    head, features = ForwardAlone(CNN, 0, 3), features_of(CNN, 0, (32, 64))
    assert torch.equal(head.coarse(features, (32, 64)), head(features, (32, 64)))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (partial(LinearDepth, layers=0), "layers must be at least 1, got 0"),
        (partial(LinearDepth, upsample=0), "upsample must be at least 1, got 0"),
        (partial(ConvHead, channels=0), "channels must be at least 1, got 0"),
        (partial(ConvHead, dropout=1.0), "dropout must be"),
    ],
)
def test_bad_options_are_refused_at_construction(build, words):
    with pytest.raises(ConfigError, match=words):
        build(VIT, 1, 3)
