"""The HuggingFace plugin: any family, from a folder, the cache or a name, and weights that are right or refused."""

import copy
import io
import json
import pickle
import re
import socket
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from framework.backbone import IMAGENET_MEAN, IMAGENET_STD, Features
from framework.errors import ConfigError, WeightsError
from plugins.huggingface import HuggingFace

PYRAMID = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
PLAIN = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
MLP = {"intermediate_size": 48}
CONFIGS: dict[str, dict[str, Any]] = {
    "resnet": {**PYRAMID, "embedding_size": 8, "layer_type": "basic"},
    "convnext": PYRAMID,
    "swin": {"embed_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "image_size": 64},
    "segformer": {**PYRAMID, "num_attention_heads": [1, 1, 2, 2]},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "vit": {**PLAIN, **MLP},
    "deit": {**PLAIN, **MLP},
    "beit": {**PLAIN, **MLP},
    "dinov2_with_registers": {**PLAIN, "patch_size": 14, "image_size": 70, "mlp_ratio": 2},
    "clip_vision_model": {**PLAIN, **MLP},
}
# The library's classifier or tower, strides, sizes in pixels must be divisible by, prefix tokens, stages, final norm.
FACTS: dict[str, tuple[str, list[int], int, int, int, str]] = {
    "resnet": ("ResNetForImageClassification", [4, 8, 16, 32], 1, 0, 5, ""),
    "convnext": ("ConvNextForImageClassification", [4, 8, 16, 32], 32, 0, 6, ""),
    "swin": ("SwinForImageClassification", [4, 8, 16, 32], 1, 0, 6, ""),
    "segformer": ("SegformerForSemanticSegmentation", [4, 8, 16, 32], 1, 0, 4, ""),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", [4, 8, 16, 32], 1, 0, 17, ""),
    "vit": ("ViTForImageClassification", [16] * 4, 16, 1, 7, "layernorm"),
    "deit": ("DeiTForImageClassificationWithTeacher", [16] * 4, 16, 2, 7, "layernorm"),
    "beit": ("BeitForImageClassification", [16] * 4, 16, 1, 7, "pooler.layernorm"),
    "dinov2_with_registers": ("Dinov2WithRegistersForImageClassification", [14] * 4, 14, 5, 7, "layernorm"),
    "clip_vision_model": ("CLIPVisionModelWithProjection", [16] * 4, 16, 1, 8, "post_layernorm"),
}
PLAIN_ONES = [name for name, facts in FACTS.items() if len(set(facts[1])) == 1]
PYRAMIDS = [name for name in FACTS if name not in PLAIN_ONES]


def whole(name: str, **changes: Any) -> Any:
    """Build the library's model, heads and all, with no tensor at the value that it starts from."""
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[name](**{**CONFIGS[name], **changes})
    model = getattr(transformers, FACTS[name][0])(config).eval()
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn_like(tensor) * 0.05
            tensor.copy_(noise.abs() + 0.5 if key.endswith("running_var") else tensor + noise)
    return model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the folder that a model is saved in."""

    @cache
    def save(name: str) -> Path:
        path = tmp_path_factory.mktemp(name)
        whole(name).save_pretrained(path)
        return path

    return save


@pytest.fixture(scope="session")
def loaded(folder: Any) -> Any:
    """Return the plugin over a saved model, built once; whoever changes it, copies it."""
    return cache(lambda name: HuggingFace(str(folder(name))).eval())


@cache
def built(name: str) -> HuggingFace:
    """Build a random model once; whoever changes it, copies it."""
    return HuggingFace(name, pretrained=False, config=CONFIGS[name]).eval()


def changed(source: Path, target: Path, drop: str = "", **fields: Any) -> Path:
    """Copy a folder without the weights whose names contain `drop`, and with other fields in its config."""
    target.mkdir()
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **fields}))
    state = load_file(source / "model.safetensors")
    kept = {key: tensor for key, tensor in state.items() if not drop or drop not in key}
    assert not drop or len(kept) < len(state)
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    return target


def features(backbone: HuggingFace, size: tuple[int, int]) -> Features:
    torch.manual_seed(1)
    with torch.no_grad():
        return backbone(torch.rand(2, backbone.in_channels, *size))


def sizes(backbone: HuggingFace) -> list[tuple[int, int]]:
    """Give two image sizes as odd as the multiple allows, neither square nor native."""
    unit = backbone.multiple
    small = max(1, 70 // unit)
    return [(small * unit, (small + 1) * unit), ((small + 2) * unit, small * unit)]


@pytest.mark.parametrize("name", list(FACTS))
class TestEveryFamily:
    def test_levels_are_as_known_and_as_returned(self, name: str):
        backbone = built(name)
        _, strides, multiple, prefix_tokens, stages, _ = FACTS[name]
        assert [level.stride for level in backbone.levels] == strides
        assert (backbone.multiple, backbone.prefix_tokens, len(backbone.stages())) == (multiple, prefix_tokens, stages)
        backbone.probe()
        for height, width in sizes(backbone):
            maps, prefix = features(backbone, (height, width))
            wanted = [(2, x.channels, ceil(height / x.stride), ceil(width / x.stride)) for x in backbone.levels]
            assert [tuple(x.shape) for x in maps] == wanted
            tokens = [(2, prefix_tokens, level.channels) for level in backbone.levels if prefix_tokens]
            assert [tuple(x.shape) for x in prefix] == tokens

    def test_every_parameter_is_in_one_stage_and_gets_a_gradient(self, name: str):
        backbone = copy.deepcopy(built(name)).train()
        flat = [id(parameter) for stage in backbone.stages() for parameter in stage]
        assert sorted(flat) == sorted(id(parameter) for parameter in backbone.parameters())
        maps, prefix = backbone(torch.rand(2, 3, *sizes(backbone)[0]))
        sum(x.square().sum() for x in [*maps, *prefix]).backward()
        assert not [key for key, parameter in backbone.named_parameters() if parameter.grad is None]

    def test_every_tensor_is_of_the_file(self, name: str, folder: Any, loaded: Any):
        theirs = list(load_file(folder(name) / "model.safetensors").values())
        new = ("norms", COUNTER := "num_batches_tracked")  # that the library's backbone adds, and that count nothing
        backbone = loaded(name)
        mine = {key: x for key, x in backbone.net.state_dict().items() if not any(part in key for part in new)}
        assert len(mine) > 40
        assert not [key for key, x in mine.items() if not any(x.shape == y.shape and torch.equal(x, y) for y in theirs)]
        added = [x for key, x in backbone.net.state_dict().items() if "norms" in key and COUNTER not in key]
        assert all(bool((x == x.flatten()[0]).all()) for x in added)
        assert bool(added) == (name in ("convnext", "swin"))

    def test_survive_state_dict_deepcopy_and_pickle(self, name: str, loaded: Any):
        backbone = loaded(name)
        wanted = features(backbone, sizes(backbone)[0])
        other = copy.deepcopy(built(name))
        assert not torch.allclose(features(other, sizes(backbone)[0]).maps[-1], wanted.maps[-1])
        other.load_state_dict(backbone.state_dict())
        file = io.BytesIO()
        torch.save(backbone, file)
        file.seek(0)
        twins = [other, copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))]
        for twin in [*twins, backbone, torch.load(file, weights_only=False)]:
            got = features(twin, sizes(backbone)[0])
            for a, b in zip([*got.maps, *got.prefix], [*wanted.maps, *wanted.prefix], strict=True):
                assert torch.equal(a, b)


class TestValues:
    @pytest.mark.parametrize("name", PLAIN_ONES)
    def test_of_a_vit_are_its_hidden_states_after_the_final_norm(self, name: str, folder: Any, loaded: Any):
        backbone = loaded(name)
        patch, count = backbone.multiple, backbone.prefix_tokens
        images = torch.rand(2, 3, 5 * patch, 7 * patch)
        theirs = AutoModel.from_pretrained(folder(name)).eval()
        options = {} if "dinov2" in name else {"interpolate_pos_encoding": True}
        with torch.no_grad():
            maps, prefix = backbone(images)
            output = theirs((images - backbone.mean) / backbone.std, output_hidden_states=True, **options)
            norm = next(module for key, module in theirs.named_modules() if key.endswith(FACTS[name][5]))
            tokens = [norm(output.hidden_states[i]) for i in (1, 2, 3, 5)]
        assert len(output.hidden_states) == 6
        for a, b, x in zip(maps, prefix, tokens, strict=True):
            torch.testing.assert_close(b, x[:, :count])
            torch.testing.assert_close(a, x[:, count:].transpose(1, 2).unflatten(2, (5, 7)))
        if name not in ("beit", "clip_vision_model"):  # whose last hidden state is not normalised
            torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), output.last_hidden_state[:, count:])

    @pytest.mark.parametrize("name", ["resnet", "convnext", "swin"])
    def test_of_a_pyramid_are_the_feature_maps_of_the_library(self, name: str, folder: Any, loaded: Any):
        backbone = loaded(name)
        stages = [f"stage{index}" for index in (1, 2, 3, 4)]
        kind = getattr(transformers, FACTS[name][0].replace("ForImageClassification", "Backbone"))
        theirs = kind.from_pretrained(folder(name), out_features=stages).eval()
        images = torch.rand(2, 3, 64, 96)
        with torch.no_grad():
            wanted = theirs((images - backbone.mean) / backbone.std).feature_maps
            for got, want in zip(backbone(images).maps, wanted, strict=True):
                torch.testing.assert_close(got, want)

    @pytest.mark.parametrize(("name", "states"), [("segformer", [0, 1, 2, 3]), ("mobilenet_v2", [1, 4, 11, 15])])
    def test_of_others_are_the_last_hidden_states_of_every_stride(
        self, name: str, states: list[int], folder: Any, loaded: Any
    ):
        backbone = loaded(name)
        theirs = AutoModel.from_pretrained(folder(name)).eval()
        images = torch.rand(2, 3, 64, 96)
        with torch.no_grad():
            hidden = theirs((images - backbone.mean) / backbone.std, output_hidden_states=True).hidden_states
            for got, index in zip(backbone(images).maps, states, strict=True):
                torch.testing.assert_close(got, hidden[index])

    @pytest.mark.parametrize("name", ["swin", "vit", "segformer"])
    def test_do_not_depend_on_what_came_before(self, name: str, loaded: Any):
        backbone = loaded(name)
        before = features(backbone, (128, 160))
        features(backbone, (32, 32))
        for a, b in zip(features(backbone, (128, 160)).maps, before.maps, strict=True):
            assert torch.equal(a, b)

    def test_of_the_tower_of_a_model_of_text_and_images(self, tmp_path: Path):
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50, **MLP}
        config = transformers.CLIPConfig(text_config=text, vision_config=CONFIGS["clip_vision_model"])
        clip = transformers.CLIPModel(config).eval()
        clip.save_pretrained(tmp_path)
        backbone = HuggingFace(str(tmp_path)).eval()
        images = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            wanted = clip.vision_model((images - backbone.mean) / backbone.std).pooler_output
            torch.testing.assert_close(backbone(images).prefix[-1][:, 0], wanted)

    def test_of_a_masked_autoencoder_are_those_of_all_patches(self, tmp_path: Path):
        config = transformers.ViTMAEConfig(**CONFIGS["vit"], decoder_num_hidden_layers=1)
        mae = transformers.ViTMAEForPreTraining(config).eval()
        mae.save_pretrained(tmp_path)
        backbone = HuggingFace(str(tmp_path)).eval()
        images, mae.vit.config.mask_ratio = torch.rand(2, 3, 64, 64), 0.0
        with torch.no_grad():
            normalised = (images - backbone.mean) / backbone.std
            tokens = mae.vit(normalised, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
            torch.testing.assert_close(backbone(images).maps[-1].flatten(2).transpose(1, 2), tokens[:, 1:])


class TestLevelsAskedFor:
    @pytest.mark.parametrize(
        ("name", "indices", "same"), [("resnet", [-4, 2], [0, 2]), ("swin", [1, 3], [1, 3]), ("vit", [2, -1], [2, 3])]
    )
    def test_are_those_of_the_default(self, name: str, indices: list[int], same: list[int], folder: Any, loaded: Any):
        some, every = HuggingFace(str(folder(name)), out_indices=indices).eval(), loaded(name)
        assert some.levels == tuple(every.levels[i] for i in same)
        got, wanted = features(some, (64, 96)), features(every, (64, 96))
        for x, i in zip(got.maps, same, strict=True):
            torch.testing.assert_close(x, wanted.maps[i])

    @pytest.mark.parametrize(("name", "cut"), [("resnet", "stages"), ("swin", "layers"), ("vit", "layer")])
    def test_later_layers_are_cut_off(self, name: str, cut: str, folder: Any, loaded: Any):
        backbone = HuggingFace(str(folder(name)), out_indices=[0, 1])
        third = re.compile(rf"\b{cut}s?\.2\.")
        assert not [key for key in backbone.state_dict() if third.search(key)]
        assert [key for key in loaded(name).state_dict() if third.search(key)]
        sum(x.square().sum() for x in backbone(torch.rand(2, 3, 64, 96)).maps).backward()
        assert not [key for key, parameter in backbone.named_parameters() if parameter.grad is None]

    @pytest.mark.parametrize("indices", [[], [2, 1], [1, 1], [0, 4], [-5], [-1, 0]])
    def test_are_checked(self, indices: list[int]):
        with pytest.raises(ConfigError, match=r"out_indices .* of resnet: give ascending indices in 0..3"):
            HuggingFace("resnet", pretrained=False, config=CONFIGS["resnet"], out_indices=indices)


class TestWeights:
    @pytest.mark.parametrize("name", ["resnet", "vit"])
    @pytest.mark.parametrize("channels", [1, 6])
    def test_for_other_channels_give_the_same_on_equal_channels(
        self, name: str, channels: int, folder: Any, loaded: Any
    ):
        backbone = HuggingFace(str(folder(name)), in_channels=channels).eval()
        backbone.probe()
        grey = torch.randn(1, 1, 64, 96)
        with torch.no_grad():
            got, wanted = (b.extract(grey.expand(-1, b.in_channels, -1, -1)) for b in (backbone, loaded(name)))
        for a, b in zip(got.maps, wanted.maps, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    def test_of_half_precision_become_single(self, loaded: Any, tmp_path: Path):
        model = whole("vit").half()
        model.save_pretrained(tmp_path)
        backbone = HuggingFace(str(tmp_path)).eval()
        assert {x.dtype for x in backbone.state_dict().values()} == {torch.float32}
        got, wanted = (features(b, (64, 96)).maps[-1] for b in (backbone, loaded("vit")))
        torch.testing.assert_close(got, wanted, rtol=0.01, atol=0.02)

    def test_of_another_depth_are_those_of_the_first_layers(self, folder: Any, loaded: Any):
        short = HuggingFace(str(folder("vit")), config={"num_hidden_layers": 2}).eval()
        wanted = features(loaded("vit"), (64, 64))
        torch.testing.assert_close(features(short, (64, 64)).maps, wanted.maps[:2])

    def test_in_a_file_of_torch(self, folder: Any, loaded: Any, tmp_path: Path):
        (tmp_path / "config.json").write_text((folder("resnet") / "config.json").read_text())
        torch.save(load_file(folder("resnet") / "model.safetensors"), tmp_path / "pytorch_model.bin")
        got, wanted = (features(x, (64, 64)) for x in (HuggingFace(str(tmp_path)).eval(), loaded("resnet")))
        torch.testing.assert_close(got.maps, wanted.maps)

    def test_that_would_run_code_are_refused(self, folder: Any, tmp_path: Path):
        class Evil:
            def __reduce__(self) -> Any:
                return Path.touch, (tmp_path / "was_run",)

        (tmp_path / "config.json").write_text((folder("resnet") / "config.json").read_text())
        torch.save({"x": Evil()}, tmp_path / "pytorch_model.bin")
        with pytest.raises(WeightsError, match=r"its weights cannot be read: (.|\n)*"):
            HuggingFace(str(tmp_path))
        assert not (tmp_path / "was_run").exists()

    @pytest.mark.parametrize(
        ("name", "drop"),
        [("resnet", "stages.3"), ("vit", "cls_token"), ("vit", "layernorm."), ("swin", "relative_position_bias_table")],
    )
    def test_that_lack_a_part_are_refused(self, name: str, drop: str, folder: Any, tmp_path: Path):
        with pytest.raises(WeightsError, match=r"does not fit \w+:\n  \d+ of \d+ keys missing: ") as caught:
            HuggingFace(str(changed(folder(name), tmp_path / "part", drop)))
        assert drop.strip(".") in str(caught.value)

    @pytest.mark.parametrize(("name", "drop"), [("vit", "classifier"), ("clip_vision_model", "visual_projection")])
    def test_need_no_head(self, name: str, drop: str, folder: Any, tmp_path: Path):
        HuggingFace(str(changed(folder(name), tmp_path / "part", drop))).probe()

    def test_of_another_shape_or_model_are_refused(self, folder: Any, tmp_path: Path):
        wide = changed(folder("vit"), tmp_path / "wide", intermediate_size=64)
        shapes = r" \(48,.*, wanted \(64," if transformers.__version__ >= "5" else ","  # which version 4 does not say
        with pytest.raises(WeightsError, match=rf"of another shape: .*(intermediate|mlp)\S*{shapes}"):
            HuggingFace(str(wide))
        (tmp_path / "wide/config.json").write_text((folder("resnet") / "config.json").read_text())
        with pytest.raises(WeightsError, match=r"does not fit ResNetBackbone:\n  70 of 84 keys missing") as caught:
            HuggingFace(str(wide))
        assert len(str(caught.value).splitlines()) <= 10

    def test_that_are_damaged_or_absent_are_refused(self, folder: Any, tmp_path: Path):
        (tmp_path / "config.json").write_text((folder("vit") / "config.json").read_text())
        with pytest.raises(WeightsError, match=r"its weights cannot be read: .*model.safetensors"):
            HuggingFace(str(tmp_path))
        HuggingFace(str(tmp_path), pretrained=False).probe()
        weights = (folder("vit") / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        with pytest.raises(WeightsError, match="its weights cannot be read"):
            HuggingFace(str(tmp_path))


class TestStatistics:
    def test_are_imagenets_without_a_file(self, loaded: Any):
        backbone = loaded("vit")
        torch.testing.assert_close(backbone.mean.flatten(), torch.tensor(IMAGENET_MEAN))
        torch.testing.assert_close(backbone.std.flatten(), torch.tensor(IMAGENET_STD))

    @pytest.mark.parametrize("kind", ["ViTImageProcessor", "CLIPImageProcessor", "EfficientNetImageProcessor"])
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
            {"do_normalize": False},
            {"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3},
            {"rescale_factor": 1 / 127.5},
        ],
    )
    def test_do_to_an_image_what_the_models_processor_does(
        self, kind: str, fields: dict[str, Any], folder: Any, tmp_path: Path
    ):
        processor = getattr(transformers, kind)(do_resize=False, do_center_crop=False, **fields)
        image = torch.randint(256, (3, 8, 8), dtype=torch.uint8)
        wanted = processor(image, return_tensors="pt")["pixel_values"][0]
        (tmp_path / "config.json").write_text((folder("resnet") / "config.json").read_text())
        processor.save_pretrained(tmp_path)
        backbone = HuggingFace(str(tmp_path), pretrained=False)
        torch.testing.assert_close((image / 255 - backbone.mean) / backbone.std, wanted.float())

    def test_of_a_model_of_blue_green_and_red(self, folder: Any, loaded: Any, tmp_path: Path):
        path = changed(folder("resnet"), tmp_path / "model")
        entries = {"image_processor": {"do_flip_channel_order": True}}  # as beside a tokenizer
        (path / "processor_config.json").write_text(json.dumps(entries))
        backbone, plain = HuggingFace(str(path)).eval(), loaded("resnet")
        images = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(backbone(images).maps, plain.extract(images.flip(1)).maps, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("text", ["{", "[]", '{"image_mean": [0.5, 0.5, 0.5]}', '{"do_normalize": true}'])
    def test_that_are_damaged_are_refused(self, text: str, folder: Any, tmp_path: Path):
        (tmp_path / "config.json").write_text((folder("resnet") / "config.json").read_text())
        (tmp_path / "preprocessor_config.json").write_text(text)
        with pytest.raises(WeightsError, match=r"preprocessor_config.json is damaged"):
            HuggingFace(str(tmp_path), pretrained=False)


class TestHub:
    @pytest.fixture
    def cached(self, folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Put a model into a cache, as the hub's client lays it out, and return its folder there."""
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        root, commit = tmp_path / "hub/models--someone--vit", "0" * 40
        (root / "refs").mkdir(parents=True)
        (root / "refs/main").write_text(commit)
        (root / "snapshots").mkdir()
        return changed(folder("vit"), root / "snapshots" / commit)

    def test_a_cached_model_needs_no_network(self, cached: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch):
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("the network was asked")

        (cached / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1]}')
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        monkeypatch.setattr(socket.socket, "connect", refuse)
        backbone = HuggingFace("someone/vit").eval()
        assert backbone.mean.flatten().tolist() == [0.5] * 3
        assert all(map(torch.equal, backbone.parameters(), loaded("vit").parameters()))

    def test_a_cached_model_without_mean_and_std_is_refused(self, cached: Path):
        with pytest.raises(WeightsError, match=r"hf download someone/vit preprocessor_config\.json") as caught:
            HuggingFace("someone/vit")
        assert f"set name: {cached}" in str(caught.value)
        HuggingFace(str(cached)).probe()
        HuggingFace("someone/vit", pretrained=False).probe()

    @pytest.mark.parametrize("resolves", [True, False])
    def test_another_model_is_refused_at_once(self, resolves: bool, monkeypatch: pytest.MonkeyPatch):
        def getaddrinfo(*_: object, **__: object) -> list[object]:
            raise socket.gaierror(-2, "Name or service not known")

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", resolves)
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr("plugins.huggingface.getproxies", dict)
        with pytest.raises(WeightsError) as caught:
            HuggingFace("someone/else")
        message = str(caught.value)
        assert ("HF_HUB_OFFLINE is set" if resolves else "huggingface.co has no address here (Name or") in message
        for part in ("no model someone/else", huggingface_hub.constants.HF_HUB_CACHE, "hf download", "a folder with"):
            assert part in message
        assert len(message.splitlines()) <= 10

    def test_an_unknown_model_is_said_to_be_unknown(self, monkeypatch: pytest.MonkeyPatch):
        from huggingface_hub.errors import RepositoryNotFoundError

        def missing(*_: object, **__: object) -> None:
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

        monkeypatch.setattr("plugins.huggingface.snapshot_download", missing)
        with pytest.raises(ConfigError, match=r"no folder someone/else, and https://.* has no model of that name"):
            HuggingFace("someone/else")


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"name": "resnett", "pretrained": False}, "no folder resnett, .* did you mean 'resnet'"),
            ({"name": "./resnet"}, "no folder ./resnet"),
            ({"name": "resnet"}, "resnet is an architecture, without weights: set pretrained: false"),
            ({"name": "vit", "config": {"hiden_size": 8}}, "vit has no field hiden_size; did you mean 'hidden_size'"),
            ({"name": "vit", "config": {"num_channels": 1}}, "num_channels of vit is set by the argument in_channels"),
            ({"name": "vit", "config": {"hidden_size": "many"}}, r"\bvit\b.*str"),
            ({"name": "resnet", "drop_path": 0.1}, "resnet has no stochastic depth"),
            ({"name": "swin", "drop_path": 1.0}, r"rate in \[0, 1\)"),
            ({"name": "bert"}, "bert cannot be a backbone: it is no vision model\n  use .*Timm"),
            ({"name": "upernet"}, "upernet cannot be a backbone: it is a whole detector or segmenter"),
            ({"name": "timm_wrapper"}, "use the plugin Timm"),
            ({"name": "levit"}, "levit cannot be a backbone: it does not take images alone, of any size: (.|\n)*Timm"),
            (
                {"name": "yolos", "config": {**PLAIN, **MLP, "image_size": [64, 64]}},
                "see no image, and not all of them",
            ),
            pytest.param(
                {"name": "radio", "config": PLAIN, "in_channels": 1},
                "radio takes images of 3 channels only",
                marks=pytest.mark.skipif("radio" not in transformers.CONFIG_MAPPING, reason="new in version 5"),
            ),
        ],
    )
    def test_say_why_and_what_to_do(self, settings: dict[str, Any], message: str):
        unpretrained = {} if settings["name"] == "resnet" and len(settings) == 1 else {"pretrained": False}
        with pytest.raises(ConfigError, match=message) as caught:
            HuggingFace(**{**unpretrained, **settings})
        assert len(str(caught.value).splitlines()) <= 10

    def test_of_folders(self, tmp_path: Path):
        (tmp_path / "notes.txt").write_text("")
        with pytest.raises(WeightsError, match=r"has no config.json, but notes.txt: name the folder"):
            HuggingFace(str(tmp_path))
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(ConfigError, match="cannot read its config"):
            HuggingFace(str(tmp_path))

    def test_of_code_in_a_folder(self, tmp_path: Path):
        config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "mine.py").write_text("from pathlib import Path\nPath('was_run').touch()")
        with pytest.raises(ConfigError, match="cannot read its config"):
            HuggingFace(str(tmp_path))
        assert not Path("was_run").exists()

    def test_of_sizes(self):
        with pytest.raises(ValueError, match="divisible by 16, got 64x100"):
            built("vit")(torch.rand(1, 3, 64, 100))


