from functools import partial
from math import lcm

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from segmentation_models_pytorch.decoders.dpt.decoder import ReadoutConcatBlock
from torch import nn

from framework.backbone import Features, Level
from framework.errors import ConfigError
from framework.heads.decoders import FPN, DeepLabV3Plus, PSPNet, SegFormer, UNet, UNetPlusPlus, UPerNet
from framework.heads.dense import DenseHead, DenseHeadFactory, LinearHead
from framework.heads.dpt import DPT, Readout
from plugins.timm import Timm
from tests.reference import dpt as reference

HEADS = {
    "UNet": partial(UNet, channels=(32, 16, 16, 8, 8)),
    "UNetPlusPlus": partial(UNetPlusPlus, channels=(32, 16, 16, 8, 8)),
    "FPN": partial(FPN, pyramid_channels=32, segmentation_channels=32),
    "DeepLabV3Plus": partial(DeepLabV3Plus, channels=16),
    "PSPNet": partial(PSPNet, channels=16),
    "UPerNet": partial(UPerNet, channels=16),
    "SegFormer": partial(SegFormer, channels=16),
    "DPT": partial(DPT, channels=16),
    "LinearHead": LinearHead,
}
OPTIONS = {
    "UNet": partial(HEADS["UNet"], norm="instance", interpolation="bilinear", dropout=0.1),
    "UNetPlusPlus": partial(HEADS["UNetPlusPlus"], norm="none", dropout=0.1),
    "FPN": partial(HEADS["FPN"], merge="cat", dropout=0.0),
    "DeepLabV3Plus": partial(HEADS["DeepLabV3Plus"], output_stride=8, separable=False, atrous_rates=(2, 3, 4)),
    "PSPNet": partial(HEADS["PSPNet"], output_stride=32, norm="none"),
    "UPerNet": partial(HEADS["UPerNet"], dropout=0.1),
    "SegFormer": partial(HEADS["SegFormer"], dropout=0.1),
    "DPT": partial(HEADS["DPT"], batch_norm=True, dropout=0.0),
    "LinearHead": partial(LinearHead, layers=1, dropout=0.1),
}
every_head = pytest.mark.parametrize("name", HEADS)


BACKBONES = {
    "vit16": "test_vit",
    "vit14 with registers": "vit_small_patch14_reg4_dinov2",
    "swin": "swin_tiny_patch4_window7_224",
    "convnext": "test_convnext",
    "resnet": "test_resnet",
}


@pytest.fixture(scope="module", params=BACKBONES)
def backbone(request):
    torch.manual_seed(0)
    built = Timm(BACKBONES[request.param])
    built.probe()
    return built


