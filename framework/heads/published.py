"""DINOv2's published dense heads: from the names in Meta's files to ours."""

import re
from dataclasses import dataclass
from os import PathLike

from torch import Tensor, nn

from framework.errors import WeightsError
from framework.weights import load_strictly, read_weights

PREFIX = "decode_head."  # of the head in a checkpoint of mmcv, which may hold a backbone, and losses, beside it
LOSSES = ("loss_decode.",)


@dataclass(frozen=True)
class Size:
    """A width that a file and a head may differ in.

    Args:
        parameter: Our name of a parameter that has it.
        dimension: Which of its dimensions.
        meaning: What it counts.
        remedy: What to set where they differ.
    """

    parameter: str
    dimension: int
    meaning: str
    remedy: str


@dataclass(frozen=True)
class Published:
    """A kind of head that Meta publishes.

    Args:
        purpose: What its files are for.
        marker: A parameter that no other kind has, by Meta's name.
        renames: Patterns of Meta's names, and ours.
        sizes: Widths that files differ in.
    """

    purpose: str
    marker: str
    renames: tuple[tuple[str, str], ...]
    sizes: tuple[Size, ...]


VARIANT = "take the file that was made for this backbone's variant"
HEADS = {
    "LinearHead": Published(
        "segmentation by a linear head",
        "conv_seg.weight",
        ((r"^bn\.", "norm."), (r"^conv_seg\.", "classify.")),
        (
            Size(
                "classify.weight",
                1,
                "channels read",
                f"set model.head.layers (Meta's linear heads read 1 level, its ms heads 4), or {VARIANT}",
            ),
            Size(
                "classify.weight",
                0,
                "classes",
                "use data of the classes that the file was trained for (ADE20K has 150, PASCAL VOC 21)",
            ),
        ),
    ),
    "LinearDepth": Published(
        "depth by a linear head",
        "conv_depth.weight",
        ((r"^conv_depth\.", "project."),),
        (
            Size(
                "project.weight",
                1,
                "channels read",
                f"set model.head.layers (Meta's linear heads read 1 level, its linear4 heads 4), or {VARIANT}",
            ),
            Size("project.weight", 0, "values at each place", "set model.output to Bins of as many (Meta's have 256)"),
        ),
    ),
    "DINOv2DPT": Published(
        "depth by a DPT head",
        "conv_depth.head.0.weight",
        (
            (r"^reassemble_blocks\.readout_projects\.(\d)\.0\.", r"readouts.\1.project."),
            (r"^reassemble_blocks\.projects\.(\d)\.conv\.", r"narrow.\1."),
            (r"^reassemble_blocks\.resize_layers\.", "rescale."),
            (r"^convs\.(\d)\.conv\.", r"reduce.\1."),
            (r"^fusion_blocks\.(\d)\.res_conv_unit1\.conv1\.conv\.", r"fusions.\1.skip.residual.1."),
            (r"^fusion_blocks\.(\d)\.res_conv_unit1\.conv2\.conv\.", r"fusions.\1.skip.residual.3."),
            (r"^fusion_blocks\.(\d)\.res_conv_unit2\.conv1\.conv\.", r"fusions.\1.unit.residual.1."),
            (r"^fusion_blocks\.(\d)\.res_conv_unit2\.conv2\.conv\.", r"fusions.\1.unit.residual.3."),
            (r"^fusion_blocks\.(\d)\.project\.conv\.", r"fusions.\1.project."),
            (r"^project\.conv\.", "mix.0."),
            (r"^conv_depth\.head\.", "last."),
        ),
        (
            Size("narrow.0.weight", 1, "channels read", VARIANT),
            Size("mix.0.weight", 0, "channels of fusion", "set model.head.channels (Meta's have 256)"),
            Size(
                "last.4.weight",
                0,
                "values at each place",
                "set model.output to one of as many (Meta's have 1: LinearRegression with activation: relu)",
            ),
        ),
    ),
}


def load_head(head: nn.Module, kind: str, path: str | PathLike[str]) -> None:
    """Load one of Meta's files, or one in our own names, into a head, all or nothing.

    Args:
        head: Head to fill.
        kind: Which of `HEADS` it is.
        path: The file: a checkpoint of mmcv, or a state dict alone.

    Raises:
        WeightsError: The file cannot be read, is of another kind of head, or does not fit.
    """
    state = read_weights(path)
    if any(name.startswith(PREFIX) for name in state):
        state = {name.removeprefix(PREFIX): x for name, x in state.items() if name.startswith(PREFIX)}
    state = {name: x for name, x in state.items() if not name.startswith(LOSSES)}
    _check_kind(state, kind, path)
    for pattern, name in HEADS[kind].renames:
        state = {re.sub(pattern, name, key): x for key, x in state.items()}
    _check_widths(head, state, kind, path)
    load_strictly(head, state, path)


def _check_kind(state: dict[str, Tensor], kind: str, path: str | PathLike[str]) -> None:
    """Refuse a file that is known to be of another kind of head."""
    for other, published in HEADS.items():
        if published.marker in state and other != kind:
            raise WeightsError(
                f"{path} is for {published.purpose}, not for {kind}, which does {HEADS[kind].purpose}: set "
                f"model.head to {other}, or take another file"
            )


def _check_widths(head: nn.Module, state: dict[str, Tensor], kind: str, path: str | PathLike[str]) -> None:
    """Say what to set where a head of the same kind is of another width."""
    own = head.state_dict()
    problems = []
    for size in HEADS[kind].sizes:
        theirs, ours = state.get(size.parameter), own[size.parameter]
        if theirs is None or theirs.ndim != ours.ndim:
            continue
        found, wanted = theirs.shape[size.dimension], ours.shape[size.dimension]
        if found != wanted:
            problems.append(f"  {found} {size.meaning}, and this head has {wanted}: {size.remedy}")
    if problems:
        raise WeightsError(f"{path} ({HEADS[kind].purpose}) does not fit, nothing was loaded:\n" + "\n".join(problems))