class TestUse:
    @pytest.mark.parametrize("name", ["swin", "vit", "convnext"])
    def test_exports_and_runs_in_half_precision_and_channels_last(self, name: str, loaded: Any):
        backbone = copy.deepcopy(loaded(name))
        images = torch.rand(2, 3, 64, 96)
        with torch.no_grad():
            wanted = backbone(images)
            exported = torch.export.export(backbone, (images,), strict=False).module()(images)
            with torch.autocast("cpu", torch.bfloat16):
                half = backbone(images)
            backbone.to(memory_format=torch.channels_last)
            last = backbone(images.contiguous(memory_format=torch.channels_last))
        for a, b, c, d in zip(wanted.maps, exported[0], last.maps, half.maps, strict=True):
            torch.testing.assert_close(b, a)
            torch.testing.assert_close(c, a, rtol=1e-4, atol=1e-4)
            assert float((d.float() - a).norm() / a.norm()) < 0.05

    @pytest.mark.parametrize("name", ["resnet", "swin", "dinov2_with_registers"])
    def test_takes_no_memory_on_the_meta_device(self, name: str, folder: Any):
        with torch.device("meta"):
            outlines = HuggingFace(name, pretrained=False, config=CONFIGS[name]), HuggingFace(str(folder(name)))
        real = built(name)
        for outline in outlines:
            assert all(x.is_meta for x in [*outline.parameters(), *outline.buffers()])
            assert (outline.levels, outline.multiple) == (real.levels, real.multiple)
            assert outline.state_dict().keys() == real.state_dict().keys()

    def test_is_built_where_no_gradients_are_wanted(self):
        with torch.no_grad():
            backbone = HuggingFace("resnet", pretrained=False, config=CONFIGS["resnet"])
        assert backbone(torch.rand(2, 3, 32, 32)).maps[-1].requires_grad

    def test_drop_path_is_on_in_training_only(self):
        backbone = HuggingFace("swin", pretrained=False, config=CONFIGS["swin"], drop_path=0.9)
        images = torch.rand(8, 3, 32, 32)
        with torch.no_grad():
            assert not torch.equal(backbone(images).maps[-1], backbone(images).maps[-1])
            backbone.eval()
            assert torch.equal(backbone(images).maps[-1], backbone(images).maps[-1])
            off = copy.deepcopy(built("swin")).train()  # the library's own default is 0.1
            assert torch.equal(off(images).maps[-1], off(images).maps[-1])

    def test_frozen_stages_do_not_change(self, loaded: Any):
        backbone = copy.deepcopy(loaded("vit")).train()
        backbone.freeze(3)  # embeddings and two layers
        before = copy.deepcopy(backbone.state_dict())
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, weight_decay=0.1)
        torch.stack([x.square().mean() for x in backbone(torch.rand(2, 3, 64, 96)).maps]).sum().backward()
        optimizer.step()
        still = {key for key, x in backbone.state_dict().items() if torch.equal(x, before[key])}
        frozen = {key for key in before if re.search(r"\b(embeddings|layers?\.[01])\.", key)}
        assert still == frozen
        assert len(frozen) == 36


def test_random_filters_for_other_channels_are_independent_and_of_the_usual_size():
    def filters(channels: int) -> Tensor:
        backbone = HuggingFace(
            "resnet", pretrained=False, config={**CONFIGS["resnet"], "embedding_size": 64}, in_channels=channels
        )
        return next(backbone.parameters()).detach()

    three, six = filters(3), filters(6)
    assert six.shape[1] == 6
    assert float((six.std() / three.std() - 1).abs()) < 0.1
    assert float(torch.corrcoef(six.transpose(0, 1).flatten(1)).fill_diagonal_(0).abs().max()) < 0.1
