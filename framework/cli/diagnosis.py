"""What `fit` would use on this machine, found out without training or writing anything."""

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from packaging.requirements import Requirement

from framework import __version__
from framework.cli.check_config import CheckedExperiment
from framework.cli.experiment import default_precision
from framework.cli.keys import check_keys
from framework.cli.layers import plugin_files, read_layer
from framework.cli.main import DEFAULTS
from framework.cli.silence import hush
from framework.data.datamodule import default_workers
from framework.errors import ConfigError, UserError
from framework.registry import advertised
from framework.run.processes import check_processes, trainer_strategy
from framework.source import install_words
from framework.tracking.wandb import MODES, find_mode

DISTRIBUTION = "vision-plugin-framework"
NOT_FOR_RUNS = {"dev", "docs", "test"}  # extras that no run needs
LEAST_DISK = 2**30  # bytes; a checkpoint of a large network with its optimizer is about as large
LEAST_SHARED = 256 * 2**20  # bytes; in containers it is 64 MiB, which a few batches fill
PLACED = ("accelerator", "devices", "num_nodes")  # of the trainer: where it runs
THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Args:
        text: What is.
        remedy: What to do about it.
        stops: Whether no run can begin, or go on, because of it.
    """

    text: str
    remedy: str
    stops: bool


@dataclass
class Diagnosis:
    """What was found out.

    Args:
        facts: By section and name: text, or a list of it.
        problems: What is wrong.
    """

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def complain(self, text: str, remedy: str, stops: bool = False) -> None:
        """Note a problem."""
        self.problems.append(Problem(text, remedy, stops))


def diagnose(configs: Sequence[Path], trust: Sequence[str] = (), plugins: Sequence[Path] = ()) -> Diagnosis:
    """Find out what `fit` would use.

    Args:
        configs: Experiments, laid over each other; none: what an experiment without settings of its own would use.
        trust: Modules that they may import beside the usual ones.
        plugins: Local files whose plugins they may use.
    """
    diagnosis = Diagnosis()
    hush()
    diagnosis.facts["versions"] = _versions(diagnosis)
    experiment = _read(diagnosis, configs, trust, plugins)
    diagnosis.facts["machine"] = _machine(diagnosis)
    diagnosis.facts["run"] = _run(diagnosis, experiment)
    diagnosis.facts["logger"] = _logger(diagnosis, experiment.get("trainer", {}).get("logger"))
    diagnosis.facts["plugins"] = _plugins(diagnosis, plugins)
    return diagnosis


def _versions(diagnosis: Diagnosis) -> dict[str, Any]:
    """Compare the installed packages with what our own package asks for."""
    facts = {"framework": __version__, "python": f"{platform.python_version()} ({sys.executable})"}
    try:
        extras = ["", *sorted({*(metadata(DISTRIBUTION).get_all("Provides-Extra") or ())} - NOT_FOR_RUNS)]
        asked = [Requirement(line) for line in requires(DISTRIBUTION) or ()]
    except PackageNotFoundError:
        diagnosis.complain("the package itself is not installed, so that it has no plugins", "pip install -e .", True)
        return facts
    for requirement in asked:
        optional = requirement.marker is not None
        if requirement.marker is not None and not any(requirement.marker.evaluate({"extra": name}) for name in extras):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            if optional:
                words = install_words(DISTRIBUTION, requirement.name)
                facts[requirement.name] = f"not installed{words} (optional)"
            else:
                text = f"{requirement.name} is not installed"
                diagnosis.complain(text, f'pip install "{requirement}"', stops=True)
            continue
        facts[requirement.name] = f"{installed} (wanted: {requirement.specifier or 'any'})"
        if not requirement.specifier.contains(installed, prereleases=True):
            text = f"{requirement.name} {installed} is not {requirement.specifier}"
            diagnosis.complain(text, f'pip install "{requirement.name}{requirement.specifier}"', stops=not optional)
    return facts


def _read(
    diagnosis: Diagnosis, configs: Sequence[Path], trust: Sequence[str], plugins: Sequence[Path]
) -> dict[str, Any]:
    """Return an experiment as `fit` would resolve it; of a wrong one, or of none, the defaults."""
    layers = [read_layer(DEFAULTS)]
    if not configs:
        return layers[0].values
    try:
        layers += [read_layer(file) for file in configs]
        local = [*plugins, *(path for layer in layers for path in plugin_files(layer))]
        check_keys(layers, trust, local)
        options = [part for file in (DEFAULTS, *configs) for part in ("--config", str(file))]
        return CheckedExperiment(configs[-1].stem, layers, local, [], args=["fit", *options]).plain_config()
    except UserError as error:
        diagnosis.complain(f"the experiment is wrong: {error}", "mend it; until then defaults are shown", stops=True)
        return layers[0].values


def _machine(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return cores, threads, GPUs and shared memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts: dict[str, Any] = {
        "system": platform.platform(terse=True),
        "cpu": f"{cores} of {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "gpu": [_gpu(index) for index in range(torch.cuda.device_count())],
    }
    if torch.backends.mps.is_available():
        facts["gpu"].append("Apple GPU (mps)")
    facts |= {name: os.environ.get(name, "not set") for name in THREADS}
    if facts["OMP_WAIT_POLICY"] == "not set":
        facts["OMP_WAIT_POLICY"] = "PASSIVE, by fit"
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > cores:
        text = f"OMP_NUM_THREADS is {threads}, and there are {cores} cores: they will wait for each other"
        diagnosis.complain(text, f"export OMP_NUM_THREADS={cores}")
    if not facts["gpu"] and Path("/dev/nvidiactl").exists():
        text = f"there is an NVIDIA GPU, and torch {torch.__version__} cannot use it"
        diagnosis.complain(text, "install a torch built for its driver's CUDA (see nvidia-smi and pytorch.org)")
    shared = Path("/dev/shm")
    if shared.is_dir():
        usage = shutil.disk_usage(shared)
        facts["shared memory"] = f"{_bytes(usage.free)} free of {_bytes(usage.total)} (/dev/shm)"
        if usage.free < LEAST_SHARED:
            text = f"/dev/shm, in which loader workers hand over batches, has {_bytes(usage.free)} left"
            diagnosis.complain(text, "start the container with --shm-size=8g, or set data.num_workers: 0")
    return facts


def _gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    brain = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
    return f"{properties.name}, {_bytes(free)} free of {_bytes(total)}, {brain}"


def _run(diagnosis: Diagnosis, experiment: dict[str, Any]) -> dict[str, Any]:
    """Return where and how a run would train."""
    config = experiment.get("trainer", {})
    facts: dict[str, Any] = {"launcher": _launcher()}
    world = 1
    try:
        trainer = _trainer(config)
        world = trainer.world_size
        facts |= {
            "device": f"{trainer.num_devices} x {trainer.strategy.root_device.type}"
            + (f" on {trainer.num_nodes} nodes" if trainer.num_nodes > 1 else ""),
            "precision": str(trainer.precision),
            "strategy": _strategy_name(config.get("strategy")) or type(trainer.strategy).__name__,
            "processes": str(world),
        }
        check_processes(trainer, bool(config.get("sync_batchnorm")), is_found_again=True)
        _check_launcher(diagnosis, world)
    except (MisconfigurationException, ImportError, RuntimeError, ValueError, UserError) as error:
        reason = " ".join(str(error).split())[:300]
        remedy = "see trainer.accelerator, devices, num_nodes, strategy and precision"
        diagnosis.complain(f"the trainer that is asked for cannot be had here: {reason}", remedy, stops=True)
    workers = (experiment.get("data") or {}).get("init_args", {}).get("num_workers")
    facts["loader workers"] = f"{workers} (data.num_workers)" if workers is not None else str(default_workers(world))
    facts["folder"] = _disk(diagnosis, Path((experiment.get("run") or {}).get("root") or "runs"))
    return facts


def _trainer(config: dict[str, Any]) -> Trainer:
    """Build a trainer as `fit` would, which runs nothing."""
    strategy = config.get("strategy")
    configured, alias = (strategy, strategy) if isinstance(strategy, str) else (SimpleNamespace(**strategy or {}), None)
    options: dict[str, Any] = {key: config[key] for key in PLACED if config.get(key) is not None}
    options["precision"] = config.get("precision") or default_precision(config.get("accelerator") or "auto")
    for off in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"):
        options[off] = False
    return Trainer(**options, **trainer_strategy(configured, alias))


def _strategy_name(strategy: Any) -> str:
    return str(strategy["class_path"]).rpartition(".")[2] if isinstance(strategy, dict) else ""


def _launcher() -> str:
    """Say who started this process, or will start those of a run."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"torchrun, {os.environ.get('WORLD_SIZE', '?')} processes"
    if "SLURM_JOB_ID" in os.environ:
        job, tasks = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_NTASKS", "?")
        return f"SLURM job {job}, {tasks} tasks on {os.environ.get('SLURM_NNODES', '?')} nodes"
    return "none: fit starts its processes itself"


