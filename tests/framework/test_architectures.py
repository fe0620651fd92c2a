"""Every architecture by name: what is counted is what was published, and what is kept is what is counted."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch

from framework.architectures import named, read_architectures, read_sources
from framework.compare import count, reach
from framework.errors import ConfigError
from framework.registry import advertised

ROWS = read_architectures()
# The larger ones of families whose smaller ones are counted in a plain run.
HEAVY = {
    *("resnet101", "resnet152", "densenet161", "densenet169", "densenet201", "inception_v3", "vit_base", "vit_large"),
    *("efficientnet_b2", "efficientnet_b3", "efficientnet_b4", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7"),
    *("efficientnet_v2_m", "efficientnet_v2_l", "convnext_small", "convnext_base", "convnext_large", "swin_small"),
    *("convnextv2_nano", "convnextv2_base", "convnextv2_large", "swin_base", "dinov2_base", "dinov2_large"),
    *("dinov2_giant", "shiftvit_small", "shiftvit_base", "vgg13", "vgg13_bn", "vgg19_bn", "convnextv2_tiny"),
    *(f"ladder_{step}" for step in ("stage_ratio", "depthwise", "width", "inverted_bottleneck", "depthwise_up")),
    *(f"ladder_{step}" for step in ("kernel5", "kernel7", "kernel9", "kernel11", "gelu", "fewer_activations")),
}
SMALL = ("lenet5", "alexnet", "resnet18", "mobilenet_v1", "mobilenet_v3_small", "shiftvit_light_tiny")
PLAIN = [pytest.param(name, marks=pytest.mark.matrix if name in HEAVY else ()) for name in ROWS]
PAGE = Path(__file__).parents[2] / "docs/architectures.md"


@cache
def plugin(name):
    return advertised()[name].load()


def close(counted, published, added):
    """Return whether a count is within 1 % of a published figure, or within half a unit of its last digit."""
    digits = re.sub(r".*\.", "", str(published)) if "." in str(published) else ""
    return abs(counted - published - added) <= max(0.01 * (published + added), 0.5001 * 10.0 ** -len(digits))


@pytest.mark.parametrize("name", PLAIN)
def test_counted_is_published(name):
    row = ROWS[name]
    with torch.device("meta"):
        cost = count(plugin(row.backbone).published(**row.arguments), row.size)
    assert cost is not None
    if row.parameters is not None:
        assert close(cost.parameters / 1e6, row.parameters, row.added_parameters)
    if row.multiply_adds is not None:
        agrees = close(cost.multiply_adds / 1e9, row.multiply_adds, row.added_multiply_adds)
        assert agrees != bool(row.doubt), "a doubt is stated where there is one, and nowhere else"
    whole = PAGE.read_text().partition("<!-- table: begin -->")[2]
    cells = next(line for line in whole.splitlines() if line.startswith(f"| {name} |")).split(" | ")
    assert abs(float(cells[3].replace(",", "")) / (cost.parameters / 1e6) - 1) < 1e-3
    assert abs(float(cells[5].replace(",", "")) / (cost.multiply_adds / 1e9) - 1) < 1e-3
    assert abs(float(cells[7].replace(",", "")) - cost.activations / 2**20) < 0.51


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SMALL else pytest.mark.matrix) for name in ROWS]
)
def test_receptive_fields_that_are_kept(name):
    row = ROWS[name]
    assert reach(plugin(row.backbone)(**row.arguments)) == row.receptive_field


@pytest.mark.parametrize(("name", "published"), [("alexnet", 195), ("vgg16", 212), ("mobilenet_v1", 315)])
def test_published_receptive_fields(name, published):
    """Araujo, Norris and Sim, Distill 2019, table of modern networks: those of the same geometry."""
    assert ROWS[name].receptive_field == published


def test_every_architecture_of_the_plan_is_there():
    families = {}
    for row in ROWS.values():
        families.setdefault(row.family, []).append(row.name)
    counts = {family: len(names) for family, names in families.items()}
    assert counts == {
        **{"LeNet": 1, "AlexNet": 2, "VGG": 8, "Inception": 2, "ResNet": 5, "DenseNet": 4, "MobileNet": 4},
        **{"EfficientNet": 9, "EfficientNetV2": 3, "ConvNeXt": 4, "ConvNeXtV2": 7, "ViT": 3, "Swin": 3, "DINOv2": 4},
        **{"ShiftViT": 5, "ConvNeXt ladder": 16},
    }


def test_every_figure_has_a_source():
    for row in ROWS.values():
        assert {row.source, row.top1_source or row.source} <= set(read_sources()), row.name
        assert (row.top1 is None) == (row.trained_on is None), row.name
        assert not row.doubt or row.multiply_adds, row.name


def test_patterns():
    assert [row.name for row in named("resnet*")] == ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    assert named("resnet50d") == []
    with pytest.raises(ConfigError, match="no architecture is named rsnet5\\*; did you mean 'resnet50'"):
        named("rsnet5*")
