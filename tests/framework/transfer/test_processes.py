"""Two processes against one: unfreezing, averages, checkpoints and metrics under DDP and FSDP2, for real."""

import csv
import json
import os
import socket
import subprocess
import sys
from contextlib import chdir
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from framework.backbone import Features
from framework.cli.main import main
from framework.errors import ConfigError
from framework.heads.decoders import UNet
from framework.heads.dense import LinearHead
from framework.tasks.classification import Classification
from framework.tasks.depth import Depth
from framework.tasks.segmentation import Segmentation
from framework.transfer.distributed import before_toggle
from framework.transfer.sharding import gather, local_part, parts, scatter, shard, spread_like, whole
from plugins.timm import Timm
from tests.folders import write_image_folder
from tests.framework.transfer.two_processes import Three, digest
from tests.tiny import Tiny

HERE = "tests.framework.transfer.two_processes"
REPOSITORY = Path(__file__).parents[3]
VALIDATED = 15  # images, not divisible by two processes
EXPERIMENT = f"""
model:
  class_path: Classification
  init_args:
    backbone: {{class_path: {HERE}.Three}}
    optimizer: {{class_path: AdamW, init_args: {{lr: 0.02}}}}
data:
  class_path: ImageFolder
  init_args: {{root: set, image_size: 32, batch_size: 2, num_workers: 0}}
trainer:
  max_epochs: 3
  accelerator: cpu
  accumulate_grad_batches: 2
  gradient_clip_val: 0.5
  enable_progress_bar: false
  callbacks:
    - {{class_path: EMA, init_args: {{decay: 0.8}}}}
    - {{class_path: ProgressiveUnfreezing, init_args: {{schedule: {{0: head, 0.2: 1, 0.65: all}}}}}}
"""
DETECTION = f"""
model:
  class_path: Detection
  init_args:
    backbone: {{class_path: {HERE}.Three}}
    head: {{class_path: FCOS, init_args: {{channels: 64, convolutions: 1}}}}
    optimizer: {{class_path: AdamW, init_args: {{lr: 0.005}}}}
data:
  class_path: SyntheticScenesDetection
  init_args: {{train: 12, val: 5, test: 3, size: [48, 64], batch_size: 2, num_workers: 0, scale: [1.0, 1.0]}}
trainer:
  max_epochs: 2
  accelerator: cpu
  enable_progress_bar: false
  callbacks:
    - {{class_path: EMA, init_args: {{decay: 0.8}}}}
    - {{class_path: ProgressiveUnfreezing, init_args: {{schedule: {{0: head, 0.5: all}}}}}}
"""
STEPS, UNFREEZES = 9, (2, 6)  # three steps an epoch: the first boundary lies inside an epoch
WITNESS = f"--trainer.callbacks+={HERE}.Witness --trainer.callbacks.name=NAME"
SAVE = "--trainer.callbacks.save_at"
DDP = f"--trainer.devices=2 --trainer.strategy=ddp {WITNESS}"
FSDP2 = f"--trainer.devices=2 --trainer.strategy=fsdp2 {WITNESS}"
NORMED = f"--model.backbone={HERE}.Normed"
RUNS = {
    "ddp": f"{DDP} {SAVE}=[2,7]",
    "ddp_resumed": f"{DDP} --ckpt_path ddp_2.ckpt",
    "fsdp2": f"{FSDP2} {SAVE}=[2,7]",
    "fsdp2_resumed": f"{FSDP2} --ckpt_path fsdp2_2.ckpt",
    "ddp_to_fsdp2": f"{FSDP2} --ckpt_path ddp_7.ckpt",
    "normed": f"{FSDP2} {NORMED} {SAVE}=[4]",
    "normed_resumed": f"{FSDP2} {NORMED} --ckpt_path normed_4.ckpt",
}
DETECTION_RUNS = {
    "detection": f"--config d.yaml {DDP} {SAVE}=[2]",
    "detection_resumed": f"--config d.yaml {DDP} --ckpt_path detection_2.ckpt",
}
RESUMED = [name for name in RUNS if name.endswith("_resumed")]


