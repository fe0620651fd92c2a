"""What is frozen stays as it was, to the bit: parameters, statistics of batch norm, and what dropout lets through."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader

from framework.backbone import Features
from framework.heads.dense import LinearHead
from framework.heads.depth_output import Bins
from framework.heads.yolo import YOLO
from framework.tasks.classification import Classification
from framework.tasks.depth import Depth
from framework.tasks.detection import Detection
from framework.tasks.segmentation import Segmentation
from framework.transfer.ema import EMA
from tests.framework.tasks.test_segmentation import trainer
from tests.tiny import Tiny

STEPS = 50


class Dropping(Tiny):
    """Batch norm and dropout in both stages."""

    def __init__(self) -> None:
        super().__init__()
        self.fine.append(nn.Dropout(0.5))
        self.coarse.append(nn.Dropout(0.5))


class Watch(Callback):
    """Note the features of one and the same batch at every step, as training computes them."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        with torch.random.fork_rng(), torch.no_grad():
            state = {name: value.clone() for name, value in module.state_dict().items()}
            features: Features = module.backbone(torch.full((2, 3, 32, 32), 0.5))
            module.load_state_dict(state)  # looking must not move the statistics of what is trained
        self.seen.append(features.maps)


OPTIONS = {
    Classification: {"num_classes": 3},
    Segmentation: {"num_classes": 3, "head": LinearHead},
    Detection: {"num_classes": 3, "head": partial(YOLO, channels=8)},
    Depth: {"depth_range": (0.5, 8.0), "head": LinearHead, "output": Bins(8)},
}


@pytest.mark.parametrize("freeze", ["all", 1])
@pytest.mark.parametrize("task", OPTIONS)
def test_nothing_frozen_moves_in_fifty_steps_of_training(tmp_path, task, freeze):
    decaying = {"optimizer": lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)}
    model = task(Dropping(), freeze=freeze, **OPTIONS[task], **decaying)
    batches = [model.example_batch(4, 32, 32) for _ in range(5)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    watch = Watch()
    fit = trainer(tmp_path, max_epochs=STEPS // len(batches), callbacks=[EMA(0.9), watch], limit_val_batches=0)
    fit.fit(model, DataLoader(batches, batch_size=None))
    assert fit.global_step == STEPS
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    resting = ("backbone.fine.", "backbone.coarse.") if freeze == "all" else ("backbone.fine.",)
    assert not {name for name in moved if name.startswith(resting)}
    trained = {name for name in before if not name.startswith(resting)}
    assert moved >= trained  # every parameter and every count and mean of batch norm
    assert any("running_mean" in name for name in before)
    frozen_maps = [maps[: 2 if freeze == "all" else 1] for maps in watch.seen]
    assert all(torch.equal(a, b) for maps in frozen_maps for a, b in zip(maps, frozen_maps[0], strict=True))
    states = fit.optimizers[0].state
    assert len(states) == sum(parameter.requires_grad for parameter in model.parameters())
