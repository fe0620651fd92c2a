import pickle
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from framework.backbone import Backbone, Features
from framework.conformance import KITS, Check, NonconformityError, check_plugin, parametrize_with_checks, run_checks
from framework.conformance import backbones as kit
from framework.conformance.check import Maker, demand
from framework.conformance.training import heads_by_task
from framework.errors import ConfigError
from framework.registry import Advert
from plugins import convnext_ladder
from plugins.alexnet import AlexNet
from plugins.convnext_ladder import ConvNeXtLadder
from plugins.dinov2 import DINOv2
from plugins.huggingface import HuggingFace
from plugins.lenet import LeNet
from plugins.shiftvit import ShiftViT
from plugins.timm import Timm
from plugins.torchvision import TorchVision
from tests.framework.conformance.wrong_backbones import MISTAKES, LooksAtValues, WrongStride
from tests.tiny import Tiny

REAL = {  # one of a kind; `pytest -m matrix` tries every architecture that has a name (test_every_architecture.py)
    "timm test_resnet": partial(Timm, "test_resnet"),
    "timm test_vit": partial(Timm, "test_vit"),
    "timm test_convnext": partial(Timm, "test_convnext"),
    "dinov2 vits14_reg": partial(DINOv2, "vits14_reg", layers=[1]),
    "huggingface resnet": partial(
        HuggingFace,
        "resnet",
        pretrained=False,
        config={"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 128], "embedding_size": 16},
    ),
    "huggingface vit": partial(
        HuggingFace,
        "vit",
        pretrained=False,
        config={"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
    ),
    "torchvision resnet18": partial(TorchVision, "resnet18"),
    "alexnet": partial(AlexNet, lrn=True),
    "convnext_ladder resnet": partial(ConvNeXtLadder, "resnet"),
    "convnext_ladder separate_downsampling": ConvNeXtLadder,
    "lenet": LeNet,
    "shiftvit": partial(ShiftViT, embed_dim=24, depths=[1, 2, 1, 1], dropout=0.1, drop_path=0.1),
}


@pytest.fixture
def _few_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train under the two linear heads alone, which saves most of the time."""

    def few() -> Iterator[tuple[Advert, Advert]]:
        return (pair for pair in heads_by_task() if pair[1].name in ("LinearHead", "LinearClassifier"))

    assert len(list(few())) >= 2
    monkeypatch.setattr(kit, "heads_by_task", few)


class TestMistakes:
    @pytest.mark.usefixtures("_few_heads")
    @pytest.mark.parametrize(("rule", "kind"), [pytest.param(*case, id=case[1].__name__) for case in MISTAKES])
    def test_are_caught_by_the_check_that_names_them_and_no_other(self, rule: str, kind: type[Backbone]):
        verdicts = check_plugin(kind)
        assert {v.name: v.found for v in verdicts if v.outcome == "failed"}.keys() == {rule}
        assert all(v.rests_on == rule for v in verdicts if v.outcome == "left out")
        failed = next(v for v in verdicts if v.outcome == "failed")
        assert failed.expected
        assert failed.found
        assert failed.remedy

    def test_are_planted_for_every_check(self):
        assert {rule for rule, _ in MISTAKES} == {check.name for check in KITS["backbones"]}

    def test_of_some_values_only_are_seen(self):
        class OneNan(Tiny):
            calls = 0

            def extract(self, images: Tensor) -> Features:
                fine, coarse = super().extract(images).maps
                self.calls += 1
                return Features([fine, coarse * (1 if self.calls < 2 else float("nan"))], [])

        verdicts = {v.name: v.outcome for v in check_plugin(OneNan)}
        assert verdicts["eval_is_deterministic"] == "failed"


class TestRightBackbones:
    def test_pass_every_check(self):
        assert {v.name: v.found for v in check_plugin(Tiny) if v.outcome != "passed"} == {}

    @pytest.mark.parametrize("name", REAL)
    def test_of_our_own_pass_every_check(
        self, name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setitem(convnext_ladder.DEPTHS, "resnet50", ((1, 1, 1, 1), (1, 2, 1, 1)))  # the same, but small
        monkeypatch.setitem(convnext_ladder.WIDTHS, "resnet50", (8, 8, 16))
        if name not in ("timm test_resnet", "timm test_vit"):
            request.getfixturevalue("_few_heads")
        assert {v.name: v.found or v.rests_on for v in check_plugin(REAL[name]) if v.outcome != "passed"} == {}


class TestMessages:
    def test_hold_what_was_expected_and_found_and_the_remedy(self):
        check = next(check for check in KITS["backbones"] if check.name == "shapes_are_as_declared")
        check(Tiny)
        with pytest.raises(NonconformityError) as caught:
            check(WrongStride)
        error = caught.value
        lines = [f"expected {error.expected}", f"found {error.found}", f"to mend it: {error.remedy}"]
        assert str(error).splitlines() == lines
        assert "(2, 16, 4, 5)" in error.expected  # 64x80 over the stride of 16 that is declared
        assert "(2, 16, 8, 10)" in error.found  # over that of 8 that it has
        assert "levels" in error.remedy

    def test_of_an_unforeseen_error_name_the_line(self):
        class Broken(Tiny):
            def extract(self, images: Tensor) -> Features:
                raise KeyError("layer7")

        found = next(v.found for v in check_plugin(Broken) if v.outcome == "failed")
        assert found is not None
        assert "KeyError: 'layer7'" in found
        assert "test_backbones.py:" in found

    @pytest.mark.parametrize("check", [check for checks in KITS.values() for check in checks], ids=lambda c: c.name)
    def test_have_a_rule_as_a_sentence(self, check: Check):
        assert check.rule.endswith(".")
        assert len(check.rule.split()) >= 5


class TestChecks:
    @pytest.mark.parametrize("name", KITS)
    def test_come_after_those_they_rest_on(self, name: str):
        seen: set[Any] = set()
        for check in KITS[name]:
            assert set(check.after) <= seen, check.name
            seen.add(check.run)
        assert len({check.name for check in KITS[name]}) == len(KITS[name])

    def test_are_left_out_with_the_first_cause(self):
        def first(make: Maker) -> None:
            """It fails."""
            demand(False, "a", "b", "c")

        def second(make: Maker) -> None:
            """It rests on the first."""

        def third(make: Maker) -> None:
            """It rests on the second."""

        def free(make: Maker) -> None:
            """It rests on nothing."""

        checks = [Check(first), Check(second, (first,)), Check(third, (second,)), Check(free)]
        verdicts = [(v.name, v.outcome, v.rests_on) for v in run_checks(Tiny, checks)]
        left = [("second", "left out", "first"), ("third", "left out", "first")]
        assert verdicts == [("first", "failed", None), *left, ("free", "passed", None)]
        with pytest.raises(NonconformityError, match="expected a"):
            list(run_checks(Tiny, checks, debug=True))

    def test_leave_threads_and_streams_as_they_were(self, capfd: pytest.CaptureFixture[str]):
        torch.set_num_threads(2)
        check = next(check for check in KITS["backbones"] if check.name == "it_exports")
        with pytest.raises(NonconformityError):
            check(LooksAtValues)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert capfd.readouterr() == ("", "")

    def test_do_not_see_what_others_did(self):
        seen = []

        def spoil(make: Maker) -> None:
            """It writes to what it was given."""
            backbone = make()
            seen.append(float(backbone.fine[0].weight.detach().abs().sum()))
            torch.nn.init.zeros_(backbone.fine[0].weight)

        list(run_checks(Tiny, [Check(spoil), Check(spoil)]))
        assert seen[0] == seen[1] > 0


class TestParametrizeWithChecks:
    def test_makes_a_test_of_every_plugin_and_check(self):
        mark = parametrize_with_checks({"a": Tiny, "b": partial(Tiny, width=4)}).mark
        assert mark.args[0] == ("make", "check")
        names = [check.name for check in KITS["backbones"]]
        assert [case.id for case in mark.args[1]] == [f"{plugin}-{name}" for plugin in "ab" for name in names]

    def test_marks_what_is_known_to_fail_strictly(self):
        mark = parametrize_with_checks({"a": Tiny}, expected_failures={"a-it_exports": "uses NumPy"}).mark
        marked = {case.id: case.marks for case in mark.args[1] if case.marks}
        assert list(marked) == ["a-it_exports"]
        (xfail,) = marked["a-it_exports"]
        assert xfail.name == "xfail"
        assert xfail.kwargs == {"reason": "uses NumPy", "strict": True}

    def test_refuses_names_that_mark_nothing(self):
        with pytest.raises(ConfigError, match="names no check: a-it_flies"):
            parametrize_with_checks({"a": Tiny}, expected_failures={"a-it_flies": "no wings"})

    def test_refuses_kinds_without_a_kit(self):
        with pytest.raises(ConfigError, match="no conformance kit for head; did you mean 'heads'"):
            parametrize_with_checks({"a": Tiny}, kind="head")


def test_mistakes_can_be_pickled_unless_that_is_the_mistake():
    """Else `copies_are_independent` would fail for the place where a class stands."""
    for rule, kind in MISTAKES:
        if rule not in ("it_builds", "copies_are_independent"):
            pickle.dumps(kind())
