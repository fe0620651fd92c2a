"""Backbones with one mistake each, by the check that is to catch it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.backbone import Backbone, Features, Level
from tests.tiny import Tiny

MISTAKES: list[tuple[str, type[Backbone]]] = []


def caught_by(check: str) -> Callable[[type[Backbone]], type[Backbone]]:
    """Note which check is to catch a class."""

    def note(kind: type[Backbone]) -> type[Backbone]:
        MISTAKES.append((check, kind))
        return kind

    return note


@caught_by("it_builds")
class NoSuper(Tiny):
    def __init__(self) -> None:
        self.levels = (Level(8, 4),)
        self.fine = nn.Conv2d(3, 8, 4, 4)


@caught_by("it_builds")
class NotABackbone(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(3, 8, 4, 4)


@caught_by("it_returns_features")
class ListOfMaps(Tiny):
    def extract(self, images: Tensor) -> Any:
        return list(super().extract(images).maps)


@caught_by("levels_run_fine_to_coarse")
class CoarseFirst(Tiny):
    def __init__(self, in_channels: int = 3) -> None:
        super().__init__(in_channels=in_channels)
        self.levels = self.levels[::-1]

    def extract(self, images: Tensor) -> Features:
        return Features(super().extract(images).maps[::-1], [])


@caught_by("shapes_are_as_declared")
class WrongStride(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.levels = (Level(8, 4), Level(16, 16))


@caught_by("shapes_are_as_declared")
class ChannelsAtTheEnd(Tiny):
    def extract(self, images: Tensor) -> Features:
        return Features([x.permute(0, 2, 3, 1) for x in super().extract(images).maps], [])


@caught_by("shapes_are_as_declared")
class WidthBeforeHeight(Tiny):
    def extract(self, images: Tensor) -> Features:
        return Features([x.transpose(2, 3) for x in super().extract(images).maps], [])


@caught_by("prefix_is_as_declared")
class PromisesAToken(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.prefix_tokens = 1


@caught_by("any_multiple_is_accepted")
class OneSize(Tiny):
    def extract(self, images: Tensor) -> Features:
        assert images.shape[-2:] == (64, 72), "input size does not match the model"
        return super().extract(images)


@caught_by("other_sizes_are_refused")
class PadsInSilence(Tiny):
    def forward(self, images: Tensor) -> Features:
        height, width = images.shape[-2:]
        return super().forward(F.pad(images, (0, -width % 8, 0, -height % 8)))


@caught_by("other_channels_are_refused")
class TakesTheFirstChannels(Tiny):
    def forward(self, images: Tensor) -> Features:
        return super().forward(images[:, : self.in_channels])


@caught_by("other_channel_counts_can_be_built")
class ThreeChannels(Tiny):
    def __init__(self, in_channels: int = 3) -> None:
        super().__init__(in_channels=in_channels)
        self.fine[0] = nn.Conv2d(3, 8, 4, 4)


@caught_by("other_channel_counts_can_be_built")
class NoArgumentForChannels(Tiny):
    def __init__(self) -> None:
        super().__init__()


@caught_by("eval_is_deterministic")
class Counts(Tiny):
    calls = 0

    def extract(self, images: Tensor) -> Features:
        self.calls += 1
        return super().extract(images / self.calls)


@caught_by("eval_is_deterministic")
class AlwaysDropsOut(Tiny):
    def extract(self, images: Tensor) -> Features:
        return super().extract(F.dropout(images, 0.1))


@caught_by("images_do_not_mix")
class CentresTheBatch(Tiny):
    def extract(self, images: Tensor) -> Features:
        return super().extract(images - images.mean((0, 2, 3), keepdim=True))


@caught_by("the_input_is_not_written_to")
class CentresInPlace(Tiny):
    def forward(self, images: Tensor) -> Features:
        return super().forward(images.sub_(0.5))


@caught_by("the_whole_image_counts")
class LosesTheLastRows(Tiny):
    def extract(self, images: Tensor) -> Features:
        return super().extract(F.pad(images[..., :-8, :], (0, 0, 0, 8)))


@caught_by("stages_are_a_partition")
class ForgetsAStage(Tiny):
    def stages(self) -> list[list[nn.Parameter]]:
        return super().stages()[:1]


@caught_by("stages_are_a_partition")
class NamesAStageTwice(Tiny):
    def stages(self) -> list[list[nn.Parameter]]:
        return [list(self.fine.parameters()), list(self.parameters())]


@caught_by("stages_run_from_input_to_output")
class StagesReversed(Tiny):
    def stages(self) -> list[list[nn.Parameter]]:
        return super().stages()[::-1]


@caught_by("every_parameter_gets_a_gradient")
class KeepsItsClassifier(Tiny):
    def __init__(self, in_channels: int = 3) -> None:
        super().__init__(in_channels=in_channels)
        self.classifier = nn.Linear(16, 10)

    def stages(self) -> list[list[nn.Parameter]]:
        return [*super().stages(), list(self.classifier.parameters())]


@caught_by("freezing_is_exact")
class OnlyEverFreezes(Tiny):
    def freeze(self, stages: Any = "all") -> None:
        before = [parameter.requires_grad for parameter in self.parameters()]
        super().freeze(stages)
        for parameter, trained in zip(self.parameters(), before, strict=True):
            parameter.requires_grad_(trained and parameter.requires_grad)


@caught_by("frozen_layers_rest")
class WakesFrozenLayers(Tiny):
    def train(self, mode: bool = True) -> Any:
        return nn.Module.train(self, mode)


@caught_by("thawing_is_complete")
class NeverWakes(Tiny):
    rested = False

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.rested = self.rested or self.frozen > 0
        if self.rested:
            self.fine.eval()
        return self


@caught_by("frozen_means_constant")
class NormOfItsOwn(Tiny):
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__(in_channels=in_channels)
        self.register_buffer("running_mean", torch.zeros(in_channels))
        self.register_buffer("running_var", torch.ones(in_channels))

    def extract(self, images: Tensor) -> Features:
        return super().extract(F.batch_norm(images, self.running_mean, self.running_var, training=self.training))


@caught_by("frozen_means_constant")
class DropoutOfItsOwn(Tiny):
    def extract(self, images: Tensor) -> Features:
        return super().extract(F.dropout(images, 0.5, self.training))


@caught_by("a_frozen_backbone_builds_no_graph")
class KeepsTheGraph(Tiny):
    def forward(self, images: Tensor) -> Features:
        frozen, self.is_frozen = self.is_frozen, False
        features = super().forward(images)
        self.is_frozen = frozen
        return features


@caught_by("the_state_dict_holds_everything")
class RandomProjection(Tiny):
    def __init__(self, in_channels: int = 3) -> None:
        super().__init__(in_channels=in_channels)
        self.projection = torch.randn(8, 8)

    def extract(self, images: Tensor) -> Features:
        fine = torch.einsum("bchw,cd->bdhw", self.fine(images), self.projection)
        return Features([fine, self.coarse(fine)], [])


@caught_by("copies_are_independent")
class HoldsALambda(Tiny):
    def __init__(self, in_channels: int = 3) -> None:
        super().__init__(in_channels=in_channels)
        self.before = lambda images: 2 * images

    def extract(self, images: Tensor) -> Features:
        return super().extract(self.before(images))


@caught_by("autocast_works")
class FixesTheType(Tiny):
    def extract(self, images: Tensor) -> Features:
        fine = self.fine(images)
        padded = torch.zeros(fine.shape)
        padded[:, torch.arange(8)] = fine
        return Features([padded, self.coarse(padded)], [])


@caught_by("channels_last_gives_the_same")
class ReadsMemoryAsItLies(Tiny):
    def extract(self, images: Tensor) -> Features:
        fine = self.fine(images)
        fine = fine.view(len(fine), -1).view(fine.shape)
        return Features([fine, self.coarse(fine)], [])


@caught_by("it_exports")
class LooksAtValues(Tiny):
    def extract(self, images: Tensor) -> Features:
        if images.abs().max() > 100:
            images = images / 255
        return super().extract(images)


@caught_by("it_trains_under_every_head")
class DoublePrecision(Tiny):
    def extract(self, images: Tensor) -> Features:
        maps = super().extract(images).maps
        return Features([x.double() for x in maps], [])
