from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.backbone import Features, Level
from framework.boxes import Detections, Frame, Objects
from framework.conformance import check_plugin, detection_heads
from framework.conformance.kits import kit
from framework.errors import ConfigError
from framework.heads.dense import LinearHead
from framework.heads.detection import DetectionHead
from framework.heads.faster_rcnn import FasterRCNN
from framework.heads.fcos import FCOS
from framework.heads.retinanet import RetinaNet
from framework.heads.yolo import YOLO
from framework.losses.detection import focal, generalized_iou_loss, one_hot
from framework.templates.detection_head import Cells, NewPlugin

FEW = {"train_proposals": (100, 100), "proposals": (100, 100)}
OURS = {
    "FCOS": partial(FCOS, channels=64, convolutions=1),
    "RetinaNet": partial(RetinaNet, channels=16, convolutions=1),
    "FasterRCNN": partial(FasterRCNN, channels=16, representation_size=32, box_batch_size=64, **FEW),
    "YOLO": partial(YOLO, channels=16, depth=1),
    "the template": NewPlugin,
}


class Plain(NewPlugin):
    """A right head: the template, narrow."""

    def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, num_classes: int) -> None:
        super().__init__(levels, prefix_tokens, num_classes, channels=32)


class NeedsFourLevels(Plain):
    def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, num_classes: int) -> None:
        super().__init__(levels, prefix_tokens, num_classes)
        if len(levels) != 4:
            raise ConfigError("four levels only")


class HasNoNames(Plain):
    loss_names = ()


class LosesInTrainingOnly(Plain):
    def losses(self, features: Features, frame: Frame, objects: Sequence[Objects]) -> dict[str, Tensor]:
        return super().losses(features, frame, objects) if self.training else {}


class SumsUpPerImage(Plain):
    def losses(self, features: Features, frame: Frame, objects: Sequence[Objects]) -> dict[str, Tensor]:
        return {name: x.expand(len(objects)) for name, x in super().losses(features, frame, objects).items()}


class JoinsTheBatch(Plain):
    def detect(self, features: Features, frame: Frame) -> list[Detections]:
        found = super().detect(features, frame)
        return [Detections(*(torch.cat(parts) for parts in zip(*found, strict=True)))]


class DetectsInEvalOnly(Plain):
    def detect(self, features: Features, frame: Frame) -> list[Detections]:
        return [] if self.training else super().detect(features, frame)


class ClipsToTheCanvas(Plain):
    def detect(self, features: Features, frame: Frame) -> list[Detections]:
        return super().detect(features, frame._replace(sizes=[frame.canvas] * len(frame.sizes)))


class KeepsEmptyBoxes(Plain):
    def detect(self, features: Features, frame: Frame) -> list[Detections]:
        found = super().detect(features, frame)
        flat = [torch.cat([one.boxes[:-1], one.boxes[-1:, :2].repeat(1, 2)]) for one in found]
        return [one._replace(boxes=boxes) for one, boxes in zip(found, flat, strict=True)]


class WorstFirst(Plain):
    def detect(self, features: Features, frame: Frame) -> list[Detections]:
        return [Detections(*(x.flip(0) for x in one)) for one in super().detect(features, frame)]


class ScoresAreLogits(Plain):
    def detect(self, features: Features, frame: Frame) -> list[Detections]:
        return [one._replace(scores=one.scores.logit()) for one in super().detect(features, frame)]


class CountsTheBackground(Plain):
    def detect(self, features: Features, frame: Frame) -> list[Detections]:
        return [one._replace(labels=one.labels + 1) for one in super().detect(features, frame)]


class ActivatesInPlace(Plain):
    def predict(self, features: Features, frame: Frame) -> Cells:
        with torch.no_grad():
            features.maps[-1].relu_()
        return super().predict(features, frame)


class CountsOnInPlace(Plain):
    def losses(self, features: Features, frame: Frame, objects: Sequence[Objects]) -> dict[str, Tensor]:
        for one in objects:
            one.labels.add_(1).remainder_(self.classify.out_channels)
        return super().losses(features, frame, objects)


class DropsOut(Plain):
    def predict(self, features: Features, frame: Frame) -> Cells:
        cells = super().predict(features, frame)
        return cells._replace(logits=F.dropout(cells.logits))


class NormsTheBatch(Plain):
    def predict(self, features: Features, frame: Frame) -> Cells:
        maps = [F.batch_norm(x, None, None, training=True) for x in features.maps]
        return super().predict(features._replace(maps=maps), frame)


class SaysItReadsAll(Plain):
    def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, num_classes: int) -> None:
        super().__init__(levels, prefix_tokens, num_classes)
        self.used = tuple(range(len(levels)))


class KeepsALayer(Plain):
    def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, num_classes: int) -> None:
        super().__init__(levels, prefix_tokens, num_classes)
        self.auxiliary = nn.Conv2d(levels[0].channels, num_classes, 1)


class SkipsBoxesWithoutObjects(Plain):
    def losses(self, features: Features, frame: Frame, objects: Sequence[Objects]) -> dict[str, Tensor]:
        terms = super().losses(features, frame, objects)
        return terms if any(len(one.boxes) for one in objects) else {**terms, "box": terms["box"].detach()}


