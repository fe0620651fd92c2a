"""Progressive unfreezing against a loop by hand, what rests until its time, resume, schedules that make no sense."""

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from framework.cli.main import main
from framework.data.image_folder import ImageFolder
from framework.errors import ConfigError
from framework.length import RunLength
from framework.schedules import Constant, WarmupCosine
from framework.tasks.classification import Classification
from framework.transfer.unfreezing import ProgressiveUnfreezing
from tests.folders import write_image_folder, write_mask_folder
from tests.framework.tasks.test_segmentation import trainer
from tests.tiny import Tiny

SCHEDULE = {0: "head", 1: 1, 2: "all"}
LENGTH = RunLength((4,) * 3)  # 24 images in batches of 6


def data(tmp_path):
    if not (tmp_path / "set").exists():
        write_image_folder(tmp_path / "set", counts=(8, 4, 3))
    return ImageFolder(str(tmp_path / "set"), batch_size=6, num_workers=0, image_size=24)


def task(optimizer=None, schedule=None, **options):
    torch.manual_seed(3)
    optimizer = optimizer or partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01)
    return Classification(Tiny(), 3, optimizer=optimizer, schedule=schedule or Constant(), **options)


class States(Callback):
    """Keep the state before every step, and what requires a gradient in it."""

    def __init__(self):
        self.states, self.trained, self.batches = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.states.append({name: value.clone() for name, value in module.state_dict().items()})
        self.trained.append({name for name, p in module.named_parameters() if p.requires_grad})
        self.batches.append(batch)


def fit(tmp_path, schedule, model=None, warmup=0.0, epochs=3, **options):
    states, model = States(), model or task()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    callbacks = [ProgressiveUnfreezing(schedule, warmup), states]
    trainer(tmp_path, max_epochs=epochs, callbacks=callbacks, **options).fit(model, data(tmp_path))
    return start, states, model


def opening(name):
    return 8 if "backbone.fine" in name else 4 if "backbone.coarse" in name else 0


def test_each_part_moves_from_its_step_on_and_rests_before_with_its_buffers(tmp_path):
    start, states, _ = fit(tmp_path, SCHEDULE)
    assert len(states.states) == 12
    before = start
    for step, state in enumerate(states.states):
        for name, value in state.items():
            if name.startswith(("backbone", "head")):
                still = torch.equal(value, before[name])
                assert still == (step < opening(name)), (step, name)
        assert states.trained[step] == {n for n in states.trained[-1] if step >= opening(n)}
        before = state


def by_hand(model, batches, openings, rates, momentum=0.9, decay=0.01):
    """SGD with momentum in a loop of its own: what is frozen has no velocity, no decay, and batch norm at rest."""
    velocity = {}
    for step, batch in enumerate(batches):
        frozen = {name for name, _ in model.named_parameters() if step < openings(name)}
        for part in (model.backbone.fine, model.backbone.coarse):
            part.train("backbone." + ("fine" if part is model.backbone.fine else "coarse") + ".0.weight" not in frozen)
        loss = torch.nn.functional.cross_entropy(model(batch["image"]), batch["label"])
        names, parameters = zip(*((n, p) for n, p in model.named_parameters() if n not in frozen), strict=True)
        for name, parameter, gradient in zip(names, parameters, torch.autograd.grad(loss, parameters), strict=True):
            with torch.no_grad():
                gradient = gradient + (decay if parameter.ndim > 1 else 0) * parameter
                velocity[name] = gradient if name not in velocity else momentum * velocity[name] + gradient
                parameter -= rates(name, step) * velocity[name]
    return model.state_dict()


@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_weights_are_those_of_a_loop_by_hand(tmp_path, warmup):
    model = task(backbone_lr_factor=0.5)
    _, states, model = fit(tmp_path, SCHEDULE, model, warmup)

    def rate(name, step):
        since = step - opening(name)
        rising = warmup and opening(name) and since < 3  # a quarter of twelve steps
        return (0.025 if "backbone" in name else 0.05) * (0.01 + 0.99 * since / 3 if rising else 1)

    reference = task()
    reference.train()
    for module in reference.modules():
        module.training = True
    expected = by_hand(reference, states.batches, opening, rate)
    for name, value in model.state_dict().items():
        if name.startswith(("backbone", "head")):
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_fraction_opens_inside_an_epoch(tmp_path):
    _, states, _ = fit(tmp_path, {0: "head", 0.5: "all"}, epochs=1)
    assert [len(names) for names in states.trained] == [2, 2, 10, 10]


