import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from framework.backbone import Features, Level
from framework.errors import ConfigError
from framework.heads.classification import AttentiveClassifier, LinearClassifier, MLPClassifier
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


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def normalised(x, norm):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
    return scaled * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def randomised(head):
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head.eval()


def linear(x, layer):
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


@pytest.mark.parametrize(("levels", "prefix_tokens", "options", "tokens", "means"), CASES, ids=str)
def test_what_the_perceptron_computes(levels, prefix_tokens, options, tokens, means):
    head = randomised(MLPClassifier(levels, prefix_tokens, 3, hidden=7, depth=2, dropout=0.5, **options))
    features = features_of(levels, prefix_tokens)
    norm, *layers = [layer for layer in head.classify if list(layer.parameters())]
    x = normalised(pooled(features, tokens, means), norm)
    for layer in layers[:-1]:
        x = gelu(linear(x, layer))
    assert [tuple(layer.weight.shape) for layer in layers[1:]] == [(7, 7), (3, 7)]
    assert_close(head(features).detach().numpy(), linear(x, layers[-1]).astype(np.float32), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("levels", "prefix_tokens", "heads", "width"), [(VIT, 5, 2, None), (CNN, 0, None, 12)])
def test_what_the_query_gathers(levels, prefix_tokens, heads, width):
    head = randomised(AttentiveClassifier(levels, prefix_tokens, 3, heads=heads, width=width))
    features = features_of(levels, prefix_tokens)
    tokens = features.maps[-1].numpy().reshape(2, levels[-1].channels, -1).transpose(0, 2, 1)
    if prefix_tokens:
        tokens = np.concatenate([features.prefix[-1].numpy(), tokens], 1)
    tokens = normalised(tokens, head.norm)
    attention, size = head.attention, width or levels[-1].channels
    state = {name: value.numpy() for name, value in attention.state_dict().items()}
    if "in_proj_weight" in state:
        parts = np.split(state["in_proj_weight"], 3)
    else:
        parts = [state[f"{letter}_proj_weight"] for letter in "qkv"]
    query, key, value = (
        x @ part.T + bias
        for x, part, bias in zip(
            (head.query.detach().numpy(), tokens, tokens), parts, np.split(state["in_proj_bias"], 3), strict=True
        )
    )
    count = attention.num_heads
    gathered = []
    for rows in np.split(np.arange(size), count):
        scores = key[..., rows] @ query[0, 0, rows] / math.sqrt(size // count)
        shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        gathered.append((shares[..., None] * value[..., rows]).sum(1))
    expected = linear(linear(np.concatenate(gathered, 1), attention.out_proj), head.classify)
    assert_close(head(features).detach().numpy(), expected.astype(np.float32), rtol=1e-4, atol=1e-5)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match="heads must divide the width of 8, got 3"):
        AttentiveClassifier(CNN, 0, 3, heads=3)
    with pytest.raises(ConfigError, match="hidden must be at least 1"):
        MLPClassifier(CNN, 0, 3, hidden=0)


@pytest.mark.parametrize("head", [MLPClassifier, AttentiveClassifier])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_other_heads_reach_the_whole_backbone_too(name, head):
    backbone = Timm(name).train()
    net = randomised(head(backbone.levels, backbone.prefix_tokens, 3)).train()
    logits = net(backbone(torch.rand(2, 3, 4 * backbone.multiple, 8 * backbone.multiple)))
    (logits * torch.randn(2, 3)).sum().backward()
    assert [n for n, p in [*net.named_parameters(), *backbone.named_parameters()] if p.grad is None] == []


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "vit_small_patch14_reg4_dinov2"])
@pytest.mark.parametrize("layers", [1, 2])
def test_one_backward_pass_reaches_the_levels_in_use_and_the_whole_backbone(name, layers):
    backbone = Timm(name).train()
    head = LinearClassifier(backbone.levels, backbone.prefix_tokens, 3, layers=layers)
    logits = head(backbone(torch.rand(2, 3, 4 * backbone.multiple, 8 * backbone.multiple)))
    assert logits.shape == (2, 3)
    (logits * torch.randn(2, 3)).sum().backward()
    assert [n for n, p in [*head.named_parameters(), *backbone.named_parameters()] if p.grad is None] == []
