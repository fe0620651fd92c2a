"""The partition of parameters for the optimizer: rates against timm's layer decay, decay, and who shares a group."""

from functools import partial

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from framework.errors import ConfigError
from framework.heads.dense import LinearHead
from framework.tasks.segmentation import Segmentation
from framework.transfer.plan import TrainingPlan
from plugins.timm import Timm
from tests.tiny import Tiny


def task(backbone=None, **options):
    optimizer = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
    return Segmentation(backbone or Tiny(), **{"num_classes": 3, "head": LinearHead, "optimizer": optimizer, **options})


def groups_of(model, plan=None):
    return model.build_optimizer(model.partition(plan)).param_groups


def rate_by_name(model, plan=None):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in groups_of(model, plan) for p in group["params"]}


def test_layer_decay_is_that_of_timm():
    ours = rate_by_name(task(Timm("test_vit", pretrained=False), layer_decay=0.6))
    reference = timm.create_model("test_vit", num_classes=5)
    names = {id(parameter): name for name, parameter in reference.named_parameters()}
    theirs = {
        names[id(p)]: group["lr_scale"]
        for group in param_groups_layer_decay(reference, layer_decay=0.6)
        for p in group["params"]
    }
    compared = [name for name in theirs if not name.startswith("head.")]
    assert len(compared) > 70
    for name in compared:
        assert ours[f"backbone.net.{name}"] == pytest.approx(0.01 * theirs[name]), name
    assert {rate for name, rate in ours.items() if name.startswith("head.")} == {0.01}


def test_every_parameter_is_in_one_group_and_norms_biases_and_tokens_are_not_decayed():
    model = task(Timm("test_vit", pretrained=False), layer_decay=0.5)
    groups = groups_of(model)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters())
    undecayed = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = parameter.ndim <= 1 or name.endswith(("pos_embed", "cls_token"))
        assert (id(parameter) in undecayed) == expected, name
    assert {group["weight_decay"] for group in groups} == {0, 0.1}


def test_given_rates_hold_for_the_smallest_part_that_is_meant():
    rates = {"stage0": 1e-5, "backbone": 5e-5, "head": 1e-3, "backbone.coarse.1.*": 7e-5}
    by_name = rate_by_name(task(learning_rates=rates, backbone_lr_factor=0.1))
    assert {name: rate for name, rate in by_name.items() if "fine" in name} == dict.fromkeys(
        (f"backbone.fine.{n}" for n in ("0.weight", "0.bias", "1.weight", "1.bias")), 1e-5
    )
    assert by_name["backbone.coarse.0.weight"] == 5e-5
    assert by_name["backbone.coarse.1.weight"] == 7e-5
    assert {rate for name, rate in by_name.items() if not name.startswith("backbone")} == {1e-3}


def test_only_what_is_treated_unlike_has_a_group_of_its_own():
    assert [g["name"] for g in groups_of(task())] == [
        "backbone/decay",
        "backbone/no_decay",
        "head/decay",
        "head/no_decay",
    ]
    model = task()
    everything = model.parts.all
    plan = TrainingPlan((0, 5), (model.parts.head | model.parts.stages[1], everything))
    assert [g["name"] for g in groups_of(model, plan)] == [
        "stage0/decay",
        "stage0/no_decay",
        "stage1/decay",
        "stage1/no_decay",
        "head/decay",
        "head/no_decay",
    ]
    norms = TrainingPlan((0, 5), (model.parts.head | model.parts.norms, everything))
    groups = {g["name"]: len(g["params"]) for g in groups_of(model, norms)}
    assert groups == {
        "backbone/decay": 2,
        "backbone/no_decay": 2,
        "backbone/no_decay/2": 4,
        "head/decay": 1,
        "head/no_decay": 3,  # it has a batch norm too
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_decay": 0}, r"model.layer_decay: it is in \(0, 1\], got 0"),
        ({"backbone_lr_factor": -1}, "model.backbone_lr_factor"),
        ({"learning_rates": {"head": -1e-3}}, "that of head is at least 0"),
    ],
)
def test_rates_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        task(**options)


def test_a_rate_for_a_part_that_is_not_there_is_refused():
    model = task(learning_rates={"stage7": 1e-5})
    with pytest.raises(ConfigError, match=r"model.learning_rates: the network has no part stage7; did you mean 'stage"):
        model.partition()
