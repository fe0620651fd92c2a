"""LARS and LAMB against their papers' formulas; all four through a whole run, and going on from saved state."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from framework.cli.main import main
from framework.registry import advertised
from plugins.optimizers import LAMB, LARS, Lion, Muon
from tests.folders import write_image_folder

OPTIMIZERS = [LARS, LAMB, Lion, Muon]
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(6, 5))
GRADIENTS = RNG.normal(size=(3, 6, 5))


def steps(optimizer, weights=WEIGHTS, gradients=GRADIENTS, decay=None, **options):
    """Take a step for each gradient; return the weights after each."""
    parameter = nn.Parameter(torch.tensor(weights))
    group = {"params": [parameter]} | ({"weight_decay": decay} if decay is not None else {})
    made, seen = optimizer([group], **options), []
    for gradient in gradients:
        parameter.grad = None if gradient is None else torch.tensor(gradient)
        made.step()
        seen.append(parameter.detach().numpy().copy())
    return seen


def lars(weights, gradients, rate, momentum, decay, trust):
    """Algorithm 1 of arXiv 1708.03888, at a constant rate."""
    weights, velocity = weights.copy(), np.zeros_like(weights)
    for gradient in gradients:
        norm = np.linalg.norm(weights)
        local = trust * norm / (np.linalg.norm(gradient) + decay * norm) if decay else 1.0
        velocity = momentum * velocity + rate * local * (gradient + decay * weights)
        weights = weights - velocity
        yield weights


def lamb(weights, gradients, rate, decay, beta1=0.9, beta2=0.999, eps=1e-6):
    """Algorithm 2 of arXiv 1904.00962 with the norm itself as scaling function."""
    weights, first, second = weights.copy(), np.zeros_like(weights), np.zeros_like(weights)
    for step, gradient in enumerate(gradients, 1):
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        update = first / (1 - beta1**step) / (np.sqrt(second / (1 - beta2**step)) + eps) + decay * weights
        scale = np.linalg.norm(weights) / np.linalg.norm(update) if decay else 1.0
        weights = weights - rate * scale * update
        yield weights


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_lars_is_that_of_the_paper(decay):
    got = steps(LARS, decay=decay, lr=2.0, momentum=0.9, weight_decay=0.05, trust=0.01)
    np.testing.assert_allclose(got, list(lars(WEIGHTS, GRADIENTS, 2.0, 0.9, decay, 0.01)), rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_lamb_is_that_of_the_paper(decay):
    got = steps(LAMB, decay=decay, lr=0.01, weight_decay=0.05)
    np.testing.assert_allclose(got, list(lamb(WEIGHTS, GRADIENTS, 0.01, decay)), rtol=1e-6)


def test_lamb_corrects_the_bias_from_the_first_gradient_on():
    got = steps(LAMB, gradients=[None, None, *GRADIENTS], lr=0.01, weight_decay=0.05)
    assert np.array_equal(got[1], WEIGHTS)
    np.testing.assert_allclose(got[2:], list(lamb(WEIGHTS, GRADIENTS, 0.01, 0.05)), rtol=1e-6)


@pytest.mark.parametrize("shape", [(6, 5), (8, 3, 3, 3)], ids=["linear", "convolution"])
def test_muon_turns_matrices_alike_in_all_directions_and_leaves_the_rest_to_adamw(shape):
    weights, gradients = np.zeros(shape), RNG.normal(size=(1, *shape))
    step = -steps(Muon, weights, gradients, lr=0.1, weight_decay=0.0, nesterov=False)[0].reshape(shape[0], -1)
    singular = np.linalg.svd(step, compute_uv=False)
    assert singular.min() > 0.6 * singular.max(), "the singular values of the gradient itself differ by more"
    adamw = steps(torch.optim.AdamW, weights, gradients, lr=0.1, betas=(0.9, 0.95), eps=1e-7)[0]
    apart = steps(Muon, weights, gradients, decay=0.0, lr=0.1, weight_decay=0.05, nesterov=False)[0]
    np.testing.assert_allclose(apart, adamw, rtol=1e-5)


def test_muon_follows_the_schedule_in_both_parts():
    matrix, bias = nn.Parameter(torch.ones(6, 5)), nn.Parameter(torch.ones(6))
    optimizer = Muon([{"params": [matrix, bias]}], weight_decay=0.0)
    optimizer.param_groups[0]["lr"] = 0.0
    matrix.grad, bias.grad = torch.randn(6, 5), torch.randn(6)
    optimizer.step()
    assert torch.equal(matrix, torch.ones(6, 5))
    assert torch.equal(bias, torch.ones(6))


def build(optimizer):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5))
    network[0].requires_grad_(False)
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim == 1]
    return network, optimizer([{"params": decayed}, {"params": others, "weight_decay": 0.0}], lr=0.01)


def train(network, optimizer, images):
    for batch in images:
        optimizer.zero_grad()
        network(batch).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_going_on_from_saved_state_gives_the_same_bits_and_frozen_parts_rest(optimizer):
    images = torch.randn(4, 2, 3, 3, 3)
    whole, first = build(optimizer), build(optimizer)
    before = whole[0][0].weight.clone()
    train(*whole, images[:2])
    train(*first, images[:2])
    assert torch.equal(whole[0][0].weight, before)
    assert not torch.equal(whole[0][3].weight, build(optimizer)[0][3].weight)
    file = io.BytesIO()
    torch.save((first[0].state_dict(), first[1].state_dict()), file)
    file.seek(0)
    second = build(optimizer)
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*whole, images[2:])
    train(*second, images[2:])
    for one, other in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(one, other)


EXPERIMENT = """
model:
  class_path: Classification
  init_args:
    backbone: {class_path: Timm, init_args: {name: BACKBONE}}
    optimizer: {class_path: OPTIMIZER, init_args: {lr: 0.01}}
    backbone_lr_factor: 0.5