def padded(size, multiple):
    return tuple(-(-side // multiple) * multiple for side in size)


def features_of(levels, prefix_tokens, size, batch=2):
    g = torch.Generator().manual_seed(1)
    maps = [torch.randn(batch, x.channels, size[0] // x.stride, size[1] // x.stride, generator=g) for x in levels]
    prefix = [torch.randn(batch, prefix_tokens, x.channels, generator=g) for x in levels if prefix_tokens]
    return Features(maps, prefix)


def assert_trains(head, features, size):
    """One backward pass, also with a single image, reaches every parameter and every level in use, and only those."""
    leaves = Features(*([x.detach().requires_grad_() for x in part] for part in features))
    before = [x.detach().clone() for x in (*leaves.maps, *leaves.prefix)]
    out = head.train()(leaves, size)
    assert out.shape == (len(features.maps[0]), 3, *size)
    assert out.dtype == torch.float32
    (out * torch.randn_like(out)).sum().backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []
    assert [name for name, p in head.named_parameters() if p.dim() > 1 and not p.grad.any()] == []
    assert [i for i, x in enumerate(leaves.maps) if x.grad is not None and x.grad.any()] == list(head.used)
    assert all(torch.equal(x, y) for x, y in zip((*leaves.maps, *leaves.prefix), before, strict=True))


@every_head
def test_every_head_runs_under_every_backbone(backbone, name):
    torch.manual_seed(0)
    head = HEADS[name](backbone.levels, backbone.prefix_tokens, 3)
    multiple = lcm(backbone.multiple, head.multiple)
    size = padded((75, 101), multiple)
    with torch.no_grad():
        features = backbone.eval()(torch.rand(1, 3, *size))
    assert_trains(head, features, size)
    head.eval()
    with torch.no_grad():
        assert torch.equal(head(features, size), head(features, size))
        smallest = (multiple, 2 * multiple)
        assert head(backbone(torch.rand(2, 3, *smallest)), smallest).shape == (2, 3, *smallest)


def test_gradients_reach_the_backbone(backbone):
    head = HEADS["SegFormer"](backbone.levels, backbone.prefix_tokens, 3)
    size = padded((60, 90), lcm(backbone.multiple, head.multiple))
    backbone.train()
    head(backbone(torch.rand(2, 3, *size)), size).square().mean().backward()
    dead = [name for name, p in backbone.named_parameters() if p.grad is None]
    backbone.zero_grad(set_to_none=True)
    assert dead == []


@every_head
@pytest.mark.parametrize(
    "strides",
    [[14], [16] * 12, [2, 4], [4, 8, 16], [8, 16, 32], [4, 8, 8, 8], [4, 8, 16, 16], [2, 4, 8, 16, 32, 64]],
    ids=str,
)
@pytest.mark.parametrize("table", [HEADS, OPTIONS], ids=["defaults", "options"])
def test_every_head_takes_levels_of_any_strides(name, strides, table):
    torch.manual_seed(0)
    levels = tuple(Level(16 + 4 * i, stride) for i, stride in enumerate(strides))
    prefix_tokens = 2 if len(set(strides)) == 1 else 0
    head = table[name](levels, prefix_tokens, 3)
    size = padded((65, 100), lcm(head.multiple, *strides))
    assert_trains(head, features_of(levels, prefix_tokens, size), size)


@every_head
def test_every_head_runs_in_16_bits(name):
    levels = tuple(Level(8, stride) for stride in (4, 8, 16))
    head = HEADS[name](levels, 0, 3)
    with torch.autocast("cpu", torch.bfloat16):
        out = head(features_of(levels, 0, (64, 96)), (64, 96))
    out.float().sum().backward()
    assert out.isfinite().all()


@pytest.mark.parametrize(("backbone_name", "name"), [("vit16", "DPT"), ("convnext", "LinearHead"), ("resnet", "UNet")])
def test_a_head_learns_where_a_square_is(backbone_name, name):
    torch.manual_seed(0)
    backbone = Timm(BACKBONES[backbone_name])
    head = HEADS[name](backbone.levels, backbone.prefix_tokens, 2)
    size = padded((56, 84), lcm(backbone.multiple, head.multiple))
    images, masks = 0.2 * torch.rand(8, 3, *size), torch.zeros(8, *size, dtype=torch.long)
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        box = (slice(4 * i, 4 * i + 32), slice(60 - 8 * i, 60 - 8 * i + 32))
        image[:, *box] += 0.6
        mask[box] = 1
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], 2e-3)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(head(backbone(images[:6]), size), masks[:6]).backward()
        optimizer.step()
    backbone.eval(), head.eval()
    with torch.no_grad():
        predicted = head(backbone(images[6:]), size).argmax(1)
    overlap, union = (predicted & masks[6:]).sum(), (predicted | masks[6:]).sum()
    assert overlap / union > 0.6, f"IoU {overlap / union:.2f} on two images that were not trained on"


def test_unet_reads_stride_2_where_the_backbone_has_it():
    fine, coarse = ([Level(8, stride) for stride in strides] for strides in ((2, 4, 8, 16, 32), (4, 8, 16, 32)))
    assert UNet(tuple(fine), 0, 3).used == (0, 1, 2, 3, 4)
    assert [level.stride for level in UNet(tuple(coarse), 0, 3).neck.levels] == [4, 8, 16, 32]


@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (2, 4, 8, 16, 32)])
@pytest.mark.parametrize("build", [UNet, UNetPlusPlus])
def test_attention_has_no_dead_parameters(build, strides):
    levels = tuple(Level(16, stride) for stride in strides)
    head = build(levels, 0, 3, channels=(16, 16, 16, 16, 16), attention="scse")
    head(features_of(levels, 0, (64, 96)), (64, 96)).square().mean().backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []
    assert any("attention" in name for name, p in head.named_parameters() if p.grad.any())


