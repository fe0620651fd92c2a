"""The torchvision plugin: every trunk that is a sequence of layers, and reasons for the rest."""

import copy
import pickle
import re
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import get_model, get_model_weights, list_models

from framework.backbone import Features
from framework.errors import ConfigError, WeightsError
from framework.registry import advertised
from plugins.torchvision import PADDED, UNFIT, TorchVision

# Strides, sizes in pixels must be divisible by, and the modules of torchvision's own model that give the levels.
FACTS: dict[str, tuple[list[int], int, list[str]]] = {
    "resnet18": ([2, 4, 8, 16, 32], 1, ["relu", "layer1", "layer2", "layer3", "layer4"]),
    "regnet_y_400mf": ([2, 4, 8, 16, 32], 1, ["stem", *(f"trunk_output.block{i}" for i in range(1, 5))]),
    "mobilenet_v2": ([2, 4, 8, 16, 32], 1, [f"features.{i}" for i in (1, 3, 6, 13, 18)]),
    "mobilenet_v3_small": ([2, 4, 8, 16, 32], 1, [f"features.{i}" for i in (0, 1, 3, 8, 12)]),
    "efficientnet_b0": ([2, 4, 8, 16, 32], 1, [f"features.{i}" for i in (1, 2, 3, 5, 8)]),
    "convnext_tiny": ([4, 8, 16, 32], 32, [f"features.{i}" for i in (1, 3, 5, 7)]),
    "densenet121": (
        [2, 4, 8, 16, 32],
        32,
        ["features.pool0 in", *(f"features.transition{i} in" for i in (1, 2, 3)), "features.norm5"],
    ),
    "shufflenet_v2_x0_5": ([2, 4, 8, 16, 32], 1, ["conv1", "maxpool", "stage2", "stage3", "conv5"]),
    "mnasnet0_5": ([2, 4, 8, 16, 32], 1, [f"layers.{i}" for i in (7, 8, 9, 11, 16)]),
    "vgg11_bn": ([2, 4, 8, 16, 32], 32, [f"features.{i}" for i in (6, 13, 20, 27, 28)]),
    "swin_t": ([4, 8, 16, 32], 4, ["features.1", "features.3", "features.5", "norm"]),
}
SMALL = ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "regnet_y_400mf"]


@cache
def built(name: str) -> TorchVision:
    """Build a model once; whoever changes it, copies it."""
    torch.manual_seed(0)
    return TorchVision(name).eval()


def features(backbone: TorchVision, size: tuple[int, int]) -> Features:
    torch.manual_seed(1)
    with torch.no_grad():
        return backbone(torch.rand(2, backbone.in_channels, *size))