def _check_launcher(diagnosis: Diagnosis, world: int) -> None:
    """Compare the processes that a launcher starts with those that a run takes."""
    started = os.environ.get("WORLD_SIZE", "") if "TORCHELASTIC_RUN_ID" in os.environ else ""
    if "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        started = started or os.environ.get("SLURM_NTASKS", "")
    if started.isdigit() and int(started) != world:
        diagnosis.complain(
            f"{started} processes are started, and the experiment is for {world}: they would wait for ever",
            "make trainer.devices times trainer.num_nodes what the launcher starts",
            stops=True,
        )


def _disk(diagnosis: Diagnosis, root: Path) -> str:
    """Say where runs go and how much room there is."""
    place = root.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        diagnosis.complain(f"run.root: {place} cannot be written to", "give another --run.root", stops=True)
        return str(root)
    free = shutil.disk_usage(place).free
    if free < LEAST_DISK:
        text = f"run.root: {_bytes(free)} are free at {place}, too few for the checkpoints of most networks"
        diagnosis.complain(text, "make room, or give another --run.root")
    return f"{root}, {_bytes(free)} free"


def _logger(diagnosis: Diagnosis, logger: Any) -> dict[str, Any]:
    """Say which loggers an experiment has, and whether Weights & Biases would be online."""
    given = logger if isinstance(logger, list) else [logger] if isinstance(logger, dict) else []
    names = [str(one["class_path"]).rpartition(".")[2] for one in given]
    facts: dict[str, Any] = {"configured": ", ".join(names) or "none (trainer.logger: WandB logs to W&B)"}
    settings = next((one.get("init_args", {}) for one, name in zip(given, names, strict=True) if name == "WandB"), None)
    asked = os.environ.get("WANDB_MODE") or (settings or {}).get("mode") or "auto"
    if asked not in (*MODES, "auto"):
        text = f"the environment variable WANDB_MODE is '{asked}'"
        diagnosis.complain(text, f"unset it, or set it to one of {', '.join(MODES)}", stops=settings is not None)
        return facts
    mode, why, _ = find_mode(MODES.get(asked, asked), ask=settings is not None)
    return facts | {"W&B": f"{mode} ({why})"}


def _plugins(diagnosis: Diagnosis, plugins: Sequence[Path]) -> dict[str, Any]:
    """Count the plugins, and look for broken ones without importing any."""
    try:
        adverts = advertised(plugins)
    except ConfigError as error:
        diagnosis.complain(str(error), "see --plugins", stops=True)
        adverts = advertised()
    counts: dict[str, Any] = {}
    for advert in adverts.values():
        counts[advert.kind] = counts.get(advert.kind, 0) + 1
        problem = advert.problem()
        if problem:
            text = f"the plugin {advert.name} of {advert.package} is broken: {problem}"
            diagnosis.complain(text, "mend, upgrade or uninstall its package; experiments without it run")
    return {kind: str(count) for kind, count in counts.items()}


def _bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
