"""Running one recorded training step again, and finding where it stops being finite."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor, nn

from framework.clock import key_step
from framework.errors import ConfigError
from framework.tasks.base import Task


@dataclass(frozen=True, slots=True)
class Culprit:
    """The first module whose output is not finite.

    Args:
        name: Its name in the task, and its class.
        bad: Values of its output that are not finite.
        size: Values of its output.
        low: The smallest finite value of its input; None if there is none.
        high: The largest.
        bad_input: Values of its input that are not finite.
        around: Where these came about: the innermost module around it whose own input is finite.
    """

    name: str
    bad: int
    size: int
    low: float | None
    high: float | None
    bad_input: int
    around: str


@dataclass(slots=True)
class Findings:
    """What running a step again showed.

    Args:
        loss: Its loss.
        weights: Parameters and buffers that were not finite before the step.
        culprit: The first module whose output is not finite, if there is one.
        gradients: Parameters whose gradients are not finite.
        trained: How many parameters have a gradient.
    """

    loss: float = float("nan")
    weights: list[str] = field(default_factory=list)
    culprit: Culprit | None = None
    gradients: list[str] = field(default_factory=list)
    trained: int = 0


def replay(record: dict[str, Any], task: Task, device: str) -> Findings:
    """Run a recorded step again, under the randomness that it had.

    Args:
        record: The step, as `read_step` returns it.
        task: A task built from its experiment.
        device: `cpu` or `cuda`; what is drawn is the same only on the device that it was recorded on.

    Raises:
        ConfigError: The task is another one.
    """
    restore(record, task)
    trainer = Trainer(
        accelerator=device, devices=1, precision=record["precision"], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, barebones=False,
    )  # fmt: skip
    precision = trainer.precision_plugin
    precision.convert_module(task)  # in place
    task.to(trainer.strategy.root_device)
    batch = precision.convert_input(trainer.strategy.batch_to_device(record["batch"]))
    findings = Findings(weights=[name for name, value in task.state_dict().items() if not _finite(value)])
    key_step(record["seed"], record["step"], record["batch_idx"], record["rank"])
    with _watched(task, findings), precision.forward_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are trying to `self.log")  # nobody listens here
        output: Any = task.training_step(batch, record["batch_idx"])
    loss = output["loss"] if isinstance(output, dict) else output
    findings.loss = float(loss.detach())
    loss.backward()
    gradients = {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
    findings.trained = len(gradients)
    findings.gradients = [name for name, gradient in gradients.items() if not _finite(gradient)]
    return findings


def restore(record: dict[str, Any], task: Task) -> None:
    """Bring a task to where it was before a recorded step.

    Raises:
        ConfigError: Its classes or its weights are those of another task.
    """
    if list(task.class_names) != list(record["class_names"]):
        raise ConfigError(
            f"the step was recorded with the classes {', '.join(record['class_names'][:8])}, but the data has "
            f"{', '.join(task.class_names[:8])}"
        )
    try:
        task.load_state_dict(record["state_dict"])
    except RuntimeError as error:
        lines = [line.strip()[:160] for line in str(error).splitlines()[1:4]]
        raise ConfigError(f"the step was recorded with another network: {' '.join(lines)}") from error
    task.to(memory_format=task.memory_format)
    task.train()
    task.set_trained(frozenset(record["trained"]))
    task.regularisation().set(SimpleNamespace(**record["rates"]))


@contextmanager
def _watched(task: Task, findings: Findings) -> Iterator[None]:
    """Note the first module whose output is not finite; layers come before what is made of them."""
    names = {module: f"{name} ({type(module).__name__})" for name, module in task.named_modules() if name}
    running: list[tuple[str, Any]] = []  # modules inside each other, with what they were given

    def enter(module: nn.Module, inputs: Any) -> None:
        running.append((names[module], inputs))

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop()
        given, made = list(_floats(inputs)), list(_floats(output))
        if findings.culprit is None and not all(map(_finite, made)):
            sound = (name for name, outer in reversed(running) if all(map(_finite, _floats(outer))))
            findings.culprit = _culprit(names[module], given, made, next(sound, type(task).__name__))

    hooks = [module.register_forward_pre_hook(enter) for module in names]
    hooks += [module.register_forward_hook(leave) for module in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _culprit(name: str, given: list[Tensor], made: list[Tensor], around: str) -> Culprit:
    finite = [value[value.isfinite()] for value in given]
    ends = [(float(value.min()), float(value.max())) for value in finite if value.numel()]
    bad, bad_input = (sum(int((~value.isfinite()).sum()) for value in values) for values in (made, given))
    low, high = (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (None, None)
    return Culprit(name, bad, sum(value.numel() for value in made), low, high, bad_input, around)


def _floats(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors inside tuples, lists and mappings."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.detach()
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _floats(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _floats(inner)


def _finite(value: Tensor) -> bool:
    return bool(value.isfinite().all())
