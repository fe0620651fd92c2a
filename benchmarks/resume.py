"""Whether a killed run goes on as if nothing had happened: `kill -9`, the same command again, every bit compared.

    python benchmarks/resume.py

Each task trains once unbroken. Then it trains again and again, is killed at moments drawn from `--seed` (within an
epoch, where layers are unfrozen, while a checkpoint is written, while it validates), and is started again with the same
command until it ends. Everything in `last.ckpt` and `best.ckpt` (weights, their average, the optimizer's state, where
the loaders stand), `metrics.csv` and `metrics.json` have to be those of the unbroken run. Images grow from stage to
stage and are mixed (classification), put together and blended (detection), gradients are accumulated (segmentation,
detection), layers are unfrozen, weights averaged, and two loader processes read.

SIGKILL goes to the whole process group, loader processes included. Importing torch takes ten seconds, so that a run
begins as a fork of this process, which has imported everything and trained nothing; a few, `--fresh`, are new processes
of the command line, as a user's are. All compute with one thread: sums depend on how they are split.
"""

import argparse
import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

os.environ.update(OMP_NUM_THREADS="1", WANDB_MODE="offline", HF_HUB_OFFLINE="1")

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

import plugins.timm  # noqa: F401  # imported once, here, and not after every fork
from framework.cli.experiment import ExperimentCLI
from framework.cli.main import main as framework

RUN = Path("runs/experiment/killed")
FIT = ["fit", "--config", "experiment.yaml", "--run.id", RUN.name]
KINDS = ("step", "boundary", "write", "validation", "evaluation")
"""What a run is doing when it is killed: a training step; the first one in which more layers are trained; writing a
checkpoint; validating; validating and testing the best checkpoint, when training is done."""
WHOLE = {"last.ckpt", "previous.ckpt", "best.ckpt"}
LONGEST = 300.0  # seconds that one start may take

SHARED = """
seed_everything: 5
run: {checkpoint_steps: 2}
trainer:
  accelerator: cpu
  max_epochs: 4
  num_sanity_val_steps: 0
  enable_progress_bar: false
"""
CLASSIFICATION = """
model:
  class_path: Classification
  init_args:
    backbone: {class_path: Timm, init_args: {name: test_resnet, drop_path: 0.1}}
    head: {class_path: MLPClassifier, init_args: {hidden: 16, dropout: 0.2}}
    optimizer: {class_path: AdamW, init_args: {lr: 0.01}}
data:
  class_path: ImageFolder
  init_args:
    root: ../photos
    batch_size: 4
    num_workers: 2
    progressive: {class_path: Progressive, init_args: {image_size: [24, 32], magnitude: [5, 9], mixup: [0.2, 0.5]}}
trainer:
  callbacks+:
    - {class_path: EMA, init_args: {decay: 0.8}}
    - {class_path: ProgressiveUnfreezing, init_args: {schedule: {0: head, 1: 1, 2: all}}}
"""
SEGMENTATION = """
model:
  class_path: Segmentation
  init_args:
    backbone: {class_path: Timm, init_args: {name: test_resnet, drop_path: 0.1}}
    head: LinearHead
    optimizer: {class_path: AdamW, init_args: {lr: 0.01}}
data:
  class_path: SampleCells
  init_args: {batch_size: 2, num_workers: 2, repeats: 3, resize: 96, crop_size: 48}
trainer:
  accumulate_grad_batches: 2
  val_check_interval: 0.5
  callbacks+:
    - {class_path: EMA, init_args: {decay: 0.8}}
    - {class_path: ProgressiveUnfreezing, init_args: {schedule: {0: head, 0.3: 1, 0.6: all}, warmup: 0.1}}
"""
DETECTION = """
model:
  class_path: Detection
  init_args:
    backbone: {class_path: Timm, init_args: {name: test_resnet, drop_path: 0.1}}
    head: {class_path: FCOS, init_args: {channels: 64, convolutions: 1}}
    optimizer: {class_path: AdamW, init_args: {lr: 0.005}}
data:
  class_path: SyntheticScenesDetection
  init_args:
    {train: 12, val: 5, test: 3, size: [64, 80], letterbox: 64, batch_size: 2, num_workers: 2, mosaic: 0.5, mixup: 0.5}
trainer:
  accumulate_grad_batches: 2
  callbacks+:
    - {class_path: EMA, init_args: {decay: 0.8}}
    - {class_path: ProgressiveUnfreezing, init_args: {schedule: {0: head, 1: 1, 2: all}}}
"""
DEPTH = """
model:
  class_path: Depth
  init_args:
    backbone: {class_path: Timm, init_args: {name: test_resnet, drop_path: 0.1}}
    head: {class_path: LinearDepth, init_args: {layers: 2, upsample: 1}}
    output: {class_path: Bins, init_args: {count: 16}}
    loss: {class_path: SILog, init_args: {warmup: 3}}
    optimizer: {class_path: AdamW, init_args: {lr: 0.005}}
data:
  class_path: SyntheticScenesDepth
  init_args: {train: 12, val: 5, test: 3, size: [64, 80], crop_size: 48, crop_scale: [0.8, 1.2], rotation: 2.5,
    divide_depth: true, batch_size: 2, num_workers: 2}
trainer:
  accumulate_grad_batches: 2
  callbacks+:
    - {class_path: EMA, init_args: {decay: 0.8}}
    - {class_path: ProgressiveUnfreezing, init_args: {schedule: {0: head, 1: 1, 2: all}}}
"""
EXPERIMENTS = {
    "classification": CLASSIFICATION,
    "segmentation": SEGMENTATION,
    "detection": DETECTION,
    "depth": DEPTH,
}


