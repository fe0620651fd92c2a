"""LoRA: features unchanged at first, everything else at rest, stages whole, merged exactly, resumed from the config."""

import copy
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from framework.cli.main import main
from framework.conformance.backbones import CHECKS
from framework.errors import ConfigError
from framework.tasks.classification import Classification
from framework.transfer import lora
from framework.transfer.lora import LoRA
from plugins import dinov2
from plugins.huggingface import HuggingFace
from plugins.timm import Timm
from tests.folders import write_image_folder
from tests.tiny import Tiny

HUGGING_FACE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
IMAGES = torch.rand(1, 3, 32, 32)


def features(backbone, images=IMAGES):
    side = -(-images.shape[-1] // backbone.multiple) * backbone.multiple
    with torch.no_grad():
        return backbone.eval()(nn.functional.interpolate(images, size=(side, side))).maps


@pytest.fixture(params=["timm", "dinov2"])
def backbone(request, monkeypatch):
    small = replace(dinov2.SHAPES["vits14"], width=32, depth=4, heads=2)
    monkeypatch.setitem(dinov2.SHAPES, "vits14", small)
    torch.manual_seed(0)
    return Timm("test_vit") if request.param == "timm" else dinov2.DINOv2("vits14")


def shake(backbone):
    """Give the adapters other weights than those that do nothing."""
    for name, parameter in backbone.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)


def test_nothing_changes_until_it_is_trained_and_merging_keeps_what_was_learned(backbone):
    names, plain, stages = list(backbone.state_dict()), features(backbone), len(backbone.stages())
    adapter = LoRA(rank=2, alpha=3)
    adapter.adapt(backbone)
    assert all(torch.equal(one, two) for one, two in zip(plain, features(backbone), strict=True))
    layers = [name for name, layer in backbone.named_modules() if hasattr(layer, "base_layer")]
    assert len(layers) == sum(isinstance(layer, nn.Linear) for layer in backbone.modules()) // 3, (
        "A and B are linear too"
    )
    shake(backbone)
    adapted = features(backbone)
    assert not torch.allclose(plain[-1], adapted[-1], atol=1e-3)
    copies = [copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))]
    adapter.merge(backbone)
    for one, two in zip(adapted, features(backbone), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    assert not any(type(layer).__module__.startswith("peft") for layer in backbone.modules())
    assert list(backbone.state_dict()) == names
    assert len(backbone.stages()) == stages
    for other in copies:
        flat = [parameter for stage in other.stages() for parameter in stage]
        assert {id(parameter) for parameter in flat} == {id(parameter) for parameter in other.parameters()}
        assert torch.equal(features(other)[-1], adapted[-1])


def test_the_formula_is_that_of_the_paper():
    backbone = Timm("test_vit")
    layer = backbone.net.blocks[0].mlp.fc1
    weight = layer.weight.detach().clone()
    adapter = LoRA(rank=2, alpha=1.5, targets=["blocks.0.mlp.fc1"])
    adapter.adapt(backbone)
    shake(backbone)
    down, up = (parameter for name, parameter in backbone.named_parameters() if "lora_" in name)
    assert down.shape == (2, weight.shape[1])
    assert up.shape == (weight.shape[0], 2)
    adapter.merge(backbone)
    torch.testing.assert_close(layer.weight, weight + 1.5 / 2 * up @ down)


class TestStages:
    def test_adapters_are_in_the_stage_of_their_layer(self, backbone):
        stages = [{id(parameter) for parameter in stage} for stage in backbone.stages()]
        LoRA().adapt(backbone)
        of = {id(p): index for index, stage in enumerate(backbone.stages()) for p in stage}
        assert len(of) == len(list(backbone.parameters()))
        for index, stage in enumerate(stages):
            assert all(of[parameter] == index for parameter in stage)
        for layer in backbone.modules():
            if hasattr(layer, "base_layer"):
                assert len({of[id(parameter)] for parameter in layer.parameters()}) == 1

    def test_a_plugin_that_goes_by_names_keeps_its_contract(self):
        def make(in_channels=3):
            backbone = HuggingFace("vit", pretrained=False, in_channels=in_channels, config=HUGGING_FACE)
            LoRA(rank=2).adapt(backbone)
            return backbone

        for check in CHECKS:
            if "stage" in check.name or "frozen" in check.name or "freez" in check.name:
                check(make)


class TestTraining:
    @pytest.fixture
    def task(self):
        return Classification(Timm("test_vit"), adapter=LoRA(dropout=0.5), num_classes=2)

    def test_adapters_and_head_are_trained_and_the_rest_is_at_rest(self, task):
        trained = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
        assert trained == {name for name, _ in task.named_parameters() if "lora_" in name or name.startswith("head.")}
        rest = {name: value.clone() for name, value in task.state_dict().items() if name not in trained}
        optimizer = torch.optim.AdamW(task.parameters(), weight_decay=0.1)
        task.train()
        for _ in range(2):
            task(torch.rand(2, 3, 32, 32)).square().sum().backward()
            optimizer.step()
        assert all(torch.equal(task.state_dict()[name], value) for name, value in rest.items())
        assert all(p.grad is not None and bool(p.grad.any()) for n, p in task.named_parameters() if n in trained)

    def test_dropout_drops_in_training_and_rests_in_evaluation(self, task):
        shake(task.backbone)
        images = torch.rand(1, 3, 32, 32)
        for mode, equal in ((True, False), (False, True)):
            task.train(mode)
            assert torch.equal(task(images), task(images)) is equal

    def test_freezing_the_adapters_too_is_refused(self):
        with pytest.raises(ConfigError, match=r"model\.freeze: it means every adapter too: leave it out"):
            Classification(Timm("test_vit"), adapter=LoRA(), freeze="all", num_classes=2)
        task = Classification(Timm("test_vit"), adapter=LoRA(), freeze=2, num_classes=2)
        trained = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
        assert not any(".blocks.0." in name for name in trained)
        assert any(".blocks.5." in name for name in trained)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is at least 1, got 0"),
        ({"alpha": 0}, "alpha is more than 0"),
        ({"dropout": 1}, r"dropout is in \[0, 1\), got 1"),
        ({"targets": []}, "targets names no layer"),
        ({"targets": ["qvk"]}, r"no layer of the backbone is qvk; did you mean 'qkv'\?"),
        ({"targets": ["qkv", "blocks.9.*"]}, r"no layer of the backbone is blocks\.9\.\*"),
    ],
)
def test_mistakes_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        LoRA(**options).adapt(Timm("test_vit"))