class DividesByNothing(Plain):
    def losses(self, features: Features, frame: Frame, objects: Sequence[Objects]) -> dict[str, Tensor]:
        cells = self.predict(features, frame)
        assigned = [self.assign(cells, one) for one in objects]
        positive, labels, boxes = (torch.stack(values) for values in zip(*assigned, strict=True))
        classes = focal(cells.logits, one_hot(labels, positive, cells.logits.shape[-1])).sum()
        errors = generalized_iou_loss(cells.boxes, boxes) * positive
        return {"classification": classes / positive.sum(), "box": errors.sum() / positive.sum()}


class ScalesAtRandom(Plain):
    def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, num_classes: int) -> None:
        super().__init__(levels, prefix_tokens, num_classes)
        self.scale = 0.5 + torch.rand(())

    def predict(self, features: Features, frame: Frame) -> Cells:
        cells = super().predict(features, frame)
        return cells._replace(logits=cells.logits * self.scale)


class HoldsALambda(Plain):
    def __init__(self, levels: tuple[Level, ...], prefix_tokens: int, num_classes: int) -> None:
        super().__init__(levels, prefix_tokens, num_classes)
        self.after = lambda x: x


class MultipliesBoxes(Plain):
    def detect(self, features: Features, frame: Frame) -> list[Detections]:
        return [one._replace(boxes=one.boxes @ torch.eye(4)) for one in super().detect(features, frame)]


class FixesTheType(Plain):
    def predict(self, features: Features, frame: Frame) -> Cells:
        x = self.mix(self.pyramid(features.maps, frame.canvas)[0])
        kept = torch.zeros(x.shape)
        kept[:, torch.arange(x.shape[1])] = x
        return super().predict(features, frame)


class LearnsAnotherClass(Plain):
    def losses(self, features: Features, frame: Frame, objects: Sequence[Objects]) -> dict[str, Tensor]:
        others = [one._replace(labels=(one.labels + 1) % self.classify.out_channels) for one in objects]
        return super().losses(features, frame, others)


class LearnsHeightFirst(Plain):
    def losses(self, features: Features, frame: Frame, objects: Sequence[Objects]) -> dict[str, Tensor]:
        return super().losses(features, frame, [one._replace(boxes=one.boxes[:, [1, 0, 3, 2]]) for one in objects])


MISTAKES: dict[type[DetectionHead], str] = {
    NeedsFourLevels: "it_builds_on_any_levels",
    HasNoNames: "it_builds_on_any_levels",
    LosesInTrainingOnly: "losses_are_named_finite_scalars",
    SumsUpPerImage: "losses_are_named_finite_scalars",
    JoinsTheBatch: "every_image_has_detections",
    DetectsInEvalOnly: "every_image_has_detections",
    ClipsToTheCanvas: "boxes_lie_in_their_image",
    KeepsEmptyBoxes: "boxes_lie_in_their_image",
    WorstFirst: "scores_are_sorted_shares",
    ScoresAreLogits: "scores_are_sorted_shares",
    CountsTheBackground: "labels_are_classes",
    ActivatesInPlace: "the_input_is_not_written_to",
    CountsOnInPlace: "the_input_is_not_written_to",
    DropsOut: "eval_is_deterministic",
    NormsTheBatch: "images_do_not_mix",
    SaysItReadsAll: "it_reads_what_it_says",
    KeepsALayer: "every_parameter_gets_a_gradient",
    SkipsBoxesWithoutObjects: "images_without_objects_train_everything",
    DividesByNothing: "images_without_objects_train_everything",
    ScalesAtRandom: "the_state_dict_holds_everything",
    HoldsALambda: "copies_are_independent",
    MultipliesBoxes: "autocast_works",
    FixesTheType: "autocast_works",
    LearnsAnotherClass: "it_learns",
    LearnsHeightFirst: "it_learns",
}


def failed(make: Callable[..., Any]) -> dict[str, str | None]:
    return {v.name: v.found for v in check_plugin(make, "heads") if v.outcome == "failed"}


@pytest.mark.parametrize("kind", MISTAKES, ids=lambda kind: kind.__name__)
def test_each_mistake_is_caught_by_the_check_that_names_it_and_no_other(
    kind: type[DetectionHead], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(detection_heads, "PATIENCE", 10)  # the right head needs 20 steps
    assert failed(kind).keys() == {MISTAKES[kind]}


def test_there_is_a_mistake_for_every_check():
    assert set(MISTAKES.values()) == {verdict.name for verdict in check_plugin(Plain, "heads")}


@pytest.mark.parametrize("name", OURS)
def test_our_own_pass_every_check(name: str):
    assert {v.name: v.found for v in check_plugin(OURS[name], "heads") if v.outcome != "passed"} == {}


def build_fcos(levels: tuple[Level, ...], prefix_tokens: int, num_classes: int) -> DetectionHead:
    return FCOS(levels, prefix_tokens, num_classes, channels=64)


def test_the_kit_is_that_of_what_is_built():
    names = {make: [check.name for check in kit("heads", make=make)] for make in (FCOS, build_fcos, LinearHead)}
    assert "boxes_lie_in_their_image" in names[FCOS]
    assert names[build_fcos] == names[FCOS]
    assert "boxes_lie_in_their_image" not in names[LinearHead]
    assert [check.name for check in kit("heads", ["it_learns"], partial(FCOS, channels=64))] == ["it_learns"]
    with pytest.raises(ConfigError, match="no check it_learns"):
        kit("heads", ["it_learns"], LinearHead)
