import numpy as np
import pytest
import torch
from torch.testing import assert_close

from framework.backbone import Features, Level
from framework.errors import ConfigError
from framework.heads.classification import LinearClassifier
from plugins.timm import Timm

VIT = (Level(6, 14),) * 4
CNN = (Level(4, 4), Level(6, 8), Level(8, 16))


def features_of(levels, prefix_tokens):
    maps = [torch.randn(2, level.channels, 64 // level.stride, 96 // level.stride) for level in levels]
    prefix = [torch.randn(2, prefix_tokens, level.channels) for level in levels if prefix_tokens]
    return Features(maps, prefix)


def pooled(features, tokens, means):
    """What stands for each image, in NumPy: the first token of some levels, the mean over the cells of others."""
    parts = [features.prefix[i].numpy()[:, 0] for i in tokens]
    parts += [features.maps[i].numpy().reshape(2, features.maps[i].shape[1], -1).mean(2) for i in means]
    return np.concatenate(parts, axis=1)


CASES = [
    (VIT, 5, {}, [3], []),
    (VIT, 5, {"layers": 4}, [0, 1, 2, 3], []),
    (VIT, 5, {"pool": "mean", "layers": 2}, [], [2, 3]),
    (VIT, 1, {"pool": "cls+mean", "layers": 4}, [0, 1, 2, 3], [3]),
    (VIT, 1, {"pool": "cls", "layers": 9}, [0, 1, 2, 3], []),
    (CNN, 0, {}, [], [2]),
    (CNN, 0, {"layers": 3}, [], [0, 1, 2]),
]


@pytest.mark.parametrize(("levels", "prefix_tokens", "options", "tokens", "means"), CASES, ids=str)
def test_what_is_pooled_and_classified(levels, prefix_tokens, options, tokens, means):
    head = LinearClassifier(levels, prefix_tokens, 3, **options).eval()
    features = features_of(levels, prefix_tokens)
    weight, bias = head.classify.weight.detach().numpy(), head.classify.bias.detach().numpy()
    expected = pooled(features, tokens, means) @ weight.T + bias
    assert_close(head(features).detach().numpy(), expected.astype(np.float32), rtol=1e-5, atol=1e-6)
    assert head.used == tuple(sorted({*tokens, *means}))


@pytest.mark.parametrize("pool", ["cls", "cls+mean"])
def test_a_class_token_that_the_backbone_lacks_is_refused(pool):
    with pytest.raises(ConfigError, match=r"the backbone has none: set pool: mean"):
        LinearClassifier(CNN, 0, 3, pool=pool)


def test_options_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="layers must be at least 1, got 0"):
        LinearClassifier(CNN, 0, 3, layers=0)
    with pytest.raises(ConfigError, match="dropout must be at least 0 and less than 1"):
        LinearClassifier(CNN, 0, 3, dropout=1.0)


def test_dropout_drops_in_training_alone():
    head = LinearClassifier(CNN, 0, 3, dropout=0.5)
    features = features_of(CNN, 0)
    assert not torch.equal(head.train()(features), head(features))
    assert torch.equal(head.eval()(features), head(features))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "vit_small_patch14_reg4_dinov2"])
@pytest.mark.parametrize("layers", [1, 2])
def test_one_backward_pass_reaches_the_levels_in_use_and_the_whole_backbone(name, layers):
    backbone = Timm(name).train()
    head = LinearClassifier(backbone.levels, backbone.prefix_tokens, 3, layers=layers)
    logits = head(backbone(torch.rand(2, 3, 4 * backbone.multiple, 8 * backbone.multiple)))
    assert logits.shape == (2, 3)
    (logits * torch.randn(2, 3)).sum().backward()
    assert [n for n, p in [*head.named_parameters(), *backbone.named_parameters()] if p.grad is None] == []
