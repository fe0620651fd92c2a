"""The average of the weights against one computed by hand, and what becomes of it in checkpoints."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch.testing import assert_close

from framework.cli.main import main
from framework.data.image_folder import ImageFolder
from framework.errors import ConfigError
from framework.tasks.classification import Classification
from framework.transfer.ema import EMA
from tests.folders import write_image_folder
from tests.framework.tasks.test_segmentation import trainer
from tests.tiny import Tiny

DECAY = 0.8


def data(tmp_path):
    if not (tmp_path / "set").exists():
        write_image_folder(tmp_path / "set", counts=(8, 4, 3))
    return ImageFolder(str(tmp_path / "set"), batch_size=6, num_workers=0, image_size=24)


def task():
    torch.manual_seed(3)
    return Classification(Tiny(), 3, optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2))


class ByHand(Callback):
    """Average in 64 bits, and look at what validation sees."""

    def __init__(self, decays):
        self.decays, self.average, self.seen, self.trained = iter(decays), None, None, None

    def on_train_start(self, trainer, module):
        self.average = {n: p.double().clone() for n, p in module.state_dict().items() if p.is_floating_point()}

    def on_train_batch_end(self, trainer, module, *_):
        decay, state = next(self.decays), module.state_dict()
        self.average = {n: decay * a + (1 - decay) * state[n].double() for n, a in self.average.items()}
        self.trained = {n: p.clone() for n, p in state.items()}

    def on_validation_batch_end(self, trainer, module, *_):
        self.seen = {n: p.clone() for n, p in module.state_dict().items()}


@pytest.mark.parametrize("warmup", [True, False])
def test_validation_sees_the_average_and_training_never_does(tmp_path, warmup):
    decays = [min(DECAY, (1 + t) / (10 + t)) if warmup else DECAY for t in range(1, 9)]
    by_hand, model = ByHand(decays), task()
    trainer(tmp_path, max_epochs=2, callbacks=[EMA(DECAY, warmup), by_hand]).fit(model, data(tmp_path))
    for name, value in by_hand.average.items():
        assert_close(by_hand.seen[name].double(), value, rtol=1e-5, atol=1e-6)
        assert torch.equal(model.state_dict()[name], by_hand.trained[name])
    changed = [name for name, value in by_hand.average.items() if not torch.equal(value.float(), by_hand.trained[name])]
    assert changed


def test_frozen_weights_are_their_own_average(tmp_path):
    model = task()
    model.backbone.freeze(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    by_hand = ByHand([DECAY] * 8)
    trainer(tmp_path, max_epochs=1, callbacks=[EMA(DECAY), by_hand]).fit(model, data(tmp_path))
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(torch.equal(by_hand.seen[name], before[name]) for name in frozen)


class StopInValidation(Callback):
    """Save a checkpoint and stop in the middle of validation, as Ctrl-C or a failure would."""

    def on_validation_batch_end(self, trainer, module, *_):
        if not trainer.sanity_checking:
            trainer.save_checkpoint("inside.ckpt")
            raise RuntimeError("stop here")


def test_a_checkpoint_written_during_validation_is_as_any_other(tmp_path):
    outside, inside = task(), task()
    whole = trainer(tmp_path, max_epochs=1, limit_val_batches=0, callbacks=[EMA(DECAY)])
    whole.fit(outside, data(tmp_path))
    whole.save_checkpoint("outside.ckpt")
    with pytest.raises(RuntimeError, match="stop here"):
        trainer(tmp_path, max_epochs=1, callbacks=[EMA(DECAY), StopInValidation()]).fit(inside, data(tmp_path))
    first, second = (torch.load(f"{name}.ckpt", weights_only=True) for name in ("outside", "inside"))
    for key in ("state_dict", "ema"):
        assert first[key].keys() == second[key].keys()
        assert all(torch.equal(first[key][name], second[key][name]) for name in first[key])
    assert any(not torch.equal(first["state_dict"][name], value) for name, value in first["ema"].items())
    assert all(torch.equal(value, inside.state_dict()[name]) for name, value in second["ema"].items())


EXPERIMENT = """
model:
  class_path: Classification
  init_args:
    backbone: {class_path: Timm, init_args: {name: test_resnet, drop_path: 0.1}}
    optimizer: {class_path: AdamW, init_args: {lr: 0.01}}
data:
  class_path: ImageFolder
  init_args: {root: set, image_size: 32, batch_size: 4, num_workers: 0}
trainer:
  max_epochs: 3
  accelerator: cpu
  callbacks: [{class_path: EMA, init_args: {decay: 0.8}}]
"""


def fit(*options):
    before = set(Path("runs").glob("[!.]*/*"))
    assert main(["fit", "--config", "x.yaml", *options]) == 0
    (folder,) = set(Path("runs").glob("[!.]*/*")) - before
    return folder, torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


def test_a_run_goes_on_with_its_average_and_its_weights(tmp_path):
    write_image_folder(tmp_path / "set")
    Path("x.yaml").write_text(EXPERIMENT)
    folder, whole = fit()
    stopped, _ = fit("--trainer.callbacks+=tests.stop.StopAfter", "--trust", "tests")
    resumed_folder, resumed = fit("--ckpt_path", str(stopped / "checkpoints/last.ckpt"))
    for key in ("state_dict", "ema"):
        assert all(torch.equal(whole[key][name], resumed[key][name]) for name in whole[key])
    assert (resumed_folder / "metrics.csv").read_text() == (folder / "metrics.csv").read_text()
    without, plain = fit("--ckpt_path", str(stopped / "checkpoints/last.ckpt"), "--trainer.callbacks", "[]")
    assert "ema" not in plain  # and training went on from the weights as trained:
    assert all(torch.equal(plain["state_dict"][name], value) for name, value in whole["ema"].items())
    assert without.is_dir()


def test_a_decay_out_of_range_is_refused():
    with pytest.raises(ConfigError, match=r"decay must be at least 0 and less than 1, got 1\.0"):
        EMA(decay=1.0)


def test_two_averages_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="EMA stands twice"):
        trainer(tmp_path, callbacks=[EMA(DECAY), EMA(0.9)]).fit(task(), data(tmp_path))


class WeightsAlone(Callback):
    """Save a checkpoint of weights alone, as a ModelCheckpoint with `save_weights_only` does."""

    def on_train_end(self, trainer, module):
        trainer.save_checkpoint("weights.ckpt", weights_only=True)


def test_a_checkpoint_of_weights_alone_holds_the_average_and_the_experiment(tmp_path):
    write_image_folder(tmp_path / "set")
    Path("x.yaml").write_text(EXPERIMENT)
    watcher = "--trainer.callbacks+=tests.framework.transfer.test_ema.WeightsAlone"
    _, whole = fit(watcher, "--trust", "tests", "--trainer.max_epochs", "1")
    alone = torch.load("weights.ckpt", weights_only=True)
    assert all(torch.equal(alone["state_dict"][name], value) for name, value in whole["state_dict"].items())
    assert "ema" not in alone
    assert main(["validate", "--ckpt_path", "weights.ckpt", "--trust", "tests"]) == 0
