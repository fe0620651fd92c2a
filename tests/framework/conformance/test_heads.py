from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.backbone import Features, Level
from framework.conformance import check_plugin
from framework.errors import ConfigError
from framework.heads.classification import AttentiveClassifier, LinearClassifier, MLPClassifier
from framework.heads.decoders import FPN, DeepLabV3Plus, PSPNet, SegFormer, UNet, UNetPlusPlus, UPerNet
from framework.heads.dense import ConvHead, DenseHead, LinearHead
from framework.heads.depth import LinearDepth
from framework.heads.dinov2_dpt import DINOv2DPT
from framework.heads.dpt import DPT

OURS = {
    "UNet": partial(UNet, channels=(32, 16, 16, 8, 8)),
    "UNetPlusPlus": partial(UNetPlusPlus, channels=(32, 16, 16, 8, 8)),
    "FPN": partial(FPN, pyramid_channels=32, segmentation_channels=32),
    "DeepLabV3Plus": partial(DeepLabV3Plus, channels=16),
    "PSPNet": partial(PSPNet, channels=16),
    "UPerNet": partial(UPerNet, channels=16),
    "SegFormer": partial(SegFormer, channels=16),
    "DPT": partial(DPT, channels=16),
    "LinearHead": LinearHead,
    "ConvHead": partial(ConvHead, channels=16, layers=2),
    "LinearDepth": partial(LinearDepth, layers=4),
    "DINOv2DPT": partial(DINOv2DPT, channels=16),
    "LinearClassifier": LinearClassifier,
    "LinearClassifier of four layers": partial(LinearClassifier, layers=4, pool="mean"),
    "MLPClassifier": partial(MLPClassifier, hidden=16, depth=2),
    "AttentiveClassifier": AttentiveClassifier,
}


class Last(DenseHead):
    """A right head: a 1x1 convolution on the last level."""

    def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, outputs: int) -> None:
        super().__init__()
        self.used: tuple[int, ...] = (len(levels) - 1,)
        self.multiple = levels[-1].stride
        self.classify = nn.Conv2d(levels[-1].channels, outputs, 1)

    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        return F.interpolate(self.classify(features.maps[-1]), size)


class NeedsFourLevels(Last):
    def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, outputs: int) -> None:
        super().__init__(levels, prefix_tokens, outputs)
        if len(levels) != 4:
            raise ConfigError("four levels only")


class WidthFirst(Last):
    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        return super().forward(features, size[::-1])


class ScalesOneOfTheTwo(Last):
    def coarse(self, features: Features, size: tuple[int, int]) -> Tensor:
        return 1.01 * super().coarse(features, size)


class SaysItReadsAll(Last):
    def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, outputs: int) -> None:
        super().__init__(levels, prefix_tokens, outputs)
        self.used = tuple(range(len(levels)))


class KeepsALayer(Last):
    def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, outputs: int) -> None:
        super().__init__(levels, prefix_tokens, outputs)
        self.auxiliary = nn.Conv2d(levels[0].channels, outputs, 1)


class DropsOut(Last):
    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        return F.dropout(super().forward(features, size))


class NormsTheBatch(Last):
    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        return F.batch_norm(super().forward(features, size), None, None, training=True)


class ActivatesInPlace(Last):
    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        with torch.no_grad():
            features.maps[-1].relu_()
        return super().forward(features, size)


class ReplacesMaps(Last):
    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        features.maps[-1] = features.maps[-1] * 1.0
        return super().forward(features, size)


class RandomProjection(Last):
    def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, outputs: int) -> None:
        super().__init__(levels, prefix_tokens, outputs)
        self.scale = torch.rand(outputs, 1, 1)

    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        return self.scale * super().forward(features, size)


class HoldsALambda(Last):
    def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, outputs: int) -> None:
        super().__init__(levels, prefix_tokens, outputs)
        self.after = lambda x: 2 * x

    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        out: Tensor = self.after(super().forward(features, size))
        return out


class FixesTheType(Last):
    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        low = self.classify(features.maps[-1])
        padded = torch.zeros(low.shape)
        padded[:, torch.arange(low.shape[1])] = low
        return F.interpolate(padded, size)


MISTAKES: dict[type[DenseHead], str] = {
    NeedsFourLevels: "it_builds_on_any_levels",
    WidthFirst: "the_output_has_the_right_shape",
    ScalesOneOfTheTwo: "coarse_resized_is_forward",
    SaysItReadsAll: "it_reads_what_it_says",
    KeepsALayer: "every_parameter_gets_a_gradient",
    DropsOut: "eval_is_deterministic",
    NormsTheBatch: "images_do_not_mix",
    ActivatesInPlace: "the_input_is_not_written_to",
    ReplacesMaps: "the_input_is_not_written_to",
    RandomProjection: "the_state_dict_holds_everything",
    HoldsALambda: "copies_are_independent",
    FixesTheType: "autocast_works",
}


def failed(make: Callable[..., Any]) -> dict[str, str | None]:
    return {v.name: v.found for v in check_plugin(make, "heads") if v.outcome == "failed"}


@pytest.mark.parametrize("kind", MISTAKES, ids=lambda kind: kind.__name__)
def test_each_mistake_is_caught_by_the_check_that_names_it_and_no_other(kind: type[DenseHead]):
    assert failed(kind).keys() == {MISTAKES[kind]}


def test_there_is_a_mistake_for_every_check():
    assert set(MISTAKES.values()) == {verdict.name for verdict in check_plugin(Last, "heads")}


@pytest.mark.parametrize("name", OURS)
def test_our_own_pass_every_check(name: str):
    assert {v.name: v.found for v in check_plugin(OURS[name], "heads") if v.outcome != "passed"} == {}


def test_a_head_for_some_backbones_says_so_and_takes_one_at_least():
    class ForFourLevels(NeedsFourLevels):
        any_levels = False

    class ForNone(ForFourLevels):
        def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, outputs: int) -> None:
            raise ConfigError("not this one")

    for make in (ForFourLevels, lambda *given: ForFourLevels(*given)):
        assert failed(make).keys() == {"copies_are_independent"}  # a local class has no pickle
    assert failed(ForNone) == {"it_builds_on_any_levels": "ConfigError: not this one"}


def test_a_head_whose_last_layer_starts_at_zero_passes():
    class Zero(Last):
        def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, outputs: int) -> None:
            super().__init__(levels, prefix_tokens, outputs)
            nn.init.zeros_(self.classify.weight)

    assert failed(Zero).keys() == {"copies_are_independent"}  # a local class has no pickle


def test_a_classification_head_of_the_wrong_shape_is_caught():
    class PerPixel(LinearClassifier):
        def forward(self, features: Features) -> Tensor:
            return super().forward(features)[..., None, None]

    found = failed(PerPixel)
    assert found == {"the_output_has_the_right_shape": "(2, 1, 1, 1)"}