data: {class_path: ImageFolder, init_args: {root: set, image_size: 32, batch_size: 2, num_workers: 0}}
trainer: {max_epochs: 1, accelerator: cpu, accumulate_grad_batches: 2, gradient_clip_val: 0.5}
run: {id: one}
"""


@pytest.mark.parametrize(
    ("backbone", "optimizer"), [("test_resnet", LARS), ("test_vit", LAMB), ("test_vit", Lion), ("test_resnet", Muon)]
)
def test_a_run_trains_with_the_optimizer_of_that_short_name(tmp_path, capsys, backbone, optimizer):
    write_image_folder(tmp_path / "set", counts=(2, 1, 0))
    text = EXPERIMENT.replace("BACKBONE", backbone).replace("OPTIMIZER", optimizer.__name__)
    (tmp_path / "x.yaml").write_text(text)
    assert main(["fit", "--config", "x.yaml", "--trainer.max_steps", "2"]) == 0, capsys.readouterr().err
    assert f"{optimizer.__name__}, learning rate 0.01" in capsys.readouterr().out
    checkpoint = torch.load(tmp_path / "runs/x/one/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["config"]["model"]["init_args"]["optimizer"]["class_path"].startswith("plugins.optimizers.")
    state = checkpoint["optimizer_states"][0]["state"]
    held = [value for moments in state.values() for value in moments.values() if torch.is_tensor(value)]
    assert held
    assert all(value.isfinite().all() for value in held)


def test_optimizers_are_plugins(capsys):
    adverts = advertised()
    assert [name for name, advert in adverts.items() if advert.kind == "optimizers"] == ["LAMB", "LARS", "Lion", "Muon"]
    assert main(["plugins", "show", "LARS", "lr=0.5"]) == 0
    shown = capsys.readouterr().out
    assert "momentum: float, default 0.9" in shown
    assert "params" not in shown
    assert main(["plugins", "list", "--kind", "optimizers"]) == 0
    assert "You, Gitman" not in capsys.readouterr().out
