"""The words for parts of a network, on a real one and on one with norms, biases and tokens."""

import pytest
from torch import nn

from framework.errors import ConfigError
from framework.heads.dense import LinearHead
from framework.tasks.segmentation import Segmentation
from framework.transfer.selection import parts_of, select
from plugins.timm import Timm
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def parts():
    task = Segmentation(Tiny(), num_classes=3, head=LinearHead)
    return parts_of(task, task.backbone)


FINE = {f"backbone.fine.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")}
COARSE = {name.replace("fine", "coarse") for name in FINE}


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (0, set()),
        (1, FINE),
        (2, FINE | COARSE),
        ("backbone", FINE | COARSE),
        ("stage1", COARSE),
        ("norms", {f"backbone.{part}.1.{kind}" for part in ("fine", "coarse") for kind in ("weight", "bias")}),
        ("biases", {name for name in FINE | COARSE if name.endswith("bias")}),
        (["stage0", "!norms"], {"backbone.fine.0.weight", "backbone.fine.0.bias"}),
        (["stage0", "!backbone.*.1.*", "stage1"], {"backbone.fine.0.weight", "backbone.fine.0.bias"} | COARSE),
        ("backbone.coarse.?.weight", {"backbone.coarse.0.weight", "backbone.coarse.1.weight"}),
    ],
)
def test_words_mean_what_they_say(parts, selection, expected):
    assert select(parts, selection, "input", "here") == expected


def test_a_number_counts_from_either_end(parts):
    assert select(parts, 1, "output", "here") == COARSE | parts.head
    assert select(parts, 0, "output", "here") == parts.head
    assert parts.head
    assert select(parts, "all", "output", "here") == FINE | COARSE | parts.head


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("stage2", "here: the network has no part stage2; did you mean 'stage"),
        ("heads", "did you mean 'head'"),
        ("backbone.fime.*", "no parameter of the network is meant by backbone.fime.*; did you mean 'backbone.fine"),
        (3, "the backbone has 2 stages, so a number is 0 to 2, not 3"),
        (-1, "0 to 2, not -1"),
        ("1", "a number of stages is written without quotes"),
        ("lora", "no parameter of the network is meant by lora"),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest(parts, selection, message):
    with pytest.raises(ConfigError) as error:
        select(parts, selection, "input", "here")
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet"])
def test_every_parameter_is_in_one_part_and_norms_are_those_of_norm_layers(name):
    backbone = Timm(name, pretrained=False)
    network = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(2, 2)})
    parts = parts_of(network, backbone)
    names = [name for stage in parts.stages for name in stage] + sorted(parts.head)
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())
    by_module = {
        f"backbone.{prefix}.{own}"
        for prefix, module in backbone.named_modules()
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d | nn.GroupNorm)
        for own, _ in module.named_parameters(recurse=False)
    }
    assert by_module
    assert parts.norms == by_module
