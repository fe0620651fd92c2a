"""A run that goes on takes the momenta of its parameters from the checkpoint, and everything else from the command."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader

from framework.errors import ConfigError
from framework.schedules import Constant, WarmupCosine
from framework.tasks.classification import Classification
from framework.transfer.optimizer_state import RatesByStep, keep_hyperparameters, name_state
from tests.framework.tasks.test_segmentation import trainer
from tests.tiny import Tiny

BATCHES = 3
FIRST = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}


class FirstStep(Callback):
    """Note the gradients of the first step, and what is before and after it."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if not hasattr(self, "gradients"):
            self.before = {name: value.detach().clone() for name, value in module.named_parameters()}
            self.gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if not hasattr(self, "after"):
            self.after = {name: value.detach().clone() for name, value in module.named_parameters()}
            self.rates = {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}


@pytest.fixture
def fit(tmp_path):
    """Train the same network on the same batches, from a checkpoint or not; return where it was saved, and the task."""

    def run(epochs, checkpoint=None, optimizer=FIRST, watch=None, **options):
        torch.manual_seed(0)
        options = {"schedule": Constant(), **options}
        model = Classification(Tiny(), num_classes=3, optimizer=partial(AdamW, **optimizer), **options)
        batches = [model.example_batch(4, 32, 32) for _ in range(BATCHES)]
        loop = trainer(tmp_path, max_epochs=epochs, limit_val_batches=0, callbacks=[watch] if watch else [])
        loop.fit(model, DataLoader(batches, batch_size=None), ckpt_path=checkpoint)
        path = tmp_path / f"{len(list(tmp_path.glob('*.ckpt')))}.ckpt"
        loop.save_checkpoint(path)
        return path, model

    return run


def state_of(path):
    """Return the optimizer's state by parameter name."""
    return torch.load(path, weights_only=True)["optimizer_states"][0]["state"]


