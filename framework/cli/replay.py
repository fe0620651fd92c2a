"""`framework replay`: run a training step again whose loss was not finite."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.cli.arguments import CommandParser

if TYPE_CHECKING:
    from framework.run.replay import Culprit, Findings

SHOWN = 8  # parameters that are named
INDENT = " " * 12
EPILOG = """A run that stops because its loss or its gradients are not finite keeps the step in RUN/nonfinite: the batch
as the network saw it, the weights before the step, and the experiment. No image is read, but the data set must be there
for its classes.

example: framework replay runs/unet_seg/ID/nonfinite/step_000123.pt"""


def run(arguments: Sequence[str]) -> int:
    """Replay one step; returns the exit code."""
    parser = CommandParser(
        prog="framework replay",
        description="Run a training step again, and print where it stops being finite.",
        epilog=EPILOG,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the step: RUN/nonfinite/step_*.pt")
    parser.add_plugin_options()
    parser.add_argument(
        "--trust", metavar="MODULE", action="append", default=[], help="import classes from one more module"
    )
    options = parser.parse_known(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported; see docs/configuration.md
    import torch

    from framework.cli.check_config import build_task
    from framework.run.bad_step import read_step
    from framework.run.replay import replay

    record = read_step(options.file)
    task = build_task(record["config"], str(options.file), options.trust, options.plugins)
    device = record["device"] if record["device"] == "cuda" and torch.cuda.is_available() else "cpu"
    print("\n".join(_lines(record, replay(record, task, device), device)))
    return 0


def _lines(record: dict[str, Any], findings: "Findings", device: str) -> list[str]:
    """Say what was found."""
    lines = [
        f"step        epoch {record['epoch']}, step {record['step']}, batch {record['batch_idx']}, recorded on "
        f"{record['device']}, run again on {device}"
    ]
    if device != record["device"]:
        lines.append(INDENT + "(dropout and such draw other numbers here)")
    lines.append(f"samples     {', '.join(map(str, record['batch'].get('id', ['unknown'])))}")
    if findings.weights:
        lines.append(f"weights     not finite before the step: {_some(findings.weights)}")
    lines.append(f"loss        {findings.loss}")
    lines += _culprit(findings.culprit)
    bad = findings.gradients
    found = f"not finite in {len(bad)} of {findings.trained} parameters: {_some(bad)}" if bad else "finite"
    return [*lines, f"gradients   {found}"]


def _culprit(culprit: "Culprit | None") -> list[str]:
    """Say which module was the first."""
    if culprit is None:
        return ["outputs     of every module are finite"]
    known = culprit.low is not None
    span = f"its input ranges from {culprit.low:.4g} to {culprit.high:.4g}" if known else "its input is not finite"
    lines = [f"outputs     not finite first in {culprit.name}: {culprit.bad} of {culprit.size} values", INDENT + span]
    if culprit.bad_input:
        broken = f"{culprit.bad_input} values of it are not finite; they came about in {culprit.around}"
        lines.append(INDENT + broken)
    return lines


def _some(names: list[str]) -> str:
    return ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])])
