"""Every task under every head: a training step and a prediction, without data."""

from collections.abc import Iterator
from typing import Any

import torch

from framework.backbone import Backbone
from framework.registry import Advert, advertised
from framework.tasks.base import Task


def heads_by_task() -> Iterator[tuple[Advert, Advert]]:
    """Yield every head of our own that takes any backbone with every task that it serves, as (task, head)."""
    adverts = advertised()
    for advert in adverts.values():
        if advert.kind != "heads" or not advert.module.startswith("framework."):
            continue
        if getattr(advert.load(), "any_levels", True):
            for task in advert.tasks or ():
                yield adverts[task], advert


def build_task(task: Advert, head: Advert, backbone: Backbone) -> Task:
    """Build a small task with its head over a backbone."""
    kind: Any = task.load()
    built: Task = kind.example(backbone, head.load())
    return built


def train_once(task: Task, height: int, width: int, count: int = 2) -> float:
    """Run a training step on made-up images of `height` x `width` pixels; returns the loss.

    Raises:
        ArithmeticError: The loss or a gradient is not finite.
        ValueError: The head, or the whole backbone, got no gradient.
    """
    task.train()
    loss: Any = task.training_step(task.example_batch(count, height, width), 0)
    loss.backward()
    value = float(loss.detach())
    gradients = {name: parameter.grad for name, parameter in task.named_parameters() if parameter.requires_grad}
    dead = [name for name, gradient in gradients.items() if gradient is None and not name.startswith("backbone.")]
    if dead:
        raise ValueError(f"parameters of the head get no gradient: {', '.join(dead[:3])}")
    if all(gradient is None for name, gradient in gradients.items() if name.startswith("backbone.")):
        raise ValueError("no gradient reaches the backbone")
    broken = [name for name, gradient in gradients.items() if gradient is not None and not gradient.isfinite().all()]
    if broken or not torch.isfinite(loss):
        raise ArithmeticError(f"loss {value}, gradients that are not finite: {', '.join(broken[:3]) or 'none'}")
    torch.optim.SGD(task.parameters(), lr=1e-3).step()
    return value


@torch.no_grad()
def predict_once(task: Task, height: int, width: int) -> None:
    """Predict two made-up images of `height` x `width` pixels.

    Raises:
        ValueError: There is not one prediction for each.
    """
    task.eval()
    predictions: Any = task.predict_step(task.example_batch(2, height, width), 0)
    if len(predictions) != 2:
        raise ValueError(f"2 images gave {len(predictions)} predictions")
