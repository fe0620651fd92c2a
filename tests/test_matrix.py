"""Every family of backbones under every head of every task: a training step and a prediction.

The whole matrix: `pytest -m matrix`; with `--write-matrix` it also writes docs/matrix.md. A plain run takes a sample,
and checks that the page has every family and head.
"""

import re
from functools import partial
from math import lcm
from pathlib import Path

import pytest

from framework.conformance.training import build_task, heads_by_task, predict_once, train_once
from framework.registry import advertised
from plugins.alexnet import AlexNet
from plugins.convnext_ladder import ConvNeXtLadder
from plugins.dinov2 import DINOv2
from plugins.huggingface import HuggingFace
from plugins.inception import InceptionV3
from plugins.lenet import LeNet
from plugins.shiftvit import ShiftViT
from plugins.timm import Timm
from plugins.torchvision import TorchVision

PAGE = Path(__file__).parents[1] / "docs/matrix.md"
TIMM = {
    "ResNet": "resnet18",
    "EfficientNet-Lite": "tf_efficientnet_lite0",
    "EfficientNetV2": "efficientnetv2_rw_t",
    "MobileNetV1": "mobilenetv1_100",
    "MobileNetV2": "mobilenetv2_050",
    "MobileNetV3": "mobilenetv3_small_100",
    "ConvNeXt": "convnext_atto",
    "ConvNeXt V2": "convnextv2_atto",
    "Swin": "swin_tiny_patch4_window7_224",
    "ViT, patch 16": "vit_tiny_patch16_224",
    "DINOv2 with registers, patch 14": "vit_small_patch14_reg4_dinov2",
}
TORCHVISION = {
    "ResNet": "resnet18",
    "VGG": "vgg11_bn",
    "GoogLeNet": "googlenet",
    "DenseNet": "densenet121",
    "MobileNetV3": "mobilenet_v3_small",
    "RegNet": "regnet_y_400mf",
    "ConvNeXt": "convnext_tiny",
    "Swin": "swin_t",
}
HUGGINGFACE = {
    "ResNet": ("resnet", {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 128], "embedding_size": 16}),
    "ViT": ("vit", {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}),
    "DINOv2": ("dinov2", {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4}),
}
FAMILIES = {
    **{f"Timm: {family}": partial(Timm, name) for family, name in TIMM.items()},
    **{f"TorchVision: {family}": partial(TorchVision, name) for family, name in TORCHVISION.items()},
    "DINOv2: ViT-S/14": partial(DINOv2, "vits14"),
    "DINOv2: ViT-S/14 with registers": partial(DINOv2, "vits14_reg"),
    **{
        f"HuggingFace: {family}": partial(HuggingFace, name, pretrained=False, config=config)
        for family, (name, config) in HUGGINGFACE.items()
    },
    "LeNet: LeNet-5": LeNet,
    "AlexNet: with response normalisation": partial(AlexNet, lrn=True),
    "InceptionV3: Inception v3": InceptionV3,
    "ShiftViT: a small one": partial(ShiftViT, embed_dim=24, depths=[1, 1, 2, 1]),
    "ConvNeXtLadder: the ResNet it begins with": partial(ConvNeXtLadder, "resnet"),
    "ConvNeXtLadder: the ConvNeXt it ends with": ConvNeXtLadder,
}
HEADS = [(task.name, head.name) for task, head in heads_by_task()]
SAMPLE = [  # every head once, each under another family
    (list(FAMILIES)[5 * index % len(FAMILIES)], *head) for index, head in enumerate(HEADS)
]


def attempt(family, task, head):
    """Train a step and predict; return what happened at each."""
    adverts = advertised()
    built = build_task(adverts[task], adverts[head], FAMILIES[family]())
    unit = lcm(built.backbone.multiple, *(level.stride for level in built.backbone.levels))
    side = unit * -(-64 // unit)
    train_once(built, side, side + unit)
    predict_once(built, side + 1, side + unit - 3)  # a size that nothing divides: tasks pad


@pytest.mark.parametrize(("family", "task", "head"), SAMPLE, ids=lambda value: str(value).replace(" ", "_"))
def test_a_sample_of_the_matrix(family, task, head):
    attempt(family, task, head)


def heads_of(task):
    return [head for name, head in HEADS if name == task]


TASKS = list(dict.fromkeys(task for task, _ in HEADS))


def test_the_page_has_every_family_under_every_head_of_every_task():
    parts = re.split(r"^## (\w+)$", PAGE.read_text(), flags=re.MULTILINE)
    assert parts[1::2] == TASKS
    for task, text in zip(parts[1::2], parts[2::2], strict=True):
        assert re.findall(r"^\| family \| (.*) \|$", text, re.MULTILINE) == [" | ".join(heads_of(task))]
        assert re.findall(r"^\| (\w+: [^|]+?) \|", text, re.MULTILINE) == list(FAMILIES)
        cells = len(FAMILIES) * len(heads_of(task))
        assert text.count("| ok ") == cells - len(re.findall(r"\| no:", text))


@pytest.mark.matrix
@pytest.mark.timeout(7200)
def test_the_whole_matrix(request):
    found, failures = {}, []
    for family in FAMILIES:
        for task, head in HEADS:
            try:
                attempt(family, task, head)
                found[family, task, head] = "ok"
            except Exception as error:
                found[family, task, head] = f"no: {str(error).splitlines()[0][:60]}"
                failures.append(f"{family} under {head} ({task}): {error}")
    if request.config.getoption("--write-matrix"):
        PAGE.write_text(page(found))
    assert not failures, "\n".join(failures)


def page(found):
    """Write the page that docs/ shows."""
    lines = [
        "# Backbones under heads",
        "",
        "Made by `pytest -m matrix --write-matrix`: every family under every head of every task, a training step whose",
        "loss and gradients are finite and reach head and backbone, then predictions at a size that nothing divides.",
        "`ok`: both worked. `framework plugins check NAME` tries any other backbone under every head.",
        "",
    ]
    for task in TASKS:
        heads = heads_of(task)
        lines += [f"## {task}", "", f"| family | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
        lines += [f"| {family} | {' | '.join(found[family, task, head] for head in heads)} |" for family in FAMILIES]
        lines.append("")
    return "\n".join(lines)