def same(first, second):
    """Tell whether two nested states are equal to the bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def test_a_run_that_changes_nothing_goes_on_to_the_bit(fit):
    options = {"schedule": WarmupCosine(warmup=0.3), "backbone_lr_factor": 0.5}
    whole, _ = fit(4, **options)
    short, _ = fit(2, schedule=Stretched(2, WarmupCosine(warmup=0.3)), backbone_lr_factor=0.5)
    resumed, _ = fit(4, checkpoint=short, **options)
    one, other = (torch.load(path, weights_only=True) for path in (whole, resumed))
    assert same(one["state_dict"], other["state_dict"])
    assert same(one["optimizer_states"], other["optimizer_states"])
    assert one["lr_schedulers"] == other["lr_schedulers"]


class Stretched:
    """A schedule as a run of more epochs would have it."""

    def __init__(self, times, schedule):
        self.times, self.schedule = times, schedule

    def factor(self, step, total):
        return self.schedule.factor(step, total * self.times)


def test_hyperparameters_given_anew_count_from_the_first_step_on(fit):
    short, _ = fit(1)
    state, watch = state_of(short), FirstStep()
    given = {"lr": 0.05, "betas": (0.8, 0.9), "weight_decay": 0.3}
    fit(2, short, given, watch, backbone_lr_factor=0.5)
    assert set(watch.gradients) == set(state)
    assert {name.partition("/")[0][:4]: rate for name, rate in watch.rates.items()} == {"back": 0.025, "head": 0.05}
    for name, gradient in watch.gradients.items():  # Loshchilov and Hutter, arXiv 1711.05101, algorithm 2
        rate = given["lr"] * (0.5 if name.startswith("backbone.") else 1.0)
        decay = given["weight_decay"] if watch.before[name].ndim > 1 else 0.0
        first = 0.8 * state[name]["exp_avg"] + 0.2 * gradient
        second = 0.9 * state[name]["exp_avg_sq"] + 0.1 * gradient**2
        step = BATCHES + 1
        moved = (first / (1 - 0.8**step)) / ((second / (1 - 0.9**step)).sqrt() + 1e-8)
        expected = watch.before[name] * (1 - rate * decay) - rate * moved
        torch.testing.assert_close(watch.after[name], expected, rtol=1e-5, atol=1e-7)
        assert not torch.allclose(watch.after[name], watch.before[name] - FIRST["lr"] * moved, rtol=1e-3, atol=1e-6)


SPLITS = {
    "layer decay": ({}, {"layer_decay": 0.5}),
    "rates of parts": ({"layer_decay": 0.5}, {"learning_rates": {"stage0": 1e-3, "head": 1e-2}}),
    "thawed": ({"freeze": 1}, {"freeze": 0}),
    "frozen": ({"freeze": 0}, {"freeze": 1}),
    "thawed and split": ({"freeze": "all"}, {"layer_decay": 0.5}),
}


@pytest.mark.parametrize(("before", "after"), SPLITS.values(), ids=SPLITS.keys())
def test_momenta_follow_their_parameters_into_other_groups(fit, before, after):
    short, _ = fit(1, **before)
    trained, watch = state_of(short), FirstStep()
    resumed, model = fit(2, short, FIRST, watch, **after)
    state, of = state_of(resumed), dict(model.named_parameters())
    for name, parameter in of.items():
        known = trained.get(name, {"step": torch.tensor(0.0)})
        if parameter.requires_grad:
            assert state[name]["step"] == known["step"] + BATCHES
            assert name in watch.gradients
        else:
            assert same(state[name], known)  # kept for when it is trained again
    assert any(not parameter.requires_grad for parameter in of.values()) == (after.get("freeze", 0) != 0)
    groups = torch.load(resumed, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert sorted(name for group in groups for name in group["params"]) == sorted(of)


def test_momenta_are_dealt_out_exactly(fit):
    short, _ = fit(1)
    _, model = fit(1, layer_decay=0.25)
    optimizer = model.trainer.optimizers[0]
    lengths = [len(group["params"]) for group in optimizer.param_groups]
    optimizer.load_state_dict(torch.load(short, weights_only=True)["optimizer_states"][0])
    assert [len(group["params"]) for group in optimizer.param_groups] == lengths
    saved = state_of(short)
    for name, parameter in model.named_parameters():
        assert same(dict(optimizer.state[parameter]), saved[name])


def test_the_rate_at_every_step_is_that_of_a_run_that_was_not_stopped():
    def build():
        optimizer = SGD([{"params": [nn.Parameter(torch.ones(2))], "lr": rate} for rate in (0.1, 0.3)], lr=1.0)
        return optimizer, RatesByStep(optimizer, lambda step: WarmupCosine(warmup=0.2).factor(step, 10))

    optimizer, whole = build()
    for _ in range(10):
        resumed_optimizer, resumed = build()
        resumed.load_state_dict(whole.state_dict())
        assert [g["lr"] for g in resumed_optimizer.param_groups] == [g["lr"] for g in optimizer.param_groups]
        assert resumed.get_last_lr() == whole.get_last_lr()
        for each, schedule in ((optimizer, whole), (resumed_optimizer, resumed)):
            each.step()
            schedule.step()
        assert [g["lr"] for g in resumed_optimizer.param_groups] == [g["lr"] for g in optimizer.param_groups]


def parts(split, rate):
    """Return two layers, their optimizer in one group or two after a step, and its names."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    named = dict(model.named_parameters())
    names = (
        [["1.weight", "1.bias"], ["0.weight", "0.bias"]] if split else [["0.bias", "1.bias", "0.weight", "1.weight"]]
    )
    optimizer = AdamW([{"params": [named[name] for name in group]} for group in names], lr=rate)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return model, optimizer, names


@pytest.mark.parametrize("split", [False, True])
def test_sharded_strategies_load_by_name_and_keep_hyperparameters_too(split):
    model, optimizer, names = parts(False, 0.1)
    saved = name_state(optimizer.state_dict(), names)
    expected = {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}
    other, fresh, names = parts(split, 0.7)
    keep_hyperparameters(fresh, names)
    for parameter in other.parameters():
        fresh.state[parameter]["exp_avg"].zero_()
    # What Lightning's ModelParallelStrategy does with a checkpoint in one file.
    set_optimizer_state_dict(other, fresh, saved, options=StateDictOptions(full_state_dict=True))
    assert [group["lr"] for group in fresh.param_groups] == [0.7] * len(names)
    for name, parameter in other.named_parameters():
        assert same(dict(fresh.state[parameter]), dict(expected[name]))


def test_a_checkpoint_without_names_goes_on_in_the_same_groups_alone():
    _, optimizer, names = parts(False, 0.1)
    numbered = optimizer.state_dict()
    _, fresh, _ = parts(False, 0.7)
    keep_hyperparameters(fresh, names)
    fresh.load_state_dict(numbered)
    assert fresh.param_groups[0]["lr"] == 0.7
    assert same(fresh.state_dict()["state"], numbered["state"])
    _, split, names = parts(True, 0.7)
    keep_hyperparameters(split, names)
    with pytest.raises(ConfigError, match=r"has 1 groups of parameters without names, .* this run has 2 others"):
        split.load_state_dict(numbered)
