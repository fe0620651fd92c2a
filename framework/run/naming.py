"""What a run is called when nobody says: what restarts it must find it again, and its processes must agree."""

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from uuid import UUID

from framework.errors import ConfigError


def launcher_id(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the identity that a launcher gives to a job and keeps when it restarts it; None if none does.

    Under SLURM that is the job, or the task of an array; under torchrun the id of its rendezvous, if one was chosen.

    Raises:
        ConfigError: Several nodes take part, and nothing tells them which run it is.
    """
    if "SLURM_JOB_ID" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        if "SLURM_ARRAY_JOB_ID" in environment:
            return f"slurm-{environment['SLURM_ARRAY_JOB_ID']}_{environment.get('SLURM_ARRAY_TASK_ID', '0')}"
        return f"slurm-{environment['SLURM_JOB_ID']}"
    rendezvous = environment.get("TORCHELASTIC_RUN_ID", "none")
    if rendezvous != "none" and not _is_random(rendezvous):
        return "".join("-" if character in "/\\\0" else character for character in rendezvous)
    processes = environment.get("WORLD_SIZE", "1")
    if int(processes) > int(environment.get("LOCAL_WORLD_SIZE", processes)):
        raise ConfigError(
            "run.id: several nodes must agree on it: give the same --run.id to all, or torchrun a --rdzv-id"
        )
    return None


def start_id(environment: Mapping[str, str] = os.environ) -> str:
    """Return the time of the start in milliseconds; for a process that torchrun started, when torchrun started."""
    start = (_process_start(os.getppid()) if "TORCHELASTIC_RUN_ID" in environment else None) or datetime.now()
    return start.strftime("%Y%m%d-%H%M%S-%f")[:-3]


def _is_random(rendezvous: str) -> bool:
    """Tell whether torchrun made the id up, as --standalone does."""
    try:
        return str(UUID(rendezvous)) == rendezvous
    except ValueError:
        return False


def _process_start(pid: int) -> datetime | None:
    """Return when a process started, as Linux knows it (proc_pid_stat(5), field 22)."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return datetime.fromtimestamp(int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK"))