def start(command, folder, **environment):
    """Start a process that finds the tests as this one does."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A folder with the experiment, its data, and the run of one process, whose batches are twice as large."""
    folder = tmp_path_factory.mktemp("processes")
    write_image_folder(folder / "set", counts=(8, VALIDATED // 3, 2))
    (folder / "x.yaml").write_text(EXPERIMENT)
    (folder / "d.yaml").write_text(DETECTION)
    with chdir(folder):
        options = ["--trust", "tests", "--run.id", "one", "--data.batch_size", "4"]
        assert main(["fit", "--config", "x.yaml", *options]) == 0
        assert main(["fit", "--config", "d.yaml", *options]) == 0
    return folder


@pytest.fixture(scope="module")
def launched(experiment):
    """The folder, after two processes have done all runs."""
    driver = REPOSITORY / "tests/framework/transfer/two_processes.py"
    runs = {**RUNS, **DETECTION_RUNS}
    process = start([str(driver), "x.yaml", *(part for run in runs.items() for part in run)], experiment)
    try:
        said, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, said[-4000:]
    return experiment


@cache
def facts(folder, name):
    """Return what both processes wrote down about a run."""
    return [json.loads((folder / f"{name}_{rank}.json").read_text()) for rank in (0, 1)]


def last(folder, name):
    return torch.load(run(folder, name) / "checkpoints/last.ckpt", weights_only=True)


def run(folder, name):
    return folder / "runs" / ("d" if "detection" in name else "x") / name.removeprefix("detection_of_")


def metrics(folder, name):
    with (run(folder, name) / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def assert_same_run(folder, name, reference):
    """Weights, their average, momenta and figures are equal within what float32 sums in another order differ by."""
    one, two = last(folder, reference), last(folder, name)
    for key in ("state_dict", "ema"):
        assert_close(two[key], one[key], rtol=1e-4, atol=1e-5)
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (one, two)]
    assert_close(states[1], states[0], rtol=1e-3, atol=1e-5)
    assert_close(metrics(folder, name), metrics(folder, reference), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "normed"])
def test_processes_agree_after_every_step(launched, name):
    first, second = facts(launched, name)
    assert first["steps"] == second["steps"]
    assert len(first["steps"]) == STEPS + 1
    assert len({weights for _, weights in first["steps"].values()}) == STEPS + 1  # each step changes something
    assert ("FSDP" in first["class"]) is (name != "ddp")


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_processes_do_what_one_does_with_twice_the_batch(launched, name):
    trained = {int(step): count for step, (count, _) in facts(launched, name)[0]["steps"].items()}
    assert [trained[step] < trained[step + 1] for step in UNFREEZES] == [True, True]  # the step after trains more
    assert_same_run(launched, name, "one")


@pytest.mark.parametrize("name", RUNS)
def test_no_validated_image_is_counted_twice(launched, name):
    for fact in facts(launched, name):
        assert set(fact["counted"][1 - ("resumed" in name or "_to_" in name) :]) == {
            VALIDATED
        }  # the first: sanity check


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_with_the_same_bits(launched, name):
    whole_run, resumed = (facts(launched, run)[0]["steps"] for run in (name.removesuffix("_resumed"), name))
    assert all(weights == whole_run[step][1] for step, (_, weights) in resumed.items())
    assert metrics(launched, name) == metrics(launched, name.removesuffix("_resumed"))
    one, two = last(launched, name.removesuffix("_resumed")), last(launched, name)
    assert_close(
        [two[key] for key in ("state_dict", "ema")], [one[key] for key in ("state_dict", "ema")], rtol=0, atol=0
    )


def test_two_processes_detect_as_one_does_with_twice_the_batch(launched):
    first, second = facts(launched, "detection")
    assert first["steps"] == second["steps"]
    trained = {int(step): count for step, (count, _) in first["steps"].items()}
    assert trained[3] < trained[4]
    one, two = (metrics(launched, name) for name in ("detection_of_one", "detection"))
    assert [row["val/ap50"] for row in two] == pytest.approx([row["val/ap50"] for row in one], abs=1e-3)
    assert_close(last(launched, "detection")["ema"], last(launched, "detection_of_one")["ema"], rtol=1e-3, atol=1e-4)


def test_a_resumed_detector_ends_with_the_same_bits(launched):
    one, two = last(launched, "detection"), last(launched, "detection_resumed")
    assert metrics(launched, "detection") == metrics(launched, "detection_resumed")
    keys = ("state_dict", "ema", "score_threshold")
    assert_close([two[key] for key in keys], [one[key] for key in keys], rtol=0, atol=0)


def test_one_strategy_goes_on_where_another_was(launched):
    assert_same_run(launched, "ddp_to_fsdp2", "ddp")


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_a_checkpoint_from_inside_validation_has_the_weights_as_trained(launched, name):
    inside = torch.load(launched / f"{name}_validating.ckpt", weights_only=True)
    step = str(inside["global_step"])
    assert digest(inside["ema"]) == facts(launched, name)[0]["steps"][step][1]
    assert any(not torch.equal(inside["state_dict"][key], value) for key, value in inside["ema"].items())


def test_one_process_validates_what_two_have_trained(launched, monkeypatch, capsys):
    monkeypatch.chdir(launched)
    best = "runs/x/fsdp2/checkpoints/best.ckpt"
    alone = ["--trainer.devices=1", "--trainer.strategy=auto", "--trainer.callbacks", "[]"]
    assert main(["validate", "--ckpt_path", best, "--trust", "tests", "--run.id", "alone", *alone]) == 0
    figures, trained = (json.loads(Path(f"runs/x/{name}/metrics.json").read_text()) for name in ("alone", "fsdp2"))
    assert_close(figures["val/loss"], trained["val/loss"], rtol=1e-5, atol=1e-6)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow
def test_two_nodes_under_torchrun_do_what_one_process_does(experiment):
    join = f"--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:{free_port()} --rdzv-id nodes"
    join += " --local-addr 127.0.0.1 -m framework.cli.main fit --config x.yaml --trust tests"
    options = "--trainer.num_nodes 2 --trainer.devices 1 --trainer.strategy ddp"
    command = ["-m", "torch.distributed.run", *join.split(), *options.split()]
    nodes = [start(command, experiment, GLOO_SOCKET_IFNAME="lo") for _ in range(2)]
    try:
        said = [node.communicate(timeout=240)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)[-4000:]
    assert "2 nodes of 1 x cpu" in "".join(said)
    assert_same_run(experiment, "nodes", "one")


# What can be told without a second process.


@pytest.fixture
def mesh(tmp_path):
    """Processes to spread over: this one."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    torch.distributed.destroy_process_group()


BACKBONES = {
    "CNN": lambda: Timm("test_resnet"),
    "plain ViT": lambda: Timm("test_vit"),
    "hierarchical": lambda: Timm("test_convnext"),
}


@pytest.mark.parametrize("make", BACKBONES.values(), ids=BACKBONES)
def test_a_spread_network_computes_what_the_whole_one_does(mesh, make):
    torch.manual_seed(0)
    plain, spread = (Classification.example(make()) for _ in range(2))
    spread.load_state_dict(plain.state_dict())
    groups = parts(spread.backbone)
    inside = {id(parameter) for part in groups for parameter in part.parameters()}
    covered = sum(parameter.numel() for parameter in spread.backbone.parameters() if id(parameter) in inside)
    assert covered > 0.8 * sum(parameter.numel() for parameter in spread.backbone.parameters())
    assert len(groups) >= len(spread.backbone.stages()) - 1
    for _ in range(2):  # a second call changes nothing
        shard(spread, spread.backbone, mesh)
    batch = plain.example_batch(2, 64, 64)
    for task in (plain, spread):
        torch.manual_seed(1)
        task.compute_loss(task(batch["image"]), batch["label"]).backward()
    for one, two in zip(plain.parameters(), spread.parameters(), strict=True):
        assert isinstance(two, DTensor)
        assert_close(local_part(two.grad), one.grad, rtol=1e-4, atol=1e-6)


DENSE = {
    "depth": lambda: Depth.example(Tiny()),
    "depth, a head of its own size": lambda: Depth.example(Tiny(), UNet),
    "segmentation": lambda: Segmentation.example(Tiny(), LinearHead),
    "segmentation, padded around": lambda: Segmentation(Tiny(), 3, LinearHead, padding="around"),
}


@pytest.mark.parametrize("make", DENSE.values(), ids=DENSE)
def test_a_spread_dense_head_computes_what_the_whole_one_does_whichever_way_it_is_called(mesh, make):
    plain, spread = make(), make()
    spread.load_state_dict(plain.state_dict())
    shard(spread, spread.backbone, mesh)
    images = plain.example_batch(2, 32, 44)["image"]
    one, two = plain(images), spread(images)
    assert_close(one, two)
    for result in (one, two):
        result.square().mean().backward()
    for whole_one, part in zip(plain.parameters(), spread.parameters(), strict=True):
        assert_close(local_part(part.grad), whole_one.grad, rtol=1e-4, atol=1e-6)


class Reaching(Tiny):
    """Calls a layer of its first stage by itself, past the stage, and reads a weight of the second."""

    def extract(self, images):
        fine, coarse = super().extract(images).maps
        again = self.fine[2](self.fine[1](self.fine[0](images)))
        return Features([fine, coarse + nn.functional.conv2d(again, self.coarse[0].weight, stride=2)], [])


def test_what_is_not_called_itself_is_gathered_with_the_rest(mesh):
    assert len(parts(Tiny())) == 2  # both stages as wholes
    spread = Classification.example(Reaching())
    shard(spread, spread.backbone, mesh)
    gathered = {name for name, module in spread.backbone.named_modules() if isinstance(module, FSDPModule)}
    assert gathered == {"fine.0", "fine.1", "coarse.1"}
    spread(spread.example_batch(2, 32, 32)["image"]).sum().backward()
    assert all(parameter.grad is not None for parameter in spread.parameters())


def test_what_is_toggled_stays_toggled(mesh):
    spread = Classification.example(Three())
    shard(spread, spread.backbone, mesh)
    images = spread.example_batch(2, 32, 32)["image"]
    spread(images)
    gather(spread)
    before_toggle(spread)
    for parameter in spread.backbone.parameters():
        parameter.requires_grad_(False)
    spread(images).sum().backward()
    assert {name for name, p in spread.named_parameters() if p.grad is not None} == {
        "head.classify.weight",
        "head.classify.bias",
    }


def test_whole_tensors_come_back_as_they_were(mesh):
    spread = Classification.example(Three())
    before = {name: value.clone() for name, value in spread.state_dict().items()}
    shard(spread, spread.backbone, mesh)
    gather(spread)
    assert not any(isinstance(parameter, DTensor) for parameter in spread.parameters())
    scatter(spread)
    state = spread.state_dict()
    assert whole(state, keep=False) == {}
    assert_close(whole(state, keep=True), before, rtol=0, atol=0)
    spread.load_state_dict({name: spread_like(value + 1, state[name]) for name, value in before.items()})
    assert_close(whole(spread.state_dict(), keep=True)["backbone.shift"], before["backbone.shift"] + 1)


def test_a_parameter_without_dimensions_is_refused(mesh):
    task = Classification.example(Three())
    task.head.temperature = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ConfigError, match=r"trainer.strategy: fsdp2 cannot spread Three: .*scalar"):
        shard(task, task.backbone, mesh)


REFUSED = {
    "SyncBatchNorm on a CPU": (
        "--trainer.sync_batchnorm=true",
        "trainer.sync_batchnorm: SyncBatchNorm runs on GPUs only",
    ),
    "tensor parallelism": (
        "--trainer.strategy={class_path: ModelParallelStrategy, init_args: {tensor_parallel_size: 2}}",
        "tensor_parallel_size: networks are spread by FSDP2 alone",
    ),
    "fewer shards than processes": (
        "--trainer.strategy={class_path: ModelParallelStrategy, init_args: {data_parallel_size: 3}}",
        "data_parallel_size: the network is spread over all 2 processes, not over 3",
    ),
    "machines that do not agree": (
        "--trainer.num_nodes=2",
        "trainer.num_nodes: 2 machines must agree on the run's folder",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_processes_cannot_do_is_refused_at_the_door(case, capsys):
    option, message = REFUSED[case]
    write_image_folder(Path("set"))
    Path("x.yaml").write_text(EXPERIMENT)
    options = ["--trust", "tests", "--trainer.devices=2", "--trainer.strategy=ddp", option]
    assert main(["fit", "--config", "x.yaml", *options]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs/x").exists()