@dataclass(frozen=True)
class Kill:
    """When to kill a run.

    Args:
        kind: What it is doing: see KINDS.
        after: How often it does that before.
        delay: Seconds to wait then.
    """

    kind: str
    after: int = 0
    delay: float = 0.0


class Ending(NamedTuple):
    """How a start of the command ended.

    Args:
        code: The exit code; None if it was killed.
        counts: How often it began to do each of KINDS.
    """

    code: int | None
    counts: Counter[str]


class Reporter(Callback):
    """Writes a line into a pipe whenever something begins in which a run may be killed."""

    def __init__(self, pipe: int) -> None:
        self.pipe, self.trained = pipe, -1

    def _say(self, kind: str) -> None:
        os.write(self.pipe, f"{kind}\n".encode())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Tell of a step, and of the first one in which more is trained than before."""
        before, self.trained = self.trained, sum(parameter.requires_grad for parameter in pl_module.parameters())
        self._say("step")
        if before not in (-1, self.trained):
            self._say("boundary")

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Tell of validation within training, and of the evaluation after it."""
        self._say("validation" if trainer.state.fn == "fit" else "evaluation")

    def on_save_checkpoint(self, *_: Any) -> None:
        """Tell that a checkpoint is about to be written."""
        self._say("write")


# Starting, killing and starting again.


