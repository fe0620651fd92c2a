"""Dropout and stochastic depth follow the plan, epoch by epoch, also in a run that goes on in the middle of one."""

from typing import NamedTuple

import pytest
import timm
import torch
from lightning.pytorch import Callback
from torch import nn
from torchvision.ops import StochasticDepth

from framework.data.image_folder import ImageFolder
from framework.data.progressive import Progressive
from framework.errors import ConfigError
from framework.heads.classification import LinearClassifier
from framework.regularisation import Regularisation
from framework.tasks.classification import Classification
from plugins.dinov2 import DINOv2
from plugins.huggingface import HuggingFace
from plugins.timm import Timm
from tests.folders import write_image_folder
from tests.framework.tasks.test_segmentation import trainer
from tests.tiny import Tiny


class Rates(NamedTuple):
    dropout: float | None = None
    drop_path: float | None = None


class Net(nn.Module):
    """Something with stochastic depth under a head with dropout."""

    def __init__(self, backbone, dropout=0.0):
        super().__init__()
        self.backbone, self.head = backbone, nn.Sequential(nn.Dropout(dropout), nn.Dropout2d(dropout))


def torchvisions():
    return nn.Sequential(*(StochasticDepth(rate, "row") for rate in (0.0, 0.1, 0.2)))


def huggingfaces():
    config = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 2}
    return HuggingFace("swin", pretrained=False, config=config, drop_path=0.3)


def rates(network):
    return [float(m.p if isinstance(m, StochasticDepth) else m.drop_prob) for m in network.modules() if dropping(m)]


def dropping(module):
    return isinstance(module, StochasticDepth) or isinstance(getattr(module, "drop_prob", None), float)


@pytest.mark.parametrize(
    "make",
    [lambda: Timm("test_convnext", drop_path=0.3), lambda: Timm("test_vit", drop_path=0.3), torchvisions, huggingfaces,
     lambda: DINOv2("vits14", drop_path=0.3, layers=[2])],
    ids=["convnext of timm", "vit of timm", "torchvision", "transformers", "DINOv2"],
)  # fmt: skip
def test_stochastic_depth_of_every_library_keeps_its_rise_with_depth(make):
    network = Net(make())
    built = rates(network)
    assert max(built) > min(built)
    regularisation = Regularisation(network)
    for highest in (0.4, 0.0, 0.8):
        regularisation.set(Rates(drop_path=highest))
        assert rates(network) == pytest.approx([rate * highest / max(built) for rate in built])
        assert max(rates(network)) == highest
    assert network.head[0].p == 0.0


def test_dropout_is_that_of_the_head_alone():
    network = Net(nn.Sequential(nn.Dropout(0.7), torchvisions()), dropout=0.1)
    Regularisation(network).set(Rates(dropout=0.25))
    assert (network.head[0].p, network.head[1].p, network.backbone[0].p) == (0.25, 0.25, 0.7)
    assert rates(network) == [0.0, 0.1, 0.2]


def test_what_is_not_scheduled_stays_as_it_was_built():
    network = Net(torchvisions(), dropout=0.1)
    Regularisation(network).set(Rates())
    assert network.head[0].p == 0.1
    assert rates(network) == [0.0, 0.1, 0.2]


def test_the_rates_are_those_that_training_draws_with():
    layer = timm.layers.DropPath(0.1)
    network = Net(nn.Sequential(layer, StochasticDepth(0.1, "row")))
    Regularisation(network).set(Rates(drop_path=0.75))
    for module in network.backbone:
        dropped = (module.train()(torch.ones(4000, 1)) == 0).float().mean()
        assert float(dropped) == pytest.approx(0.75, abs=0.03)
        assert torch.equal(module.eval()(torch.ones(8, 1)), torch.ones(8, 1))


# In training.


class Killed(Exception):
    """A run ends without a word."""


class Recorder(Callback):
    """Notes the rates at each step; after some steps it saves a checkpoint and kills the run."""

    def __init__(self, breaks_after=None):
        self.breaks_after, self.seen = breaks_after, []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append((trainer.current_epoch, pl_module.head.dropout.p, max(rates(pl_module), default=None)))
        if trainer.global_step == self.breaks_after:
            trainer.save_checkpoint("broken.ckpt")
            raise Killed


def data(tmp_path, plan):
    if not (tmp_path / "set").exists():
        write_image_folder(tmp_path / "set", counts=(4, 1, 0))
    return ImageFolder(str(tmp_path / "set"), batch_size=4, num_workers=0, image_size=32, progressive=plan)


def task(backbone=None, **options):
    torch.manual_seed(0)
    head = lambda *given: LinearClassifier(*given, dropout=0.1)  # noqa: E731
    return Classification(backbone or Timm("test_convnext", drop_path=0.2), num_classes=3, head=head, **options)


def fit(tmp_path, model, plan, recorder, checkpoint=None):
    runner = trainer(tmp_path, max_epochs=4, callbacks=[recorder])
    runner.fit(model, data(tmp_path, plan), ckpt_path=checkpoint, weights_only=True)
    return recorder.seen


def test_a_run_that_goes_on_in_the_middle_of_an_epoch_ends_with_the_same_bits(tmp_path):
    plan = Progressive(dropout=[0.2, 0.7], drop_path=[0.1, 0.6])
    whole = task()
    seen = fit(tmp_path, whole, plan, Recorder())
    assert seen == [(epoch, 0.2, 0.1) for epoch in (0, 1) for _ in range(3)] + [
        (epoch, 0.7, 0.6) for epoch in (2, 3) for _ in range(3)
    ]
    with pytest.raises(Killed):
        fit(tmp_path, task(), plan, Recorder(breaks_after=8))
    resumed = task()
    seen = fit(tmp_path, resumed, plan, Recorder(), "broken.ckpt")
    assert seen == [(2, 0.7, 0.6), *[(3, 0.7, 0.6)] * 3]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_frozen_layers_rest_whatever_is_scheduled(tmp_path):
    model = task(freeze="all")
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    fit(tmp_path, model, Progressive(drop_path=[0.5, 0.9]), Recorder())
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    model.train()
    assert max(rates(model)) == 0.9
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model.backbone(images).maps[-1], model.backbone.eval()(images).maps[-1])


# At the door.


@pytest.mark.parametrize(
    "backbone", [lambda: Tiny(), lambda: Timm("test_convnext", drop_path=0.0)], ids=["no such layers", "rate 0"]
)
def test_a_plan_for_stochastic_depth_that_is_not_there_is_refused_with_the_remedy(tmp_path, backbone):
    model = task(backbone())
    with pytest.raises(ConfigError, match=r"set drop_path of the backbone above 0, such as model.backbone.drop_path"):
        model.check_data(data(tmp_path, Progressive(drop_path=[0.0, 0.1])))
    model.check_data(data(tmp_path, Progressive(drop_path=[0.0, 0.0])))
    model.check_data(data(tmp_path, None))


def test_a_plan_for_dropout_that_is_not_there_is_refused_with_the_remedy(tmp_path):
    model = task()
    model.head.dropout = nn.Identity()
    with pytest.raises(ConfigError, match="the head has no dropout layer: take a head with one"):
        model.check_data(data(tmp_path, Progressive(dropout=[0.1, 0.2])))


def test_a_plan_needs_a_number_of_epochs(tmp_path):
    runner = trainer(tmp_path, max_epochs=-1, max_steps=2)
    with pytest.raises(ConfigError, match=r"give trainer\.max_epochs"):
        runner.fit(task(), data(tmp_path, Progressive(dropout=[0.1, 0.2])))
