"""The timm plugin: any family, any size, any channels, and weights that are right or refused."""

import copy
import pickle
import socket
from functools import cache, partial
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from framework.backbone import Features
from framework.errors import ConfigError, WeightsError
from plugins.timm import Timm

SWIN, DINOV2, DINOV3 = "swin_tiny_patch4_window7_224", "vit_small_patch14_reg4_dinov2", "vit_tiny_patch16_dinov3_qkvb"
SMALL = ["test_resnet", "test_convnext", "test_efficientnet", "test_vit", "test_vit2", "test_maxvit", DINOV3]
MODELS = [*SMALL, SWIN, DINOV2, "efficientvim_m1", "poolformer_s12"]
# Strides, sizes in pixels must be divisible by, prefix tokens, stages.
FACTS: dict[str, tuple[list[int], int, int, int]] = {
    "test_resnet": ([2, 4, 8, 16, 32], 1, 0, 5),
    "test_convnext": ([4, 8, 16, 32], 32, 0, 5),
    "test_efficientnet": ([2, 4, 8, 16, 32], 1, 0, 6),
    "test_vit": ([16] * 4, 16, 1, 7),
    "test_vit2": ([16] * 4, 16, 1, 9),
    "test_maxvit": ([2, 4, 8, 16, 32], 160, 0, 5),
    DINOV3: ([16] * 4, 16, 5, 13),
    SWIN: ([4, 8, 16, 32], 4, 0, 5),
    DINOV2: ([14] * 4, 14, 5, 13),
    "efficientvim_m1": ([16, 32, 64], 1, 0, 4),
    "poolformer_s12": ([4, 8, 16, 32], 4, 0, 5),
}


@cache
def built(name: str) -> Timm:
    """Build a model once; whoever changes it, copies it."""
    torch.manual_seed(0)
    return Timm(name).eval()