def test_what_closes_again_stands_still_though_momentum_would_move_it(tmp_path):
    _, states, _ = fit(tmp_path, {0: "all", 1: "head", 2: ["head", "stage1"]})
    for name, value in states.states[-1].items():
        if "backbone.fine" in name:
            assert torch.equal(value, states.states[3][name])
            assert "running" in name or not torch.equal(value, states.states[0][name])


def test_frozen_for_good_is_never_opened(tmp_path):
    model = task(freeze=["stage0", "backbone.coarse.1.*"])
    start, states, _ = fit(tmp_path, {0: "head", 2: "all"}, model)
    moved = {name for name, value in states.states[-1].items() if not torch.equal(value, start[name])}
    coarse = {"backbone.coarse.0.weight", "backbone.coarse.0.bias"}
    assert {name for name in moved if name.startswith("backbone")} == coarse


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({}, "its first key is 0, such as 0: head"),
        ({5: 1}, "its first key is 0, such as 0: head"),
        ({0: "head", 5: 1, 3: "all"}, "keys rise, got 3 after 5"),
        ({0: "head", 0.5: 1, 2: "all"}, r"got 2 among 0, 0.5, 2"),
        ({0: "head", 1.5: 1}, r"whole epochs, or all of them fractions of the run in \[0, 1\), got 1.5"),
        ({0: "head", "soon": 1}, "keys are epochs or fractions of the run, got 0, soon"),
        ({0: "head", float("inf"): 1}, "keys are epochs or fractions of the run, got 0, inf"),
        ({0: "head", float("nan"): 1}, "keys are epochs or fractions of the run, got 0, nan"),
    ],
)
def test_keys_that_make_no_sense_are_refused(schedule, message):
    with pytest.raises(ConfigError, match=message):
        ProgressiveUnfreezing(schedule)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({0: "head", 1: "stage4"}, "schedule: 1: the network has no part stage4; did you mean 'stage"),
        ({0: "head", 1: 3}, "the backbone has 2 stages, so a number is 0 to 2, not 3"),
        ({0: "head", 1: 1, 2: ["head", "stage1"]}, "2: head, stage1 trains just what is trained before"),
        ({0: "head", 3: "all"}, "epoch 3 never comes, as the run has 3 epochs, from 0 to 2"),
        ({0: "head", 0.01: 1, 0.02: "all"}, "0.01 and 0.02 both begin at step 1"),
        ({0: [], 1: "all"}, "0: the words [] leave nothing to train"),
    ],
)
def test_schedules_that_fit_no_run_are_refused(schedule, message):
    model = task()
    with pytest.raises(ConfigError) as error:
        ProgressiveUnfreezing(schedule).plan(model.parts, frozenset(), LENGTH)
    assert message in str(error.value)


def test_an_entry_that_only_opens_what_is_frozen_for_good_says_so():
    model = task(freeze="all")
    with pytest.raises(ConfigError, match="as 8 parameters are frozen for good"):
        ProgressiveUnfreezing(SCHEDULE).plan(model.parts, model.frozen_names(), LENGTH)


def test_nothing_trained_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="0: the words head leave nothing to train"):
        fit(tmp_path, {0: "head", 1: "all"}, task(freeze="head"))
    with pytest.raises(ConfigError, match="no parameter is trainable"):
        trainer(tmp_path).fit(task(freeze=["all", "head"]), data(tmp_path))


CLASSIFICATION = """
model:
  class_path: Classification
  init_args:
    backbone: {class_path: Timm, init_args: {name: test_resnet, drop_path: 0.1}}
    optimizer: {class_path: AdamW, init_args: {lr: 0.01}}
data:
  class_path: ImageFolder
  init_args: {root: set, image_size: 32, batch_size: 4, num_workers: 0}
"""
SEGMENTATION = """
model:
  class_path: Segmentation
  init_args:
    backbone: {class_path: Timm, init_args: {name: test_resnet}}
    head: LinearHead
    optimizer: {class_path: AdamW, init_args: {lr: 0.01}}
data:
  class_path: MaskFolder
  init_args: {root: set, crop_size: 32, batch_size: 2, num_workers: 0, repeats: 2}
"""
REST = """
trainer:
  max_epochs: 3
  accelerator: cpu
  callbacks:
    - {class_path: EMA, init_args: {decay: 0.8}}
    - {class_path: ProgressiveUnfreezing, init_args: {schedule: {0: head, 0.4: 2, 0.8: all}, warmup: 0.1}}
"""