def test_readout_is_the_papers_and_smps():
    torch.manual_seed(0)
    ours, theirs = Readout(6), ReadoutConcatBlock(6, has_prefix_tokens=True)
    theirs.project[0].load_state_dict(ours.project.state_dict())
    x, tokens = torch.randn(2, 6, 3, 5), torch.randn(2, 4, 6)
    out = ours(x, tokens[:, 0])
    torch.testing.assert_close(out, theirs(x, tokens))
    weight, bias = (p.detach().numpy() for p in ours.project.parameters())
    for image, token, got in zip(x.numpy(), tokens[:, 0].numpy(), out.detach().numpy(), strict=True):
        wanted = reference.readout(image.reshape(6, -1).T, token, weight, bias)
        np.testing.assert_allclose(got.reshape(6, -1).T, wanted, atol=1e-6)


@pytest.mark.parametrize("size", [(70, 98), (42, 28)])
def test_dpt_is_the_reference(size):
    torch.manual_seed(0)
    levels = tuple(Level(6, 14) for _ in range(4))
    head = DPT(levels, 5, 2, channels=4).eval()
    for p in head.parameters():
        nn.init.normal_(p, std=0.2)
    features = features_of(levels, 5, size, batch=1)
    wanted = reference.dpt(
        [x[0].numpy() for x in features.maps],
        [x[0, 0].numpy() for x in features.prefix],
        {name: p.detach().numpy() for name, p in head.named_parameters()},
        size,
    )
    np.testing.assert_allclose(head(features, size)[0].detach().numpy(), wanted, atol=1e-4)


@pytest.mark.parametrize("layers", [1, 2, 4, 9])
def test_linear_head_is_a_linear_map_of_the_last_layers(layers):
    torch.manual_seed(0)
    levels = tuple(Level(5 + i, 14) for i in range(4))
    head = LinearHead(levels, 1, 3, layers=layers).eval()
    features = features_of(levels, 1, (56, 70))
    stacked = torch.cat(features.maps[-layers:], dim=1) / (1 + head.norm.eps) ** 0.5  # as new, it subtracts 0
    weight, bias = head.classify.weight[:, :, 0, 0], head.classify.bias
    wanted = torch.einsum("oc,bchw->bohw", weight, stacked) + bias[:, None, None]
    wanted = F.interpolate(wanted, (56, 70), mode="bilinear")
    torch.testing.assert_close(head(features, (56, 70)), wanted)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (partial(UNet, channels=(32, 16, 0, 8, 8)), "channels must be at least 1"),
        (partial(UNet, attention="scse"), "attention scse needs at least 16 channels everywhere, got 6"),
        (partial(UNetPlusPlus, dropout=1.0), "dropout must be"),
        (partial(FPN, segmentation_channels=48), "divisible by 32"),
        (partial(FPN, dropout=-0.1), "dropout must be"),
        (partial(DeepLabV3Plus, atrous_rates=(0, 1, 2)), "atrous_rates must be at least 1"),
        (partial(PSPNet, channels=0), "channels must be at least 1"),
        (PSPNet, "divisible by 4"),
        (partial(UPerNet, channels=-1), "channels must be at least 1"),
        (partial(SegFormer, dropout=2.0), "dropout must be"),
        (partial(DPT, channels=0), "channels must be at least 1"),
        (partial(LinearHead, layers=0), "layers must be at least 1"),
    ],
)
def test_bad_options_are_refused_at_construction(build, words):
    with pytest.raises(ConfigError, match=words):
        build((Level(6, 4), Level(6, 8)), 0, 3)


@every_head
def test_every_head_can_be_named_in_an_experiment(name):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--head", type=DenseHeadFactory)
    config = parser.parse_args([f"--head={name}", "--head.dropout=0.25"])
    head = parser.instantiate(config).head((Level(8, 4), Level(8, 8), Level(8, 16)), 0, 3)
    assert isinstance(head, DenseHead)
    assert type(head).__name__ == name
    assert 0.25 in [m.p for m in head.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)]