def sizes(backbone: Timm) -> list[tuple[int, int]]:
    """Give two image sizes as odd as the multiple allows, neither square nor native."""
    unit = backbone.multiple
    small = max(1, 70 // unit)
    return [(small * unit, (small + 1) * unit), ((small + 2) * unit, small * unit)]


def features(backbone: Timm, size: tuple[int, int]) -> Features:
    torch.manual_seed(1)
    with torch.no_grad():
        return backbone(torch.rand(2, backbone.in_channels, *size))


def assert_same(first: Features, second: Features, atol: float = 1e-5) -> None:
    for a, b in zip([*first.maps, *first.prefix], [*second.maps, *second.prefix], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("name", MODELS)
class TestEveryFamily:
    def test_levels_are_as_known_and_as_returned(self, name: str):
        backbone = built(name)
        strides, multiple, prefix_tokens, stages = FACTS[name]
        assert [level.stride for level in backbone.levels] == strides
        assert (backbone.multiple, backbone.prefix_tokens, len(backbone.stages())) == (multiple, prefix_tokens, stages)
        backbone.probe()
        for height, width in sizes(backbone):
            maps, prefix = features(backbone, (height, width))
            wanted = [(2, x.channels, ceil(height / x.stride), ceil(width / x.stride)) for x in backbone.levels]
            assert [tuple(x.shape) for x in maps] == wanted
            tokens = [(2, prefix_tokens, level.channels) for level in backbone.levels if prefix_tokens]
            assert [tuple(x.shape) for x in prefix] == tokens

    def test_stages_are_a_partition(self, name: str):
        backbone = built(name)
        flat = [id(parameter) for stage in backbone.stages() for parameter in stage]
        assert sorted(flat) == sorted(id(parameter) for parameter in backbone.parameters())
        assert all(backbone.stages())

    def test_stages_run_from_input_to_output(self, name: str):
        backbone = built(name)
        calls: dict[str, int] = {}  # module to when it was first called

        def note(key: str, *_: Any) -> None:
            calls.setdefault(key, len(calls))

        hooks = [module.register_forward_pre_hook(partial(note, key)) for key, module in backbone.named_modules()]
        features(backbone, sizes(backbone)[0])
        for hook in hooks:
            hook.remove()
        owner = {id(parameter): key.rpartition(".")[0] for key, parameter in backbone.named_parameters()}
        ends = [max(calls.get(owner[id(parameter)], 0) for parameter in stage) for stage in backbone.stages()]
        assert ends == sorted(set(ends))

    def test_every_parameter_gets_a_gradient(self, name: str):
        backbone = copy.deepcopy(built(name)).train()
        maps, prefix = backbone(torch.rand(2, 3, *sizes(backbone)[0]))
        sum(x.square().sum() for x in [*maps, *prefix]).backward()
        assert not [key for key, parameter in backbone.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
class TestFreezing:
    @pytest.mark.parametrize("stages", [2, "all"])
    def test_is_exact(self, name: str, stages: Any):
        torch.manual_seed(0)
        backbone = Timm(name, drop_path=0.5 if name == "test_vit" else 0.0).train()
        backbone.freeze(stages)
        names = {id(parameter): key for key, parameter in backbone.named_parameters()}
        stages_by_name = [[names[id(parameter)] for parameter in stage] for stage in backbone.stages()]
        frozen, rest = stages_by_name[: backbone.frozen], stages_by_name[backbone.frozen :]
        before = copy.deepcopy(backbone.state_dict())
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, weight_decay=0.1)
        loss = sum(x.square().mean() for x in backbone(torch.rand(2, 3, 96, 64)).maps)
        if stages == "all":
            assert not loss.requires_grad
        else:
            loss.backward()
        optimizer.step()
        changed = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
        still = {key.rpartition(".")[0] for stage in frozen for key in stage}  # layers, with their buffers
        assert not [key for key in changed if key.rpartition(".")[0] in still]
        assert all(changed.intersection(stage) for stage in rest)


class TestValues:
    @pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", SWIN])
    def test_of_a_pyramid_are_those_inside_the_whole_model(self, name: str):
        torch.manual_seed(0)
        whole = timm.create_model(name).eval()
        backbone = Timm(name).eval()
        backbone.net.load_state_dict(whole.state_dict(), strict=False)
        seen: list[Tensor] = []
        for info in whole.feature_info:
            whole.get_submodule(info["module"]).register_forward_hook(lambda *args: seen.append(args[-1]))
        size = whole.pretrained_cfg["input_size"][1:]
        images = torch.rand(2, 3, *size)
        with torch.no_grad():
            whole.forward_features((images - backbone.mean) / backbone.std)
            maps = backbone(images).maps
        wanted = [x.permute(0, 3, 1, 2) if name == SWIN else x for x in seen]
        for got, level, want in zip(maps, backbone.levels, wanted, strict=True):
            assert want.shape[1] == level.channels
            torch.testing.assert_close(got, want)

    @pytest.mark.parametrize("name", ["test_vit", "test_vit2", DINOV3])
    def test_of_a_vit_are_its_tokens_after_the_final_norm(self, name: str):
        torch.manual_seed(0)
        whole = timm.create_model(name, dynamic_img_size=True).eval()
        backbone = Timm(name).eval()
        backbone.net.load_state_dict(whole.state_dict(), strict=False)
        images = torch.rand(2, 3, 64, 96)
        with torch.no_grad():
            tokens = whole.forward_features((images - backbone.mean) / backbone.std)
            maps, prefix = backbone(images)
        count = backbone.prefix_tokens
        torch.testing.assert_close(prefix[-1], tokens[:, :count])
        torch.testing.assert_close(maps[-1], tokens[:, count:].transpose(1, 2).unflatten(2, (4, 6)))

    @pytest.mark.parametrize("name", ["test_resnet", "test_vit", SWIN])
    def test_survive_state_dict_deepcopy_and_pickle(self, name: str):
        backbone = built(name)
        wanted = features(backbone, (64, 96))
        torch.manual_seed(2)
        other = Timm(name).eval()
        assert not torch.equal(features(other, (64, 96)).maps[-1], wanted.maps[-1])
        other.load_state_dict(backbone.state_dict())
        for twin in (other, copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
            assert_same(features(twin, (64, 96)), wanted)
            twin.freeze(1)
            assert [p.requires_grad for p in twin.stages()[0]] == [False] * len(twin.stages()[0])
        assert all(parameter.requires_grad for parameter in backbone.parameters())


class TestLevelsAskedFor:
    @pytest.mark.parametrize(
        ("name", "indices", "same"), [("test_resnet", [-4, 2], [1, 2]), ("test_vit", [2, -1], [1, 3])]
    )
    def test_are_those_of_the_default(self, name: str, indices: list[int], same: list[int]):
        backbone = Timm(name, out_indices=indices).eval()
        backbone.load_state_dict(built(name).state_dict(), strict=False)
        backbone.probe()
        got, all_of_them = features(backbone, (64, 96)), features(built(name), (64, 96))
        assert backbone.levels == tuple(built(name).levels[i] for i in same)
        for x, i in zip(got.maps, same, strict=True):
            torch.testing.assert_close(x, all_of_them.maps[i])

    def test_later_layers_are_cut_off(self):
        backbone = Timm("test_resnet", out_indices=[0, 1])
        assert not [key for key in backbone.state_dict() if key.startswith(("net.layer2", "net.layer3", "net.fc"))]
        sum(x.sum() for x in backbone(torch.rand(2, 3, 32, 32)).maps).backward()
        assert all(parameter.grad is not None for parameter in backbone.parameters())

    @pytest.mark.parametrize("indices", [[], [2, 1], [1, 1], [0, 5], [-6], [-1, 0]])
    def test_are_checked(self, indices: list[int]):
        with pytest.raises(ConfigError, match=r"out_indices .* of test_resnet: give ascending indices in 0..4"):
            Timm("test_resnet", out_indices=indices)


class TestWeights:
    @pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit2"])
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_of_the_whole_model(self, tmp_path: Path, name: str, suffix: str):
        torch.manual_seed(3)
        whole = timm.create_model(name, num_classes=7)
        path = tmp_path / f"weights{suffix}"
        save_file(whole.state_dict(), path) if suffix == ".safetensors" else torch.save(
            {"model": whole.state_dict()}, path
        )
        backbone = Timm(name, weights=path)
        assert len(backbone.net.state_dict()) > 40
        for key, value in backbone.net.state_dict().items():
            assert torch.equal(value, whole.state_dict()[key]), key

    @pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
    @pytest.mark.parametrize("channels", [1, 6])
    def test_for_other_channels_give_the_same_on_equal_channels(self, tmp_path: Path, name: str, channels: int):
        torch.save(built(name).net.state_dict(), tmp_path / "x.pth")
        backbone = Timm(name, weights=tmp_path / "x.pth", in_channels=channels).eval()
        backbone.probe()
        grey = torch.randn(1, 1, 64, 96)
        with torch.no_grad():
            got, wanted = (b.extract(grey.expand(-1, b.in_channels, -1, -1)) for b in (backbone, built(name)))
        for a, b in zip(got.maps, wanted.maps, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    def test_of_another_grid_have_their_position_embedding_resized(self, tmp_path: Path):
        other = timm.create_model("test_vit", img_size=224)
        torch.nn.init.normal_(other.pos_embed)
        torch.save(other.state_dict(), tmp_path / "x.pth")
        got = Timm("test_vit", weights=tmp_path / "x.pth").net.pos_embed
        grid = other.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
        wanted = F.interpolate(grid, (10, 10), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
        torch.testing.assert_close(got, torch.cat([other.pos_embed[:, :1], wanted], 1))

    def test_in_the_layout_of_dinov2(self, tmp_path: Path):
        """Meta adds the class token's position to the grid's and calls registers otherwise; timm has them added up."""
        backbone = built(DINOV2)
        state = backbone.net.state_dict()
        position = torch.randn(1, 1, 384)
        state["cls_token"] = state["cls_token"] - position
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
        state["register_tokens"] = state.pop("reg_token")
        state["mask_token"] = torch.zeros(1, 384)
        torch.save(state, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
        twin = Timm(DINOV2, weights=tmp_path / "dinov2_vits14_reg4_pretrain.pth").eval()
        assert_same(features(twin, (42, 70)), features(backbone, (42, 70)), atol=1e-3)

    def test_that_do_not_fit_are_refused_with_their_keys(self, tmp_path: Path):
        torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "x.pth")
        with pytest.raises(WeightsError) as caught:
            Timm("resnet18", weights=tmp_path / "x.pth")
        assert all(
            part in str(caught.value)
            for part in ("x.pth does not fit ResNet", "keys missing: conv1.weight", "34 not in the network")
        )
        assert len(str(caught.value).splitlines()) <= 10
        with pytest.raises(WeightsError, match=r"x\.pth does not fit SwinTransformer"):
            Timm(SWIN, weights=tmp_path / "x.pth")
        with pytest.raises(WeightsError, match=r"did you mean 'x\.pth'"):
            Timm("test_resnet", weights=tmp_path / "y.pth")

    @pytest.mark.parametrize("resolves", [True, False])
    def test_from_the_hub_without_a_network(self, monkeypatch: pytest.MonkeyPatch, resolves: bool):
        def getaddrinfo(*_: object, **__: object) -> list[object]:
            if resolves:
                return []
            raise socket.gaierror(-2, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr("plugins.timm.getproxies", dict)
        with pytest.raises(WeightsError) as caught:
            Timm("resnet18.a1_in1k", pretrained=True)
        message = str(caught.value)
        assert resolves or "Name or service not known" in message
        for part in ("resnet18.a1_in1k", "cache", "weights: PATH", "pretrained: packaged", "pretrained: false"):
            assert part in message
        assert len(message.splitlines()) <= 10


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"name": "resnet_18"}, "did you mean 'resnet18'"),
            ({"name": "resnet18.a1_in1"}, "did you mean 'resnet18.a1_in1k'"),
            ({"name": "test_resnet", "pretrained": True, "weights": "x"}, "pretrained: true or weights: x, not both"),
            ({"name": "test_resnet", "pretrained": "packaged"}, "only for tf_efficientnet_lite0"),
            ({"name": "dpn48b", "pretrained": True}, "timm has no weights for dpn48b: set pretrained: false"),
            ({"name": "vgg11", "drop_path": 0.1}, "vgg11 has no stochastic depth"),
            ({"name": "test_resnet", "drop_path": 1.0}, r"rate in \[0, 1\)"),
            ({"name": "mixer_s32_224"}, r"does not take images of any size: Input .* match model(.|\n)*use a network"),
            ({"name": "inception_v3"}, "does not take images of any size: 897x598 images give maps of 446x296"),
            ({"name": "hrnet_w18_small", "out_indices": [0, 1]}, "stage4.*leave out_indices out"),
        ],
    )
    def test_say_why_and_what_to_do(self, settings: dict[str, Any], message: str):
        with pytest.raises(ConfigError, match=message):
            Timm(**settings)

    def test_of_sizes(self):
        with pytest.raises(ValueError, match="divisible by 16, got 64x100"):
            built("test_vit")(torch.rand(1, 3, 64, 100))


def test_drop_path_is_on_in_training_only():
    torch.manual_seed(0)
    backbone = Timm("test_vit", drop_path=0.9)
    images = torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(backbone(images).maps[-1], backbone(images).maps[-1])
        backbone.eval()
        assert torch.equal(backbone(images).maps[-1], backbone(images).maps[-1])
    swin = Timm(SWIN)  # timm's own default is 0.1
    assert not [module for module in swin.modules() if getattr(module, "drop_prob", 0)]


def test_is_built_without_gradients_as_with_them():
    with torch.no_grad():
        inside = Timm("test_vit")
    assert set(inside.state_dict()) == set(Timm("test_vit").state_dict())
