"""What the tests of several processes start: experiments, one after the other, in each of the processes.

usage: two_processes.py EXPERIMENT.yaml NAME 'OPTIONS OF FIT' [NAME 'OPTIONS' ...]
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from framework.backbone import Backbone, Features, Level
from framework.cli.main import main
from framework.tasks.classification import Classification


class Three(Backbone):
    """Three stages without batch norm and dropout, whose gradients are sums over images."""

    def __init__(self, width: int = 6, in_channels: int = 3) -> None:
        super().__init__([Level(width, 8)], multiple=8, in_channels=in_channels)
        self.first = nn.Sequential(nn.Conv2d(in_channels, width, 4, 4), nn.GELU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 2, 2), nn.GELU())
        self.third = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU())
        self.shift = nn.Parameter(torch.zeros(1, width, 1, 1))  # of which the second of two processes has no share

    def extract(self, images: Tensor) -> Features:
        """Compute the map."""
        return Features([self.third(self.second(self.first(images) + self.shift))], [])

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the three stages."""
        first, *others = [list(stage.parameters()) for stage in (self.first, self.second, self.third)]
        return [[*first, self.shift], *others]


class Normed(Three):
    """The same with a batch norm in each stage."""

    def __init__(self, width: int = 6, in_channels: int = 3) -> None:
        super().__init__(width, in_channels)
        for stage in (self.first, self.second, self.third):
            stage.append(nn.BatchNorm2d(width))


class Witness(Callback):
    """Writes down, in every process, the weights after each step, and how many images validation counted.

    Args:
        name: Of the run.
        save_at: Steps after which a checkpoint is written, too; the first also has one in its next validation.
        fail_at: A step in which one process fails.
        fail_rank: Which one.
    """

    def __init__(
        self, name: str, save_at: list[int] | None = None, fail_at: int | None = None, fail_rank: int = 1
    ) -> None:
        self.name, self.save_at, self.fail_at, self.fail_rank = name, save_at or [], fail_at, fail_rank
        self.steps: dict[int, tuple[int, str]] = {}
        self.counted: list[int] = []
        self.inside = False

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """Fail in one process."""
        if trainer.global_step == self.fail_at and trainer.global_rank == self.fail_rank:
            raise RuntimeError("planned failure in one process")

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """Write down the weights, and write the checkpoint."""
        step = trainer.global_step
        if step not in self.steps:
            trained = sum(parameter.requires_grad for parameter in module.parameters())
            self.steps[step] = (trained, digest(dict(module.named_parameters())))
            if step in self.save_at:
                trainer.save_checkpoint(f"{self.name}_{step}.ckpt")

    def on_validation_batch_start(self, trainer: Trainer, module: LightningModule, batch: dict, *_: object) -> None:
        """Compute something in one process alone: processes may need different numbers of forward passes."""
        if trainer.global_rank == 1:
            module(batch["image"])

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """Write a checkpoint inside validation, once."""
        if self.save_at and not self.inside and not trainer.sanity_checking:
            self.inside = True
            trainer.save_checkpoint(f"{self.name}_validating.ckpt")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write down how many images were counted; of detection, the figures tell."""
        if isinstance(module, Classification):
            self.counted.append(int(module.val_metrics.confusion.compute().sum()))  # summed up over processes before

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write everything down."""
        facts = {"steps": self.steps, "counted": self.counted, "class": type(module).__name__}
        Path(f"{self.name}_{trainer.global_rank}.json").write_text(json.dumps(facts))


def digest(weights: Mapping[str, Tensor]) -> str:
    """Return what tells weights apart in any bit."""
    full = [weights[name].detach() for name in sorted(weights)]
    full = [value.full_tensor() if isinstance(value, DTensor) else value for value in full]
    return hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for value in full)).hexdigest()


if __name__ == "__main__":
    experiment, *runs = sys.argv[1:]
    for number, (name, options) in enumerate(zip(runs[::2], runs[1::2], strict=True)):
        for told in ("FRAMEWORK_RUN_ID", "FRAMEWORK_GOES_ON_FROM") if number else ():
            os.environ.pop(told, None)  # by the first process, when it started the second, about the first run
        given = [word.replace("NAME", name) for word in options.split()]
        config = [] if "--config" in given else ["--config", experiment]
        code = main(["fit", *config, "--trust", "tests", "--run.id", name, *given])
        print(f"{name} ended with {code}", flush=True)
        if code:
            sys.exit(code)