def fork(folder: Path, work: Callable[[int], int]) -> tuple[int, int]:
    """Start work in a process group of its own, in a folder, its output in `log.txt`.

    Args:
        folder: The working folder.
        work: Is given the end of a pipe to write into, and returns the exit code.

    Returns:
        The process, and the end of the pipe to read from.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    code = 1
    try:
        os.setsid()
        os.close(reading)
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        code = work(writing)
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def fit(pipe: int) -> int:
    """Run `fit` with a reporter, which no config and no checkpoint knows of."""
    instantiate = ExperimentCLI.instantiate_trainer

    def instantiate_with_reporter(self: ExperimentCLI, **options: Any) -> Trainer:
        trainer = instantiate(self, **options)
        trainer.callbacks.insert(-1, Reporter(pipe))  # type: ignore[attr-defined]  # checkpoints come last
        return trainer

    ExperimentCLI.instantiate_trainer = instantiate_with_reporter  # type: ignore[method-assign]
    return framework(FIT)


def start(folder: Path, kill: Kill | None = None) -> Ending:
    """Start the command in a folder, and kill it when it is time.

    Raises:
        TimeoutError: It does not end.
    """
    known = names(folder) | WHOLE
    process, pipe = fork(folder, fit)
    counts: Counter[str] = Counter()
    deadline = time.monotonic() + LONGEST
    with os.fdopen(pipe, "rb", buffering=0) as reading:
        while (code := ended(process)) is None:
            if time.monotonic() > deadline:
                os.killpg(process, signal.SIGKILL)
                raise TimeoutError(f"{folder}: still running after {LONGEST:.0f} s; see {folder / 'log.txt'}")
            line = reading.readline() if select.select([reading], [], [], 0.01)[0] else b""
            if line:
                counts[line.decode().strip()] += 1
            else:
                time.sleep(0.001)
            if kill is not None and counts[kill.kind] > kill.after:
                await_moment(folder, kill, known)
                os.killpg(process, signal.SIGKILL)
                kill = None
    return Ending(code if code >= 0 else None, counts)


def ended(process: int) -> int | None:
    """Return how a process has ended, negative if by a signal, and end what it left behind; None while it runs."""
    found, status = os.waitpid(process, os.WNOHANG)
    if not found:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status)


def await_moment(folder: Path, kill: Kill, known: set[str]) -> None:
    """Wait for the delay; where a checkpoint is written, from when a file is there that is not known."""
    deadline = time.monotonic() + 1
    while kill.kind == "write" and names(folder) <= known and time.monotonic() < deadline:
        pass
    time.sleep(kill.delay)


def start_fresh(folder: Path, writes: int | None) -> int | None:
    """Start the command as a user does; kill it after so many changes of `last.ckpt`, or never.

    Returns:
        The exit code, or None if it was killed.
    """
    with (folder / "log.txt").open("ab") as log:
        command = [sys.executable, "-m", "framework.cli.main", *FIT]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    seen = {stamp(folder)}
    while process.poll() is None:
        seen.add(stamp(folder))
        if writes is not None and len(seen) > writes:
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.002)
    code = process.wait()
    return code if code >= 0 else None


def stamp(folder: Path) -> int:
    """Return when the last checkpoint was written, in nanoseconds; 0: there is none."""
    try:
        return (folder / RUN / "checkpoints/last.ckpt").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def names(folder: Path) -> set[str]:
    """Return the files in the folder of checkpoints."""
    try:
        return set(os.listdir(folder / RUN / "checkpoints"))
    except FileNotFoundError:
        return set()


# What has to be equal.


def differences(expected: Any, found: Any, place: str = "") -> Iterator[str]:
    """Give the places at which two nested structures differ; tensors differ in type, shape or any bit."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in expected.keys() | found.keys():
            if key not in expected or key not in found:
                yield f"{place}/{key}: only in one"
            else:
                yield from differences(expected[key], found[key], f"{place}/{key}")
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple) and len(expected) == len(found):
        for index, pair in enumerate(zip(expected, found, strict=True)):
            yield from differences(*pair, f"{place}/{index}")
    elif isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor):
        alike = expected.dtype == found.dtype and expected.shape == found.shape
        if not alike or not torch.equal(bits(expected), bits(found)):
            yield f"{place}: other values"
    elif expected != found:
        yield f"{place}: {expected!r:.60}, but {found!r:.60}"


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor: a figure that is NaN in both is equal."""
    return tensor.reshape(-1).contiguous().view(torch.uint8)


def compare(reference: Path, folder: Path) -> list[str]:
    """Return everything in which a run differs from the unbroken one."""
    found = []
    for name in ("last.ckpt", "best.ckpt"):
        expected, got = (torch.load(f / RUN / "checkpoints" / name, weights_only=True) for f in (reference, folder))
        found += [f"{name}{difference}" for difference in differences(expected, got)]
    for name in ("metrics.csv", "metrics.json"):
        expected, got = (
            (f / RUN / name).read_text() if (f / RUN / name).exists() else None for f in (reference, folder)
        )
        found += [f"{name} differs"] if expected != got else []
    return found


# The data and the runs.


def write_photographs(root: Path) -> None:
    """Write a folder of small photographs of two classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 11), ("val", 4), ("test", 3)):
        for label, name in enumerate(("dark", "light")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.normal(110 + 6 * label, 40, (40, 44, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


def prepare(root: Path, task: str, name: str) -> Path:
    """Make a folder with the experiment of a task, in which to train it."""
    folder = root / f"{task}_{name}"
    folder.mkdir(parents=True)
    if not (root / "photos").exists():
        write_photographs(root / "photos")
    shared, own = yaml.safe_load(SHARED), yaml.safe_load(EXPERIMENTS[task])
    experiment = {**shared, **own, "trainer": {**shared["trainer"], **own["trainer"]}}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    return folder


def draw_kills(rng: random.Random, kind: str, counts: Counter[str]) -> list[Kill]:
    """Draw when a run is killed: the first time in the given way, and perhaps again in any other.

    Args:
        rng: To draw from.
        kind: The given way.
        counts: How often an unbroken run does each of KINDS; a start that has less before it runs to its end.
    """
    kinds = [kind, *rng.choices(KINDS, k=rng.choice([0, 1, 1, 2]))]
    afters = [rng.randrange(max(1, counts[kind] // (1 + position))) for position, kind in enumerate(kinds)]
    delays = [rng.choice([0.0, rng.uniform(0, 0.03)]) for _ in kinds]
    return [Kill(*drawn) for drawn in zip(kinds, afters, delays, strict=True)]


def broken_run(folder: Path, kills: Sequence[Kill]) -> Iterator[str]:
    """Train to the end, killed on the way and started again; gives what became of each start.

    Raises:
        RuntimeError: A start failed.
    """
    for kill in [*kills, None]:
        before = names(folder)
        code = start(folder, kill).code
        if code not in (None, 0):
            raise RuntimeError(f"exit code {code}: see {folder / 'log.txt'}")
        if kill is not None:
            half = ", half a file left" if names(folder) - before - WHOLE else ""
            yield f"{kill.kind} {kill.after}{half}" if code is None else "ran to its end"


def fresh_run(folder: Path, writes: Sequence[int]) -> Iterator[str]:
    """Likewise with new processes, killed at changes of the last checkpoint."""
    for count in [*writes, None]:
        code = start_fresh(folder, count)
        if code not in (None, 0):
            raise RuntimeError(f"exit code {code}: see {folder / 'log.txt'}")
        if count is not None:
            yield f"fresh process, checkpoint {count}" if code is None else "ran to its end"


def one_run(root: Path, number: int, counts: dict[str, Counter[str]], options: argparse.Namespace) -> bool:
    """Train once with kills, print what came of it, and return whether it equals the unbroken run of its task."""
    rng = random.Random(f"{options.seed} {number}")
    task, began = options.tasks[number % len(options.tasks)], time.monotonic()
    folder = prepare(root, task, f"{number:02d}")
    if number < options.runs - options.fresh:
        kind = KINDS[number // len(options.tasks) % len(KINDS)]
        broken = broken_run(folder, draw_kills(rng, kind, counts[task]))
    else:
        broken = fresh_run(folder, [rng.randint(1, 6)])
    story: list[str] = []
    try:
        for part in broken:
            story.append(part)
        differing = compare(root / f"{task}_unbroken", folder)
    except (RuntimeError, TimeoutError, OSError) as error:
        differing = [str(error)]
    said = "bit-equal" if not differing else f"DIFFERS: {'; '.join(differing[:5])}"
    print(f"{number:3} {task:14} killed in {', '.join(story)}: {said} ({time.monotonic() - began:.1f} s)", flush=True)
    return not differing


def train_unbroken(folder: Path) -> Counter[str]:
    """Train without a kill; returns how often that does each of KINDS."""
    code, counts = start(folder)
    if code != 0:
        sys.exit(f"the unbroken run ended with {code}:\n{(folder / 'log.txt').read_text()}")
    return counts


def main() -> None:
    """Print a line for each run, and how many came back; the exit code is 1 if one did not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--fresh", type=int, default=2, help="of them, in processes that import everything anew")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the runs to do, to see one again")
    parser.add_argument("--tasks", nargs="+", default=[*EXPERIMENTS], choices=[*EXPERIMENTS])
    parser.add_argument("--seed", type=int, default=0, help="of the moments; the same ones to within milliseconds")
    parser.add_argument("--keep", type=Path, help="an empty folder to leave everything in")
    options = parser.parse_args()
    torch.set_num_threads(1)
    numbers = options.only or range(options.runs)
    with tempfile.TemporaryDirectory() as temporary:
        root = (options.keep or Path(temporary)).resolve()
        counts = {task: train_unbroken(prepare(root, task, "unbroken")) for task in options.tasks}
        equal = [one_run(root, number, counts, options) for number in numbers]
    print(f"{sum(equal)} of {len(equal)} came back bit-equal")
    sys.exit(not all(equal))


if __name__ == "__main__":
    main()