@pytest.mark.parametrize(
    ("experiment", "write"), [(CLASSIFICATION, write_image_folder), (SEGMENTATION, write_mask_folder)]
)
def test_a_run_goes_on_across_the_boundaries_as_if_it_had_not_been_stopped(tmp_path, capsys, experiment, write):
    write(tmp_path / "set")
    Path("x.yaml").write_text(experiment + REST)

    def last(run_id, *options, code=0):
        assert main(["fit", "--config", "x.yaml", "--run.id", run_id, *options]) == code
        return torch.load(f"runs/x/{run_id}/checkpoints/last.ckpt", weights_only=True)

    whole = last("whole")
    said = capsys.readouterr().out
    assert "trains the head with the last 2 stages of the backbone" in said
    rows = {
        line.split()[0]: line.split() for line in said.splitlines() if line.startswith("  stage") or "head/" in line
    }
    assert rows["head/decay"][-3:] == ["from", "the", "start"]
    assert any("inside" in line for line in said.splitlines() if "stage" in line)
    assert len(Path("runs/x/whole/groups.csv").read_text().splitlines()) >= 6
    for epochs in (1, 2):
        stop = ["--trainer.callbacks+=tests.stop.StopAfter", f"--trainer.callbacks.epochs={epochs}", "--trust", "tests"]
        assert main(["fit", "--config", "x.yaml", *stop, "--run.id", f"stopped{epochs}"]) == 0
        checkpoint = f"runs/x/stopped{epochs}/checkpoints/last.ckpt"
        resumed = last(f"resumed{epochs}", "--ckpt_path", checkpoint)
        for key in ("state_dict", "ema"):
            assert all(torch.equal(whole[key][name], value) for name, value in resumed[key].items())
        states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (whole, resumed)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(v, states[1][k][n]) for k, s in states[0].items() for n, v in s.items())


def test_schedule_show_prints_when_each_group_is_trained(tmp_path, capsys):
    write_image_folder(tmp_path / "set")
    Path("x.yaml").write_text(CLASSIFICATION + REST)
    assert main(["schedule", "show", "x.yaml"]) == 0
    said = capsys.readouterr().out
    groups = said[said.index("parameter groups") : said.index("learning rate")]
    assert "from step 5 (epoch 1, inside)" in groups
    assert "from step 10 (epoch 2, inside)" in groups
    assert "trained parameters" in said[said.index("other schedules") :]


@pytest.mark.parametrize("schedule", [WarmupCosine(), Constant()])
def test_rates_are_zero_while_frozen_and_those_of_the_schedule_when_trained(schedule):
    model = task(schedule=schedule)
    plan = ProgressiveUnfreezing(SCHEDULE, warmup=0.25).plan(model.parts, frozenset(), LENGTH)
    for group in model.partition(plan):
        factor, opened = model.factor(group, plan, 12), opening(group.names[0])
        for step in range(13):
            expected = schedule.factor(step, 12) if step >= opened else 0
            if opened and opened <= step < opened + 3:
                expected *= 0.01 + 0.99 * (step - opened) / 3
            assert factor(step) == pytest.approx(expected), (group.name, step)


def test_a_trial_of_a_few_steps_tries_the_first_entry(tmp_path):
    _, states, _ = fit(tmp_path, {0: "head", 5: "all"}, epochs=20, fast_dev_run=2)
    assert [len(names) for names in states.trained] == [2, 2]


def test_it_is_said_what_a_longer_run_freezes_again(tmp_path, capsys):
    """Half of twice as long a run comes later: what had been opened closes, as the schedule says."""
    write_image_folder(tmp_path / "set")
    halves = REST.replace("{0: head, 0.4: 2, 0.8: all}", "{0: head, 0.5: all}").replace(
        "max_epochs: 3", "max_epochs: 2"
    )
    Path("x.yaml").write_text(CLASSIFICATION + halves)
    assert main(["fit", "--config", "x.yaml", "--run.id", "r"]) == 0
    assert "frozen from step" not in capsys.readouterr().out
    assert main(["fit", "--config", "x.yaml", "--run.id", "r", "--trainer.max_epochs", "6"]) == 0
    assert "parameters that were trained before are frozen from step 8 on" in capsys.readouterr().out


def test_nothing_else_may_decide_which_step_is_the_last(tmp_path):
    gathering = "--trainer.callbacks+=GradientAccumulationScheduler"
    write_image_folder(tmp_path / "set")
    Path("x.yaml").write_text(CLASSIFICATION + REST)
    assert main(["fit", "--config", "x.yaml", gathering, "--trainer.callbacks.scheduling", "{1: 2}"]) == 2