def test_convolutions_take_part_when_they_are_named():
    with pytest.raises(
        ConfigError, match=r"Tiny has no linear layer for LoRA: name convolutions in targets, such as c"
    ):
        LoRA().adapt(Tiny())
    torch.manual_seed(0)
    backbone, adapter = Tiny(), LoRA(rank=2, targets=["*"])
    plain = features(backbone)
    adapter.adapt(backbone)
    assert torch.equal(features(backbone)[-1], plain[-1])
    shake(backbone)
    adapted = features(backbone)
    assert not torch.allclose(adapted[-1], plain[-1])
    adapter.merge(backbone)
    torch.testing.assert_close(features(backbone), adapted, rtol=0, atol=1e-5)


def test_a_layer_whose_adapter_would_do_nothing_or_could_not_be_merged_is_refused():
    backbone = Tiny()
    backbone.coarse[0] = nn.Conv2d(8, 16, 2, 2, groups=2)
    with pytest.raises(ConfigError, match=r"coarse\.0 is a convolution of 2 groups"):
        LoRA(targets=["coarse.0"]).adapt(backbone)
    backbone.idle = nn.Linear(3, 3)
    with pytest.raises(ConfigError, match=r"takes the weights of idle without calling it as a layer"):
        LoRA(targets=["idle"]).adapt(backbone)


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "vision-plugin-framework\[lora\]"'):
        LoRA()


EXPERIMENT = """
model:
  class_path: Classification
  init_args:
    backbone: {class_path: Timm, init_args: {name: test_vit}}
    adapter: {class_path: LoRA, init_args: {rank: 4, targets: [qkv, fc1]}}
data: {class_path: ImageFolder, init_args: {root: set, image_size: 32, batch_size: 2, num_workers: 0}}
trainer: {max_epochs: 1, accelerator: cpu}
run: {id: one}
"""


def test_a_run_keeps_base_and_adapter_and_every_command_rebuilds_them(tmp_path, capsys):
    write_image_folder(tmp_path / "set", counts=(2, 1, 0))
    Path("x.yaml").write_text(EXPERIMENT)
    assert main(["fit", "--config", "x.yaml"]) == 0, capsys.readouterr().err
    last = "runs/x/one/checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)["state_dict"]
    for part in ("base_layer", "lora_A.default", "lora_B.default"):
        assert f"backbone.net.blocks.0.attn.qkv.{part}.weight" in state
    assert any(bool(value.any()) for name, value in state.items() if "lora_B" in name)
    assert main(["predict", "--ckpt_path", last, "--data.predict_dir", "set/val/red"]) == 0, capsys.readouterr().err
    assert main(["fit", "--config", "x.yaml", "--ckpt_path", last, "--trainer.max_epochs", "2", "--run.id", "two"]) == 0
    again = torch.load("runs/x/two/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    base = [name for name in state if name.startswith("backbone.") and "lora_" not in name]
    assert all(torch.equal(again[name], state[name]) for name in base)
    assert not all(torch.equal(again[name], state[name]) for name in state if "lora_A" in name)