@pytest.mark.parametrize("name", FACTS)
class TestEveryFamily:
    def test_levels_are_as_known_and_as_returned(self, name: str):
        backbone = built(name)
        strides, multiple, _ = FACTS[name]
        assert ([level.stride for level in backbone.levels], backbone.multiple) == (strides, multiple)
        backbone.probe()
        unit = backbone.multiple
        for height, width in (
            (unit * (65 // unit), unit * (99 // unit)),
            (unit * (39 // unit + 2), unit * (64 // unit)),
        ):
            maps = features(backbone, (height, width)).maps
            wanted = [(2, x.channels, ceil(height / x.stride), ceil(width / x.stride)) for x in backbone.levels]
            assert [tuple(x.shape) for x in maps] == wanted

    def test_values_are_those_inside_torchvisions_own_model(self, name: str):
        torch.manual_seed(0)
        whole: Any = get_model(name).eval()
        backbone = copy.deepcopy(built(name))
        backbone.net.load_state_dict(whole.state_dict(), strict=False)
        seen: list[Tensor] = []
        for path in FACTS[name][2]:
            module = whole.get_submodule(path.removesuffix(" in"))
            if path.endswith(" in"):
                module.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
            else:
                module.register_forward_hook(lambda _, __, out: seen.append(out.clone()))
        images = torch.rand(2, 3, 64, 96)
        with torch.no_grad():
            whole((images - backbone.mean) / backbone.std)
            maps = backbone(images).maps
        for got, want in zip(maps, [x.permute(0, 3, 1, 2) if name == "swin_t" else x for x in seen], strict=True):
            torch.testing.assert_close(got, want)

    def test_stages_are_a_partition_in_order_and_every_parameter_gets_a_gradient(self, name: str):
        backbone = copy.deepcopy(built(name)).train()
        flat = [id(parameter) for stage in backbone.stages() for parameter in stage]
        assert flat == [id(parameter) for parameter in backbone.parameters()]  # torchvision registers in order of use
        assert all(backbone.stages())
        assert 4 <= len(backbone.stages()) <= 5
        sum(x.square().sum() for x in backbone(torch.rand(2, 3, 64, 96)).maps).backward()
        assert not [key for key, parameter in backbone.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("name", SMALL)
class TestBehaviour:
    @pytest.mark.parametrize("stages", [1, 3, "all"])
    def test_freezing_is_exact(self, name: str, stages: Any):
        backbone = copy.deepcopy(built(name)).train()
        backbone.freeze(stages)
        names = {id(parameter): key for key, parameter in backbone.named_parameters()}
        by_name = [[names[id(parameter)] for parameter in stage] for stage in backbone.stages()]
        still = {key.rpartition(".")[0] for stage in by_name[: backbone.frozen] for key in stage}
        before = copy.deepcopy(backbone.state_dict())
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, weight_decay=0.1)
        loss = sum(x.square().mean() for x in backbone(torch.rand(2, 3, 96, 64)).maps)
        if stages != "all":
            loss.backward()
        optimizer.step()
        changed = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
        assert not [key for key in changed if key.rpartition(".")[0] in still]
        assert all(changed.intersection(stage) for stage in by_name[backbone.frozen :])

    def test_state_dict_deepcopy_and_pickle(self, name: str):
        wanted = features(built(name), (65, 97)).maps
        torch.manual_seed(2)
        other = TorchVision(name).eval()
        assert not torch.equal(features(other, (65, 97)).maps[-1], wanted[-1])
        other.load_state_dict(built(name).state_dict())
        for twin in (other, copy.deepcopy(built(name)), pickle.loads(pickle.dumps(built(name)))):
            for got, want in zip(features(twin, (65, 97)).maps, wanted, strict=True):
                torch.testing.assert_close(got, want)

    @pytest.mark.parametrize("channels", [1, 6])
    def test_weights_for_other_channels_give_the_same_on_equal_channels(self, tmp_path: Path, name: str, channels: int):
        torch.save(built(name).net.state_dict(), tmp_path / "x.pth")
        backbone = TorchVision(name, weights=tmp_path / "x.pth", in_channels=channels).eval()
        backbone.probe()
        grey = torch.randn(1, 1, 64, 96)
        with torch.no_grad():
            got, wanted = (b.extract(grey.expand(-1, b.in_channels, -1, -1)).maps for b in (backbone, built(name)))
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    def test_other_channels_without_weights(self, name: str):
        TorchVision(name, in_channels=5).probe()


class TestWeights:
    @pytest.mark.parametrize("name", ["resnet18", "mnasnet0_5"])
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_of_the_whole_model(self, tmp_path: Path, name: str, suffix: str):
        torch.manual_seed(3)
        whole = get_model(name, num_classes=7)
        path = tmp_path / f"weights{suffix}"
        save_file(whole.state_dict(), path) if suffix == ".safetensors" else torch.save(whole.state_dict(), path)
        for key, value in TorchVision(name, weights=path).net.state_dict().items():
            assert torch.equal(value, whole.state_dict()[key]), key

    def test_of_densenet_as_torchvision_publishes_them(self, tmp_path: Path):
        state = built("densenet121").net.state_dict()
        old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value for key, value in state.items()}
        assert old.keys() != state.keys()
        torch.save(old, tmp_path / "x.pth")
        got = TorchVision("densenet121", weights=tmp_path / "x.pth").net.state_dict()
        assert all(torch.equal(got[key], value) for key, value in state.items())

    def test_that_do_not_fit_are_refused_with_their_keys(self, tmp_path: Path):
        torch.save(get_model("resnet18").state_dict(), tmp_path / "x.pth")
        with pytest.raises(WeightsError, match=r"x\.pth does not fit ResNet(.|\n)*80 of 216 keys missing: layer1\.2\."):
            TorchVision("resnet34", weights=tmp_path / "x.pth")

    def test_from_the_server(self, monkeypatch: pytest.MonkeyPatch):
        state = get_model("resnet18").state_dict()
        monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", lambda *_, **__: dict(state))
        got = TorchVision("resnet18", pretrained=True).net.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in got.items())

    def test_from_the_server_without_a_network(self, monkeypatch: pytest.MonkeyPatch):
        def get_state_dict(*_: object, **__: object) -> dict[str, Tensor]:
            raise URLError("Name or service not known")

        monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", get_state_dict)
        with pytest.raises(WeightsError) as caught:
            TorchVision("resnet18", pretrained=True)
        message = str(caught.value)
        for part in ("resnet18", "resnet18-f37072fd.pth", "checkpoints", "weights: PATH", "pretrained: false"):
            assert part in message
        assert len(message.splitlines()) <= 10


class TestRefusals:
    @pytest.mark.parametrize("name", UNFIT)
    def test_name_the_model_of_timm_to_use(self, name: str):
        with pytest.raises(ConfigError, match=f"{name} cannot be a backbone.*class_path: Timm") as caught:
            TorchVision(name)
        assert timm.is_model(UNFIT[name][1])
        assert UNFIT[name][1] in str(caught.value)

    @pytest.mark.parametrize("name", PADDED)
    def test_name_the_plugin_of_the_same_layers_to_use(self, name: str):
        with pytest.raises(ConfigError, match=f"{name} cannot be a backbone.*class_path: {PADDED[name]}"):
            TorchVision(name)
        assert PADDED[name] in advertised()

    def test_all_others_are_taken(self):
        """Build the smallest of every family that no other test builds."""
        for name in ("googlenet", "efficientnet_v2_s"):
            TorchVision(name).probe()
        assert {re.match("[a-z]+", name).group() for name in list_models(module=torchvision.models)} == {
            re.match("[a-z]+", name).group() for name in [*FACTS, *PADDED, *UNFIT, "googlenet", "resnext", "wide"]
        }

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"name": "resnet19"}, "did you mean 'resnet18'"),
            ({"name": "fcn_resnet50"}, "has no model fcn_resnet50"),
            ({"name": "resnet18", "pretrained": True, "weights": "x"}, "pretrained: true or weights: x, not both"),
        ],
    )
    def test_say_what_to_do(self, settings: dict[str, Any], message: str):
        with pytest.raises(ConfigError, match=message):
            TorchVision(**settings)


def test_statistics_are_those_of_the_weights():
    assert TorchVision("googlenet").mean.flatten().tolist() == [0.5] * 3  # its own forward would convert to these
    for name in ("resnet18", "swin_t"):
        wanted = get_model_weights(name).DEFAULT.transforms()
        torch.testing.assert_close(built(name).mean.flatten(), torch.tensor(wanted.mean))
        torch.testing.assert_close(built(name).std.flatten(), torch.tensor(wanted.std))
